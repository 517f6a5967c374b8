"""Privacy loss as numbers: Gaussian trade-offs, Renyi divergences, zCDP, their conversions, and a filter.

Losses are in nats. A number from here means nothing without the relation it is about - which models (or records) are
told apart, per what unit - so whoever prints one prints that with it; `hardening.types.Guarantee` carries both.

Functions that state an upper bound stay one whatever their numerical search finds: every point searched is valid.
"""

from __future__ import annotations

from hardening.accounting.discrete import SMOOTH_ERROR, discrete_gaussian_delta, drawn_delta, laplace_delta
from hardening.accounting.filter import Filter
from hardening.accounting.gaussian import (
    gdp_advantage,
    gdp_delta,
    gdp_epsilon,
    gdp_mu,
    gdp_true_positives,
    true_positives,
)
from hardening.accounting.renyi import (
    Renyi,
    discrete_laplace_rdp,
    gaussian_rdp,
    laplace_rdp,
    pure_rho,
    randomized_response_rdp,
    rdp_epsilon,
    rdp_epsilon_at,
    table_delta,
    zcdp_composed,
    zcdp_delta,
    zcdp_epsilon,
    zcdp_rho,
)

__all__ = [
    "SMOOTH_ERROR",
    "Filter",
    "Renyi",
    "discrete_gaussian_delta",
    "discrete_laplace_rdp",
    "drawn_delta",
    "gaussian_rdp",
    "gdp_advantage",
    "gdp_delta",
    "gdp_epsilon",
    "gdp_mu",
    "gdp_true_positives",
    "laplace_delta",
    "laplace_rdp",
    "pure_rho",
    "randomized_response_rdp",
    "rdp_epsilon",
    "rdp_epsilon_at",
    "table_delta",
    "true_positives",
    "zcdp_composed",
    "zcdp_delta",
    "zcdp_epsilon",
    "zcdp_rho",
]
