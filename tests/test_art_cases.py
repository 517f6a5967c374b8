"""The cases that ART (adversarial-robustness-toolbox 1.20.1) tests its post-processors with, and those it gets wrong.

Numbers of the row V and of the single score B are those of ART's published tests, to the digits printed there.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hardening import ReleaseError
from hardening.config import Output, Policy
from hardening.errors import ConfigError
from hardening.guard import Guard
from hardening.kernels import layout
from hardening.noise import Key
from hardening.pipeline import Pipeline
from hardening.program import Program, Task
from hardening.transforms import (
    TRANSFORMS,
    Cutoff,
    Gaussian,
    LabelOnly,
    Project,
    ReverseSigmoid,
    Round,
    Transform,
)

V = np.array([[
    0.12109935, 0.0498215, 0.0993958, 0.06410096, 0.11366928, 0.04645343, 0.06419807, 0.30685693, 0.07616714,
    0.05823757,
]])  # fmt: skip
B = np.array([[0.5301345]])


def hardened(x: NDArray[Any], *transforms: Transform, space: Any = "simplex", status: int = 0) -> NDArray[Any]:
    out = np.array(x, np.float64)
    program = Program(Pipeline(space, transforms), out.shape[1], Key(1, "chacha20", bytes(32)), "p", "m")
    nonces = np.arange(3 * len(out), dtype=np.uint32).reshape(-1, 3)
    assert Task(program, out, len(out), nonces).run() == status
    return out


def test_class_labels() -> None:
    assert np.array_equal(hardened(V, LabelOnly()), np.eye(10)[[7]])
    assert hardened(B, LabelOnly(), space="sigmoid").tolist() == [[1.0]]


def test_class_labels_of_a_batch() -> None:
    """ART's ClassLabels sets every class that leads in some row, in every row: here all ones."""
    x = np.array([[0.9, 0.05, 0.05], [0.05, 0.9, 0.05], [0.05, 0.05, 0.9]])
    assert np.array_equal(hardened(x, LabelOnly()), np.eye(3))


ROUNDED = {
    1: [0.1, 0.0, 0.1, 0.1, 0.1, 0.0, 0.1, 0.3, 0.1, 0.1],
    2: [0.12, 0.05, 0.10, 0.06, 0.11, 0.05, 0.06, 0.31, 0.08, 0.06],
    3: [0.121, 0.05, 0.099, 0.064, 0.114, 0.046, 0.064, 0.307, 0.076, 0.058],
}


@pytest.mark.parametrize("decimals", ROUNDED)
def test_rounded(decimals: int) -> None:
    """Score by score as ART's Rounded has it; on the simplex what it leaves off one is given to somebody."""
    np.testing.assert_allclose(hardened(V, Round(decimals=decimals), space="sigmoid")[0], ROUNDED[decimals], atol=1e-12)
    out = hardened(V, Round(decimals=decimals))[0]
    assert out.sum() == pytest.approx(1.0, abs=1e-12)
    off = np.abs(out - ROUNDED[decimals])
    assert off.max() <= 10.0**-decimals + 1e-12
    assert off.sum() == pytest.approx(abs(1.0 - sum(ROUNDED[decimals])), abs=1e-12)
    assert out.argmax() == 7


def test_high_confidence() -> None:
    kept = hardened(V, Cutoff(low=0.1))[0]
    assert np.flatnonzero(kept).tolist() == [0, 4, 7]
    np.testing.assert_allclose(kept[[0, 4, 7]], V[0, [0, 4, 7]] / 0.54162556, atol=1e-8)
    np.testing.assert_allclose(hardened(V, Cutoff(low=0.2)), np.eye(10)[[7]], atol=1e-11)
    assert hardened(B, Cutoff(low=0.5), space="sigmoid").tolist() == [[0.5301345]]
    assert hardened(B, Cutoff(low=0.6), space="sigmoid").tolist() == [[0.0]]


def test_high_confidence_above_every_score() -> None:
    """ART's HighConfidence leaves a row of zeros, whose arg-max is class 0."""
    np.testing.assert_allclose(hardened(V, Cutoff(low=0.35)), np.eye(10)[[7]], atol=1e-11)


REVERSED = {
    (1.0, 0.1): [
        [0.10733664, 0.07743666, 0.09712707, 0.08230411, 0.10377649, 0.0764482, 0.08234023, 0.20600921, 0.08703023,
         0.08019119],
        0.52711743,
    ],
    (0.75, 0.1): [
        [0.1097239, 0.07264659, 0.09752058, 0.07914664, 0.10549247, 0.07124537, 0.07919333, 0.22350204, 0.08514594,
         0.07638316],
        0.5278717,
    ],
    (1.0, 0.5): [
        [0.09699764, 0.10062696, 0.09689676, 0.09873781, 0.0968849, 0.10121989, 0.0987279, 0.11275949, 0.09774373,
         0.09940492],
        0.51505363,
    ],
}  # fmt: skip


@pytest.mark.parametrize("parameters", REVERSED)
def test_reverse_sigmoid(parameters: tuple[float, float]) -> None:
    beta, gamma = parameters
    row, score = REVERSED[parameters]
    deceive = ReverseSigmoid(beta=beta, gamma=gamma, allow_flip=True)
    np.testing.assert_allclose(hardened(V, deceive)[0], row, atol=1e-6)
    np.testing.assert_allclose(hardened(B, deceive, space="sigmoid"), [[score]], atol=1e-6)


def test_reverse_sigmoid_with_a_thousand_classes() -> None:
    """ART's default parameters put the top class of this row behind all others; here they are refused."""
    x = np.full((1, 1000), 0.98 / 999)
    x[0, 3] = 0.02
    with pytest.raises(ConfigError, match="allow_flip"):
        hardened(x, ReverseSigmoid(beta=1.0, gamma=0.1, allow_flip=False))
    meant = hardened(x, ReverseSigmoid(beta=1.0, gamma=0.1, allow_flip=True))
    assert meant.argmin() == 3
    keeping = hardened(x, ReverseSigmoid(beta=0.001, gamma=0.1))
    assert keeping.argmax() == 3


def test_reverse_sigmoid_of_logits() -> None:
    """ART returns (2/3, 0, 1/3) for these; they are no distribution."""
    logits = np.array([[3.0, -1.0, 0.5]])
    deceive = ReverseSigmoid(beta=1.0, gamma=0.1, allow_flip=True)
    with pytest.raises(ConfigError, match=r"takes simplex or .*, not logits"):
        Pipeline("logits", (deceive,))
    hardened(logits, deceive, status=8 + layout.NOT_SIMPLEX)
    with Guard(Policy({"p": Output("simplex", {"normal": (deceive,)})})) as guard, pytest.raises(ReleaseError):
        guard.harden({"p": logits}, client="alice")


@pytest.mark.parametrize("value", [0, -1, -0.5, float("nan")])
@pytest.mark.parametrize(
    "make",
    [
        lambda v: ReverseSigmoid(beta=v, gamma=0.1),
        lambda v: ReverseSigmoid(beta=1.0, gamma=v),
        lambda v: Gaussian(sigma=v),
        lambda v: Cutoff(low=v),
    ],
)
def test_parameters_that_are_not_positive(make: Any, value: float) -> None:
    with pytest.raises(ValueError, match="must be a positive finite number"):
        make(value)


@pytest.mark.parametrize("decimals", [-1, 0.5, 2.0, True, "1"])
def test_decimals_that_are_no_whole_number(decimals: Any) -> None:
    """0 is a number of decimals here, unlike in ART: integers, for scores that are not probabilities."""
    with pytest.raises(ValueError, match="decimals: must be a whole number"):
        Round(decimals=decimals)


def test_a_million_noisy_rows() -> None:
    """With this much noise 8 % of ART's rows are NaN: every entry was clipped, and then divided by their sum."""
    x = np.full((10**6, 3), [0.6, 0.3, 0.1])
    for keep in (False, True):
        out = hardened(x, Gaussian(sigma=2.0), Project(keep_top1=keep))
        assert np.isfinite(out).all()
        assert (out >= 0).all()
        assert np.abs(out.sum(axis=1) - 1).max() < 1e-9
        assert (out.argmax(axis=1) == 0).all() == keep


EQUIVALENTS: dict[str, tuple[Transform, ...]] = {
    "ClassLabels": (LabelOnly(),),
    "GaussianNoise": (Gaussian(sigma=0.2), Project(keep_top1=True)),
    "HighConfidence": (Cutoff(low=0.25),),
    "ReverseSigmoid": (ReverseSigmoid(beta=1.0, gamma=0.1, allow_flip=True),),
    "Rounded": (Round(decimals=3),),
}


@pytest.mark.parametrize("name", EQUIVALENTS)
@pytest.mark.parametrize("width", [3, 10, 100])
def test_a_row_is_the_same_alone_and_in_a_batch(name: str, width: int) -> None:
    x = np.random.default_rng(width).dirichlet(np.full(width, 0.5), 33)
    pipeline = Pipeline("simplex", EQUIVALENTS[name])
    program = Program(pipeline, width, Key(1, "chacha20", bytes(32)), "p", "m")
    nonces = np.arange(99, dtype=np.uint32).reshape(-1, 3)

    def answers(rows: slice) -> NDArray[Any]:
        out = x[rows].copy()
        assert Task(program, out, len(out), nonces[rows].copy()).run() == 0
        return out

    whole = answers(slice(None))
    for i in range(33):
        assert np.array_equal(answers(slice(i, i + 1))[0], whole[i])
    assert np.abs(whole.sum(axis=1) - 1).max() < 1e-9


def test_the_readme_names_a_transform_for_each_of_them() -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    section = readme.split("## Coming from ART")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| `")]
    table = {re.findall(r"`(\w+)", old)[0]: re.findall(r"`(\w+)`", new) for old, new, *_ in rows}
    assert set(table) == set(EQUIVALENTS)
    for name, kinds in table.items():
        assert kinds
        assert [TRANSFORMS[kind] for kind in kinds] == [type(t) for t in EQUIVALENTS[name]]
