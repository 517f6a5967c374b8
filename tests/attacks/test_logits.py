"""The width of the layer behind the logits, from their singular values (Carlini et al. 2024); run with -s for figures.

A matrix of n rows of V logits has the rank of that layer, h. Whole rows give it away, under rounding and noise too: it
is asserted that these are no mitigation. What the drafted policy releases does not: a few of each row, with noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import hardening
from hardening.config import Output, Policy
from hardening.transforms import Clip, Gaussian, Round, TopK
from tests.keys import fixed_key

V, H, SEEDS = 1000, 64, range(5)
#: What stands for a logit that was not released: one below the low end of the clip.
FILL = -11.0
#: What `hardening init` drafts for logits.
DEFAULT = (Clip(low=-10.0, high=10.0), Gaussian(sigma=0.5), Clip(low=-10.0, high=10.0), TopK(k=3), Round(decimals=1))
DENSE: dict[str, tuple[Any, ...]] = {
    "whole rows": (),
    "2 decimals": (Round(decimals=2),),
    "1 decimal": (Round(decimals=1),),
    "whole numbers": (Round(decimals=0),),
    "noise of 0.1": (Gaussian(sigma=0.1),),
    "noise of 0.5": (Gaussian(sigma=0.5),),
    "noise of 1": (Gaussian(sigma=1.0),),
}
Rows = NDArray[np.float64]


def logits(rows: int, seed: int) -> tuple[Rows, Rows]:
    """Questions, and what a last layer of width H says to them: V logits of standard deviation 2."""
    rng = np.random.default_rng(seed)
    hidden, layer = rng.normal(size=(rows, H)), rng.normal(size=(H, V)) * 2 / math.sqrt(H)
    return hidden, (hidden @ layer).astype(np.float32)


def released(steps: tuple[Any, ...], x: Rows, scores: Rows, root: Path, dense: bool = False) -> Rows:
    rules = Output("logits", {"normal": steps}, dense=dense)
    with hardening.Guard(Policy({"z": rules}, fixed_key(root), root=root), "m") as guard:
        return np.asarray(guard.harden({"z": scores}, client="a thief", inputs={"x": x})["z"], np.float64)


def width_and_gap(answers: Rows) -> tuple[int, float]:
    """Where the singular values drop most, in the first half of them, and by what factor.

    The largest is left out: it is that of the mean.
    """
    small = answers if len(answers) < answers.shape[1] else answers.T
    spectrum = np.sqrt(np.maximum(np.linalg.eigvalsh(small @ small.T)[::-1], 0.0))
    spectrum = np.maximum(spectrum, spectrum[0] * 1e-6)
    ratios = spectrum[1 : len(spectrum) // 2] / spectrum[2 : len(spectrum) // 2 + 1]
    return int(ratios.argmax()) + 2, float(ratios.max())


def interval(values: list[float]) -> str:
    """Mean, and 95 per cent of Student's t for five seeds."""
    return f"{np.mean(values):.3f} +- {2.776 * np.std(values, ddof=1) / math.sqrt(len(values)):.3f}"


See = Callable[[Rows], Rows]


def attacked(name: str, steps: tuple[Any, ...], rows: int, root: Path, see: See) -> list[tuple[int, float]]:
    """What the attack finds in five models: (width, gap)."""
    found = []
    for seed in SEEDS:
        x, scores = logits(rows, seed)
        found.append(width_and_gap(see(released(steps, x, scores, root, dense=steps is not DEFAULT))))
    width, gap = (interval([float(f[i]) for f in found]) for i in (0, 1))
    print(f"\n{name}, {rows} questions: width {width} (it is {H}), gap {gap}")
    return found


@pytest.mark.parametrize("name", DENSE)
def test_whole_rows_tell_the_width_rounded_and_noisy_too(name: str, tmp_path: Path) -> None:
    """Not mitigations, all of them."""
    found = attacked(name, DENSE[name], 4 * H, tmp_path, lambda answers: answers)
    assert [width for width, _ in found] == [H] * len(SEEDS)
    assert min(gap for _, gap in found) > 1.2


def with_means(answers: Rows) -> Rows:
    """What is missing is taken for the mean of what was seen of its class."""
    seen = answers > FILL
    mean = np.where(seen, answers, 0.0).sum(axis=0) / np.maximum(seen.sum(axis=0), 1)
    return np.where(seen, answers - mean, 0.0)


SEEN: dict[str, See] = {
    "as they are": lambda answers: answers,
    "zeros for what is missing": lambda answers: np.where(answers > FILL, answers, 0.0),
    "means for what is missing": with_means,
    "which ones are there": lambda answers: (answers > FILL).astype(np.float64),
}


@pytest.mark.parametrize("how", SEEN)
def test_the_default_policy_hides_it(how: str, tmp_path: Path) -> None:
    """At 16 h questions, however the thief fills in what he was not told."""
    found = attacked(f"default, {how}", DEFAULT, 16 * H, tmp_path, SEEN[how])
    assert all(abs(width - H) > H // 4 for width, _ in found)
    assert max(gap for _, gap in found) < 1.25


def test_the_default_is_what_init_drafts() -> None:
    from hardening_onnx.findings import Finding
    from hardening_onnx.tiers import tiers_for

    from hardening.config import parse_policy

    steps = ", ".join(tiers_for(Finding("logits", "", width=V))["normal"][1])
    text = f'schema = 1\n[key]\nsource = "file:k.key"\n[outputs.z]\nspace = "logits"\ntiers.normal = [{steps}]'
    assert parse_policy(text).outputs["z"].tiers["normal"] == DEFAULT


def test_fewer_logits_than_the_layer_is_wide_fit_many_layers() -> None:
    """Why a few are let go: a thief who knows h, and sees k < h exact logits of each row, can explain all of them.

    And says nothing of the others: n k equations for n h + h V unknowns. Alternating least squares, without noise.
    """
    classes, h, k, n = 100, 8, 4, 1200
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(n, h)) @ rng.normal(size=(h, classes)) * 2 / math.sqrt(h)
    best = np.argsort(-truth, axis=1)[:, :k]
    seen = np.zeros(truth.shape, bool)
    np.put_along_axis(seen, best, True, 1)
    layer, ridge = rng.normal(size=(classes, h)), 1e-3 * np.eye(h)
    for _ in range(40):
        some = layer[best]
        told = np.take_along_axis(truth, best, 1)
        square = np.einsum("nkh,nkg->nhg", some, some) + ridge
        hidden = np.linalg.solve(square, np.einsum("nkh,nk->nh", some, told)[..., None])[..., 0]
        for v in range(classes):
            part = hidden[seen[:, v]]
            layer[v] = np.linalg.solve(part.T @ part + ridge, part.T @ truth[seen[:, v], v])
    wrong = hidden @ layer.T - truth
    errors = [np.linalg.norm(wrong[m]) / np.linalg.norm(truth[m]) for m in (seen, ~seen)]
    print(f"\nerror of the layer found, on what was seen {errors[0]:.4f}, on the rest {errors[1]:.2f}")
    assert errors[0] < 0.01
    assert errors[1] > 0.9
