"""Exact noise on an integer grid, keyed so that asking again gains nothing."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, ClassVar, Literal, Self

import numpy as np

from hardening.calibration import Fit
from hardening.errors import SpaceError
from hardening.noise import Law, LawKind, grid_exponent, grid_exponents, noise_table
from hardening.transforms.base import (
    SECRECY,
    Draws,
    Keyed,
    Op,
    State,
    Transform,
    check_key,
    first_argmax,
    no_labels,
    positive,
    whole,
)
from hardening.types import Guarantee, OutputSpace

#: Largest scale of noise whose draws, to the ends of their tables, are within what a projection adds up exactly; with
#: more, whether an answer fails would depend on what was drawn.
MOST_SIMPLEX_NOISE = 2.0**11

_CELL = "the noise of a cell is fixed: it hides where in a cell a score lies, nothing else"


@dataclass(frozen=True)
class Noise(Transform):
    """Integer noise on a grid, keyed so that the same question gets the same answer: repeats teach nothing.

    How much is said either by its scale or by a target, `epsilon` (and the Gaussian's delta) with `sensitivity`: what
    the scores that enter it differ by at most between the models to be kept apart, in the norm of the law. A target is
    fitted to the width of the rows by `at`; until then there is no `law`.

    scope: ``global`` noise is the same for everybody, so that colluders gain nothing by comparing answers; ``client``
    noise is the client's own, a small layer of it over global noise tells whose answers a copy was learnt from.

    grid: scores are rounded to multiples of 2**-grid, the unit of the noise; chosen by the scale if left out.
    """

    key: Keyed = field(default="input", kw_only=True)
    scope: Literal["global", "client"] = field(default="global", kw_only=True)
    sensitivity: float | None = field(default=None, kw_only=True)
    epsilon: float | None = field(default=None, kw_only=True)
    grid: int | None = field(default=None, kw_only=True)

    law_kind: ClassVar[LawKind]
    #: Fields that hold the scale; what a target consists of; the norm of the sensitivity.
    scale_name: ClassVar[str] = "scale"
    target: ClassVar[tuple[str, ...]] = ("epsilon", "sensitivity")
    norm: ClassVar[str]
    #: Of the target's numbers and the width.
    fit: ClassVar[Callable[..., Fit]]

    def __post_init__(self) -> None:
        check_key(self.key, self.scope)
        if self.sensitivity is not None:
            positive("sensitivity", self.sensitivity)
        if self.scale_value is None:
            self._check_target()
        else:
            self._check_scale(self.scale_value)

    def _check_target(self) -> None:
        wanted = [name for name in self.target if getattr(self, name) is not None]
        ways = f"give {self.scale_name}, or {' and '.join(self.target)}"
        if set(wanted) <= {"sensitivity"}:
            raise ValueError(f"{self.scale_name}: missing; {ways}")
        for name in self.target:
            if name not in wanted:
                raise ValueError(f"{name}: missing; {ways}")
            positive(name, getattr(self, name))
        if self.key == "cell":
            raise ValueError(f"key: 'cell' meets no such target; take 'input' or 'fresh', or give {self.scale_name}")
        if self.grid is not None:
            raise ValueError(f"grid: is fitted with the scale; leave it out, or give {self.scale_name}")

    def _check_scale(self, scale: float) -> None:
        for name in self.target:
            if name != "sensitivity" and getattr(self, name) is not None:
                raise ValueError(f"{name}: {self.scale_name} is given too; leave one of them out")
        positive(self.scale_name, scale)
        try:
            grids = grid_exponents(self.law_kind, scale)
        except ValueError as problem:
            raise ValueError(f"{self.scale_name}: {problem}") from None
        if self.grid is not None:
            whole("grid", self.grid, grids[0], grids[-1])

    @property
    def scale_value(self) -> float | None:
        """The scale, in units of the scores; None while it is to be fitted to a target."""
        return getattr(self, self.scale_name)  # type: ignore[no-any-return]

    def at(self, width: int) -> Self:
        """This noise with a scale: a target is fitted to rows of `width` entries. Raises ValueError."""
        if self.scale_value is not None:
            return self
        fit = self.fit(*(getattr(self, name) for name in self.target), max(width, 1))
        fitted: dict[str, Any] = dict.fromkeys(name for name in self.target if name != "sensitivity")
        fitted |= {self.scale_name: fit.scale, "grid": fit.grid}
        return replace(self, **fitted)

    @property
    def _scale(self) -> float:
        if self.scale_value is None:
            raise ValueError(f"{self.scale_name}: depends on the width of the rows; fit it with at(width)")
        return self.scale_value

    @property
    def exponent(self) -> int:
        """The grid has steps of 2**-exponent."""
        return grid_exponent(self.law_kind, self._scale) if self.grid is None else self.grid

    @property
    def step(self) -> float:
        return math.ldexp(1.0, -self.exponent)

    @property
    def law(self) -> Law:
        return Law(self.law_kind, Fraction(self._scale) * Fraction(2) ** self.exponent)

    @property
    def cell(self) -> float:
        """Width of the cells of ``key = "cell"``: the power of two next below the scale."""
        return math.ldexp(1.0, math.frexp(self._scale)[1] - 1)

    def context(self) -> tuple[Any, ...]:
        """Every parameter that shapes the noise; all of them key it, so two settings never share a draw."""
        return (self.kind, self._scale, self.key, self.scope, self.exponent)

    def space_after(self, space: OutputSpace) -> OutputSpace:
        no_labels(space)
        if space.kind == "simplex" and (self.scale_value or 0.0) > MOST_SIMPLEX_NOISE:
            raise SpaceError(
                f"of scale {self.scale_value:g} could not be projected back onto the simplex: at most "
                f"{MOST_SIMPLEX_NOISE:g}, where nothing is left of the scores"
            )
        return replace(space, on_simplex=False, low=-math.inf, high=math.inf, units=None, support=None)

    def __str__(self) -> str:
        """The parameters that are set, but for a target: that belongs beside what it is about, in the guarantee."""
        fields = sorted(dataclasses.fields(self), key=lambda f: f.name != self.scale_name)
        shown = (f.name for f in fields if getattr(self, f.name) != f.default and f.name not in ("epsilon", "delta"))
        given = [f"{name}={getattr(self, name)!r}" for name in shown]
        if self.scale_value is None:
            given.insert(0, f"{self.scale_name} fitted to the width")
        return f"{type(self).__name__}({', '.join(given)})"

    def _within(self, space: OutputSpace, width: int | None) -> Noise:
        """This noise with the sensitivity that a declared range gives, if none is stated."""
        span = space.high - space.low
        if self.sensitivity is not None or width is None or space.kind not in ("scalar", "boxes") or span == math.inf:
            return self
        return replace(self, sensitivity=span * {"l1": width, "l2": math.sqrt(width), "linf": 1.0}[self.norm])

    def guarantee(self, before: Guarantee, space: OutputSpace, width: int | None) -> Guarantee:
        if before.relation == "label-rr":
            return replace(before, bits=math.inf, keeps_top1=False)
        if self.key == "cell":
            if before.relation in ("output-metric", "label"):
                return replace(before, bits=math.inf, keeps_top1=False)
            return Guarantee(
                relation="capacity",
                unit="answer",
                assumptions=(_CELL,),
            )
        if _CELL in before.assumptions:  # on either side of an edge, models a hair apart enter this noise far apart
            return replace(before, bits=math.inf, keeps_top1=False)
        own = self._within(space, width)._promise(width)
        if space.relabelled:
            same = "models are compared only where the same labels were changed before the noise"
            own = replace(own, assumptions=(*own.assumptions, same))
        if before.relation not in ("output-metric", "label"):
            return own
        # The second of two noises is post-processing of the first, and whatever the first draws, the second has its
        # own loss: both bounds hold for the one answer, so the better is kept. Only answers that are released add up.
        rho, earlier = own.parameters.get("rho", math.inf), before.parameters.get("rho", math.inf)
        alike = (own.scope, own.unit) == (before.scope, before.unit) or math.isinf(earlier)
        if before.relation == "output-metric" and alike and rho < earlier:
            return own
        return replace(before, bits=math.inf, keeps_top1=False)

    def _promise(self, width: int | None) -> Guarantee:
        assumptions = (
            "models are compared by the scores that enter the noise",
            SECRECY,
            "the clean scores are those that the runtime returned",
        )
        unit = "distinct input" if self.key == "input" else "answer"
        fitted = self if width is None else self.at(width)
        parameters = {} if fitted.scale_value is None else fitted._parameters(width)
        named = {name: f"sensitivity_{self.norm}" if name == "sensitivity" else name for name in self.target}
        given = {name: getattr(self, field) for field, name in named.items()}
        parameters |= {name: value for name, value in given.items() if value is not None}
        return Guarantee("output-metric", unit, parameters, self.scope, assumptions)

    def _parameters(self, width: int | None) -> dict[str, float]:
        """What noise with a scale promises for rows of `width` entries, by name."""
        known = {self.scale_name: self._scale}
        if self.sensitivity is None:
            return known
        if width is None:
            return known | {"rho": math.inf}
        return known | self._loss(width, width * noise_table(self.law).tv_bound)

    def _loss(self, width: int, tv: float) -> dict[str, float]:
        """Privacy loss at this sensitivity; `tv` is the total variation between the drawn row and the ideal one."""
        raise NotImplementedError

    def lower(self, space: OutputSpace) -> tuple[Op, ...]:
        """Noise whose target waits for a width has no numbers and no law yet."""
        celled, personal = self.key == "cell", self.scope == "client"
        if self.scale_value is None:
            return (Op("additive.noise", keyed=self.key, personal=personal),)
        numbers = (self.step, math.ldexp(1.0, self.exponent), 0, 0, float(celled), float(personal))
        draw = Op("additive.noise", numbers, keyed=self.key, personal=personal, law=self.law)
        return (Op("additive.to_cells", (self.cell,)), draw) if celled else (draw,)

    def reference(self, state: State, space: OutputSpace, draws: Draws) -> State:
        rows = state.rows
        if self.key == "cell":
            rows = np.rint(rows / self.cell) * self.cell
        units = np.rint(rows * math.ldexp(1.0, self.exponent)) + next(draws)
        noisy = np.asarray(units * self.step, np.float64)
        return state._replace(rows=noisy, top=first_argmax(noisy))
