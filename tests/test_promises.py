"""What a pipeline promises, and attempts to make it promise more than it keeps."""

from __future__ import annotations

import json
import math
import re
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hardening
from hardening import accounting
from hardening.cli import main
from hardening.cli.promises import conversion, loss_in_words
from hardening.config import Output, Policy, parse_policy
from hardening.pipeline import Pipeline, declared_space
from hardening.transforms import (
    Clip,
    Gaussian,
    LabelOnly,
    Laplace,
    Noise,
    Project,
    ReverseSigmoid,
    Round,
    Staircase,
    Temperature,
    TopK,
    Transform,
    Types,
)
from hardening.types import Guarantee
from tests.keys import fixed_key

ROOT = Path(__file__).parent.parent
KNOWN = Gaussian(sigma=0.5, sensitivity=0.1)
FITTED = Gaussian(epsilon=1.0, delta=1e-6, sensitivity=0.1)
LOSSES = {"epsilon", "delta", "rho", "mu"}


def promise(*transforms: Transform, space: Any = "simplex", width: int | None = 10) -> Guarantee:
    return Pipeline(space, transforms).guarantee(width)


def test_a_loss_is_named_by_its_norm() -> None:
    for noise, norm in (
        (KNOWN, "l2"),
        (FITTED, "l2"),
        (Laplace(scale=0.5, sensitivity=0.1), "l1"),
        (Staircase(scale=0.5, sensitivity=0.1), "linf"),
    ):
        given = promise(noise, space="scalar")
        assert given.relation == "output-metric"
        assert given.parameters[f"sensitivity_{norm}"] == 0.1
        assert sum(name.startswith("sensitivity") for name in given.parameters) == 1
        assert given.parameters["rho"] > 0
        assert 0 < given.parameters["tv"] < 1e-12


def test_without_a_sensitivity_no_loss_is_stated() -> None:
    for noise in (Gaussian(sigma=0.5), Laplace(scale=0.5)):
        given = promise(noise, space="scalar")
        assert LOSSES.isdisjoint(given.parameters)
        assert conversion(given) is None
        assert "not stated: the policy gives no sensitivity" in str(loss_in_words(given))


def test_discrete_noise_is_not_called_gaussian_differential_privacy() -> None:
    assert not any(name.startswith("mu") for name in promise(KNOWN, space="scalar").parameters)


def test_rho_pays_for_rounding_to_the_grid() -> None:
    for width in (1, 10, 1000):
        given = promise(KNOWN, space="scalar", width=width).parameters
        assert given["rho"] == pytest.approx((0.1 + KNOWN.step * math.sqrt(width)) ** 2 / 0.5)
    assert promise(KNOWN, space="scalar", width=None).parameters["rho"] == math.inf
    coarse = promise(Gaussian(sigma=0.5, sensitivity=0.1, grid=3), space="scalar").parameters
    assert coarse["rho"] > 3 * promise(KNOWN, space="scalar").parameters["rho"]


def test_delta_holds_the_errors_of_the_tables() -> None:
    given = promise(Laplace(scale=0.5, sensitivity=0.1), space="scalar").parameters
    assert given["delta"] == pytest.approx(given["tv"] * (1 + math.exp(given["epsilon"])))
    wide = promise(Laplace(scale=0.5, sensitivity=0.1), space="scalar", width=1000).parameters
    assert wide["tv"] == pytest.approx(100 * given["tv"])


@pytest.mark.parametrize(
    ("space", "after"),
    [
        ("simplex", (Project(), Types(n=10))),
        ("simplex", (Project(), TopK(k=2), Round(decimals=2))),
        ("simplex", (Project(), Temperature(t=2.0), LabelOnly())),
        ("simplex", (Project(), ReverseSigmoid(beta=0.01, gamma=0.2))),
        ("logits", (Clip(low=-3.0, high=3.0), TopK(k=1))),
        ("logits", (LabelOnly(),)),
    ],
)
def test_post_processing_keeps_the_loss(space: Any, after: tuple[Transform, ...]) -> None:
    bare = Pipeline("scalar", (KNOWN,)).guarantee(10)
    given = promise(KNOWN, *after, space=space)
    assert (given.relation, given.unit, given.parameters) == (bare.relation, bare.unit, bare.parameters)
    assert not given.keeps_top1


def test_a_kept_label_is_compared_among_models_that_agree_on_it() -> None:
    """It must be: two models within the sensitivity that disagree on the label are told apart with certainty."""
    kept = Pipeline("simplex", (Gaussian(sigma=0.5, sensitivity=0.1), Project(keep_top1=True), Types(n=100)))
    given = kept.guarantee(2)
    assert given.relation == "label"
    assert any("agree on the label" in sentence for sentence in given.assumptions)
    near = np.array([[0.51, 0.49], [0.49, 0.51]])
    assert np.linalg.norm(near[0] - near[1]) < 0.1
    rng = np.random.default_rng(0)
    for _ in range(50):
        noise = np.rint(rng.normal(size=(2, 2)) * 256).astype(np.int64)
        released = kept.reference(near, iter([noise]))
        assert released.argmax(axis=1).tolist() == [0, 1]
    for later in ((ReverseSigmoid(beta=0.01, gamma=0.2),), (Gaussian(sigma=0.5, sensitivity=0.01), Project())):
        assert promise(KNOWN, Project(keep_top1=True), *later).relation == "label"


def test_deception_promises_nothing() -> None:
    for transforms in (
        (ReverseSigmoid(beta=0.01, gamma=0.2),),
        (ReverseSigmoid(beta=0.01, gamma=0.2), Types(n=10)),
        (Types(n=10), ReverseSigmoid(beta=0.01, gamma=0.2), Project(keep_top1=True)),
    ):
        given = promise(*transforms)
        assert given.relation == "none"
        assert given.parameters == {}
        assert loss_in_words(given) is None


def test_of_two_noises_in_a_row_the_better_is_kept() -> None:
    """Neither is lost: each one's bound holds for what is released, which is one answer, not two."""
    weak, strong = Gaussian(sigma=0.1, sensitivity=0.1), Gaussian(sigma=1.0, sensitivity=0.1)
    least = promise(strong, space="scalar").parameters
    assert promise(weak, strong, space="scalar").parameters == least
    assert promise(strong, weak, space="scalar").parameters == least
    assert promise(Gaussian(sigma=0.1), strong, space="scalar").parameters == least
    assert promise(strong, Gaussian(sigma=0.1), space="scalar").parameters == least
    assert "rho" not in promise(Gaussian(sigma=0.1), Gaussian(sigma=1.0), space="scalar").parameters
    assert promise(strong, Laplace(scale=0.1, key="cell"), space="scalar").parameters == least


def test_the_bound_that_is_kept_for_two_noises_holds_for_their_sum() -> None:
    """By convolving what is drawn: the two together are no worse than the better of the two alone."""
    p, q = (np.exp(-(np.arange(-400, 401) ** 2) / (2 * s * s)) for s in (8.0, 20.0))
    both = np.convolve(p / p.sum(), q / q.sum())
    weights = {x: float(w) for x, w in enumerate(both)}
    rho = 3**2 / (2 * 20.0**2)
    for epsilon in (0.0, 0.2, 0.5):
        delta = math.fsum(max(0.0, w - math.exp(epsilon) * weights.get(x - 3, 0.0)) for x, w in weights.items())
        assert delta <= accounting.zcdp_delta(rho, epsilon)


def test_noise_of_a_clients_own_does_not_replace_what_holds_against_all() -> None:
    shared, own = Gaussian(sigma=0.5, sensitivity=0.1), Gaussian(sigma=1.0, sensitivity=0.1, scope="client")
    assert promise(shared, own, space="scalar").scope == "global"
    assert promise(shared, own, space="scalar").parameters == promise(shared, space="scalar").parameters
    alone = promise(own, space="scalar")
    assert alone.scope == "client"


def test_two_answers_that_are_both_released_add_up(tmp_path: Path) -> None:
    """Two noisy outputs of one model: a client pays the sum of their losses, for every row."""
    tiers = {"normal": (KNOWN,)}
    outputs = {"a": Output("scalar", tiers), "b": Output("scalar", tiers)}
    policy = Policy(outputs, fixed_key(tmp_path), root=tmp_path)
    each = policy.pipeline("a", "normal").guarantee(3).parameters["rho"]
    with hardening.Guard(policy) as guard:
        scores = {"a": np.zeros((4, 3)), "b": np.ones((4, 3))}
        guard.harden(scores, client="alice", inputs={"x": np.arange(4.0)[:, None]})
        assert guard.standing("alice").rho == pytest.approx(4 * 2 * each)


def test_cells_promise_bits_alone() -> None:
    """Two models a hair apart on either side of a cell's edge get unrelated noise: no sensitivity helps."""
    given = promise(Gaussian(sigma=0.5, sensitivity=1e-6, key="cell"), space="scalar")
    assert given.relation == "capacity"
    assert given.parameters == {}
    later = promise(Gaussian(sigma=0.5, key="cell"), KNOWN, space="scalar")
    assert (later.relation, later.parameters) == ("capacity", {})
    two = np.array([[0.2499], [0.2501]])
    celled = Pipeline("scalar", (Gaussian(sigma=0.5, key="cell"),)).reference(two, iter([np.array([[300], [-300]])]))
    assert abs(celled[0, 0] - celled[1, 0]) > 1  # what a noise after it would be charged for as 2e-4 apart
    with pytest.raises(ValueError, match="key: 'cell' meets no such target"):
        Gaussian(epsilon=1.0, delta=1e-6, sensitivity=0.1, key="cell")


def test_fresh_noise_is_paid_for_by_the_answer() -> None:
    assert promise(KNOWN, space="scalar").unit == "distinct input"
    assert promise(Gaussian(sigma=0.5, sensitivity=0.1, key="fresh"), space="scalar").unit == "answer"


def test_no_record_states_a_loss_without_a_relation() -> None:
    for relation in ("none", "capacity"):
        for name in ("epsilon", "rho", "delta"):
            with pytest.raises(ValueError, match="has no privacy loss to state"):
                Guarantee(relation=relation, parameters={name: 1.0})  # type: ignore[arg-type]


NOISES = st.builds(
    lambda kind, scale, sensitivity, key, scope: kind(scale, sensitivity=sensitivity, key=key, scope=scope),
    st.sampled_from([Gaussian, Laplace]),
    st.floats(0.01, 10),
    st.none() | st.floats(0.01, 1),
    st.sampled_from(["input", "cell", "fresh"]),
    st.sampled_from(["global", "client"]),
)
STEPS = NOISES | st.sampled_from(
    [FITTED, Project(), Project(keep_top1=True), ReverseSigmoid(beta=0.01, gamma=0.2), Clip(low=0.0, high=1.0)]
)


@settings(max_examples=150)
@given(st.lists(STEPS, max_size=5), st.sampled_from([None, 1, 2, 10]))
def test_whatever_is_piled_up_a_loss_has_its_noise(steps: list[Transform], width: int | None) -> None:
    """Folded over any pipeline: a loss only after noise with a sensitivity, never below what the best of it gives."""
    given, space = Guarantee("capacity", "answer"), declared_space("sigmoid")
    for step in steps:
        given = step.guarantee(given, space, width)
    noises = [step for step in steps if isinstance(step, Noise) and step.key != "cell"]
    losses = [n.guarantee(Guarantee(), space, width).parameters.get("rho", math.inf) for n in noises]
    if "rho" in given.parameters:
        assert given.relation in ("output-metric", "label")
        assert given.parameters["rho"] >= min(losses)
        assert any(name.startswith("sensitivity_") for name in given.parameters)
    if not losses:
        assert given.relation in ("capacity", "none")
    if given.relation == "output-metric":
        assert not given.keeps_top1


POLICY = """schema = 1
[key]
source = "file:hardening.key"
create = true
[outputs.p]
space = "simplex"
tiers.fitted = [ {kind = "gaussian", epsilon = 0.7, delta = 1e-6, sensitivity = 0.1}, {kind = "project"} ]
tiers.label = [ {kind = "laplace", epsilon = 0.7, sensitivity = 0.1}, {kind = "project", keep_top1 = true} ]
tiers.plain = [ {kind = "gaussian", sigma = 0.2, sensitivity = 0.1}, {kind = "project"} ]
tiers.stairs = [ {kind = "staircase", epsilon = 0.7, sensitivity = 0.1}, {kind = "project"} ]
tiers.unknown = [ {kind = "gaussian", sigma = 0.2}, {kind = "project"} ]
tiers.cell = [ {kind = "gaussian", sigma = 0.2, sensitivity = 0.1, key = "cell"}, {kind = "project"} ]
tiers.deception = [ {kind = "reverse_sigmoid", beta = 0.01, gamma = 0.2} ]
"""


def test_toml_and_python_are_equal() -> None:
    tiers = parse_policy(POLICY).outputs["p"].tiers
    assert tiers["fitted"] == (Gaussian(epsilon=0.7, delta=1e-6, sensitivity=0.1), Project())
    assert tiers["stairs"] == (Staircase(epsilon=0.7, sensitivity=0.1), Project())
    assert tiers["label"][0] == Laplace(epsilon=0.7, sensitivity=0.1)


@pytest.mark.parametrize(
    ("noise", "name", "problem"),
    [
        ("gaussian", "sigma", "missing; give sigma, or epsilon and delta and sensitivity"),
        ("gaussian, sensitivity = 0.1", "sigma", "missing; give sigma, or"),
        ("gaussian, epsilon = 1.0, sensitivity = 0.1", "delta", "missing; give sigma, or"),
        ("gaussian, delta = 1e-6, sensitivity = 0.1", "epsilon", "missing; give sigma, or"),
        ("gaussian, epsilon = 1, delta = 1e-6", "sensitivity", "missing; give sigma, or"),
        ("gaussian, sigma = 0.1, epsilon = 1.0", "epsilon", "sigma is given too; leave one of them out"),
        ("gaussian, sigma = 0.1, delta = 1e-6", "delta", "sigma is given too"),
        ("gaussian, epsilon = 1.0, delta = 1.0, sensitivity = 1", "delta", "must be between 0 and 1"),
        ("gaussian, epsilon = 0, delta = 1e-6, sensitivity = 1", "epsilon", "must be a positive finite number"),
        ("gaussian, epsilon = nan, delta = 1e-6, sensitivity = 1", "epsilon", "must be a positive finite number"),
        ("gaussian, epsilon = 1, delta = 1e-6, sensitivity = inf", "sensitivity", "must be a positive finite number"),
        ("gaussian, epsilon = 1, delta = 1e-6, sensitivity = 1, grid = 8", "grid", "is fitted with the scale"),
        ("gaussian, sigma = 0.0", "sigma", "must be a positive finite number, not 0.0"),
        ("gaussian, sigma = inf", "sigma", "must be a positive finite number, not inf"),
        ("gaussian, sigma = 1e-13", "sigma", "the noise scale must be between 2**-40 and 2**40"),
        ("gaussian, sigma = 0.05, grid = 2", "grid", "must be a whole number from 5 to 15, not 2"),
        ("gaussian, sigma = 0.05, grid = 16", "grid", "must be a whole number from 5 to 15, not 16"),
        ("gaussian, sigma = 0.05, grid = 8.0", "grid", "must be a whole number"),
        ("laplace, scale = 0.0", "scale", "must be a positive finite number"),
        ("laplace, scale = 0.1, epsilon = 1.0, sensitivity = 0.1", "epsilon", "scale is given too"),
        ("laplace, epsilon = 1.0", "sensitivity", "missing; give scale, or epsilon and sensitivity"),
        ("laplace, epsilon = 1.0, delta = 1e-6, sensitivity = 0.1", "delta", "unknown key"),
        ("staircase", "scale", "missing; give scale, or epsilon and sensitivity"),
        ("staircase, scale = 0.1", "sensitivity", "missing; the width of the stairs"),
        ("staircase, scale = 0.1, sensitivity = 2.0", "sensitivity", "must be at most 16 times the scale"),
        ("staircase, epsilon = 17.0, sensitivity = 2.0", "epsilon", "must be at most 16"),
    ],
)
def test_mistakes_are_named_by_path(noise: str, name: str, problem: str) -> None:
    kind, _, rest = noise.partition(",")
    table = f'{{kind = "{kind}"' + (f",{rest}" if rest else "") + "}"
    assert tomllib.loads(f"x = {table}")
    with pytest.raises(hardening.ConfigError) as caught:
        parse_policy(f'schema = 1\n[key]\nsource = "env:K"\n[outputs.p]\nspace = "scalar"\ntiers.normal = [{table}]\n')
    assert caught.value.path == f"outputs.p.tiers.normal[0].{name}"
    assert problem in caught.value.problem


def test_a_target_that_a_model_is_too_wide_for_is_an_error_of_the_policy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(POLICY.replace("epsilon = 0.7, sensitivity", "epsilon = 0.01, sensitivity"))
    assert main(["explain", str(path), "--classes", "1000"]) == 2
    said = capsys.readouterr().err
    assert "outputs.p.tiers.label[0]: epsilon: too small for rows of 1000 entries" in said
    assert main(["explain", str(path), "--classes", "1"]) == 0


def test_a_fit_that_could_not_be_projected_back_is_an_error_of_the_policy() -> None:
    pipeline = Pipeline("simplex", (Laplace(epsilon=0.1, sensitivity=1e3), Project()), path="tier")
    with pytest.raises(hardening.ConfigError, match="could not be projected back onto the simplex") as caught:
        pipeline.check_width(2)
    assert caught.value.path == "tier[0]"


def bare(text: str) -> list[str]:
    """Lines that give an epsilon a value and do not say, in the same line, what relation it is about."""
    claims = re.compile(r"(epsilon|\beps|ε)\W{0,4}(=|:|is|of)?\s*[0-9.]", re.I)
    relations = ("output-metric", "label per", "label,", "shard")
    return [line for line in text.splitlines() if claims.search(line) and not any(r in line for r in relations)]


def values(tree: Any) -> list[dict[str, Any]]:
    """Every table of a JSON document that has an epsilon."""
    inner = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    return ([tree] if isinstance(tree, dict) and "epsilon" in tree else []) + [t for v in inner for t in values(v)]


def test_no_command_prints_an_epsilon_without_its_relation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bare("epsilon = 1.0") == ["epsilon = 1.0"]
    assert bare("ε of 3") == ["ε of 3"]
    path = tmp_path / "policy.toml"
    path.write_text(POLICY)
    for width in ([], ["--classes", "10"]):
        assert main(["explain", str(path), *width]) == 0
        text = capsys.readouterr().out
        assert bare(text) == []
        assert "epsilon = 0.7 at delta = 1e-06, output-metric per distinct input" in text
        assert main(["explain", str(path), "--json", *width]) == 0
        tiers = json.loads(capsys.readouterr().out)["outputs"]["p"]
        for facts in tiers.values():
            assert (facts["conversion"] is None) or facts["relation"] in ("output-metric", "label")
            for table in values(facts):
                assert table is facts["parameters"] or {"relation", "unit", "delta"} <= set(table)
            if "epsilon" in facts["parameters"]:
                assert facts["relation"] in ("output-metric", "label")
                assert facts["unit"]
    for arguments in (["check", str(path)], ["check", str(path), "--json"]):
        assert main(arguments) == 0
        assert "epsilon" not in capsys.readouterr().out
    for tier in parse_policy(POLICY).tiers:
        for noise in parse_policy(POLICY).outputs["p"].tiers[tier]:
            assert "epsilon" not in str(noise)
    printing = [*(ROOT / "hardening" / "cli").glob("*.py"), *(ROOT / "bindings").rglob("*.py")]
    assert {file.name for file in printing if "epsilon" in file.read_text()} <= {"explain.py", "promises.py"}


def test_explain_says_what_is_protected_from_whom(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(POLICY)
    assert main(["explain", str(path), "--classes", "10"]) == 0
    said = re.split(r"\n  (\w+)\n", capsys.readouterr().out)
    tiers = dict(zip(said[1::2], said[2::2], strict=True))
    assert "between two models whose scores differ by at most 0.1 in L2: rho = " in tiers["fitted"]
    assert "who names the wrong one in 1 % of cases names the right one in at most 2.01 %" in tiers["fitted"]
    assert "two models that give the same label whose scores differ by at most 0.1 in L1" in tiers["label"]
    assert "the label is released as it is" in tiers["label"]
    assert "whose scores differ in no entry by more than 0.1" in tiers["stairs"]
    assert "not stated: the policy gives no sensitivity" in tiers["unknown"]
    assert "nothing else is promised" in tiers["cell"]
    assert "rho" not in tiers["cell"]
    assert "no guarantee: deception only" in tiers["deception"]
    for tier in ("fitted", "label", "plain", "stairs", "unknown"):
        assert "if         the key stays secret" in tiers[tier]


def test_a_rho_is_converted_with_the_errors_of_the_tables() -> None:
    given = promise(KNOWN, space="scalar")
    told = conversion(given)
    assert told is not None
    assert told["epsilon"] > accounting.zcdp_epsilon(given.parameters["rho"], told["delta"])
    assert told["epsilon"] == pytest.approx(accounting.zcdp_epsilon(given.parameters["rho"], 1e-6), rel=1e-6)
