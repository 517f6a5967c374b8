"""What an instruction sees of its job: the block of rows, its own parameters, and the class that leads."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray

from hardening.kernels import layout, prf
from hardening.kernels.blocks import Block, block, few_of, first_argmax
from hardening.kernels.lanes import WIDTH, device, fill, lane, larger, pointer
from hardening.kernels.layout import Job
from hardening.kernels.memory import load, store

#: Rows of at most this many classes may be taken eight at a time.
NARROW = 64
#: uint64 words of keystream that are made at a time, at most.
KEYSTREAM = prf.CHUNK * WIDTH
#: uint32 words that hold three words of nonce and a first counter for each lane; there are `AREAS` such areas: of the
#: question, of the cell, and one to work with.
AREA, AREAS = 4 * WIDTH, 3
#: uint64 words of scratch: the keystream and the areas.
SCRATCH_WORDS = KEYSTREAM + AREAS * AREA // 2


@device
def fields(job: int) -> Any:
    """The job at an address, as int64."""
    return carray(pointer(job), (layout.JOB,), np.int64)


@device
def lanes_of(j: Any) -> Any:
    """The job as float64, for what it holds one number for each lane of."""
    return carray(pointer(j.ctypes.data), (layout.JOB,), np.float64)


@device
def room_of(width: int) -> int:
    """float64 numbers that a block of rows takes."""
    return WIDTH * (width if width <= NARROW else (width + WIDTH - 1) // WIDTH)


@device
def block_of(j: Any) -> Block:
    """The rows at hand."""
    n = j[Job.WIDTH]
    room = room_of(n)
    numbers = carray(pointer(j[Job.NUMBERS]), (3 * room,), np.float64)
    return block(numbers, numbers[room:], numbers[2 * room :], n, j[Job.WIDE] > 0)


@device
def params_of(j: Any) -> Any:
    return carray(pointer(j[Job.PARAMS]), (layout.PARAMETERS,), np.float64)


@device
def nonces_of(j: Any, area: int) -> Any:
    """uint32 from area 0 (of the question), `AREA` (of the cell) or 2 * `AREA` (to work with) on."""
    return carray(pointer(j[Job.WORDS] + 8 * KEYSTREAM), (AREAS * AREA,), np.uint32)[area:]


@device
def stream_of(j: Any) -> Any:
    """Room for the keystream."""
    return carray(pointer(j[Job.WORDS]), (KEYSTREAM,), np.uint64)


@device
def own_of(j: Any) -> Any:
    """The model's own label of each row."""
    return load(lanes_of(j), layout.OWN // WIDTH)


@device
def top_of(j: Any, b: Block) -> Any:
    """The class that leads now; found only where somebody asks."""
    few = j[Job.FEW]
    if j[Job.LEADS] == 0 and few > 0:
        work = few_of(b, few)
        lead(j, fill(b.marks[int(lane(first_argmax(work, work.w), 0))]))
    elif j[Job.LEADS] == 0:
        lead(j, first_argmax(b, b.w))
    return load(lanes_of(j), layout.TOP // WIDTH)


@device
def lead(j: Any, top: Any) -> None:
    """Say which class leads."""
    store(lanes_of(j), layout.TOP // WIDTH, top)
    j[Job.LEADS] = 1


@device
def forget_top(j: Any) -> None:
    """Say that another class may lead now."""
    j[Job.LEADS] = 0


@device
def report(j: Any, problem: Any) -> None:
    """Say what is wrong with a row, as `layout.PROBLEMS` has it; 0 is nothing."""
    numbers = lanes_of(j)
    store(numbers, layout.PROBLEM // WIDTH, larger(load(numbers, layout.PROBLEM // WIDTH), problem))


@device
def take_row(b: Block, a: Any, k: int, out: Any) -> None:
    """Copies the row in lane k of `a` (0 in a wide block) to ``out[:n]``."""
    for c in range(b.n):
        out[c] = a[c] if b.wide else a[WIDTH * c + k]


@device
def put_row(b: Block, a: Any, k: int, values: Any) -> None:
    """Copies ``values[:n]`` to the row in lane k of `a`."""
    for c in range(b.n):
        if b.wide:
            a[c] = values[c]
        else:
            a[WIDTH * c + k] = values[c]
