"""What every transform is: a frozen description with a space, a guarantee, a lowering and a plain-numpy reference."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from hardening.errors import SpaceError
from hardening.noise import Law
from hardening.types import Guarantee, OutputSpace

Rows = NDArray[np.float64]
Labels = NDArray[np.intp]


#: What selects a draw: the question, the quantised scores, or nothing that comes back.
Keyed = Literal["input", "cell", "fresh"]
#: The same, and the client alone.
Selected = Literal["input", "cell", "fresh", "client"]


class Op(NamedTuple):
    """One instruction.

    Attributes:
        call: ``module.function`` in `hardening.kernels.instructions`.
        params: numbers it is given.
        data: an array it reads, such as a table.
        keyed: set if it draws: what selects the draw. It then gets key material of its own, and `call` stands for one
            function for each cipher, whose name follows: that of ``chacha20`` is ``call_chacha20``.
        personal: whether what it draws is the client's own.
        law: set on noise, in place of `data`: the table and two parameters follow from it.
        scratch: float64 numbers it works with for each class; the program has as much as the most that any needs.
        coverage: whether it goes by what the client has seen so far.
        sparse: whether it takes a row of which few entries are left (`kernels.layout.Job.FEW`).
    """

    call: str
    params: tuple[float, ...] = ()
    data: NDArray[Any] | None = None
    keyed: Selected | None = None
    personal: bool = False
    law: Law | None = None
    scratch: int = 0
    coverage: bool = False
    sparse: bool = False


class State(NamedTuple):
    """What `reference` hands on: scores ``(rows, classes)`` float64, the model's own labels, the labels as of now.

    `other` are the scores of the unreleased output that a transform looks at, in the same shape; `coverage` is the
    number of cells that the client has visited.
    """

    rows: Rows
    own: Labels
    top: Labels
    other: Rows | None = None
    coverage: int = 0


#: What is drawn, one array per mechanism in the order of the pipeline: integer noise ``(rows, classes)``, or the first
#: 64-bit words of each row's keystream, uint64 ``(rows, words)``.
Draws = Iterator[NDArray[Any]]


@dataclass(frozen=True)
class Transform:
    """Base of all transforms. Parameters are dataclass fields; `kind` is the name in a policy."""

    #: Columns of detections that it works on; elsewhere every entry is its business.
    of: Literal["box", "score"] = field(default="box", kw_only=True, repr=False)

    kind: ClassVar[str] = ""

    def __str__(self) -> str:
        return f"{self!r} of the score" if self.of == "score" else repr(self)

    @property
    def unreleased(self) -> str | None:
        """The output of the model that this looks at beside the one it changes, if any; it is never released."""
        return None

    def space_after(self, space: OutputSpace) -> OutputSpace:
        """The space this transform leaves. Raises SpaceError if it does not accept `space`."""
        raise NotImplementedError

    def guarantee(self, before: Guarantee, space: OutputSpace, width: int | None) -> Guarantee:
        """The guarantee after this transform, given the one before it, the space it takes and the row's width."""
        return before

    def context(self) -> tuple[str | int | float, ...]:
        """Every parameter that shapes what is drawn; all of them key it, so two settings never share a draw."""
        raise NotImplementedError

    def lower(self, space: OutputSpace) -> tuple[Op, ...]:
        """The instructions that do this in `space`."""
        raise NotImplementedError

    def reference(self, state: State, space: OutputSpace, draws: Draws) -> State:
        """The same in plain numpy."""
        raise NotImplementedError

    def at(self, width: int) -> Self:
        """This transform for rows of `width` entries, with whatever is fitted to the width. Raises ValueError."""
        return self

    def needs_width(self, width: int) -> None:
        """Raise ValueError if the parameters make no sense for rows of `width` entries."""


def require(space: OutputSpace, *kinds: str, why: str) -> None:
    if space.kind not in kinds:
        raise SpaceError(f"takes {' or '.join(kinds)}, not {space.kind}: {why}")


def require_on_simplex(space: OutputSpace) -> None:
    require(space, "simplex", why="it works on distributions")
    if not space.on_simplex:
        raise SpaceError("the row is off the simplex here, noise or a clip came before: put project before it")


def bounded(space: OutputSpace) -> None:
    if not math.isfinite(space.high - space.low):
        raise SpaceError("needs bounds here: declare the range of the output, or put a clip before it")


#: What every keyed draw takes for granted.
SECRECY = "the key stays secret, and without it its cipher, AES-128 or ChaCha20, cannot be told from chance"


def check_key(key: str, scope: str) -> None:
    """Raise ValueError for what neither noise nor a drawn label can be keyed on."""
    if key not in ("input", "cell", "fresh"):
        raise ValueError(f"key: must be 'input', 'cell' or 'fresh', not {key!r}")
    if scope not in ("global", "client"):
        raise ValueError(f"scope: must be 'global' or 'client', not {scope!r}")


def no_labels(space: OutputSpace) -> None:
    if space.kind in ("labels", "open"):
        raise SpaceError(f"there are no scores to change in a space of kind {space.kind!r}")


def positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name}: must be a positive finite number, not {value!r}")


def whole(name: str, value: int, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{name}: must be a whole number from {low} to {high}, not {value!r}")


def subset_bits(width: int, size: int) -> float:
    """log2 of the number of ways to choose `size` of `width` entries."""
    return (math.lgamma(width + 1) - math.lgamma(size + 1) - math.lgamma(width - size + 1)) / math.log(2)


def first_argmax(rows: Rows) -> Labels:
    return rows.argmax(axis=1) if rows.shape[1] else np.zeros(len(rows), np.intp)


def exact_sum(rows: Rows, grid: float = 2.0**40) -> NDArray[np.float64]:
    """Row sums in fixed point: exact, therefore independent of order, for rows that sum to less than 2**13."""
    return np.asarray(np.rint(rows * grid).sum(axis=1) / grid)
