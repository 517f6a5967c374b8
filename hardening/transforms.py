"""Transforms: frozen descriptions of what may be done to a row of scores.

Each one says which space it takes and leaves (`space_after`), what it promises (`guarantee`), how it is run (`lower`),
and what it computes, in plain numpy (`reference`): the oracle of the compiled kernel on the same draws.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hardening.errors import SpaceError
from hardening.kernels import opcodes
from hardening.noise import Law, grid_exponent
from hardening.types import Guarantee, OutputSpace

Rows = NDArray[np.float64]
Labels = NDArray[np.intp]

#: Fixed-point grid on which projections add up scores: sums are exact whatever their order, so every machine agrees.
FIXED_POINT = 2.0**32
#: Largest scale of noise whose draws, to the ends of their tables, are within what a projection adds up exactly; with
#: more, whether an answer fails would depend on what was drawn.
MOST_SIMPLEX_NOISE = 2.0**11
#: How far a kept top class stays ahead of the others, in score.
MARGIN = 2.0**-20


class Op(NamedTuple):
    """One instruction. `law` and `keyed` are set on noise only; the pipeline binds them to a table and a key."""

    code: int
    params: tuple[float, ...] = ()
    law: Law | None = None
    keyed: int = opcodes.KEYED_INPUT


class State(NamedTuple):
    """What `reference` hands on: scores ``(rows, classes)`` float64, the model's own labels, the labels as of now."""

    rows: Rows
    own: Labels
    top: Labels


#: Integer noise, one ``(rows, classes)`` array per mechanism in the order of the pipeline.
Draws = Iterator[NDArray[np.int64]]


@dataclass(frozen=True)
class Transform:
    """Base of all transforms. Parameters are dataclass fields; `kind` is the name in a policy."""

    kind: ClassVar[str] = ""

    def space_after(self, space: OutputSpace) -> OutputSpace:
        """The space this transform leaves. Raises SpaceError if it does not accept `space`."""
        raise NotImplementedError

    def guarantee(self, before: Guarantee, space: OutputSpace, width: int | None) -> Guarantee:
        """The guarantee after this transform, given the one before it, the space it takes and the row's width."""
        return before

    def lower(self, space: OutputSpace) -> tuple[Op, ...]:
        """The instructions that do this in `space`."""
        raise NotImplementedError

    def reference(self, state: State, space: OutputSpace, draws: Draws) -> State:
        """The same in plain numpy."""
        raise NotImplementedError

    def needs_width(self, width: int) -> None:
        """Raise ValueError if the parameters make no sense for rows of `width` entries."""


def _require(space: OutputSpace, *kinds: str, why: str) -> None:
    if space.kind not in kinds:
        raise SpaceError(f"takes {' or '.join(kinds)}, not {space.kind}: {why}")


def _require_on_simplex(space: OutputSpace) -> None:
    _require(space, "simplex", why="it works on distributions")
    if not space.on_simplex:
        raise SpaceError("the row is off the simplex here, noise or a clip came before: put project before it")


def _no_labels(space: OutputSpace) -> None:
    if space.kind in ("labels", "open"):
        raise SpaceError(f"there are no scores to change in a space of kind {space.kind!r}")


def _positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name}: must be a positive finite number, not {value!r}")


def _whole(name: str, value: int, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{name}: must be a whole number from {low} to {high}, not {value!r}")


def _first_argmax(rows: Rows) -> Labels:
    return rows.argmax(axis=1) if rows.shape[1] else np.zeros(len(rows), np.intp)


def types_bits(units: int, width: int) -> float:
    """log2 of the number of points on the simplex with `width` entries that are multiples of 1/`units`.

    There are C(units + width - 1, width - 1) of them (Reznik 2011).
    """
    if width < 1:
        return 0.0
    log = math.lgamma(units + width) - math.lgamma(width) - math.lgamma(units + 1)
    return max(0.0, log / math.log(2))


def _types_reference(rows: Rows, top: Labels, units: int) -> Rows:
    """Largest-remainder rounding of each row to multiples of 1/units, ties and lost tops given to `top`.

    The residual of `top` counts as the next larger float, which puts it ahead of its equals.
    """
    scaled = rows * units
    counts = np.floor(scaled)
    residuals = scaled - counts
    for i, (count, residual, t) in enumerate(zip(counts, residuals, top, strict=True)):
        width = len(count)
        missing = int(units - count.sum())
        if missing < 0 or missing >= width:
            extra = missing if missing < 0 else missing - width + 1
            count[t] += extra
            missing -= extra
        residual[t] = np.nextafter(residual[t], np.inf)
        order = np.argsort(-residual, kind="stable")
        receivers = order[:missing]
        count[receivers] += 1
        if count.argmax() != t:
            donors = [r for r in receivers if r != t]
            tied = int(count.argmax())
            weakest = min(donors, key=lambda j: (residual[j], -j)) if donors else tied
            count[weakest] -= 1
            count[t] += 1
        counts[i] = count
    return counts / units


@dataclass(frozen=True)
class Round(Transform):
    """Round to `decimals` places (Tramer et al. 2016). ART's `Rounded`.

    On the simplex the rounded row is the nearest one that still sums to one (largest remainder, as `Types` with
    10**decimals units); elsewhere each entry goes to the nearest multiple, halves to even.
    """

    kind: ClassVar[str] = "round"
    decimals: int

    def __post_init__(self) -> None:
        _whole("decimals", self.decimals, 0, 9)

    @property
    def units(self) -> int:
        return int(10**self.decimals)

    def space_after(self, space: OutputSpace) -> OutputSpace:
        _no_labels(space)
        if space.kind == "simplex":
            _require_on_simplex(space)
            return replace(space, units=self.units)
        return space

    def guarantee(self, before: Guarantee, space: OutputSpace, width: int | None) -> Guarantee:
        if space.kind == "simplex":
            return Types(n=self.units).guarantee(before, space, width)
        low, high = (0.0, 1.0) if space.kind == "sigmoid" and not math.isfinite(space.low) else (space.low, space.high)
        bits = math.inf
        if width is not None and math.isfinite(high - low):
            bits = width * math.log2(math.floor((high - low) * self.units) + 2)
        return replace(before, bits=min(before.bits, bits), keeps_top1=False)

    def lower(self, space: OutputSpace) -> tuple[Op, ...]:
        code = opcodes.TYPES if space.kind == "simplex" else opcodes.GRID
        return (Op(code, (float(self.units),)),)

    def reference(self, state: State, space: OutputSpace, draws: Draws) -> State:
        if space.kind == "simplex":
            return state._replace(rows=_types_reference(state.rows, state.top, self.units))
        return state._replace(rows=np.rint(state.rows * self.units) / self.units)


@dataclass(frozen=True)
class Types(Transform):
    """Round to the nearest point of the simplex whose entries are multiples of 1/n (Reznik 2011).

    Deterministic, stateless, the same on every replica. Each entry moves by less than 1/n; the top class by less than
    2/n where a tie would otherwise cost it its place.
    """

    kind: ClassVar[str] = "types"
    n: int

    def __post_init__(self) -> None:
        _whole("n", self.n, 1, 10**9)

    def space_after(self, space: OutputSpace) -> OutputSpace:
        _require_on_simplex(space)
        return replace(space, units=self.n)

    def guarantee(self, before: Guarantee, space: OutputSpace, width: int | None) -> Guarantee:
        bits = math.inf
        if width is not None:
            support = min(width, space.support or width)
            bits = types_bits(self.n, support) + types_bits(support, width - support + 1) * (support < width)
        return replace(before, bits=min(before.bits, bits))

    def lower(self, space: OutputSpace) -> tuple[Op, ...]:
        return (Op(opcodes.TYPES, (float(self.n),)),)

    def reference(self, state: State, space: OutputSpace, draws: Draws) -> State:
        return state._replace(rows=_types_reference(state.rows, state.top, self.n))


def _keep_mask(rows: Rows, top: Labels, k: int) -> NDArray[np.bool_]:
    keep = np.zeros(rows.shape, bool)
    for i, t in enumerate(top):
        row = rows[i].copy()
        row[t] = np.nextafter(row[t], np.inf)
        keep[i, np.argsort(-row, kind="stable")[:k]] = True
    return keep


@dataclass(frozen=True)
class TopK(Transform):
    """Keep the k largest scores. ART's `HighConfidence` is the same idea, without keeping the simplex.

    remainder, on the simplex: ``drop`` renormalises what is kept; ``spread`` shares the rest evenly among the others;
    ``other`` adds the rest to the one class named by `other`, such as a class "unknown". On logits the others are
    filled with a public constant, one below the low end of the clip that must come before.
    """

    kind: ClassVar[str] = "top_k"
    k: int
    remainder: Literal["drop", "spread", "other"] = "drop"
    other: int | None = None

    def __post_init__(self) -> None:
        _whole("k", self.k, 1, 10**9)
        if self.remainder not in ("drop", "spread", "other"):
            raise ValueError(f"remainder: must be 'drop', 'spread' or 'other', not {self.remainder!r}")
        if (self.remainder == "other") != (self.other is not None):
            raise ValueError('other: the index of a class; needed with remainder = "other" and only there')
        if self.other is not None:
            _whole("other", self.other, 0, 10**9)

    def needs_width(self, width: int) -> None:
        if self.other is not None and self.other >= width:
            raise ValueError(f"other: class {self.other} does not exist, the output has {width} classes")

    def space_after(self, space: OutputSpace) -> OutputSpace:
        if space.kind == "logits":
            if self.remainder != "drop":
                raise SpaceError("remainder has no meaning on logits: leave it out")
            if not math.isfinite(space.low):
                raise SpaceError("on logits it fills with one below the low end of a clip: put a clip before it")
            return replace(space, low=space.low - 1.0)
        _require_on_simplex(space)
        return replace(space, support=self.k if self.remainder == "drop" else None, units=None)

    def guarantee(self, before: Guarantee, space: OutputSpace, width: int | None) -> Guarantee:
        bits = before.bits
        if self.k == 1 and space.kind == "simplex" and self.remainder == "drop" and width:
            bits = min(bits, math.log2(width))
        return replace(before, bits=bits, keeps_top1=before.keeps_top1 and self.remainder == "drop")

    def lower(self, space: OutputSpace) -> tuple[Op, ...]:
        if space.kind == "logits":
            return (Op(opcodes.TOP_K, (float(self.k), float(opcodes.REMAINDER_FILL), space.low - 1.0)),)
        mode = {
            "drop": opcodes.REMAINDER_DROP,
            "spread": opcodes.REMAINDER_SPREAD,
            "other": opcodes.REMAINDER_OTHER,
        }[self.remainder]
        return (Op(opcodes.TOP_K, (float(self.k), float(mode), float(self.other or 0))),)

    def reference(self, state: State, space: OutputSpace, draws: Draws) -> State:
        rows, width = state.rows, state.rows.shape[1]
        if self.k >= width:
            return state
        keep = _keep_mask(rows, state.top, self.k)
        if space.kind == "logits":
            return state._replace(rows=np.where(keep, rows, space.low - 1.0))
        kept = np.where(keep, rows, 0.0)
        mass = _exact_sum(kept)[:, None]
        if self.remainder == "drop":
            return state._replace(rows=kept / mass)
        rest = np.maximum(1.0 - mass, 0.0)
        if self.remainder == "spread":
            return state._replace(rows=np.where(keep, rows, rest / (width - self.k)))
        kept[:, int(self.other or 0)] += rest[:, 0]
        return state._replace(rows=kept, top=_first_argmax(kept))


@dataclass(frozen=True)
class LabelOnly(Transform):
    """One-hot of the top class; for independent sigmoids, 0 or 1 at one half. ART's `ClassLabels`."""

    kind: ClassVar[str] = "label_only"

    def space_after(self, space: OutputSpace) -> OutputSpace:
        _require(space, "simplex", "logits", "sigmoid", why="it needs classes")
        return replace(space, on_simplex=space.kind == "simplex", support=1, units=None)

    def guarantee(self, before: Guarantee, space: OutputSpace, width: int | None) -> Guarantee:
        bits = math.inf
        if width:
            bits = float(width) if space.kind == "sigmoid" else math.log2(width)
        return replace(before, bits=min(before.bits, bits), keeps_top1=before.keeps_top1 and space.kind != "sigmoid")

    def lower(self, space: OutputSpace) -> tuple[Op, ...]:
        return (Op(opcodes.LABEL_ONLY, (float(space.kind == "sigmoid"),)),)

    def reference(self, state: State, space: OutputSpace, draws: Draws) -> State:
        rows = state.rows
        if space.kind == "sigmoid":
            return state._replace(rows=(rows >= 0.5).astype(np.float64))
        onehot = np.zeros_like(rows)
        if rows.shape[1]:
            onehot[np.arange(len(rows)), state.top] = 1.0
        return state._replace(rows=onehot)


@dataclass(frozen=True)
class Clip(Transform):
    """Limit every entry to [low, high]. Bounds what noise has to hide, and what an answer can carry."""

    kind: ClassVar[str] = "clip"
    low: float
    high: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"low, high: must be finite with low < high, not {self.low!r} and {self.high!r}")

    def space_after(self, space: OutputSpace) -> OutputSpace:
        _no_labels(space)
        low, high = max(space.low, self.low), min(space.high, self.high)
        return replace(space, on_simplex=False, low=low, high=high, units=None)

    def guarantee(self, before: Guarantee, space: OutputSpace, width: int | None) -> Guarantee:
        return replace(before, keeps_top1=False)

    def lower(self, space: OutputSpace) -> tuple[Op, ...]:
        return (Op(opcodes.CLIP, (self.low, self.high)),)

    def reference(self, state: State, space: OutputSpace, draws: Draws) -> State:
        return state._replace(rows=np.minimum(np.maximum(state.rows, self.low), self.high))


@dataclass(frozen=True)
class Temperature(Transform):
    """Soften (t > 1) or sharpen (t < 1) scores: logits are divided by t, probabilities raised to 1/t and renormalised.

    Invertible, so it hides nothing by itself; it only makes later rounding and noise count for more or less.
    """

    kind: ClassVar[str] = "temperature"
    t: float

    def __post_init__(self) -> None:
        _positive("t", self.t)
        if not 1e-3 <= self.t <= 1e3:
            raise ValueError(f"t: must be between 0.001 and 1000, not {self.t!r}")

    def space_after(self, space: OutputSpace) -> OutputSpace:
        if space.kind == "simplex":
            _require_on_simplex(space)
            return replace(space, units=None)
        _require(space, "logits", why="a temperature needs class scores")
        return replace(space, low=space.low / self.t, high=space.high / self.t)

    def lower(self, space: OutputSpace) -> tuple[Op, ...]:
        return (Op(opcodes.TEMPERATURE, (self.t, float(space.kind == "simplex"))),)

    def reference(self, state: State, space: OutputSpace, draws: Draws) -> State:
        if space.kind == "logits":
            return state._replace(rows=state.rows / self.t)
        top = np.take_along_axis(state.rows, state.top[:, None], axis=1)
        powers = np.power(state.rows / top, 1.0 / self.t)
        return state._replace(rows=powers / _exact_sum(powers)[:, None])


@dataclass(frozen=True)
class _Noise(Transform):
    """Integer noise on a grid, keyed on the input: the same question gets the same answer, so repeats teach nothing."""

    key: Literal["input", "cell", "fresh"] = field(default="input", kw_only=True)
    sensitivity: float | None = field(default=None, kw_only=True)

    law_kind: ClassVar[Literal["gaussian", "laplace"]]

    @property
    def scale_value(self) -> float:
        raise NotImplementedError

    def __post_init__(self) -> None:
        if self.key not in ("input", "cell", "fresh"):
            raise ValueError(f"key: must be 'input', 'cell' or 'fresh', not {self.key!r}")
        if self.sensitivity is not None:
            _positive("sensitivity", self.sensitivity)

    @property
    def exponent(self) -> int:
        """The grid has steps of 2**-exponent."""
        return grid_exponent(self.law_kind, self.scale_value)

    @property
    def step(self) -> float:
        return math.ldexp(1.0, -self.exponent)

    @property
    def law(self) -> Law:
        return Law(self.law_kind, Fraction(self.scale_value) * Fraction(2) ** self.exponent)

    @property
    def cell(self) -> float:
        """Width of the cells of ``key = "cell"``: the power of two next below the scale."""
        return math.ldexp(1.0, math.frexp(self.scale_value)[1] - 1)

    def context(self) -> tuple[Any, ...]:
        """Every parameter that shapes the noise; all of them key it, so two settings never share a draw."""
        return (self.kind, self.scale_value, self.key, self.exponent)

    def space_after(self, space: OutputSpace) -> OutputSpace:
        _no_labels(space)
        if space.kind == "simplex" and self.scale_value > MOST_SIMPLEX_NOISE:
            raise SpaceError(
                f"of scale {self.scale_value:g} could not be projected back onto the simplex: at most "
                f"{MOST_SIMPLEX_NOISE:g}, where nothing is left of the scores"
            )
        return replace(space, on_simplex=False, low=-math.inf, high=math.inf, units=None, support=None)

    def _parameters(self, width: int | None) -> dict[str, float]:
        raise NotImplementedError

    def guarantee(self, before: Guarantee, space: OutputSpace, width: int | None) -> Guarantee:
        if before.relation in ("output-metric", "label"):
            return replace(before, bits=math.inf, keeps_top1=False)
        if self.key == "cell":
            return Guarantee(
                relation="capacity",
                unit="answer",
                assumptions=("the noise of a cell is fixed: it hides where in a cell a score lies, nothing else",),
            )
        assumptions = [
            "models are compared by the scores that enter the noise",
            "the key stays secret",
            "the clean scores are those that the runtime returned",
        ]
        unit = "distinct input" if self.key == "input" else "answer"
        return Guarantee("output-metric", unit, self._parameters(width), "global", tuple(assumptions))

    def lower(self, space: OutputSpace) -> tuple[Op, ...]:
        keyed = {"input": opcodes.KEYED_INPUT, "cell": opcodes.KEYED_CELL, "fresh": opcodes.KEYED_FRESH}[self.key]
        inverse = math.ldexp(1.0, self.exponent)
        return (Op(opcodes.NOISE, (self.step, inverse, 0, 0, 0, 0, float(keyed), self.cell), self.law, keyed),)

    def reference(self, state: State, space: OutputSpace, draws: Draws) -> State:
        rows = state.rows
        if self.key == "cell":
            rows = np.rint(rows / self.cell) * self.cell
        units = np.rint(rows * math.ldexp(1.0, self.exponent)) + next(draws)
        noisy = np.asarray(units * self.step, np.float64)
        return state._replace(rows=noisy, top=_first_argmax(noisy))


@dataclass(frozen=True)
class Gaussian(_Noise):
    """Discrete Gaussian noise of standard deviation `sigma` (Canonne, Kamath, Steinke 2020).

    Drawn as integers from an exact table, so that no floating-point artefact gives the clean score away. Satisfies
    rho-zCDP with rho = D^2 / (2 sigma^2) for models whose scores differ by at most D in L2, grid rounding included.
    """

    kind: ClassVar[str] = "gaussian"
    law_kind: ClassVar[Literal["gaussian", "laplace"]] = "gaussian"
    sigma: float

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive("sigma", self.sigma)
        grid_exponent(self.law_kind, self.sigma)

    @property
    def scale_value(self) -> float:
        return self.sigma

    def _parameters(self, width: int | None) -> dict[str, float]:
        parameters = {"sigma": self.sigma, "mu_per_l2": 1.0 / self.sigma}
        if self.sensitivity is not None:
            distance = math.inf if width is None else self.sensitivity + self.step * math.sqrt(width)
            parameters |= {"sensitivity_l2": self.sensitivity, "rho": distance**2 / (2 * self.sigma**2)}
        return parameters


@dataclass(frozen=True)
class Laplace(_Noise):
    """Discrete Laplace noise of scale `scale` (variance about 2 scale^2), drawn as `Gaussian` is.

    Satisfies pure epsilon indistinguishability with epsilon = D / scale for models whose scores differ by at most D in
    L1, grid rounding included, hence zCDP with rho = epsilon^2 / 2 (Bun & Steinke 2016).
    """

    kind: ClassVar[str] = "laplace"
    law_kind: ClassVar[Literal["gaussian", "laplace"]] = "laplace"
    scale: float

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive("scale", self.scale)
        grid_exponent(self.law_kind, self.scale)

    @property
    def scale_value(self) -> float:
        return self.scale

    def _parameters(self, width: int | None) -> dict[str, float]:
        parameters = {"scale": self.scale, "loss_per_l1": 1.0 / self.scale}
        if self.sensitivity is not None:
            loss = math.inf if width is None else (self.sensitivity + self.step * width) / self.scale
            parameters |= {"sensitivity_l1": self.sensitivity, "rho": loss**2 / 2}
        return parameters


def _exact_sum(rows: Rows, grid: float = 2.0**40) -> NDArray[np.float64]:
    """Row sums in fixed point: exact, therefore independent of order, for rows that sum to less than 2**13."""
    return np.asarray(np.rint(rows * grid).sum(axis=1) / grid)


@dataclass(frozen=True)
class Project(Transform):
    """Euclidean projection onto the simplex (Held, Wolfe & Crowder 1974; Michelot 1986).

    With `keep_top1` onto the part of it where the model's own top class leads by at least 2**-20; the label is then
    that of the clean scores, so a guarantee of the noise before holds only among models with the same label.
    """

    kind: ClassVar[str] = "project"
    keep_top1: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.keep_top1, bool):
            raise ValueError(f"keep_top1: must be true or false, not {self.keep_top1!r}")

    def space_after(self, space: OutputSpace) -> OutputSpace:
        _require(space, "simplex", why="only distributions live on the simplex")
        return replace(space, on_simplex=True, low=-math.inf, high=math.inf, units=None, support=None)

    def guarantee(self, before: Guarantee, space: OutputSpace, width: int | None) -> Guarantee:
        if not self.keep_top1:
            return before
        if before.relation == "output-metric":
            sentence = "models are compared only where they agree on the label, which is released as it is"
            return replace(before, relation="label", keeps_top1=True, assumptions=(*before.assumptions, sentence))
        return replace(before, keeps_top1=True)

    def lower(self, space: OutputSpace) -> tuple[Op, ...]:
        return (Op(opcodes.PROJECT, (float(self.keep_top1), MARGIN)),)

    def reference(self, state: State, space: OutputSpace, draws: Draws) -> State:
        rows = np.rint(state.rows * FIXED_POINT) / FIXED_POINT
        out = np.empty_like(rows)
        for i, (row, own) in enumerate(zip(rows, state.own, strict=True)):
            out[i] = _project_keeping(row, int(own)) if self.keep_top1 else _project(row, 1.0)
        return State(out, state.own, state.own if self.keep_top1 else _first_argmax(out))


def _project(row: Rows, mass: float) -> Rows:
    """Sort-based projection onto {x >= 0, sum x = mass}."""
    if not row.size:
        return row
    ordered = np.sort(row)[::-1]
    thresholds = (np.cumsum(ordered) - mass) / np.arange(1, row.size + 1)
    return np.asarray(np.maximum(row - thresholds[np.nonzero(ordered > thresholds)[0][-1]], 0.0))


def _project_keeping(row: Rows, top: int) -> Rows:
    if row.size < 2:
        return np.ones_like(row)
    row = row.copy()
    row[top] -= MARGIN
    others = np.sort(np.delete(row, top))[::-1]
    pooled, size = row[top], 1
    for value in others:
        if value <= pooled / size:
            break
        pooled, size = pooled + value, size + 1
    if size > 1:
        level = math.floor(pooled / size * FIXED_POINT) / FIXED_POINT
        row = np.minimum(row, level)
        row[top] = level
    out = _project(row, 1.0 - MARGIN)
    out[top] += MARGIN
    return out


@dataclass(frozen=True)
class ReverseSigmoid(Transform):
    """Deceptive perturbation y - beta (s(gamma logit y) - 1/2), renormalised (Lee et al. 2019). ART's `ReverseSigmoid`.

    No guarantee: the map is deterministic and a table undoes it. Parameters that could change the top class of some
    row are refused unless `allow_flip` says that this is meant.
    """

    kind: ClassVar[str] = "reverse_sigmoid"
    beta: float = 1.0
    gamma: float = 0.1
    allow_flip: bool = False

    def __post_init__(self) -> None:
        _positive("beta", self.beta)
        _positive("gamma", self.gamma)
        if not self.allow_flip:
            self.needs_width(2)

    def _map(self, p: Any) -> Any:
        clipped = np.clip(p, 1e-9, 1 - 1e-9)
        ratio = np.power((1.0 - clipped) / clipped, self.gamma)
        return np.clip(clipped - self.beta * (1.0 / (1.0 + ratio) - 0.5), 0.0, 1.0)

    def needs_width(self, width: int) -> None:
        if self.allow_flip or width < 2:
            return
        logit = np.linspace(-21.0, 21.0, 20001)
        p = 1.0 / (1.0 + np.exp(-logit))
        # Below a leading score q there can be anything up to min(q, 1 - q); the grid is symmetric about one half.
        reached = np.maximum.accumulate(self._map(p))
        reached = np.minimum(reached, reached[::-1])
        leads = p >= 1.0 / width
        flips = self._map(p)[leads] < reached[leads] - 1e-12
        if flips.any():
            raise ValueError(
                f"beta, gamma: with {width} classes these change the top class of some rows (a leading score of "
                f"{p[leads][flips][0]:.3g} can fall behind); choose smaller ones or set allow_flip = true"
            )

    def space_after(self, space: OutputSpace) -> OutputSpace:
        if space.kind == "sigmoid":
            return space
        _require_on_simplex(space)
        return replace(space, units=None)

    def guarantee(self, before: Guarantee, space: OutputSpace, width: int | None) -> Guarantee:
        keeps = before.keeps_top1 and not self.allow_flip
        if before.relation in ("output-metric", "label"):
            return replace(before, keeps_top1=keeps)
        return replace(before, relation="none", parameters={}, keeps_top1=keeps)

    def lower(self, space: OutputSpace) -> tuple[Op, ...]:
        return (
            Op(
                opcodes.REVERSE_SIGMOID, (self.beta, self.gamma, float(space.kind == "simplex"), float(self.allow_flip))
            ),
        )

    def reference(self, state: State, space: OutputSpace, draws: Draws) -> State:
        rows = self._map(state.rows)
        if space.kind == "simplex" and rows.shape[1]:
            total = _exact_sum(rows)[:, None]
            rows = np.where(total > 0, rows / np.where(total > 0, total, 1.0), 1.0 / rows.shape[1])
        return state._replace(rows=rows, top=_first_argmax(rows) if self.allow_flip else state.top)


#: Every transform by its name in a policy.
TRANSFORMS: dict[str, type[Transform]] = {
    t.kind: t for t in (Round, Types, TopK, LabelOnly, Clip, Temperature, Gaussian, Laplace, Project, ReverseSigmoid)
}
