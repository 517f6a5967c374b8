"""The instruction set that pipelines are lowered to: plain integers, shared by the compiler and the kernel.

A program is a table of operations; each has an opcode and up to `PARAMETERS` numbers. Policies are data: one kernel,
compiled once, runs them all.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

PARAMETERS: Final = 8

GRID: Final = 1  # nearest multiples of 1/p0, unbounded spaces
TYPES: Final = 2  # nearest point of the simplex whose entries are multiples of 1/p0
TOP_K: Final = 3  # keep p0 entries; p1: REMAINDER_*; p2: fill or index of the class that takes the remainder
LABEL_ONLY: Final = 4  # one-hot of the top class; p0 = 1: threshold each entry at one half instead
CLIP: Final = 5  # to [p0, p1]
TEMPERATURE: Final = 6  # p0: temperature; p1 = 1 on the simplex (powers), 0 on logits (quotients)
NOISE: Final = (
    7  # p0: step; p1: 1/step; p2: table start; p3: log2 slots; p4: offset; p5: key row; p6: KEYED_*; p7: cell
)
PROJECT: Final = 8  # onto the simplex; p0 = 1: keep the model's own top class; p1: margin
REVERSE_SIGMOID: Final = 9  # p0: beta; p1: gamma; p2 = 1: renormalise; p3 = 1: may change the top class

REMAINDER_DROP: Final = 0
REMAINDER_SPREAD: Final = 1
REMAINDER_OTHER: Final = 2
REMAINDER_FILL: Final = 3

KEYED_INPUT: Final = 0
KEYED_CELL: Final = 1
KEYED_FRESH: Final = 2

#: Space flags of a program.
SPACE_ANY: Final = 0
SPACE_SIMPLEX: Final = 1
SPACE_SIGMOID: Final = 2

#: What the kernel found wrong with a row.
OK: Final = 0
NOT_FINITE: Final = 1
NOT_SIMPLEX: Final = 2
OUT_OF_RANGE: Final = 3

PROBLEMS: Final = {
    NOT_FINITE: "the model returned NaN or infinity",
    NOT_SIMPLEX: "the model returned scores outside the declared space (simplex: non-negative and summing to one; "
    "sigmoid: between zero and one)",
    OUT_OF_RANGE: "a score is too large for the noise grid; put a clip before the noise",
}

NAMES: Final = {
    GRID: "grid",
    TYPES: "types",
    TOP_K: "top_k",
    LABEL_ONLY: "label_only",
    CLIP: "clip",
    TEMPERATURE: "temperature",
    NOISE: "noise",
    PROJECT: "project",
    REVERSE_SIGMOID: "reverse_sigmoid",
}


class Job(IntEnum):
    """Places in the array of 64-bit integers that a kernel is given: sizes, flags, addresses, and floats by their bits.

    One array costs less to pass than a dozen; whoever builds it keeps what it points at alive.
    """

    SCORES = 0  # float32 or float64 (VECTORS, WIDTH), hardened in place
    SINGLE = 1  # 1: float32
    VECTORS = 2
    WIDTH = 3
    ROWS = 4  # input rows
    PER_ROW = 5  # vectors of one input row
    SPACE = 6
    LOGITS = 7
    TOLERANCE = 8  # in millionths
    OPS = 9  # int64 (STEPS,)
    PARAMS = 10  # float64 (STEPS, PARAMETERS)
    STEPS = 11
    TABLE = 12  # uint64 (SLOTS,), all noise tables end to end
    SLOTS = 13
    KEYS = 14  # uint32 (MECHANISMS, 8)
    MECHANISMS = 15
    CELL_KEY = 16  # uint64, key of the hash of quantised rows
    SIGNS = 17  # float64, the signs behind cells
    CELL_BITS = 18
    NUMBERS = 19  # float64 scratch
    WORDS = 20  # uint64 scratch
    ROW = 21  # uint64 scratch for one canonical row
    NONCES = 22  # uint32 (ROWS, 3); filled in when INPUTS > 0
    SUMMARY = 23  # float64 (3, VECTORS rounded up to eights), filled in
    INPUT_TABLE = 24  # int64 (INPUTS, 5)
    INPUTS = 25
    TAG_KEY = 26  # uint64, key of the hash of input rows
    ROW_WORDS = 27
    BITS = 28  # float64: bits that the whole answer can carry
    RHO = 29  # float64: privacy loss of the whole answer
    MOST_ENTROPY = 30  # float64: largest possible entropy of a row, in bits


JOB: Final = len(Job)
