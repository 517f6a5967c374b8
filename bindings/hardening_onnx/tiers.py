"""Safe tiers for each space: what a drafted policy does to what was recognised."""

from __future__ import annotations

import math
from collections.abc import Callable

from hardening_onnx.findings import Finding

TIERS = ("normal", "suspect", "label")
#: So many labels that may apply are released at once, where there are more than twice as many.
_MOST_LABELS = 20


def _number(value: float) -> str:
    return f"{value:.12g}"


def _step(kind: str, of: str = "", **parameters: float | str) -> str:
    """One transform as an inline table."""
    numbers = {n: f'"{v}"' if isinstance(v, str) else _number(v) for n, v in parameters.items()}
    pairs = {"kind": f'"{kind}"', **numbers} | ({"of": f'"{of}"'} if of else {})
    return f"{{{', '.join(f'{name} = {value}' for name, value in pairs.items())}}}"


def _noise(sigma: float, of: str = "") -> str:
    return _step("gaussian", of, sigma=float(f"{sigma:.2g}"), key="input")


def _clip(low: float, high: float, of: str = "") -> str:
    return _step("clip", of, low=low, high=high)


def _round(decimals: int, of: str = "") -> str:
    return _step("round", of, decimals=min(9, max(0, decimals)))


#: What a step does, for the end of its line.
_STEPS = {
    "gaussian": "Gaussian noise of standard deviation sigma, the same again for the same question",
    "project": "the nearest row that sums to one; the top class keeps its place",
    "types": "to multiples of 1/n that sum to one; entries with bounds of their own to one of n + 1 values",
    "coverage_noise": "more noise the more of the space a client has seen, none for a new one",
    "top_k": "only the k largest",
    "label_only": "the label, or each of independent labels, as zeros and ones",
    "clip": "nothing outside low and high",
    "round": "to this many decimals",
}


def explained(step: str) -> str:
    """The step on a line of its own, with what it does behind it."""
    return f"    {step},  # {_STEPS[step.split(chr(34))[1]]}"


Tiers = dict[str, tuple[str, list[str]]]


def _class_tiers(found: Finding) -> Tiers:
    return {
        "normal": (
            "noise that repeats for a repeated question, back to a distribution with the same top class, to 1/100",
            [_noise(0.05), '{kind = "project", keep_top1 = true}', '{kind = "types", n = 100}'],
        ),
        "suspect": ("the top class alone, its score lost", ['{kind = "top_k", k = 1}', '{kind = "types", n = 10}']),
        "label": ("one for the top class, zero for all others", ['{kind = "label_only"}']),
    }


def _logit_tiers(found: Finding) -> Tiers:
    high = min(10.0, found.high)
    clip = _clip(-10.0, high)
    k = max(1, min(3, (found.width or 4) // 2))
    return {
        "normal": (
            f"limited, keyed noise, limited again, the {k} largest kept, to one decimal; scores closer than about 1 "
            "may change places",
            [clip, _noise(0.5), clip, f'{{kind = "top_k", k = {k}}}', _round(1)],
        ),
        "suspect": ("the largest score alone, in whole steps", [clip, '{kind = "top_k", k = 1}', _round(0)]),
        "label": ("one for the top class, zero for all others", ['{kind = "label_only"}']),
    }


def _sigmoid_tiers(found: Finding) -> Tiers:
    return {
        "normal": (
            "noise that repeats for a repeated question, back into 0 to 1, to two decimals; a value within about 0.1 "
            "of one half may cross it",
            [_noise(0.05), _clip(0, 1), _round(2)],
        ),
        "suspect": ("in tenths", [_round(1)]),
        "label": ("0 or 1 at one half", ['{kind = "label_only"}']),
    }


def _multilabel_tiers(found: Finding) -> Tiers:
    tiers = _sigmoid_tiers(found)
    if (found.width or 0) <= 2 * _MOST_LABELS:
        return tiers
    few = _step("top_k", k=_MOST_LABELS)
    remark, (noise, clip, grid) = tiers["normal"]
    coarse, steps = tiers["suspect"]
    likeliest = f"; of all labels but the {_MOST_LABELS} likeliest zero"
    return tiers | {"normal": (remark + likeliest, [noise, clip, few, grid]), "suspect": (coarse, [few, *steps])}


def _range(found: Finding) -> tuple[float, float]:
    """The range to declare: what the graph allows, out to the last decimal that a tier of scalars releases."""
    grid = 10.0 ** max(0, _digits(found) - 1)
    return math.floor(found.low * grid) / grid, math.ceil(found.high * grid) / grid


def _digits(found: Finding) -> int:
    return min(9, 2 - math.floor(math.log10(found.high - found.low)))


def _scalar_tiers(found: Finding) -> Tiers:
    low, high = _range(found)
    span, digits, clip = high - low, _digits(found), _clip(low, high)
    return {
        "normal": ("noise of 2 % of the range, rounded", [_noise(span * 0.02), clip, _round(digits)]),
        "suspect": ("noise of 10 % of the range, ten times coarser", [_noise(span / 10), clip, _round(digits - 1)]),
        "label": ("noise of 20 % of the range", [_noise(span / 5), clip, _round(digits - 1)]),
    }


def _box_tiers(found: Finding) -> Tiers:
    low, high = _range(found)
    scored = "score" in found.columns
    clean = [_noise(0.05, "score"), _clip(0, 1, "score"), _round(2, "score")] if scored else []
    return {
        "normal": (
            "noise of a third of a per cent of the range, to one of 321 places along each side",
            [_noise((high - low) / 300), _clip(low, high), _step("types", n=320), *clean],
        ),
        "suspect": ("to one of 81 places", [_step("types", n=80), *([_round(1, "score")] if scored else [])]),
        "label": ("to one of 41 places", [_step("types", n=40), *([_step("label_only", "score")] if scored else [])]),
    }


def _embedding_tiers(found: Finding) -> Tiers:
    scale = found.scale or 1.0
    high = float(f"{10 * scale:.2g}")  # wide: single entries of real embeddings stand out by that much
    clip = _clip(-high, high)
    digits = 2 - math.floor(math.log10(scale))
    base, alpha, most = (float(f"{share * scale:.2g}") for share in (1e-6, 0.8, 1.0))
    more = _step("coverage_noise", base=base, alpha=alpha, most=most)
    return {
        "normal": (
            "limited, noise of a tenth of an entry, and more for who has seen most of the space",
            [clip, _noise(scale / 10), more, clip, _round(digits)],
        ),
        "suspect": ("noise of half an entry", [clip, _noise(scale / 2), clip, _round(digits - 1)]),
        "label": ("noise as large as an entry", [clip, _noise(scale), clip, _round(digits - 1)]),
    }


_DRAFTS: dict[str, tuple[str, Callable[[Finding], Tiers]]] = {
    "simplex": ("class scores that sum to one", _class_tiers),
    "logits": ("raw class scores; the largest names the label", _logit_tiers),
    "sigmoid": ("independent values from 0 to 1", _sigmoid_tiers),
    "multilabel": ("a value from 0 to 1 for each label, of which any number may apply", _multilabel_tiers),
    "scalar": ("a value, not a class", _scalar_tiers),
    "embedding": ("a vector of features", _embedding_tiers),
    "boxes": ('detections; of = "score" is what is done to their scores', _box_tiers),
}
MEANINGS = {kind: meaning for kind, (meaning, _) in _DRAFTS.items()}


def tiers_for(found: Finding) -> Tiers:
    """For each of `TIERS` a remark and its steps, as inline tables."""
    return _DRAFTS[found.kind][1](found)


def declared_range(found: Finding) -> str:
    """The line of the policy that declares the range of values."""
    low, high = _range(found)
    return f"range = [{_number(low)}, {_number(high)}]"
