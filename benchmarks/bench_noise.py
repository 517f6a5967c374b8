"""Exact keyed noise against floating-point noise from numpy's ordinary generator, and against OpenDP's exact noise.

``keyed noise`` is the instruction that programs run, row after row, in place on float64 scores: keystream, draws by the
law's table, scores put on the grid, the check of their range. ``whole task`` adds what surrounds it: scores loaded,
checked and written back, entropies, cells and labels found. OpenDP (discrete Laplace, cryptographic randomness) draws
integers and nothing else, unkeyed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest

from benchmarks.gate import Race
from hardening.kernels.layout import STEP, Job, Step
from hardening.noise import CIPHERS, Key
from hardening.pipeline import Pipeline
from hardening.program import Program, Task
from hardening.transforms import Gaussian, Laplace, Noise

SCALE = 0.5
LAWS: dict[str, Noise] = {"laplace": Laplace(scale=SCALE), "gaussian": Gaussian(sigma=SCALE)}


@functools.cache
def row_by_row() -> Callable[[Any, Any], None]:
    """A job's first instruction on every row in place; between the rows is what it works with."""
    from numba import carray, njit

    from hardening.kernels.job import nonces_of
    from hardening.kernels.lanes import WIDTH, execute, pointer
    from hardening.kernels.program import SCRATCH_VECTORS

    def run(job: Any, nonces: Any) -> None:
        step = carray(pointer(job[Job.STEPS]), (STEP,), np.int64)
        job[Job.PARAMS], job[Job.DATA], job[Job.SECRET] = step[Step.PARAMS], step[Step.DATA], step[Step.SECRET]
        job[Job.WIDE], area = 1, nonces_of(job, 0)
        for row in range(job[Job.VECTORS]):
            job[Job.NUMBERS] = job[Job.SCORES] + 8 * SCRATCH_VECTORS * job[Job.WIDTH] * row
            for i in range(3):
                area[WIDTH * i] = nonces[row, i]
            area[WIDTH * 3] = 0
            execute(step[Step.FUNCTION], job.ctypes.data)

    return cast("Callable[[Any, Any], None]", njit("int64[::1], uint32[:, ::1]")(run))


def variants(law: Noise, cipher: str, shape: tuple[int, int]) -> dict[str, Callable[[Any], object]]:
    """The instruction alone, and a task around it; each takes nonces."""
    from hardening.kernels.program import SCRATCH_VECTORS

    assert shape[1] % 8 == 0  # rows follow each other without a gap
    program = Program(Pipeline("scalar", (law,)), shape[1], Key(1, cipher, bytes(range(32))), "p", "m")
    nonces, scores = np.empty((shape[0], 3), np.uint32), np.empty(shape)
    task, whole, run = Task(program, scores, shape[0], nonces), Task(program, scores, shape[0], nonces), row_by_row()
    scores[...] = 0.0
    rows = np.zeros((shape[0], SCRATCH_VECTORS * shape[1]))
    task.job[Job.SCORES] = rows.ctypes.data

    def around(q: Any) -> object:
        nonces[...] = q
        return whole.run()

    def alone(q: Any) -> object:
        run(task.job, q)
        return rows

    return {"keyed noise": alone, "whole task": around}


def fresh_of(shape: tuple[int, int]) -> Callable[[np.random.Generator], Any]:
    """A nonce for each row; noise goes on top of what is there."""
    return lambda rng: rng.integers(0, 2**32, (shape[0], 3), np.uint32)


@pytest.mark.parametrize(
    ("law", "cipher"),
    [("laplace", CIPHERS[0]), ("laplace", CIPHERS[1]), ("gaussian", CIPHERS[0])],
    ids=["noise-laplace-aes-128-ctr", "noise-laplace-chacha20", "noise-gaussian-aes-128-ctr"],
)
def test_against_numpy(law: str, cipher: str, race: Race) -> None:
    shape, generator = (64, 1000), np.random.default_rng()
    ours = variants(LAWS[law], cipher, shape)
    race({**ours, "Generator.laplace": lambda q: generator.laplace(0.0, SCALE, shape)}, fresh_of(shape))


@pytest.mark.parametrize("cipher", CIPHERS[:1], ids=["noise-against-opendp"])
def test_against_opendp(cipher: str, race: Race) -> None:
    opendp = pytest.importorskip("opendp.prelude")
    opendp.enable_features("contrib")
    shape, law = (8, 1000), LAWS["laplace"]
    space = opendp.vector_domain(opendp.atom_domain(T=int)), opendp.l1_distance(T=int)
    peer, zeros = opendp.m.make_laplace(*space, scale=float(law.law.scale)), [0] * (shape[0] * shape[1])
    race({**variants(law, cipher, shape), "OpenDP": lambda q: peer(zeros)}, fresh_of(shape))
