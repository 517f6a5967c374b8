"""What each class costs in the linear programs of `perturb`, as whole numbers of up to 34 bits."""

from __future__ import annotations

from typing import Any

import numpy as np

from hardening.kernels.elementary import logarithms
from hardening.kernels.lanes import device
from hardening.kernels.perturb import MOST_COST, UNIT, nearest

#: Logarithms, which are above -14, are multiples of 1 / LOG_UNIT.
LOG_UNIT = 2.0**30
#: Added to scores before their logarithm is taken (Tang et al. 2024).
FLOOR = 1e-6


@device
def log_costs(units: Any, spare: Any, costs: Any) -> None:
    """Costs ln(y + `FLOOR`). `spare` is of float64."""
    for j in range(units.size):
        spare[j] = units[j] / UNIT + FLOOR
    logarithms(spare)
    for j in range(units.size):
        costs[j] = nearest(spare[j] * LOG_UNIT)


@device
def score_costs(units: Any, costs: Any) -> None:
    """Costs y - p' for a p' that is the same for all classes, which may then be left out."""
    for j in range(units.size):
        costs[j] = nearest(units[j] / UNIT * MOST_COST)


@device
def difference_costs(units: Any, surrogate: Any, costs: Any) -> None:
    """Costs y - p'; what a model's own rounding puts beyond 0 or 1 counts as that."""
    for j in range(units.size):
        costs[j] = nearest((units[j] / UNIT - min(max(surrogate[j], 0.0), 1.0)) * MOST_COST)


@device
def given_costs(direction: Any, costs: Any) -> None:
    """Any finite costs, scaled so that the largest in magnitude becomes `MOST_COST`."""
    most = 0.0
    for j in range(direction.size):
        most = max(most, abs(direction[j]))
    for j in range(direction.size):
        costs[j] = nearest(direction[j] / most * MOST_COST) if most > 0.0 else np.int64(0)
