"""One step alone, on float64 scores, against what ART does to as many; and whole programs against the cheapest form
that could be written by hand.

``rounding`` and ``noise`` are the instructions that programs run, block after block, in place where programs run them:
in the scratch that every block is loaded to and written back from. ``hand-written`` fuses the three
instructions of the policy ``full`` into one function of its own: no check of the scores, no statistics, no accounts and
no calls by address, which is what a program pays for being data.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest

from benchmarks import variants
from benchmarks.gate import Race
from hardening.kernels.layout import OWN, STEP, Job, Step
from hardening.noise import Key
from hardening.pipeline import Pipeline
from hardening.program import Program, Task
from hardening.transforms import Gaussian, Project, Round, Transform, Types

SHAPES = ((1, 10), (64, 10), (1, 1000), (64, 1000), (1024, 1000), (1, 32000))
NAMES = [f"{rows}x{classes}" for rows, classes in SHAPES]
KEY = Key(1, "aes-128-ctr", bytes(range(32)))
WIDTH = 8


@functools.cache
def block_by_block() -> Callable[..., None]:
    """A job's first instruction on every block, of one row or of eight."""
    from numba import carray, njit

    from hardening.kernels.job import nonces_of
    from hardening.kernels.lanes import execute, pointer

    def run(job: Any, nonces: Any, wide: int) -> None:
        step = carray(pointer(job[Job.STEPS]), (STEP,), np.int64)
        job[Job.PARAMS], job[Job.DATA], job[Job.SECRET] = step[Step.PARAMS], step[Step.DATA], step[Step.SECRET]
        job[Job.WIDE], area, each = wide, nonces_of(job, 0), 1 if wide else WIDTH
        for block in range(len(nonces) // each):
            for lane in range(each):
                for i in range(3):
                    area[WIDTH * i + lane] = nonces[block * each + lane, i]
                area[WIDTH * 3 + lane] = 0
            execute(step[Step.FUNCTION], job.ctypes.data)

    (compiled,) = njit("int64[::1], uint32[:, ::1], int64")(run).overloads.values()
    return cast("Callable[..., None]", compiled.entry_point)


def instruction(transform: Transform, shape: tuple[int, int]) -> Callable[[Any], object]:
    """A transform's instruction as often as there are blocks; takes scores, which it ignores, and nonces.

    What it does to a block it does again to the result: its work depends on no value.
    """
    rows, classes = shape
    wide = int(classes > 64 or rows < WIDTH)
    program = Program(Pipeline("scalar", (transform,)), classes, KEY, "p", "m")
    task, run = Task(program, np.zeros(shape), rows, np.zeros((rows, 3), np.uint32)), block_by_block()
    if task.run():  # which leaves rows in the scratch
        raise RuntimeError("these scores can be hardened")

    def step(q: Any) -> object:
        run(task.job, q[1], wide)
        return task

    return step


def fresh_of(shape: tuple[int, int]) -> Callable[[np.random.Generator], Any]:
    def fresh(rng: np.random.Generator) -> Any:
        scores = np.exp(3.0 * rng.standard_normal(shape))
        return scores / scores.sum(axis=1, keepdims=True), rng.integers(0, 2**32, (shape[0], 3), np.uint32)

    return fresh


@pytest.mark.parametrize("shape", SHAPES, ids=[f"round-{name}" for name in NAMES])
def test_rounding(shape: tuple[int, int], race: Race) -> None:
    art = variants.art("plain")
    ours = instruction(Round(decimals=variants.DECIMALS), shape)
    race({"rounding": ours, "ART round": lambda q: art(q[0], q[1])}, fresh_of(shape))


@pytest.mark.parametrize("shape", SHAPES, ids=[f"noise-{name}" for name in NAMES])
def test_noise(shape: tuple[int, int], race: Race) -> None:
    art = variants.art_noise()
    ours = instruction(Gaussian(sigma=variants.SIGMA), shape)
    race({"noise": ours, "ART noise": lambda q: art(q[0], q[1])}, fresh_of(shape))


@functools.cache
def hand_written() -> Callable[[Any], int]:
    """Gaussian noise, projection that keeps the top class and types, in one function."""
    from numba import carray, njit

    from hardening.kernels import job as jobs
    from hardening.kernels import program
    from hardening.kernels.blocks import first_argmax
    from hardening.kernels.instructions import additive, grid, simplex
    from hardening.kernels.lanes import device, pointer
    from hardening.kernels.memory import store

    noise, project, types = (device(f) for f in (additive.noise_aes_128_ctr, simplex.project, grid.types))

    def run(job: Any) -> int:
        address = job.ctypes.data
        j = jobs.fields(address)
        steps = carray(pointer(j[Job.STEPS]), (3, STEP), np.int64)
        first: Any = np.int64(0)
        while first < j[Job.VECTORS]:
            wide = j[Job.WIDTH] > jobs.NARROW or j[Job.VECTORS] - first < WIDTH
            j[Job.FIRST], j[Job.WIDE] = first, np.int64(wide)
            b = jobs.block_of(j)
            program._load(b, j, first, 0.0)
            own = first_argmax(b, b.w)
            store(jobs.lanes_of(j), OWN // WIDTH, own)
            jobs.lead(j, own)
            program._spread_nonces(j, first, wide)
            j[Job.PARAMS], j[Job.DATA] = steps[0, Step.PARAMS], steps[0, Step.DATA]
            j[Job.SECRET] = steps[0, Step.SECRET]
            j[Job.FEW] = j[Job.LEFT] = 0
            noise(address)
            j[Job.PARAMS], j[Job.FEW], j[Job.LEFT] = steps[1, Step.PARAMS], j[Job.LEFT], 0
            project(address)
            j[Job.PARAMS], j[Job.FEW], j[Job.LEFT] = steps[2, Step.PARAMS], j[Job.LEFT], 0
            types(address)
            j[Job.FEW] = j[Job.LEFT]
            program._write(b, j, first)
            first += 1 if wide else WIDTH
        return 0

    return cast("Callable[[Any], int]", njit("int64(int64[::1])")(run))


@pytest.mark.parametrize("shape", [(64, 10), (64, 1000)], ids=["program-64x10", "program-64x1000"])
def test_program(shape: tuple[int, int], race: Race) -> None:
    transforms = (Gaussian(sigma=variants.SIGMA), Project(keep_top1=True), Types(n=variants.UNITS))
    program = Program(Pipeline("simplex", transforms), shape[1], KEY, "p", "m")
    nonces, scores = np.empty((shape[0], 3), np.uint32), np.empty(shape, np.float32)
    task, by_hand = Task(program, scores, shape[0], nonces), hand_written()

    def run(how: Callable[[], int]) -> Callable[[Any], Any]:
        def step(q: Any) -> Any:
            scores[...], nonces[...] = q
            if how():
                raise RuntimeError("these scores can be hardened")
            return scores

        return step

    ours = run(task.run)
    q = fresh_of(shape)(np.random.default_rng(0))
    assert np.array_equal(np.copy(ours(q)), run(lambda: by_hand(task.job))(q))
    race({"program": ours, "hand-written": run(lambda: by_hand(task.job))}, fresh_of(shape))
