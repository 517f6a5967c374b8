"""Exact noise on an integer grid, keyed so that asking again gains nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, ClassVar, Literal

import numpy as np

from hardening.errors import SpaceError
from hardening.noise import Law, grid_exponent
from hardening.transforms.base import Draws, Keyed, Op, State, Transform, first_argmax, no_labels, positive
from hardening.types import Guarantee, OutputSpace

#: Largest scale of noise whose draws, to the ends of their tables, are within what a projection adds up exactly; with
#: more, whether an answer fails would depend on what was drawn.
MOST_SIMPLEX_NOISE = 2.0**11


@dataclass(frozen=True)
class Noise(Transform):
    """Integer noise on a grid, keyed so that the same question gets the same answer: repeats teach nothing.

    scope: ``global`` noise is the same for everybody, so that colluders gain nothing by comparing answers; ``client``
    noise is the client's own, a small layer of it over global noise tells whose answers a copy was learnt from.
    """

    key: Keyed = field(default="input", kw_only=True)
    scope: Literal["global", "client"] = field(default="global", kw_only=True)
    sensitivity: float | None = field(default=None, kw_only=True)

    law_kind: ClassVar[Literal["gaussian", "laplace"]]

    @property
    def scale_value(self) -> float:
        raise NotImplementedError

    def __post_init__(self) -> None:
        if self.key not in ("input", "cell", "fresh"):
            raise ValueError(f"key: must be 'input', 'cell' or 'fresh', not {self.key!r}")
        if self.scope not in ("global", "client"):
            raise ValueError(f"scope: must be 'global' or 'client', not {self.scope!r}")
        if self.sensitivity is not None:
            positive("sensitivity", self.sensitivity)

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
        return (self.kind, self.scale_value, self.key, self.scope, self.exponent)

    def space_after(self, space: OutputSpace) -> OutputSpace:
        no_labels(space)
        if space.kind == "simplex" and self.scale_value > MOST_SIMPLEX_NOISE:
            raise SpaceError(
                f"of scale {self.scale_value:g} could not be projected back onto the simplex: at most "
                f"{MOST_SIMPLEX_NOISE:g}, where nothing is left of the scores"
            )
        return replace(space, on_simplex=False, low=-math.inf, high=math.inf, units=None, support=None)

    def _parameters(self, width: int | None) -> dict[str, float]:
        raise NotImplementedError

    def _within(self, space: OutputSpace, width: int | None) -> Noise:
        """This noise with the sensitivity that a declared range gives, if none is stated."""
        span = space.high - space.low
        if self.sensitivity is not None or width is None or space.kind not in ("scalar", "boxes") or span == math.inf:
            return self
        return replace(self, sensitivity=span * (math.sqrt(width) if self.law_kind == "gaussian" else width))

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
            "the key stays secret, and without it its cipher, AES-128 or ChaCha20, cannot be told from chance",
            "the clean scores are those that the runtime returned",
        ]
        unit = "distinct input" if self.key == "input" else "answer"
        return Guarantee(
            "output-metric", unit, self._within(space, width)._parameters(width), self.scope, tuple(assumptions)
        )

    def lower(self, space: OutputSpace) -> tuple[Op, ...]:
        celled, personal = self.key == "cell", self.scope == "client"
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


@dataclass(frozen=True)
class Gaussian(Noise):
    """Discrete Gaussian noise of standard deviation `sigma` (Canonne, Kamath, Steinke 2020).

    Drawn as integers from an exact table, so that no floating-point artefact gives the clean score away. Satisfies
    rho-zCDP with rho = D^2 / (2 sigma^2) for models whose scores differ by at most D in L2, grid rounding included.
    """

    kind: ClassVar[str] = "gaussian"
    law_kind: ClassVar[Literal["gaussian", "laplace"]] = "gaussian"
    sigma: float

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("sigma", self.sigma)
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
class Laplace(Noise):
    """Discrete Laplace noise of scale `scale` (variance about 2 scale^2), drawn as `Gaussian` is.

    Satisfies pure epsilon indistinguishability with epsilon = D / scale for models whose scores differ by at most D in
    L1, grid rounding included, hence zCDP with rho = epsilon^2 / 2 (Bun & Steinke 2016).
    """

    kind: ClassVar[str] = "laplace"
    law_kind: ClassVar[Literal["gaussian", "laplace"]] = "laplace"
    scale: float

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("scale", self.scale)
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
