"""What compiler and kernels agree on: the layout of a job, and the numbers that stand for a choice.

A program is a table of instructions; each is the address of a compiled function and up to `PARAMETERS` numbers.
Policies are data: nothing is compiled for one, and an instruction that no policy uses is never compiled at all.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

PARAMETERS: Final = 8

REMAINDER_DROP: Final = 0
REMAINDER_SPREAD: Final = 1
REMAINDER_OTHER: Final = 2
REMAINDER_FILL: Final = 3

#: Cells of the score space that coverage counts are the patterns of this many bits.
CELL_BITS: Final = 12
#: Powers of two on the ladder of noise by coverage.
RUNGS: Final = 16
#: What a class costs in `instructions.perturbation`: the logarithm of its score, its score, that less a surrogate's, or
#: what stands in the surrogate's place.
COST_LOGARITHM: Final = 0
COST_SCORE: Final = 1
COST_DIFFERENCE: Final = 2
COST_GIVEN: Final = 3

#: Space flags of a program.
SPACE_ANY: Final = 0
SPACE_SIMPLEX: Final = 1
SPACE_SIGMOID: Final = 2

#: What the kernel found wrong with a row.
OK: Final = 0
NOT_FINITE: Final = 1
NOT_SIMPLEX: Final = 2
OUT_OF_RANGE: Final = 3
SURROGATE: Final = 4

PROBLEMS: Final = {
    NOT_FINITE: "the model returned NaN or infinity",
    NOT_SIMPLEX: "the model returned scores outside the declared space (simplex: non-negative and summing to one; "
    "sigmoid, multilabel and scores of boxes: between zero and one)",
    OUT_OF_RANGE: "a score is too large for the noise grid, or for what else is done to it; put a clip before",
    SURROGATE: "the surrogate returned NaN or infinity, or scores that are no distribution where one is needed",
}


class Step(IntEnum):
    """Columns of a program's table: addresses of an instruction's function and of what belongs to it alone."""

    FUNCTION = 0  # takes the job's address
    PARAMS = 1  # float64 (PARAMETERS,)
    DATA = 2  # such as a table of noise
    SECRET = 3  # key material
    SPARSE = 4  # 1: takes a row of few entries as `Job.FEW` says


STEP: Final = len(Step)


class Job(IntEnum):
    """Places in the array of 64-bit integers that a kernel is given: sizes, flags, addresses, and floats by their bits.

    One array costs less to pass than a dozen; whoever builds it keeps what it points at alive. From `FIRST` on stands
    what is true of one block of rows and one instruction at a time; the kernel writes it, instructions read it.
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
    STEPS = 9  # int64 (COUNT, STEP)
    COUNT = 10  # of instructions
    DRAWS = 11  # 1: an instruction draws from a keystream
    HARDEN = 12  # address of `program.harden`, compiled; 0: nothing to harden
    CELL_KEY = 13  # uint64, key of the hash of quantised rows
    SIGNS = 14  # uint8, the signs behind cells
    CELL_BITS = 15
    NUMBERS = 16  # float64 scratch
    WORDS = 17  # uint64 scratch
    ROW = 18  # uint64 scratch for one canonical row
    NONCES = 19  # uint32 (ROWS, 3)
    SUMMARY = 20  # float64 (SUMMARY, VECTORS rounded up to eights), filled in
    INPUT_TABLE = 21  # int64 (INPUTS, 4)
    INPUTS = 22
    TAG_KEY = 23  # uint64, key of the hash of input rows
    ROW_WORDS = 24
    BITS = 25  # float64: bits that the whole answer can carry
    RHO = 26  # float64: privacy loss of the whole answer
    MOST_ENTROPY = 27  # float64: largest possible entropy of a row, in bits
    OTHER = 28  # float64 (VECTORS, WIDTH): scores of the surrogate, for instructions that take one
    CLIENT = 29  # uint32 (3,): the client's tag, for noise of its own
    SCRATCH = 30  # float64 scratch of instructions that ask for it
    WATCHES = 31  # 1: an instruction goes by the coverage
    COVERAGE = 32  # cells that the client has visited, filled in if WATCHES is set
    BASELINE = 33  # float64 (BASELINE_NUMBERS,): what ordinary clients ask, see `Lane`; 0: no evidence is gathered
    NAMES = 34  # uint32 (ROWS, 3), filled in when INPUTS > 0: what tells one question from another; 0: nothing does
    DUPLICATES = 35  # uint8 (ROWS,): 1 where the question is nearly one that was asked before; 0: not known

    FIRST = 36  # vector that the block starts with
    WIDE = 37  # 1: one row; 0: eight rows side by side
    LEADS = 38  # 1: the lanes at TOP hold the class that leads now
    PARAMS = 39  # of this instruction, as in `Step`
    DATA = 40
    SECRET = 41
    # What an instruction knows about a long row it leaves to the next one, and that finds it at FEW:
    # n > 0: all but n entries are zero; values in the block's `residual`, columns in its `marks`, the rest is not there
    # SURVEYED: entries fit fixed point and are multiples of its step; the best of 64 parts of the row are in `marks`
    LEFT = 42
    FEW = 43


SURVEYED: Final = -1
#: Eight float64 numbers each, one for each lane: the model's own label, the class that leads, what is wrong.
OWN, TOP, PROBLEM = 48, 56, 64
JOB: Final = 72
#: Rows of the summary: entropy of the clean rows in bits, released labels, cells, margins of the clean rows (largest
#: entry less the next).
SUMMARY: Final = 4


#: Classes beyond these share bins, which the code length accounts for.
LABEL_BINS: Final = 32
HISTOGRAM_BINS: Final = 8


class Lane(IntEnum):
    """What speaks against a client, one score in [0, 1] for each row asked for the first time."""

    HIGH = 0  # how high the entropy is among those of ordinary rows with this label: edges it exceeds, of `HARD`
    TAIL = 1  # entropy above all but few of these
    LOW = 2  # entropy below most of these
    COLLAPSE = 3  # share of the client's earlier rows with this label: large if all are of one class
    DIVERSE = 4  # one less that: large if no class is the client's own
    NOVEL = 5  # a cell that the client never visited
    BOUNDARY = 6  # margin below most ordinary rows with this label
    DUPLICATE = 7  # nearly a question that was asked before


LANES: Final = len(Lane)
#: Means that ordinary clients keep below may depend on how many rows came before: one set for each power of two.
OCTAVES: Final = 16
#: The baseline as kernels read it: for each bin of labels eight numbers, seven entropies that divide ordinary rows and
#: a margin; then for each octave the means, one over the variance, and the largest bet, `LANES` of each; then what
#: excess a bettor expects of a client it has not seen; then for windows the average scores, and one over how far these
#: may be exceeded.
THRESHOLDS: Final = 8 * LABEL_BINS
EXPECTED: Final = THRESHOLDS + 3 * LANES * OCTAVES
WINDOWS: Final = EXPECTED + LANES
BASELINE_NUMBERS: Final = WINDOWS + 2 * LANES
#: Of the seven entropies, that below which a row is `Lane.LOW`, those from which on `Lane.HIGH` counts, that of
#: `Lane.TAIL`; and the place of the margin.
EASY, HARD, EXTREME, CLOSE = 0, range(1, 7), 5, 7
#: Rows asked for the first time that make a window.
WINDOW: Final = 100
#: Rows over which a client's own scores are averaged; rows that what a bettor expects of a lane counts for, and that
#: expecting nothing does; and questions that are remembered of a client.
MEMORY: Final = 128
PRIOR: Final = 10.0
NO_PRIOR: Final = 2.0
REMEMBERED: Final = 16
#: Sums of scores are kept in these parts of one, as whole numbers, so that they can be added in any order.
PARTS: Final = 256
#: Wealth, as a logarithm, below which a bettor gives up and starts anew with less.
RUIN: Final = -3.0
