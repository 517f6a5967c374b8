"""Membership inference on an overfitted model with and without a policy; run with -s to read the figures.

What a transform promises is asserted, and the floor that attacks on labels set stands beside every figure.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import hardening_onnx
import numpy as np
import onnxruntime
import pytest

from hardening.audit.extraction import Query, Training, one_hot, train
from hardening.audit.membership import Membership, Records, infer
from hardening.config import Output, Policy
from hardening.transforms import DynaNoise, LabelOnly, MemGuard, ReverseSigmoid, Types
from tests.attacks.models import asking, exported
from tests.keys import fixed_key

BUDGETS = (0.1, 0.3, 0.5, 0.7, 1.0)
TIERS: dict[str, tuple[Any, ...]] = {
    **{f"memguard {l1}": (MemGuard(l1=l1),) for l1 in BUDGETS},
    "sure 0.5": (MemGuard(l1=0.5, confidence=1.0),),
    "dynanoise": (DynaNoise(variance=0.3, gain=2.0, t=10.0),),
    "loud": (DynaNoise(variance=30.0, gain=2.0, t=10.0),),
    "reverse": (ReverseSigmoid(beta=0.01, gamma=0.2),),
    "rounded": (Types(n=10),),
    "label": (LabelOnly(),),
}
#: Attacks that do not look at whether the label is right.
UNAWARE = ("confidence", "entropy")


class Victim(NamedTuple):
    queries: dict[str, Query]
    members: Records
    others: Records


def check_ins(seed: int, count: int) -> Records:
    """Like the Location data of Shokri et al. 2017: 446 places where somebody has or has not been, 30 kinds of user."""
    habits = np.random.default_rng(0).random((30, 446)) < 0.25
    rng = np.random.default_rng(seed)
    kinds = rng.integers(0, 30, count)
    return Records((habits[kinds] ^ (rng.random((count, 446)) < 0.36)).astype(np.float32), kinds)


def moved(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A twelfth of the places changed."""
    return np.abs(x - (rng.random(x.shape) < 1 / 12)).astype(np.float32)


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Victim:
    members, others = check_ins(1, 1000), check_ins(2, 1000)
    how = Training((256,), steps=1500, rate=2e-3, decay=0.0)
    student = train(members.inputs, one_hot(np.eye(30)[members.labels]), np.random.default_rng(3), how)
    bare = onnxruntime.InferenceSession(exported(student), providers=["CPUExecutionProvider"])
    queries = {"undefended": asking(bare)}
    root = tmp_path_factory.mktemp("policies")
    for tier, steps in TIERS.items():
        policy = Policy({"p": Output("simplex", {tier: steps})}, fixed_key(root), root=root)
        queries[tier] = asking(hardening_onnx.wrap(bare, policy), client="a snoop")
    return Victim(queries, members, others)


@pytest.fixture(scope="module")
def found(victim: Victim) -> dict[str, Membership]:
    print("\n                 area under the ROC curve, either way around; members found at 1 % false alarms")
    out = {}
    for tier, query in victim.queries.items():
        out[tier] = infer(query, victim.members, victim.others, rng=np.random.default_rng(5), disturb=moved)
        for kind, attacks in (
            ("scores", out[tier].scores),
            ("labels alone", out[tier].labels),
            ("many scores", {"near": out[tier].near}),
        ):
            for name, s in attacks.items():
                low, high = s.interval
                least, most = s.tpr_interval
                print(
                    f"  {tier:13} {kind:12} {name:17} {s.auc:.3f} [{low:.3f}, {high:.3f}]"
                    f"  {s.tpr:.3f} [{least:.3f}, {most:.3f}]  accuracy {s.accuracy:.3f}"
                )
    return out


def test_the_attacks_work(found: dict[str, Membership]) -> None:
    bare = found["undefended"]
    assert min(bare.scores[name].interval[0] for name in bare.scores if name != "rule") > 0.9
    assert bare.floor > bare.labels["gap"].auc > 0.5


def test_labels_stay_and_so_does_what_they_give_away(victim: Victim, found: dict[str, Membership]) -> None:
    """The floor: no tier that keeps the labels changes anything about attacks on labels, nor claims to."""
    for part in (victim.members, victim.others):
        labels = victim.queries["undefended"](part.inputs).argmax(axis=1)
        for tier in TIERS:
            assert np.array_equal(victim.queries[tier](part.inputs).argmax(axis=1), labels)
            assert found[tier].labels == found["undefended"].labels


def test_memguard_holds_its_budget(victim: Victim) -> None:
    for part in (victim.members, victim.others):
        clean = victim.queries["undefended"](part.inputs).astype(np.float64)
        for l1 in BUDGETS:
            moved_by = np.abs(victim.queries[f"memguard {l1}"](part.inputs) - clean).sum(axis=1)
            assert moved_by.max() <= l1 + 1e-5


def test_memguard_hides_members_the_more_the_larger_its_budget(found: dict[str, Membership]) -> None:
    curve = [found["undefended"], *(found[f"memguard {l1}"] for l1 in BUDGETS)]
    best = [result.scores[result.best].auc for result in curve]
    print("\n  best attack on scores, l1 = 0, 0.1, 0.3, 0.5, 0.7, 1:", *(f"{area:.3f}" for area in best))
    assert all(after < before for before, after in pairwise(best))
    assert best[1] < 0.8
    # At the largest budget scores say nothing, beyond what whether the label is right says by itself.
    last = curve[-1]
    assert all(last.scores[name].auc <= 0.52 for name in UNAWARE)
    assert last.scores[last.best].interval[0] <= last.labels["gap"].auc
    assert last.scores[last.best].auc < last.floor
    assert max(last.scores[name].tpr for name in UNAWARE) < 0.03


def test_many_questions_near_a_record_get_around_it(found: dict[str, Membership]) -> None:
    """Honestly: it protects single answers. Only fewer questions help against many."""
    assert found["memguard 0.5"].near.auc > found["memguard 0.5"].floor
    assert found["memguard 1.0"].near.interval[1] > found["memguard 1.0"].floor
    assert found["undefended"].near.auc > found["memguard 0.5"].near.auc


def test_a_sure_profile_costs_members_nothing_and_hides_less(victim: Victim, found: dict[str, Membership]) -> None:
    clean = victim.queries["undefended"](victim.members.inputs)
    sure, half = (victim.queries[tier](victim.members.inputs) for tier in ("sure 0.5", "memguard 0.5"))
    assert np.median(np.abs(sure - clean).sum(axis=1)) < 0.01 < np.median(np.abs(half - clean).sum(axis=1))
    best = {tier: result.scores[result.best].auc for tier, result in found.items()}
    assert best["memguard 0.5"] < best["sure 0.5"] < best["undefended"]


def test_dynanoise_is_the_same_when_asked_again(victim: Victim, found: dict[str, Membership]) -> None:
    answers = [victim.queries["loud"](victim.others.inputs[:50]) for _ in range(8)]
    assert all(np.array_equal(answer, answers[0]) for answer in answers)
    best = {tier: result.scores[result.best].auc for tier, result in found.items()}
    assert best["loud"] < best["dynanoise"]
