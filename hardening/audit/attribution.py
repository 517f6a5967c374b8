"""Whose answers was a copy learnt from? Canaries, found again by the key, and a p-value for each client.

The question is put to the suspected copy: does it give the labels that one client alone was told? A canary's cell and
class are drawn by the key, so a model that was not learnt from this client's answers hits canaries no more often than
cells that are none (Fisher's exact test; exact whatever the model is, and whatever it was learnt from). Where only
canaries were asked, the class is one of a few that the key chose evenly (binomial test). Either way the questions must
have been chosen without regard to the canaries: take all that a client asked, or a random part.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardening.answer import Answer, Programs
from hardening.config import Policy
from hardening.errors import ConfigError, ReleaseError
from hardening.kernels import layout
from hardening.keys import load_key
from hardening.transforms import Canary, Transform
from hardening.transforms.canary import RANKS, cells
from hardening.types import OutputSpace


@dataclass(frozen=True, eq=False)
class Canaries:
    """The cells that a client's questions lie in; of each, the first question stands for all.

    Attributes:
        question: int64 ``(cells,)``, which of the questions that is.
        changed: bool ``(cells,)``: the cell is a canary, the client was told `label` instead of the model's own.
        label: int64 ``(cells,)``: the class that a canary's answer names, or would name if the cell were one.
        classes: how many classes there are.
    """

    question: NDArray[np.int64]
    changed: NDArray[np.bool_]
    label: NDArray[np.int64]
    classes: int


@dataclass(frozen=True)
class Attribution:
    """How well a suspected copy knows what one client was told.

    Attributes:
        client: who was told.
        canaries, hits: cells that were changed for him, and how many of them the copy labels as he was told.
        controls, control_hits: his other cells, and how many the copy labels as a canary there would have been.
        p_value: chance that a model which was not learnt from his answers does as well, at most.
        corrected: the same with as many clients under suspicion as there were (Bonferroni).
    """

    client: str
    canaries: int
    hits: int
    controls: int
    control_hits: int
    p_value: float
    corrected: float


def canaries_of(
    policy: Policy,
    model_digest: str,
    client: str,
    scores: NDArray[Any],
    *,
    output: str | None = None,
    tier: str | None = None,
    inputs: Mapping[str, NDArray[Any]] | None = None,
) -> Canaries:
    """The canaries among a client's questions, by the policy's key.

    Args:
        policy, model_digest: as the guard has them.
        client: the name that the client was served under.
        scores: float ``(questions, classes)``, the model's own scores for what he asked.
        output, tier: which of the policy's; by default the only output with a canary, and the default tier.
        inputs: what was asked, if something before the canary is keyed on it.

    Raises ConfigError if there is no canary or the key cannot be had, ReleaseError for scores outside the space.
    """
    tier = policy.tiers[0] if tier is None else tier
    if tier not in policy.tiers:
        raise ConfigError("outputs", f"unknown tier {tier!r}; known: {', '.join(policy.tiers)}")
    if np.ndim(scores) != 2:
        raise ReleaseError(output or "", None, f"has shape {np.shape(scores)}; expected (questions, classes)")
    name = _output_with_canary(policy, tier) if output is None else output
    rules = policy.outputs[name]
    transforms = rules.tiers.get(tier, ())
    before = tuple(itertools.takewhile(lambda t: not isinstance(t, Canary), transforms))
    canary = next((t for t in transforms if isinstance(t, Canary)), None)
    if canary is None or policy.key is None:
        raise ConfigError(f"outputs.{name}.tiers.{tier}", "has no canary")
    key = load_key(policy.key, policy.root)

    def released(*steps: Transform) -> NDArray[np.float64]:
        only = dataclasses.replace(
            rules, tiers={tier: (*before, *steps)}, dense=rules.space == "logits"
        )  # nothing is released
        programs = Programs(Policy({name: only}, policy.key, root=policy.root), key, model_digest)  # asks nobody
        answer = Answer(programs, tier, {name: np.array(scores, np.float64)}, inputs, len(scores))
        answer.prepare(client)
        ((_, task, _),) = answer.entries
        assert task is not None  # canaries are for scores
        status = task.run()
        if status:
            raise ReleaseError(name, task.row_of(status), layout.PROBLEMS[status % 8])
        return np.asarray(answer.outputs[name], np.float64)

    clean = released()
    own, told = clean.argmax(axis=1), released(canary).argmax(axis=1)
    label = released(dataclasses.replace(canary, rate=1.0)).argmax(axis=1)
    open_to_change = np.flatnonzero(label != own)  # others have two classes ahead that are equal
    named = cells(clean[open_to_change], own[open_to_change], OutputSpace(rules.space))
    _, first = np.unique(named, axis=0, return_index=True)
    question = np.sort(open_to_change[first])
    return Canaries(question, (told != own)[question], label[question], clean.shape[1])


def _output_with_canary(policy: Policy, tier: str) -> str:
    found = [n for n, o in policy.outputs.items() if any(isinstance(t, Canary) for t in o.tiers.get(tier, ()))]
    if len(found) != 1:
        raise ConfigError("outputs", f"{len(found)} outputs have a canary in tier {tier!r}: say which one is meant")
    return found[0]


def chance_of_hits(hits: int, canaries: int, control_hits: int, controls: int, classes: int) -> float:
    """Chance that a model which knows nothing of the canaries hits as many; 1 where nothing was hit.

    With controls, the upper tail of the hypergeometric law: how many of all hits fall on canaries. Without, that of the
    binomial law, the label being one of up to three others: with two classes that says nothing.
    """
    if not hits:
        return 1.0
    if controls:
        all_hits, everything = hits + control_hits, canaries + controls
        most = min(canaries, all_hits)
        terms = [
            _log_choose(canaries, i) + _log_choose(controls, all_hits - i)
            for i in range(hits, most + 1)
            if all_hits - i <= controls
        ]
        return _sum_of_exponentials(terms, -_log_choose(everything, all_hits))
    chance = 1.0 / (min(RANKS, classes) - 1)
    if chance == 1.0:
        return 1.0
    logs = math.log(chance), math.log1p(-chance)
    terms = [_log_choose(canaries, i) + i * logs[0] + (canaries - i) * logs[1] for i in range(hits, canaries + 1)]
    return _sum_of_exponentials(terms, 0.0)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _sum_of_exponentials(logs: list[float], offset: float) -> float:
    most = max(logs)
    return min(1.0, math.exp(most + offset) * math.fsum(math.exp(x - most) for x in logs))


def attribute(told: Mapping[str, Canaries], labels: Mapping[str, NDArray[Any]]) -> list[Attribution]:
    """Every suspected client's p-value, the smallest first.

    Args:
        told: what `canaries_of` says of each client under suspicion; several may have pooled their answers.
        labels: for each of them, the suspected copy's label ``(questions,)`` of every question that was given to
            `canaries_of`; those of cells that were not put to the copy may be -1, which must not depend on the canaries
            unless it is all of the others.

    Raises ValueError if the clients are not the same or there are too few labels.
    """
    if set(told) != set(labels):
        raise ValueError(f"labels: given for {sorted(labels)}, but the clients are {sorted(told)}")
    found = []
    for client, known in told.items():
        given = np.asarray(labels[client])
        if given.ndim != 1 or len(given) <= known.question.max(initial=-1):
            raise ValueError(f"labels: those for {client!r} have shape {given.shape}; one for every question is needed")
        answered = given[known.question]
        asked, hit = answered >= 0, answered == known.label
        counts = [int(np.sum(x)) for x in (asked & known.changed, hit & known.changed)]
        counts += [int(np.sum(x)) for x in (asked & ~known.changed, hit & ~known.changed)]
        canaries, hits, controls, control_hits = counts
        p = chance_of_hits(hits, canaries, control_hits, controls, known.classes)
        found.append(Attribution(client, canaries, hits, controls, control_hits, p, min(1.0, p * len(told))))
    return sorted(found, key=lambda a: a.p_value)
