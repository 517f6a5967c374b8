"""Rows that a model may return, what makes an answer to them clean, and the kernel as a function."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardening.kernels import layout
from hardening.kernels.layout import Job
from hardening.noise import Key
from hardening.pipeline import Pipeline
from hardening.program import Program, Task
from hardening.transforms.release import largest_gap

KEY = Key(1, "chacha20", bytes(range(32)))
DTYPES = ("f2", "f4", "f8")
FLAVOURS = ("spread", "peaked", "uniform", "one-hot", "ties", "near", "tiny", "huge")
WITHIN_ONE = ("sigmoid", "multilabel")


def scores(space: str, flavour: str, rows: int, width: int, dtype: str, seed: int) -> NDArray[Any]:
    """Rows that a model may return in this space, the awkward ones among them; boxes always have four entries."""
    width = 4 if space == "boxes" else width
    rng, about = np.random.default_rng(seed), np.finfo(dtype)
    if space == "simplex":
        concentration = {"peaked": 0.03, "uniform": 1e9}.get(flavour, 1.0)
        x = rng.dirichlet(np.full(width, concentration), rows)
        if flavour == "one-hot":
            x = np.eye(width)[rng.integers(width, size=rows)]
        if flavour == "tiny":
            x = np.full((rows, width), float(about.smallest_subnormal) * 3)
            x[:, -1] = 1.0
    else:
        x = rng.normal(size=(rows, width)) if space not in WITHIN_ONE else rng.random((rows, width))
        if flavour == "tiny":
            x = np.full((rows, width), float(about.smallest_subnormal) * -3 * (space not in WITHIN_ONE))
        if flavour == "huge" and space not in WITHIN_ONE:
            x = rng.choice([-1.0, 1.0], (rows, width)) * float(about.max)
    out = x.astype(dtype)
    if flavour in ("ties", "near") and width > 1:
        out[:, 0] = out.max(axis=1)
        out[:, -1] = out[:, 0] if flavour == "ties" else np.nextafter(out[:, 0], out.dtype.type(0))
        if space == "simplex":
            out /= out.sum(axis=1, dtype=np.float64)[:, None].astype(dtype)
    return out


def broken(x: NDArray[Any], y: NDArray[Any], space: str, keeps: bool) -> set[str]:
    """The invariants that the answer y to the scores x violates."""
    found = set()
    if (x.shape, x.dtype) != (y.shape, y.dtype):
        found.add("shape or dtype")
    if not np.isfinite(y).all():
        found.add("finite")
    if ((y != 0) & (np.abs(y) < np.finfo(y.dtype).smallest_normal)).any():
        found.add("normal")
    if (np.signbit(y) & (y == 0)).any():
        found.add("one zero")
    if space == "simplex" and "finite" not in found:
        most = largest_gap(y.shape[1], y.dtype)
        if (y < 0).any() or any(abs(math.fsum((-1.0, *row))) > most for row in y.astype("f8").tolist()):
            found.add("simplex")
    if space in WITHIN_ONE and ((y < 0) | (y > 1)).any():
        found.add("range")
    if keeps and y.size and not np.array_equal(y.argmax(axis=1), x.argmax(axis=1)):
        found.add("label")
    return found


def harden(pipeline: Pipeline, x: NDArray[Any], nonces: Any = None, key: Key = KEY) -> tuple[int, NDArray[Any]]:
    """The kernel's status and what it made of a copy of x, for a client who has seen every cell there is."""
    out = x.copy()
    if nonces is None:
        nonces = np.arange(3 * len(x), dtype=np.uint32).reshape(-1, 3)
    task = Task(Program(pipeline, x.shape[1], key, "p", "m"), out, len(out), nonces)
    task.job[Job.COVERAGE] = 1 << layout.CELL_BITS
    return task.run(), out
