"""Our accounting against OpenDP and dp-accounting, in an environment of their own: they weigh half a gigabyte.

`tests/test_accounting.py` has some of the numbers they gave as known answers.
"""

from __future__ import annotations

import json
import math
import subprocess
import venv
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from hardening import accounting
from hardening.noise import Law, noise_table, table_weights
from hardening.transforms import Gaussian

pytestmark = [pytest.mark.oracles, pytest.mark.deep]
ENVIRONMENT = Path(__file__).parents[2] / ".cache" / "oracles"

#: Runs in the other environment: a JSON object of arguments in, one of answers out.
SCRIPT = """
import json, math, sys, warnings
warnings.simplefilter("ignore")
import dp_accounting as d
from dp_accounting.pld.privacy_loss_distribution import (
    from_discrete_gaussian_mechanism, from_discrete_laplace_mechanism, from_randomized_response)
from dp_accounting.rdp import RdpAccountant
import opendp.prelude as dp

dp.enable_features("contrib", "idealized-numerics")
ask = json.load(sys.stdin)
tell = {}
tell["sigma"] = [d.get_sigma_gaussian(e, delta) for e, delta in ask["targets"]]
tell["epsilon"] = [d.get_epsilon_gaussian(s, delta) for s, delta in ask["gaussians"]]

def rdp(event, times, delta):
    accountant = RdpAccountant(orders=[1 + x / 10 for x in range(1, 2000)])
    accountant.compose(event, times)
    return float(accountant.get_epsilon(delta))

tell["rdp_gaussian"] = [rdp(d.GaussianDpEvent(s), n, delta) for s, n, delta in ask["composed"]]
tell["rdp_laplace"] = [rdp(d.LaplaceDpEvent(s), n, delta) for s, n, delta in ask["composed"]]
def delta(profile, epsilon):
    return float(profile.get_delta_for_epsilon(epsilon))

tell["discrete_gaussian"] = [
    delta(from_discrete_gaussian_mechanism(s, sensitivity=n), e) for s, n, e in ask["discrete"]]
tell["discrete_laplace"] = [
    delta(from_discrete_laplace_mechanism(1 / s, sensitivity=n), e) for s, n, e in ask["discrete"]]
tell["k_rr"] = [delta(from_randomized_response(k / (math.exp(e) + k - 1), k), 0.5 * e) for e, k in ask["k_rr"]]

integers = dp.vector_domain(dp.atom_domain(T=int))

def gaussian(scale):
    return dp.m.make_gaussian(integers, dp.l2_distance(T=float), scale=scale)

tell["rho"] = [gaussian(s).map(float(n)) for s, n, _ in ask["discrete"]]
profiles = [dp.c.make_zCDP_to_approxDP(gaussian(s)).map(float(n)) for s, n, _ in ask["discrete"]]
tell["zcdp_epsilon"] = [p.epsilon(1e-6) for p in profiles]
tell["zcdp_delta"] = [p.delta(e) for p, (_, _, e) in zip(profiles, ask["discrete"])]
laplace = [dp.m.make_laplace(integers, dp.l1_distance(T=int), scale=s) for s, _, _ in ask["discrete"]]
tell["loss"] = [m.map(n) for m, (_, n, _) in zip(laplace, ask["discrete"])]
print(json.dumps(tell))
"""

ASK: dict[str, Any] = {
    "targets": [[0.1, 1e-6], [1.0, 1e-5], [4.0, 1e-9], [10.0, 1e-5]],
    "gaussians": [[0.7, 1e-6], [2.0, 1e-6], [20.0, 1e-5]],
    "composed": [[2.0, 3, 1e-6], [10.0, 20, 1e-6], [50.0, 1000, 1e-6]],
    "discrete": [[3.0, 1, 0.5], [8.0, 2, 0.5], [20.0, 30, 2.0]],
    "k_rr": [[1.0, 2], [1.0, 10], [3.0, 5]],
}


@pytest.fixture(scope="module")
def told() -> dict[str, list[float]]:
    """What the oracles say; their environment is made once, and used again by later runs."""
    python = ENVIRONMENT / "bin" / "python"
    if not (ENVIRONMENT / "ready").exists():
        venv.create(ENVIRONMENT, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "dp-accounting", "opendp"], check=True)
        (ENVIRONMENT / "ready").touch()
    done = subprocess.run(
        [python, "-I", "-c", SCRIPT], input=json.dumps(ASK), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    answers: dict[str, list[float]] = json.loads(done.stdout)
    return answers


def test_the_analytic_gaussian(told: dict[str, list[float]]) -> None:
    for (epsilon, delta), sigma in zip(ASK["targets"], told["sigma"], strict=True):
        assert 1 / accounting.gdp_mu(epsilon, delta) == pytest.approx(sigma, rel=1e-8)
        fitted = Gaussian(epsilon=epsilon, delta=delta, sensitivity=1.0).at(1).sigma
        assert sigma * (1 - 1e-9) < fitted < 1.1 * sigma  # type: ignore[operator]
    for (sigma, delta), epsilon in zip(ASK["gaussians"], told["epsilon"], strict=True):
        assert accounting.gdp_epsilon(1 / sigma, delta) == pytest.approx(epsilon, rel=1e-8)


def test_renyi_accounting(told: dict[str, list[float]]) -> None:
    """Our search over orders is never worse than a grid of two thousand, and little better."""
    for (sigma, times, delta), gaussian, laplace in zip(
        ASK["composed"], told["rdp_gaussian"], told["rdp_laplace"], strict=True
    ):
        rho = accounting.zcdp_composed([1 / (2 * sigma * sigma)] * times)
        assert 0.99 * gaussian < accounting.zcdp_epsilon(rho, delta) <= gaussian * (1 + 1e-9)
        one = accounting.laplace_rdp(1 / sigma)
        ours = accounting.rdp_epsilon(lambda order, one=one, times=times: times * one(order), delta)  # type: ignore[misc]
        assert 0.97 * laplace < ours <= laplace * (1 + 1e-9)


def test_discrete_laws(told: dict[str, list[float]]) -> None:
    """Privacy loss distributions err upwards by the width of their buckets; our sums over the tables do not."""
    for (scale, shift, epsilon), gaussian, laplace in zip(
        ASK["discrete"], told["discrete_gaussian"], told["discrete_laplace"], strict=True
    ):
        for law, theirs in (("gaussian", gaussian), ("laplace", laplace)):
            weights = table_weights(noise_table(Law(law, Fraction(scale))))  # type: ignore[arg-type]
            exact = accounting.drawn_delta(weights, shift, epsilon)
            assert exact <= theirs * (1 + 1e-9) + 1e-12
            assert exact == pytest.approx(theirs, rel=2e-3, abs=1e-12)
        assert gaussian <= accounting.discrete_gaussian_delta(scale, shift, epsilon) * (1 + 2e-3) + 1e-12


def test_randomised_response(told: dict[str, list[float]]) -> None:
    for (epsilon, classes), delta in zip(ASK["k_rr"], told["k_rr"], strict=True):
        rest = math.exp(epsilon) + classes - 1
        exact = math.exp(epsilon) / rest - math.exp(0.5 * epsilon) / rest
        assert exact == pytest.approx(delta, rel=1e-3)
        divergence = accounting.randomized_response_rdp(epsilon, classes)
        assert accounting.rdp_epsilon(divergence, delta) >= 0.5 * epsilon  # a conversion never beats the exact profile


def test_zcdp(told: dict[str, list[float]]) -> None:
    for i, (scale, shift, epsilon) in enumerate(ASK["discrete"]):
        rho = shift**2 / (2 * scale**2)
        assert told["rho"][i] == pytest.approx(rho, rel=1e-12)
        assert told["loss"][i] == pytest.approx(shift / scale, rel=1e-12)
        assert accounting.zcdp_epsilon(rho, 1e-6) == pytest.approx(told["zcdp_epsilon"][i], rel=1e-9)
        assert accounting.zcdp_delta(rho, epsilon) == pytest.approx(told["zcdp_delta"][i], rel=1e-6)
