"""Integers side by side: sixteen or thirty-two 32-bit words of a cipher, eight 64-bit words of a table, one of 128."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from hardening.kernels.lanes import (
    DOUBLE,
    FLOATS,
    I32,
    I64,
    I128,
    INT128,
    LONGS,
    MASK,
    MORE_WORDS,
    WIDTH,
    WORDS,
    LanesType,
    call,
    define,
    splat,
)


@intrinsic
def repeat(_context: Any, like: Any, word: Any) -> Any:
    """The same word in every lane, of a vector as wide as `like`."""

    def codegen(_context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return splat(b, args[1], signature.return_type.representation.count)

    return like(like, types.uint32), codegen


def _count(kind: LanesType, times: int) -> Any:
    def emit(b: ir.IRBuilder, first: Any) -> Any:
        lanes = kind.representation.count
        steps = ir.Constant(kind.representation, [i // times for i in range(lanes)])
        return b.add(splat(b, first, lanes), steps)

    emit.__name__ = f"count_in_{kind.name}"
    return define(kind, types.uint32)(emit)


#: first, first + 1, ... modulo 2**32, for sixteen lanes and for thirty-two.
count_from, count_on_from = _count(WORDS, 1), _count(MORE_WORDS, 1)
#: The same, each number in eight lanes.
count_twice, count_four_times = _count(WORDS, WIDTH), _count(MORE_WORDS, WIDTH)


def _of_words(emit: Callable[..., Any]) -> Any:
    """Decorator: a function of two vectors of words of either width, made callable from kernels."""

    def typing(_context: Any, x: Any, y: Any) -> Any:
        return x(x, x), lambda context, b, signature, args: emit(b, *args)

    typing.__name__ = typing.__qualname__ = emit.__name__
    return intrinsic(typing)


@_of_words
def add_words(b: ir.IRBuilder, x: Any, y: Any) -> Any:
    return b.add(x, y)


def _xor_rotate(bits: int) -> Any:
    def emit(b: ir.IRBuilder, x: Any, y: Any) -> Any:
        mixed, lanes = b.xor(x, y), x.type.count
        return call(f"llvm.fshl.v{lanes}i32", b, mixed, mixed, ir.Constant(x.type, [bits] * lanes))

    emit.__name__ = f"xor_rotate_{bits}"
    return _of_words(emit)


#: (x xor y) rotated left.
xor_rotate_16, xor_rotate_12, xor_rotate_8, xor_rotate_7 = map(_xor_rotate, (16, 12, 8, 7))


def _shift(name: str) -> Any:
    def emit(b: ir.IRBuilder, x: Any, bits: Any) -> Any:
        return getattr(b, name)(x, splat(b, bits))

    emit.__name__ = name
    return define(LONGS, LONGS, types.int64)(emit)


shift_left, shift_right = _shift("shl"), _shift("lshr")


@define(LONGS, LONGS, types.int64)
def low_bits(b: ir.IRBuilder, x: Any, count: Any) -> Any:
    one = ir.Constant(I64, 1)
    return b.and_(x, splat(b, b.sub(b.shl(one, count), one)))


@define(LONGS, types.int64)
def fill_longs(b: ir.IRBuilder, x: Any) -> Any:
    """The same integer in every lane."""
    return splat(b, x)


@define(LONGS, LONGS, MASK)
def tally(b: ir.IRBuilder, count: Any, mask: Any) -> Any:
    """One more where the mask is set; integers add in one cycle, floats in four."""
    return b.add(count, b.zext(mask, LONGS.representation))


@define(LONGS, MASK, LONGS, LONGS)
def where_longs(b: ir.IRBuilder, mask: Any, x: Any, y: Any) -> Any:
    return b.select(mask, x, y)


@define(MASK, LONGS, LONGS)
def below(b: ir.IRBuilder, x: Any, y: Any) -> Any:
    """Unsigned comparison."""
    return b.icmp_unsigned("<", x, y)


@define(INT128, types.uint64, types.uint64)
def int128(b: ir.IRBuilder, low: Any, high: Any) -> Any:
    return b.or_(b.zext(low, I128), b.shl(b.zext(high, I128), ir.Constant(I128, 64)))


@define(INT128, INT128, INT128, types.uint64)
def multiply_add_wide(b: ir.IRBuilder, total: Any, x: Any, y: Any) -> Any:
    """total + x y modulo 2**128, for a 128-bit x."""
    return b.add(total, b.mul(x, b.zext(y, I128)))


@define(types.boolean, INT128, INT128)
def is_less(b: ir.IRBuilder, x: Any, y: Any) -> Any:
    """Unsigned comparison of two integers of 128 bits."""
    return b.icmp_unsigned("<", x, y)


@define(types.uint64, INT128)
def low_half(b: ir.IRBuilder, x: Any) -> Any:
    return b.trunc(x, I64)


@define(types.uint64, INT128)
def high_half(b: ir.IRBuilder, x: Any) -> Any:
    return b.trunc(b.lshr(x, ir.Constant(I128, 64)), I64)


@define(LONGS, LONGS, LONGS, LONGS)
def multiply_halves(b: ir.IRBuilder, total: Any, x: Any, key: Any) -> Any:
    """One step of NH: total + (low half of x + low half of key) (high half + high half), halves modulo 2**32."""
    halves = ir.VectorType(I32, 2 * WIDTH)
    mixed = b.bitcast(b.add(b.bitcast(x, halves), b.bitcast(key, halves)), x.type)
    low = b.and_(mixed, splat(b, ir.Constant(I64, 0xFFFFFFFF)))
    return b.add(total, b.mul(low, b.lshr(mixed, splat(b, ir.Constant(I64, 32)))))


def _one_of(bits: int, infinity: int, nan: int) -> Any:
    def emit(b: ir.IRBuilder, x: Any) -> Any:
        kind, count = ir.IntType(bits), 64 // bits * WIDTH
        numbers = b.bitcast(x, ir.VectorType(kind, count))

        def every(value: int) -> Any:
            return ir.Constant(numbers.type, [value] * count)

        size = b.and_(numbers, every((1 << (bits - 1)) - 1))
        numbers = b.select(b.icmp_unsigned("==", size, every(0)), every(0), numbers)
        return b.bitcast(b.select(b.icmp_unsigned(">", size, every(infinity)), every(nan), numbers), x.type)

    emit.__name__ = f"one_of_floats_{bits}"
    return define(LONGS, LONGS)(emit)


#: Floats of 16, 32 or 64 bits by their bits, with one zero and one NaN.
one_of_halves = _one_of(16, 0x7C00, 0x7E00)
one_of_singles = _one_of(32, 0x7F800000, 0x7FC00000)
one_of_doubles = _one_of(64, 0x7FF0 << 48, 0x7FF8 << 48)


@define(types.uint64, LONGS)
def total_of(b: ir.IRBuilder, x: Any) -> Any:
    """The sum of all lanes, modulo 2**64."""
    name = "llvm.vector.reduce.add.v8i64"
    function = b.module.globals.get(name) or ir.Function(b.module, ir.FunctionType(I64, [x.type]), name)
    return b.call(function, [x])


@define(FLOATS, LONGS)
def to_floats(b: ir.IRBuilder, x: Any) -> Any:
    """The same bits, read as float64."""
    return b.bitcast(x, FLOATS.representation)


@define(LONGS, FLOATS)
def integers(b: ir.IRBuilder, x: Any) -> Any:
    """The integers that the floats hold."""
    return b.fptosi(x, LONGS.representation)


@define(FLOATS, LONGS)
def numbers(b: ir.IRBuilder, x: Any) -> Any:
    """Signed integers as floats."""
    return b.sitofp(x, FLOATS.representation)


@define(FLOATS, LONGS, types.int64)
def less(b: ir.IRBuilder, x: Any, y: Any) -> Any:
    """x - y as floats, for x and y below 2**51; from the bits of 2**52 + x, since not every machine converts longs."""
    one = ir.Constant(LONGS.representation, [0x4330000000000000] * WIDTH)
    base = b.sitofp(b.add(y, ir.Constant(I64, 1 << 52)), DOUBLE)
    return b.fsub(b.bitcast(b.or_(x, one), FLOATS.representation), splat(b, base))
