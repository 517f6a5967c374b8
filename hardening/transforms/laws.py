"""The laws of noise, each with the loss it has at a sensitivity."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from hardening.accounting import pure_rho, table_delta
from hardening.calibration import Fit, gaussian_fit, laplace_fit, staircase_fit, staircase_flat
from hardening.noise import Law, LawKind
from hardening.transforms.additive import Noise

#: Most nats that one entry of staircase noise may lose: more is no protection, and a table has no room for it.
MOST_STAIRCASE_LOSS = 16.0


def _pure(loss: float, tv: float) -> dict[str, float]:
    """A worst log-ratio of `loss`, but for the tables' share."""
    return {"epsilon": loss, "delta": min(1.0, table_delta(tv, loss)), "rho": pure_rho(loss), "tv": tv}


@dataclass(frozen=True)
class Gaussian(Noise):
    """Discrete Gaussian noise of standard deviation `sigma` (Canonne, Kamath & Steinke 2020).

    Drawn as integers from an exact table, so that no floating-point artefact gives the clean score away. Satisfies
    rho-zCDP with rho = D^2 / (2 sigma^2) for models whose scores differ by at most D in L2, grid rounding included.
    From (epsilon, delta, sensitivity) by the analytic calibration of Balle & Wang (2018), see `calibration`.
    """

    kind: ClassVar[str] = "gaussian"
    law_kind: ClassVar[LawKind] = "gaussian"
    scale_name: ClassVar[str] = "sigma"
    target: ClassVar[tuple[str, ...]] = ("epsilon", "delta", "sensitivity")
    norm: ClassVar[str] = "l2"
    fit: ClassVar[Callable[..., Fit]] = staticmethod(gaussian_fit)
    sigma: float | None = None
    delta: float | None = field(default=None, kw_only=True)

    def _check_target(self) -> None:
        super()._check_target()
        if self.delta is not None and not self.delta < 1:
            raise ValueError(f"delta: must be between 0 and 1, not {self.delta!r}")

    def _loss(self, width: int, tv: float) -> dict[str, float]:
        assert self.sensitivity
        return {"rho": ((self.sensitivity + self.step * math.sqrt(width)) / self._scale) ** 2 / 2, "tv": tv}


@dataclass(frozen=True)
class Laplace(Noise):
    """Discrete Laplace noise of scale `scale` (variance about 2 scale^2), drawn as `Gaussian` is.

    Satisfies pure epsilon indistinguishability with epsilon = D / scale for models whose scores differ by at most D in
    L1, grid rounding included, hence zCDP with rho = epsilon^2 / 2 (Bun & Steinke 2016).
    """

    kind: ClassVar[str] = "laplace"
    law_kind: ClassVar[LawKind] = "laplace"
    norm: ClassVar[str] = "l1"
    fit: ClassVar[Callable[..., Fit]] = staticmethod(laplace_fit)
    scale: float | None = None

    def _loss(self, width: int, tv: float) -> dict[str, float]:
        assert self.sensitivity
        return _pure((self.sensitivity + self.step * width) / self._scale, tv)


@dataclass(frozen=True)
class Staircase(Noise):
    """Discrete staircase noise (Geng & Viswanath 2014): of all epsilon noise on one number, the least in mean |x|.

    Flat up to a fall within each period of `sensitivity`, where it falls by exp(-sensitivity / scale). The smallest
    change of an entry costs as much as one of `sensitivity`, so for rows of K entries, each of which may change by
    that much, the loss is K of these; made for single scores.
    """

    kind: ClassVar[str] = "staircase"
    law_kind: ClassVar[LawKind] = "staircase"
    norm: ClassVar[str] = "linf"
    fit: ClassVar[Callable[..., Fit]] = staticmethod(staircase_fit)
    scale: float | None = None

    def _check_target(self) -> None:
        super()._check_target()
        if self.epsilon and self.epsilon > MOST_STAIRCASE_LOSS:
            raise ValueError(f"epsilon: must be at most {MOST_STAIRCASE_LOSS:g}, not {self.epsilon!r}")

    def _check_scale(self, scale: float) -> None:
        super()._check_scale(scale)
        if self.sensitivity is None:
            raise ValueError("sensitivity: missing; the width of the stairs")
        if self._entry_loss > MOST_STAIRCASE_LOSS:
            most = f"{MOST_STAIRCASE_LOSS:g} times the scale, a step of the grid included"
            raise ValueError(f"sensitivity: must be at most {most}, not {self.sensitivity!r}")

    @property
    def _period(self) -> int:
        """Steps by which two entries that differ by `sensitivity` can differ once rounded."""
        return math.floor((self.sensitivity or 0.0) / self.step) + 1

    @property
    def _entry_loss(self) -> float:
        return self._period * self.step / self._scale

    @property
    def law(self) -> Law:
        plain = super().law
        return Law(plain.kind, plain.scale, self._period, staircase_flat(self._entry_loss, self._period))

    def context(self) -> tuple[Any, ...]:
        return (*super().context(), self.law.period, self.law.flat)

    def _loss(self, width: int, tv: float) -> dict[str, float]:
        return _pure(width * self._entry_loss, tv)
