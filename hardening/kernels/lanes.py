"""Eight numbers side by side, as a type that kernels can compute with.

numba leaves vectorising to LLVM's judgement, which a select, a rounding or a 32-bit integer is enough to spoil. Here
the vector is a value: ``load``, ``store``, arithmetic, comparisons and ``where`` each become one instruction where the
machine has it, or a few where it has not, with the same IEEE 754 result bit for bit on every machine.

Kinds: `FLOATS` (float64), `LONGS` (uint64) and `MASK` (one bit each), eight of each, and `WORDS`, sixteen uint32.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, lower_builtin, models, register_model, type_callable

#: Decorator of functions that only kernels call: no wrappers for Python, which would double their compilation.
device = njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, forceinline=True)
#: The same for a kernel's outermost parts, which are called once: they become part of their caller before it is
#: compiled, for compiled on their own and then again inside it they would double the time.
outer = njit(inline="always", no_cpython_wrapper=True, no_cfunc_wrapper=True)
WIDTH = 8
_I1, _I8, _I32, _I64, _I128 = (ir.IntType(bits) for bits in (1, 8, 32, 64, 128))
_DOUBLE = ir.DoubleType()


class LanesType(types.Type):
    """The numba type of `WIDTH` elements side by side, or of one element that numba does not know."""

    def __init__(self, name: str, representation: ir.Type) -> None:
        self.representation = representation
        super().__init__(name)


@register_model(LanesType)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: LanesType) -> None:
        super().__init__(manager, kind, kind.representation)


FLOATS = LanesType("Floats", ir.VectorType(_DOUBLE, WIDTH))
MASK = LanesType("Mask", ir.VectorType(_I1, WIDTH))
WORDS = LanesType("Words", ir.VectorType(_I32, 2 * WIDTH))
LONGS = LanesType("Longs", ir.VectorType(_I64, WIDTH))
#: One unsigned integer modulo 2**128.
INT128 = LanesType("Int128", _I128)


def define(returns: Any, *takes: Any) -> Callable[[Callable[..., Any]], Any]:
    """Decorator: a function from LLVM values to an LLVM value, made callable from kernels."""
    signature = returns(*takes)

    def wrap(emit: Callable[..., Any]) -> Any:
        def codegen(_context: Any, builder: ir.IRBuilder, _signature: Any, args: Any) -> Any:
            return emit(builder, *args)

        def one(_context: Any, a: Any) -> Any:
            return signature, codegen

        def two(_context: Any, a: Any, b: Any) -> Any:
            return signature, codegen

        def three(_context: Any, a: Any, b: Any, c: Any) -> Any:
            return signature, codegen

        def four(_context: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
            return signature, codegen

        typing = (one, two, three, four)[len(takes) - 1]
        typing.__name__ = typing.__qualname__ = emit.__name__
        typing.__doc__ = emit.__doc__
        return intrinsic(typing)

    return wrap


def _vector(element: ir.Type) -> ir.Type:
    return ir.VectorType(element, WIDTH)


def _repeat(b: ir.IRBuilder, x: Any, width: int = WIDTH) -> Any:
    vector = ir.VectorType(x.type, width)
    first = b.insert_element(ir.Constant(vector, ir.Undefined), x, ir.Constant(_I32, 0))
    return b.shuffle_vector(
        first, ir.Constant(vector, ir.Undefined), ir.Constant(ir.VectorType(_I32, width), [0] * width)
    )


def _call(name: str, b: ir.IRBuilder, *values: Any) -> Any:
    kind = values[0].type
    function = b.module.globals.get(name)
    if function is None:
        function = ir.Function(b.module, ir.FunctionType(kind, [kind] * len(values)), name)
    return b.call(function, values)


@define(types.voidptr, types.int64)
def pointer(b: ir.IRBuilder, address: Any) -> Any:
    """For `numba.carray`: kernels get plain addresses, which cost less to pass than arrays."""
    return b.inttoptr(address, _I8.as_pointer())


# Floats ---------------------------------------------------------------------------------------------------------


@define(FLOATS, types.float64)
def fill(b: ir.IRBuilder, x: Any) -> Any:
    """The same number in every lane."""
    return _repeat(b, x)


@define(FLOATS, FLOATS)
def rint(b: ir.IRBuilder, x: Any) -> Any:
    """Nearest integer, halves to even."""
    return _call("llvm.rint.v8f64", b, x)


@define(FLOATS, FLOATS)
def floor(b: ir.IRBuilder, x: Any) -> Any:
    return _call("llvm.floor.v8f64", b, x)


@define(FLOATS, FLOATS)
def fabs(b: ir.IRBuilder, x: Any) -> Any:
    return _call("llvm.fabs.v8f64", b, x)


@define(FLOATS, FLOATS, FLOATS)
def larger(b: ir.IRBuilder, x: Any, y: Any) -> Any:
    return b.select(b.fcmp_ordered(">", x, y), x, y)


@define(FLOATS, FLOATS, FLOATS)
def smaller(b: ir.IRBuilder, x: Any, y: Any) -> Any:
    return b.select(b.fcmp_ordered("<", x, y), x, y)


@define(FLOATS, MASK, FLOATS, FLOATS)
def where(b: ir.IRBuilder, mask: Any, x: Any, y: Any) -> Any:
    return b.select(mask, x, y)


@define(FLOATS, FLOATS, FLOATS)
def halfway(b: ir.IRBuilder, x: Any, y: Any) -> Any:
    """The float in the middle of all floats from x to y: bisection with it ends within 64 steps."""
    longs = LONGS.representation
    sign, rest = _repeat(b, ir.Constant(_I64, 63)), _repeat(b, ir.Constant(_I64, (1 << 63) - 1))

    def ordered(bits: Any) -> Any:
        return b.xor(bits, b.and_(b.ashr(bits, sign), rest))

    low, high = ordered(b.bitcast(x, longs)), ordered(b.bitcast(y, longs))
    half = b.ashr(b.xor(low, high), _repeat(b, ir.Constant(_I64, 1)))
    return b.bitcast(ordered(b.add(b.and_(low, high), half)), FLOATS.representation)


@define(FLOATS, FLOATS, FLOATS, FLOATS)
def fused(b: ir.IRBuilder, x: Any, y: Any, z: Any) -> Any:
    """x y + z, rounded once."""
    return _call("llvm.fma.v8f64", b, x, y, z)


@define(FLOATS, FLOATS, FLOATS, FLOATS)
def roughly_fused(b: ir.IRBuilder, x: Any, y: Any, z: Any) -> Any:
    """x y + z, rounded once or twice as the machine likes; for statistics only."""
    return _call("llvm.fmuladd.v8f64", b, x, y, z)


@define(FLOATS, FLOATS)
def next_up(b: ir.IRBuilder, x: Any) -> Any:
    """The least float above x."""
    longs, one = LONGS.representation, _repeat(b, ir.Constant(_I64, 1))
    x = b.fadd(x, ir.Constant(x.type, [0.0] * WIDTH))  # minus zero becomes zero
    bits, below = b.bitcast(x, longs), b.fcmp_ordered("<", x, ir.Constant(x.type, [0.0] * WIDTH))
    return b.bitcast(b.select(below, b.sub(bits, one), b.add(bits, one)), x.type)


@define(types.boolean, MASK)
def some(b: ir.IRBuilder, mask: Any) -> Any:
    """Whether any lane is set."""
    return b.icmp_unsigned("!=", b.bitcast(mask, _I8), ir.Constant(_I8, 0))


@define(FLOATS, types.int64)
def columns(b: ir.IRBuilder, first: Any) -> Any:
    """first, first + 1, ..., first + 7."""
    steps = ir.Constant(_vector(_DOUBLE), [float(i) for i in range(WIDTH)])
    return b.fadd(_repeat(b, b.sitofp(first, _DOUBLE)), steps)


def _operator(symbol: Any, emit: Callable[..., Any], takes: LanesType, returns: LanesType) -> None:
    """Give an operator of Python its meaning for two vectors, or for a vector of floats and a number."""
    number = (types.Float,) if takes is FLOATS else ()

    def fits(x: Any, y: Any) -> bool:
        return (x is takes or isinstance(x, number)) and (y is takes or isinstance(y, number)) and takes in (x, y)

    @type_callable(symbol)
    def typed(_context: Any) -> Any:
        return lambda x, y: returns if fits(x, y) else None

    def lowered(_context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return emit(b, *(v if kind is takes else _repeat(b, v) for kind, v in zip(signature.args, args, strict=True)))

    for pair in ((takes, takes), *((takes, n) for n in number), *((n, takes) for n in number)):
        lower_builtin(symbol, *pair)(lowered)


def _comparison(sign: str) -> Callable[..., Any]:
    return lambda b, x, y: b.fcmp_ordered(sign, x, y)


_operator(operator.add, lambda b, x, y: b.fadd(x, y), FLOATS, FLOATS)
_operator(operator.sub, lambda b, x, y: b.fsub(x, y), FLOATS, FLOATS)
_operator(operator.mul, lambda b, x, y: b.fmul(x, y), FLOATS, FLOATS)
_operator(operator.truediv, lambda b, x, y: b.fdiv(x, y), FLOATS, FLOATS)
for _symbol, _sign in (
    (operator.lt, "<"),
    (operator.gt, ">"),
    (operator.le, "<="),
    (operator.ge, ">="),
    (operator.eq, "=="),
):
    _operator(_symbol, _comparison(_sign), FLOATS, MASK)
# A lane that holds NaN differs from everything.
_operator(operator.ne, lambda b, x, y: b.fcmp_unordered("!=", x, y), FLOATS, MASK)
_operator(operator.and_, lambda b, x, y: b.and_(x, y), MASK, MASK)
_operator(operator.or_, lambda b, x, y: b.or_(x, y), MASK, MASK)


@type_callable(operator.invert)
def _type_of_not(_context: Any) -> Any:
    return lambda x: MASK if x is MASK else None


@lower_builtin(operator.invert, MASK)
def _not(_context: Any, b: ir.IRBuilder, _signature: Any, args: Any) -> Any:
    return b.not_(args[0])


# Words and wide integers ------------------------------------------------------------------------------------------


@define(WORDS, types.uint32)
def repeat(b: ir.IRBuilder, x: Any) -> Any:
    """The same word in every lane."""
    return _repeat(b, x, 2 * WIDTH)


@define(WORDS, types.uint32)
def count_from(b: ir.IRBuilder, first: Any) -> Any:
    """first, first + 1, ..., first + 15, modulo 2**32."""
    return b.add(_repeat(b, first, 2 * WIDTH), ir.Constant(WORDS.representation, list(range(2 * WIDTH))))


@define(WORDS, types.uint32)
def count_twice(b: ir.IRBuilder, first: Any) -> Any:
    """first in lanes 0 to 7, first + 1 in lanes 8 to 15, modulo 2**32."""
    steps = ir.Constant(WORDS.representation, [0] * WIDTH + [1] * WIDTH)
    return b.add(_repeat(b, first, 2 * WIDTH), steps)


@define(WORDS, WORDS, WORDS)
def add_words(b: ir.IRBuilder, x: Any, y: Any) -> Any:
    return b.add(x, y)


def _xor_rotate(bits: int) -> Any:
    def emit(b: ir.IRBuilder, x: Any, y: Any) -> Any:
        mixed = b.xor(x, y)
        return _call("llvm.fshl.v16i32", b, mixed, mixed, ir.Constant(x.type, [bits] * 2 * WIDTH))

    emit.__name__ = f"xor_rotate_{bits}"
    return define(WORDS, WORDS, WORDS)(emit)


#: (x xor y) rotated left.
xor_rotate_16, xor_rotate_12, xor_rotate_8, xor_rotate_7 = map(_xor_rotate, (16, 12, 8, 7))


def _shift(name: str) -> Any:
    def emit(b: ir.IRBuilder, x: Any, bits: Any) -> Any:
        return getattr(b, name)(x, _repeat(b, bits))

    emit.__name__ = name
    return define(LONGS, LONGS, types.int64)(emit)


shift_left, shift_right = _shift("shl"), _shift("lshr")


@define(LONGS, LONGS, types.int64)
def low_bits(b: ir.IRBuilder, x: Any, count: Any) -> Any:
    one = ir.Constant(_I64, 1)
    return b.and_(x, _repeat(b, b.sub(b.shl(one, count), one)))


@define(LONGS, types.int64)
def fill_longs(b: ir.IRBuilder, x: Any) -> Any:
    """The same integer in every lane."""
    return _repeat(b, x)


@define(LONGS, LONGS, MASK)
def tally(b: ir.IRBuilder, count: Any, mask: Any) -> Any:
    """One more where the mask is set; integers add in one cycle, floats in four."""
    return b.add(count, b.zext(mask, LONGS.representation))


@define(LONGS, LONGS, types.int64)
def add_to_longs(b: ir.IRBuilder, x: Any, y: Any) -> Any:
    return b.add(x, _repeat(b, y))


@define(LONGS, MASK, LONGS, LONGS)
def where_longs(b: ir.IRBuilder, mask: Any, x: Any, y: Any) -> Any:
    return b.select(mask, x, y)


@define(MASK, LONGS, LONGS)
def below(b: ir.IRBuilder, x: Any, y: Any) -> Any:
    """Unsigned comparison."""
    return b.icmp_unsigned("<", x, y)


@define(INT128, types.uint64, types.uint64)
def int128(b: ir.IRBuilder, low: Any, high: Any) -> Any:
    return b.or_(b.zext(low, _I128), b.shl(b.zext(high, _I128), ir.Constant(_I128, 64)))


@define(INT128, INT128, types.uint64, types.uint64)
def multiply_add(b: ir.IRBuilder, total: Any, x: Any, y: Any) -> Any:
    """total + x y modulo 2**128, the product in full."""
    return b.add(total, b.mul(b.zext(x, _I128), b.zext(y, _I128)))


@define(INT128, INT128, INT128, types.uint64)
def multiply_add_wide(b: ir.IRBuilder, total: Any, x: Any, y: Any) -> Any:
    """total + x y modulo 2**128, for a 128-bit x."""
    return b.add(total, b.mul(x, b.zext(y, _I128)))


@define(types.uint64, INT128)
def low_half(b: ir.IRBuilder, x: Any) -> Any:
    return b.trunc(x, _I64)


@define(types.uint64, INT128)
def high_half(b: ir.IRBuilder, x: Any) -> Any:
    return b.trunc(b.lshr(x, ir.Constant(_I128, 64)), _I64)


# Memory ---------------------------------------------------------------------------------------------------------


def _place(context: Any, b: ir.IRBuilder, kind: Any, array: Any, index: Any, vector: ir.Type) -> Any:
    data = context.make_array(kind)(context, b, array).data
    return b.bitcast(b.gep(data, [b.mul(index, ir.Constant(_I64, WIDTH))]), vector.as_pointer())


@intrinsic
def load(_context: Any, array: Any, index: Any) -> Any:
    """Elements 8 * index and on of a float64 array."""

    def codegen(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return b.load(_place(context, b, signature.args[0], args[0], args[1], FLOATS.representation), align=8)

    return FLOATS(array, types.int64), codegen


@intrinsic
def store(_context: Any, array: Any, index: Any, value: Any) -> Any:
    """Writes what `load` reads; `value` may be floats or longs, the array has elements of eight bytes."""

    def codegen(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> Any:
        b.store(args[2], _place(context, b, signature.args[0], args[0], args[1], args[2].type), align=8)
        return context.get_dummy_value()

    return types.void(array, types.int64, value), codegen


@intrinsic
def load_longs(_context: Any, array: Any, index: Any) -> Any:
    """Elements 8 * index and on of a uint64 array."""

    def codegen(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return b.load(_place(context, b, signature.args[0], args[0], args[1], LONGS.representation), align=8)

    return LONGS(array, types.int64), codegen


@intrinsic
def load_words(_context: Any, array: Any, index: Any) -> Any:
    """Elements 8 * index to 8 * index + 7 of a uint32 array, twice."""

    def codegen(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> Any:
        eight = b.load(_place(context, b, signature.args[0], args[0], args[1], _vector(_I32)), align=4)
        twice = ir.Constant(WORDS.representation, [*range(WIDTH), *range(WIDTH)])
        return b.shuffle_vector(eight, ir.Constant(eight.type, ir.Undefined), twice)

    return WORDS(array, types.int64), codegen


@intrinsic
def transpose(_context: Any, array: Any, first: Any) -> Any:
    """Turns the eight by eight 64-bit elements from 64 * first on, rows into columns, in registers."""

    def codegen(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> Any:
        index = b.mul(args[1], ir.Constant(_I64, WIDTH))
        at = [b.add(index, ir.Constant(_I64, k)) for k in range(WIDTH)]
        places = [_place(context, b, signature.args[0], args[0], i, LONGS.representation) for i in at]
        rows = [b.load(place, align=8) for place in places]
        for d in (4, 2, 1):
            low = ir.Constant(_vector(_I32), [i if not i & d else WIDTH + i - d for i in range(WIDTH)])
            high = ir.Constant(_vector(_I32), [i + d if not i & d else WIDTH + i for i in range(WIDTH)])
            for k in range(WIDTH):
                if not k & d:
                    x, y = rows[k], rows[k + d]
                    rows[k], rows[k + d] = b.shuffle_vector(x, y, low), b.shuffle_vector(x, y, high)
        for place, row in zip(places, rows, strict=True):
            b.store(row, place, align=8)
        return context.get_dummy_value()

    return types.void(array, types.int64), codegen


@intrinsic
def gather_longs(_context: Any, array: Any, places: Any) -> Any:
    """One 64-bit element per lane, at the indices in `places` (longs)."""

    def codegen(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> Any:
        data = b.bitcast(context.make_array(signature.args[0])(context, b, args[0]).data, _I64.as_pointer())
        out = ir.Constant(LONGS.representation, ir.Undefined)
        for lane in range(WIDTH):
            at = ir.Constant(_I32, lane)
            out = b.insert_element(out, b.load(b.gep(data, [b.extract_element(args[1], at)])), at)
        return out

    return LONGS(array, LONGS), codegen


@device
def gather(array: Any, places: Any) -> Any:
    """One float64 per lane, at the indices in `places` (floats)."""
    return to_floats(gather_longs(array, integers(places)))


@intrinsic
def load_at(_context: Any, array: Any, first: Any) -> Any:
    """Eight elements from `first` on of a float32 or float64 array."""

    def codegen(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> Any:
        data = b.gep(context.make_array(signature.args[0])(context, b, args[0]).data, [args[1]])
        element = data.type.pointee
        values = b.load(b.bitcast(data, _vector(element).as_pointer()), align=4)
        return values if element == _DOUBLE else b.fpext(values, FLOATS.representation)

    return FLOATS(array, types.int64), codegen


@intrinsic
def store_at(_context: Any, array: Any, first: Any, values: Any) -> Any:
    """Writes what `load_at` reads, rounded to the array's dtype."""

    def codegen(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> Any:
        data = b.gep(context.make_array(signature.args[0])(context, b, args[0]).data, [args[1]])
        element = data.type.pointee
        values = args[2] if element == _DOUBLE else b.fptrunc(args[2], _vector(element))
        b.store(values, b.bitcast(data, values.type.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(array, types.int64, FLOATS), codegen


def _masked(b: ir.IRBuilder, name: str, returns: ir.Type, *values: Any) -> Any:
    function = b.module.globals.get(name)
    if function is None:
        function = ir.Function(b.module, ir.FunctionType(returns, [v.type for v in values]), name)
    return b.call(function, values)


@intrinsic
def load_some(_context: Any, array: Any, first: Any, mask: Any) -> Any:
    """`load_at` in the lanes of the mask, and zero in the others; nothing is read there."""

    def codegen(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> Any:
        data = b.gep(context.make_array(signature.args[0])(context, b, args[0]).data, [args[1]])
        kind = _vector(data.type.pointee)
        name = "llvm.masked.load.v8f64.p0" if data.type.pointee == _DOUBLE else "llvm.masked.load.v8f32.p0"
        place, align = b.bitcast(data, kind.as_pointer()), ir.Constant(_I32, 4)
        values = _masked(b, name, kind, place, align, args[2], ir.Constant(kind, [0.0] * WIDTH))
        return values if data.type.pointee == _DOUBLE else b.fpext(values, FLOATS.representation)

    return FLOATS(array, types.int64, MASK), codegen


@intrinsic
def store_some(_context: Any, array: Any, first: Any, mask: Any, values: Any) -> Any:
    """`store_at` in the lanes of the mask."""

    def codegen(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> Any:
        data = b.gep(context.make_array(signature.args[0])(context, b, args[0]).data, [args[1]])
        double = data.type.pointee == _DOUBLE
        values = args[3] if double else b.fptrunc(args[3], _vector(data.type.pointee))
        name = "llvm.masked.store.v8f64.p0" if double else "llvm.masked.store.v8f32.p0"
        place = b.bitcast(data, values.type.as_pointer())
        _masked(b, name, ir.VoidType(), values, place, ir.Constant(_I32, 4), args[2])
        return context.get_dummy_value()

    return types.void(array, types.int64, MASK, FLOATS), codegen


@intrinsic
def load_every(_context: Any, array: Any, first: Any, stride: Any) -> Any:
    """Elements first, first + stride, ... of a float32 or float64 array, one per lane."""

    def codegen(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> Any:
        data, at = context.make_array(signature.args[0])(context, b, args[0]).data, args[1]
        element = data.type.pointee
        out = ir.Constant(_vector(element), ir.Undefined)
        for index in range(WIDTH):
            out = b.insert_element(out, b.load(b.gep(data, [at])), ir.Constant(_I32, index))
            at = b.add(at, args[2])
        return out if element == _DOUBLE else b.fpext(out, FLOATS.representation)

    return FLOATS(array, types.int64, types.int64), codegen


@intrinsic
def store_every(_context: Any, array: Any, first: Any, stride: Any, values: Any) -> Any:
    """Writes what `load_every` reads, rounded to the array's dtype."""

    def codegen(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> Any:
        data, at = context.make_array(signature.args[0])(context, b, args[0]).data, args[1]
        element = data.type.pointee
        values = args[3] if element == _DOUBLE else b.fptrunc(args[3], _vector(element))
        for index in range(WIDTH):
            b.store(b.extract_element(values, ir.Constant(_I32, index)), b.gep(data, [at]))
            at = b.add(at, args[2])
        return context.get_dummy_value()

    return types.void(array, types.int64, types.int64, FLOATS), codegen


@intrinsic
def scatter(_context: Any, array: Any, places: Any, values: Any) -> Any:
    """Writes one float64 per lane at the indices in `places` (floats)."""

    def codegen(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, b, args[0]).data
        where_to = b.fptosi(args[1], LONGS.representation)
        for lane in range(WIDTH):
            at = ir.Constant(_I32, lane)
            b.store(b.extract_element(args[2], at), b.gep(data, [b.extract_element(where_to, at)]))
        return context.get_dummy_value()

    return types.void(array, FLOATS, FLOATS), codegen


# Between kinds --------------------------------------------------------------------------------------------------


@define(FLOATS, LONGS)
def to_floats(b: ir.IRBuilder, x: Any) -> Any:
    """The same bits, read as float64."""
    return b.bitcast(x, FLOATS.representation)


@define(LONGS, FLOATS)
def to_longs(b: ir.IRBuilder, x: Any) -> Any:
    """The same bits, read as integers."""
    return b.bitcast(x, LONGS.representation)


@define(LONGS, FLOATS)
def integers(b: ir.IRBuilder, x: Any) -> Any:
    """The integers that the floats hold."""
    return b.fptosi(x, LONGS.representation)


@define(FLOATS, LONGS)
def numbers(b: ir.IRBuilder, x: Any) -> Any:
    """Signed integers as floats."""
    return b.sitofp(x, FLOATS.representation)


def _join(first: int) -> Any:
    def emit(b: ir.IRBuilder, low: Any, high: Any) -> Any:
        chosen = ir.Constant(_vector(_I32), list(range(first, first + WIDTH)))
        halves = [b.shuffle_vector(x, ir.Constant(x.type, ir.Undefined), chosen) for x in (low, high)]
        low, high = (b.zext(x, LONGS.representation) for x in halves)
        return b.or_(low, b.shl(high, _repeat(b, ir.Constant(_I64, 32))))

    emit.__name__ = f"join_{first}"
    return define(LONGS, WORDS, WORDS)(emit)


#: 64-bit integers from their low and high halves, of lanes 0 to 7 and of lanes 8 to 15.
join_first, join_second = _join(0), _join(WIDTH)


@define(types.float64, FLOATS, types.int64)
def lane(b: ir.IRBuilder, x: Any, index: Any) -> Any:
    return b.extract_element(x, index)


# Across ---------------------------------------------------------------------------------------------------------


def _across(combine: Callable[..., Any]) -> Any:
    def emit(b: ir.IRBuilder, x: Any) -> Any:
        undefined = ir.Constant(FLOATS.representation, ir.Undefined)
        for distance in (4, 2, 1):
            swapped = ir.Constant(_vector(_I32), [i ^ distance for i in range(WIDTH)])
            x = combine(b, x, b.shuffle_vector(x, undefined, swapped))
        return x

    emit.__name__ = "across"
    return define(FLOATS, FLOATS)(emit)


#: Each lane becomes the sum, the largest or the smallest of all. Sums are exact only where order does not matter.
across_sum = _across(lambda b, x, y: b.fadd(x, y))
across_max = _across(lambda b, x, y: b.select(b.fcmp_ordered(">", x, y), x, y))
across_min = _across(lambda b, x, y: b.select(b.fcmp_ordered("<", x, y), x, y))


def _butterfly(distance: int) -> Any:
    def emit(b: ir.IRBuilder, x: Any) -> Any:
        partner = ir.Constant(_vector(_I32), [i ^ distance for i in range(WIDTH)])
        other = b.shuffle_vector(x, ir.Constant(x.type, ir.Undefined), partner)
        second = ir.Constant(MASK.representation, [int(bool(i & distance)) for i in range(WIDTH)])
        return b.select(second, b.fsub(other, x), b.fadd(x, other))

    emit.__name__ = f"butterfly_{distance}"
    return define(FLOATS, FLOATS)(emit)


#: One stage of a Walsh-Hadamard transform across the lanes: x + y in the lower lane of each pair, x - y in the upper.
butterfly_1, butterfly_2, butterfly_4 = map(_butterfly, (1, 2, 4))


@define(types.int64, MASK)
def bits(b: ir.IRBuilder, mask: Any) -> Any:
    """The mask as a number; lane 0 is the lowest bit."""
    return b.zext(b.bitcast(mask, _I8), _I64)


# Functions for statistics ---------------------------------------------------------------------------------------


@define(FLOATS, FLOATS)
def _exponent(b: ir.IRBuilder, x: Any) -> Any:
    bits = b.lshr(b.bitcast(x, LONGS.representation), _repeat(b, ir.Constant(_I64, 52)))
    return b.sitofp(b.sub(bits, _repeat(b, ir.Constant(_I64, 1022))), FLOATS.representation)


@define(FLOATS, FLOATS)
def _mantissa(b: ir.IRBuilder, x: Any) -> Any:
    bits = b.and_(b.bitcast(x, LONGS.representation), _repeat(b, ir.Constant(_I64, (1 << 52) - 1)))
    return b.bitcast(b.or_(bits, _repeat(b, ir.Constant(_I64, 0x3FE << 52))), FLOATS.representation)


@define(FLOATS, FLOATS)
def _power_of_two(b: ir.IRBuilder, x: Any) -> Any:
    biased = b.add(b.fptosi(x, LONGS.representation), _repeat(b, ir.Constant(_I64, 1023)))
    return b.bitcast(b.shl(biased, _repeat(b, ir.Constant(_I64, 52))), FLOATS.representation)


def _fit(function: Callable[[Any], Any], low: float, high: float, degree: int) -> tuple[float, ...]:
    """Coefficients of the Chebyshev interpolation, constant first."""
    fit = np.polynomial.chebyshev.Chebyshev.interpolate(function, degree, domain=[low, high])
    return tuple(float(c) for c in fit.convert(kind=np.polynomial.Polynomial, domain=[-1, 1], window=[-1, 1]).coef)


# log2(1 + m) = m q(m) on [sqrt(1/2) - 1, sqrt(2) - 1] and 2**x on [-1/2, 1/2], errors below 1e-5.
L0, L1, L2, L3, L4, L5, L6, L7 = _fit(
    lambda m: np.where(np.abs(m) < 1e-9, 1.0, np.log1p(m) / np.where(np.abs(m) < 1e-9, 1.0, m)) / np.log(2.0),
    np.sqrt(0.5) - 1,
    np.sqrt(2.0) - 1,
    7,
)
E0, E1, E2, E3, E4, E5 = _fit(np.exp2, -0.5, 0.5, 5)


@device
def log2(x: Any) -> Any:
    """Base-2 logarithm of positive normal numbers, absolute error below 1e-5; for statistics, not for releases."""
    m = _mantissa(x)
    small = where(m < 0.7071067811865476, fill(1.0), fill(0.0))
    m = roughly_fused(m, small, m) - 1.0
    q = roughly_fused(fill(L7), m, fill(L6))
    q = roughly_fused(q, m, fill(L5))
    q = roughly_fused(q, m, fill(L4))
    q = roughly_fused(q, m, fill(L3))
    q = roughly_fused(q, m, fill(L2))
    q = roughly_fused(q, m, fill(L1))
    q = roughly_fused(q, m, fill(L0))
    return roughly_fused(m, q, _exponent(x) - small)


@device
def exp2(x: Any) -> Any:
    """Two to the power of x for x in [-1000, 1000], relative error below 1e-5; for statistics, not for releases."""
    whole = rint(x)
    f = x - whole
    q = roughly_fused(fill(E5), f, fill(E4))
    q = roughly_fused(q, f, fill(E3))
    q = roughly_fused(q, f, fill(E2))
    q = roughly_fused(q, f, fill(E1))
    q = roughly_fused(q, f, fill(E0))
    return _power_of_two(whole) * q
