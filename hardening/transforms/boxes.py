"""Detections: rows whose columns are coordinates, scores and labels; a transform works on one part of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hardening.transforms.base import Draws, Op, State, Transform
from hardening.types import Column, Guarantee, OutputSpace

#: Columns of boxes that are nothing else.
BOX: tuple[Column, ...] = ("box",) * 4
#: float64 scratch for each column: a block of eight rows is set aside while a part of it is worked on.
ASIDE = 8


def places(columns: Sequence[Column], part: str) -> NDArray[np.int64]:
    """Where the columns of a part are."""
    return np.array([i for i, column in enumerate(columns) if column == part], np.int64)


def on_part(ops: tuple[Op, ...], columns: Sequence[Column], part: str) -> tuple[Op, ...]:
    """Instructions for rows of a part's columns alone: these are taken out of the block and put back behind them."""
    assert not any(op.scratch for op in ops), "that is where the block is set aside"
    at = places(columns, part)
    numbers = (float(len(at)), float(len(columns)))
    return (Op("boxes.take", numbers, at, scratch=ASIDE), *ops, Op("boxes.put", numbers, at))


def reference(transform: Transform, state: State, space: OutputSpace, draws: Draws, columns: Sequence[Column]) -> State:
    """The same in plain numpy."""
    at, rows = places(columns, transform.of), state.rows.copy()
    rows[:, at] = transform.at(len(at)).reference(state._replace(rows=rows[:, at]), space, draws).rows
    return state._replace(rows=rows)


def both(parts: Sequence[Guarantee], more_bits: float) -> Guarantee:
    """What a row promises whose parts promise this, `more_bits` of it being released as they are."""
    first = parts[0]
    bits = math.fsum(p.bits for p in parts) + more_bits
    assumptions = tuple(dict.fromkeys(sentence for p in parts for sentence in p.assumptions))
    alike = {(p.relation, p.unit) for p in parts} == {("output-metric", first.unit)} and not more_bits
    if len(parts) == 1 and not more_bits:
        return replace(first, keeps_top1=False)
    if alike and all("rho" in p.parameters for p in parts):
        loss = {name: math.fsum(p.parameters.get(name, 0.0) for p in parts) for name in ("rho", "tv")}
        distances = [{k: v for k, v in p.parameters.items() if k.startswith("sensitivity_")} for p in parts]
        assumptions += tuple(
            f"their scores differ by no more than {k} = {v:g}" for d in distances[1:] for k, v in d.items()
        )
        return Guarantee("output-metric", first.unit, loss | distances[0], assumptions=assumptions, bits=bits)
    if any(p.relation == "none" for p in parts):
        return Guarantee("none", bits=bits)
    return Guarantee("capacity", bits=bits)
