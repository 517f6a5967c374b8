"""What is remembered of a row: its entropy and the cell of the score space it lies in. Statistics, never released."""

from __future__ import annotations

from typing import Any

from hardening.kernels import opcodes
from hardening.kernels.blocks import Block
from hardening.kernels.lanes import (
    WIDTH,
    across_sum,
    butterfly_1,
    butterfly_2,
    butterfly_4,
    device,
    exp2,
    fill,
    larger,
    load,
    log2,
    store,
    where,
)
from hardening.kernels.lanes import bits as mask_bits

#: Numbers that a row is folded to before its cell is read off.
FOLD = 16
_LOG2_E = 1.4426950408889634


@device
def _total(b: Block, s: Any) -> Any:
    return across_sum(s) if b.wide else s


@device
def entropy_bits(b: Block) -> Any:
    """Shannon entropy of a distribution, in bits."""
    h, none = fill(0.0), fill(0.0)
    for i in range(b.m):
        p = larger(load(b.w, i), fill(1e-30))
        term = p * log2(p)
        h = h - (where(b.last, term, none) if i == b.m - 1 else term)
    return larger(_total(b, h), none)


@device
def binary_entropy_bits(b: Block) -> Any:
    """Mean entropy of independent yes/no scores, in bits."""
    h, none = fill(0.0), fill(0.0)
    for i in range(b.m):
        p = larger(load(b.w, i), fill(1e-30))
        q = larger(1.0 - load(b.w, i), fill(1e-30))
        term = p * log2(p) + q * log2(q)
        h = h - (where(b.last, term, none) if i == b.m - 1 else term)
    return larger(_total(b, h) / float(b.n), none)


@device
def softmax_entropy_bits(b: Block, highest: Any) -> Any:
    """Entropy of softmax(w), in bits; `highest` is the largest entry."""
    s, h, none = fill(0.0), fill(0.0), fill(0.0)
    for i in range(b.m):
        x = larger((load(b.w, i) - highest) * _LOG2_E, fill(-1000.0))
        p = exp2(x)
        p = where(b.last, p, none) if i == b.m - 1 else p
        s = s + p
        h = h + p * x
    s, h = _total(b, s), _total(b, h)
    return larger(log2(s) - h / s, none)


@device
def _turn(fold: Any, distance: int) -> None:
    for pair in range(FOLD // 2):
        k = pair // distance * 2 * distance + pair % distance
        x, y = load(fold, k), load(fold, k + distance)
        store(fold, k, x + y)
        store(fold, k + distance, x - y)


@device
def cells_of(b: Block, signs: Any, fold: Any, bits: int) -> Any:
    """The sign pattern of a secret random projection, `bits` of it, as a number.

    A locality-sensitive hash (Charikar 2002): the row is folded to 16 numbers with secret signs (`signs`, padded with
    zeros to whole vectors), turned by a Walsh-Hadamard transform (Ailon & Chazelle 2006) with the 16 more signs at its
    end, and read off by sign.
    """
    more = (len(signs) - FOLD) // WIDTH
    if b.wide:
        even, odd = fill(0.0), fill(0.0)
        for i in range(0, b.m, 2):
            even = even + load(b.w, i) * load(signs, i)
            if i + 1 < b.m:
                odd = odd + load(b.w, i + 1) * load(signs, i + 1)
        even = butterfly_4(butterfly_2(butterfly_1(even * load(signs, more))))
        odd = butterfly_4(butterfly_2(butterfly_1(odd * load(signs, more + 1))))
        cell = mask_bits(even + odd > 0.0) + 256 * mask_bits(even - odd > 0.0)
        return fill(float(cell % (1 << bits)))
    for k in range(FOLD):
        store(fold, k, fill(0.0))
    for i in range(b.m):
        k = i % FOLD
        store(fold, k, load(fold, k) + load(b.w, i) * signs[i])
    for k in range(FOLD):
        store(fold, k, load(fold, k) * signs[len(signs) - FOLD + k])
    _turn(fold, 1)
    _turn(fold, 2)
    _turn(fold, 4)
    _turn(fold, 8)
    cells, one, none = fill(0.0), fill(1.0), fill(0.0)
    for k in range(bits):
        cells = cells + where(load(fold, k) > 0.0, one, none) * float(1 << k)
    return cells


@device
def clean_entropy(b: Block, space: int, logits: bool, highest: Any) -> Any:
    """Entropy of the model's own row in bits; 0 where the space has none."""
    if space == opcodes.SPACE_SIMPLEX:
        return entropy_bits(b)
    if space == opcodes.SPACE_SIGMOID:
        return binary_entropy_bits(b)
    if logits:
        return softmax_entropy_bits(b, highest)
    return fill(0.0)
