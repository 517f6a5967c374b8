"""The two policies that are measured, and the peers that do the same by other means.

- ``plain``: 100 units shared out over the classes, stateless, no key.
- ``full``: exact Gaussian noise keyed by the question, projection that keeps the top class, then the same units.

Peers: a chain of numpy calls as one would write it in an afternoon, without accounts, checks or exact sampling; and the
post-processors of ART (adversarial-robustness-toolbox), called directly on the scores, which is less work than their
users' way through an estimator. ART's noise is not keyed, so asking again averages it away; it has no projection and
does not keep the top class. It is the nearest that is published.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import hardening

SIGMA, UNITS, DECIMALS = 0.05, 100, 2
TIERS = {
    "plain": f'{{kind = "types", n = {UNITS}}}',
    "full": f'{{kind = "gaussian", sigma = {SIGMA}, key = "input"}}, {{kind = "project", keep_top1 = true}}, '
    f'{{kind = "types", n = {UNITS}}}',
}
POLICIES = tuple(TIERS)

Scores = NDArray[Any]
#: Hardens float ``(rows, classes)`` scores, given the question that was asked.
Chain = Callable[[Scores, NDArray[Any]], Scores]


def policy_file(folder: Path, policy: str, output: str) -> Path:
    """Write one of the two policies, and return its path; the key is made on first use, beside it."""
    path = folder / f"{policy}.toml"
    key = '[key]\nsource = "file:bench.key"\ncreate = true\n' if policy == "full" else ""
    path.write_text(
        f'schema = 1\n{key}[outputs.{output}]\nspace = "simplex"\n'
        f"[outputs.{output}.tiers]\nnormal = [ {TIERS[policy]} ]\n"
    )
    return path


def load(folder: Path, policy: str, output: str) -> hardening.Policy:
    """One of the two policies, for a model's output."""
    return hardening.load_policy(policy_file(folder, policy, output))


def numpy_types(scores: Scores, top: NDArray[Any]) -> Scores:
    """Largest-remainder rounding to multiples of 1 / `UNITS`."""
    scaled = scores * UNITS
    counts = np.floor(scaled)
    missing = (UNITS - counts.sum(axis=1)).astype(int)
    order = np.argsort(counts - scaled, axis=1, kind="stable")
    ranks = np.argsort(order, axis=1)
    counts += ranks < missing[:, None]
    lead, rows = counts.argmax(axis=1), np.arange(len(counts))
    behind = rows[lead != top]
    counts[behind, lead[behind]], counts[behind, top[behind]] = (
        counts[behind, top[behind]],
        counts[behind, lead[behind]],
    )
    return np.asarray((counts / UNITS).astype(scores.dtype))


def numpy_plain(scores: Scores, question: NDArray[Any]) -> Scores:
    """The policy ``plain``, naively."""
    wide = scores.astype(np.float64)
    wide /= wide.sum(axis=1, keepdims=True)
    return np.asarray(numpy_types(wide, scores.argmax(axis=1)).astype(scores.dtype))


def numpy_full(scores: Scores, question: NDArray[Any], key: bytes = bytes(32)) -> Scores:
    """The policy ``full``, naively: a generator seeded from each row's keyed hash, floating-point noise."""
    seeds = [hashlib.blake2b(row.tobytes(), key=key, digest_size=16).digest() for row in question]
    noise = [np.random.default_rng(int.from_bytes(s, "little")).normal(0.0, SIGMA, scores.shape[1]) for s in seeds]
    noisy, top, rows = scores + np.array(noise), scores.argmax(axis=1), np.arange(len(scores))
    ordered = np.sort(noisy, axis=1)[:, ::-1]
    thresholds = (np.cumsum(ordered, axis=1) - 1.0) / np.arange(1, scores.shape[1] + 1)
    support = (ordered > thresholds).sum(axis=1) - 1
    projected = np.maximum(noisy - thresholds[rows, support][:, None], 0.0)
    projected[rows, top] = projected.max(axis=1)
    projected /= projected.sum(axis=1, keepdims=True)
    return np.asarray(numpy_types(projected, top).astype(scores.dtype))


NUMPY: dict[str, Chain] = {"plain": numpy_plain, "full": numpy_full}


def art_noise() -> Chain:
    """ART's GaussianNoise alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of every framework that is not installed
        from art.defences.postprocessor import GaussianNoise
    noise = GaussianNoise(scale=SIGMA)
    return lambda scores, question: np.asarray(noise(scores))


def art(policy: str) -> Chain:
    """What ART has for a policy: Rounded for ``plain``, GaussianNoise and Rounded for ``full``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of every framework that is not installed
        from art.defences.postprocessor import GaussianNoise, Rounded
    rounded = Rounded(decimals=DECIMALS)
    if policy == "plain":
        return lambda scores, question: np.asarray(rounded(scores))
    noise = GaussianNoise(scale=SIGMA)
    return lambda scores, question: np.asarray(rounded(noise(scores)))
