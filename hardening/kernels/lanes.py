"""Eight numbers side by side, as a type that kernels can compute with.

numba leaves vectorising to LLVM's judgement, which a select, a rounding or a 32-bit integer is enough to spoil. Here
the vector is a value: ``load``, ``store``, arithmetic, comparisons and ``where`` each become one instruction where the
machine has it, or a few where it has not, with the same IEEE 754 result bit for bit on every machine.

Kinds: `FLOATS` (float64), `LONGS` (uint64) and `MASK` (one bit each), eight of each, and `WORDS`
and `MORE_WORDS`, sixteen and thirty-two uint32.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, lower_builtin, models, register_model, type_callable

#: Decorator of functions that only kernels call: no wrappers for Python, which would double their compilation.
device = njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, forceinline=True)
#: The same for long functions that are better called than copied to where they are called.
apart = njit(no_cpython_wrapper=True, no_cfunc_wrapper=True)
#: The same for a kernel's outermost parts, which are called once: they become part of their caller before it is
#: compiled, for compiled on their own and then again inside it they would double the time.
outer = njit(inline="always", no_cpython_wrapper=True, no_cfunc_wrapper=True)
WIDTH = 8
I1, I8, I32, I64, I128 = (ir.IntType(bits) for bits in (1, 8, 32, 64, 128))
DOUBLE = ir.DoubleType()


class LanesType(types.Type):
    """The numba type of `WIDTH` elements side by side, or of one element that numba does not know."""

    def __init__(self, name: str, representation: ir.Type) -> None:
        self.representation = representation
        super().__init__(name)


@register_model(LanesType)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: LanesType) -> None:
        super().__init__(manager, kind, kind.representation)


FLOATS = LanesType("Floats", ir.VectorType(DOUBLE, WIDTH))
MASK = LanesType("Mask", ir.VectorType(I1, WIDTH))
WORDS = LanesType("Words", ir.VectorType(I32, 2 * WIDTH))
MORE_WORDS = LanesType("MoreWords", ir.VectorType(I32, 4 * WIDTH))
LONGS = LanesType("Longs", ir.VectorType(I64, WIDTH))
#: One unsigned integer modulo 2**128.
INT128 = LanesType("Int128", I128)


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


def vector(element: ir.Type) -> ir.Type:
    """The LLVM type of `WIDTH` elements side by side."""
    return ir.VectorType(element, WIDTH)


def splat(b: ir.IRBuilder, x: Any, width: int = WIDTH) -> Any:
    """A vector of `width` copies of an LLVM value."""
    kind = ir.VectorType(x.type, width)
    first = b.insert_element(ir.Constant(kind, ir.Undefined), x, ir.Constant(I32, 0))
    zeros = ir.Constant(ir.VectorType(I32, width), [0] * width)
    return b.shuffle_vector(first, ir.Constant(kind, ir.Undefined), zeros)


def call(name: str, b: ir.IRBuilder, *values: Any) -> Any:
    """One of LLVM's intrinsics by its full name, on values of one type."""
    kind = values[0].type
    function = b.module.globals.get(name)
    if function is None:
        function = ir.Function(b.module, ir.FunctionType(kind, [kind] * len(values)), name)
    return b.call(function, values)


@define(types.voidptr, types.int64)
def pointer(b: ir.IRBuilder, address: Any) -> Any:
    """For `numba.carray`: kernels get plain addresses, which cost less to pass than arrays."""
    return b.inttoptr(address, I8.as_pointer())


@define(types.int64, types.int64, types.int64)
def call_at(b: ir.IRBuilder, address: Any, argument: Any) -> Any:
    """Calls the compiled function at an address, from one integer to one."""
    return b.call(b.inttoptr(address, ir.FunctionType(I64, [I64]).as_pointer()), [argument])


@define(types.none, types.int64, types.int64)
def execute(b: ir.IRBuilder, address: Any, argument: Any) -> Any:
    """Calls the compiled function of one integer at an address, which returns nothing."""
    b.call(b.inttoptr(address, ir.FunctionType(ir.VoidType(), [I64]).as_pointer()), [argument])
    return ir.Constant(I8.as_pointer(), None)


@define(FLOATS, types.float64)
def fill(b: ir.IRBuilder, x: Any) -> Any:
    """The same number in every lane."""
    return splat(b, x)


@define(FLOATS, FLOATS)
def rint(b: ir.IRBuilder, x: Any) -> Any:
    """Nearest integer, halves to even."""
    return call("llvm.rint.v8f64", b, x)


@define(FLOATS, FLOATS)
def floor(b: ir.IRBuilder, x: Any) -> Any:
    return call("llvm.floor.v8f64", b, x)


@define(FLOATS, FLOATS)
def fabs(b: ir.IRBuilder, x: Any) -> Any:
    return call("llvm.fabs.v8f64", b, x)


@define(FLOATS, FLOATS)
def to_single(b: ir.IRBuilder, x: Any) -> Any:
    """The nearest number that float32 holds, halves to even."""
    return b.fpext(b.fptrunc(x, vector(ir.FloatType())), x.type)


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
    sign, rest = splat(b, ir.Constant(I64, 63)), splat(b, ir.Constant(I64, (1 << 63) - 1))

    def ordered(bits: Any) -> Any:
        return b.xor(bits, b.and_(b.ashr(bits, sign), rest))

    low, high = ordered(b.bitcast(x, longs)), ordered(b.bitcast(y, longs))
    half = b.ashr(b.xor(low, high), splat(b, ir.Constant(I64, 1)))
    return b.bitcast(ordered(b.add(b.and_(low, high), half)), FLOATS.representation)


@define(FLOATS, FLOATS, FLOATS, FLOATS)
def fused(b: ir.IRBuilder, x: Any, y: Any, z: Any) -> Any:
    """x y + z, rounded once."""
    return call("llvm.fma.v8f64", b, x, y, z)


@define(FLOATS, FLOATS, FLOATS, FLOATS)
def roughly_fused(b: ir.IRBuilder, x: Any, y: Any, z: Any) -> Any:
    """x y + z, rounded once or twice as the machine likes; for statistics only."""
    return call("llvm.fmuladd.v8f64", b, x, y, z)


@define(FLOATS, FLOATS)
def next_up(b: ir.IRBuilder, x: Any) -> Any:
    """The least float above x."""
    longs, one = LONGS.representation, splat(b, ir.Constant(I64, 1))
    x = b.fadd(x, ir.Constant(x.type, [0.0] * WIDTH))  # minus zero becomes zero
    bits, below = b.bitcast(x, longs), b.fcmp_ordered("<", x, ir.Constant(x.type, [0.0] * WIDTH))
    return b.bitcast(b.select(below, b.sub(bits, one), b.add(bits, one)), x.type)


@define(types.boolean, MASK)
def some(b: ir.IRBuilder, mask: Any) -> Any:
    """Whether any lane is set."""
    return b.icmp_unsigned("!=", b.bitcast(mask, I8), ir.Constant(I8, 0))


@define(FLOATS, types.int64)
def columns(b: ir.IRBuilder, first: Any) -> Any:
    """first, first + 1, ..., first + 7."""
    steps = ir.Constant(vector(DOUBLE), [float(i) for i in range(WIDTH)])
    return b.fadd(splat(b, b.sitofp(first, DOUBLE)), steps)


def _operator(symbol: Any, emit: Callable[..., Any], takes: LanesType, returns: LanesType) -> None:
    """Give an operator of Python its meaning for two vectors, or for a vector of floats and a number."""
    number = (types.Float,) if takes is FLOATS else ()

    def fits(x: Any, y: Any) -> bool:
        return (x is takes or isinstance(x, number)) and (y is takes or isinstance(y, number)) and takes in (x, y)

    @type_callable(symbol)
    def typed(_context: Any) -> Any:
        return lambda x, y: returns if fits(x, y) else None

    def lowered(_context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return emit(b, *(v if kind is takes else splat(b, v) for kind, v in zip(signature.args, args, strict=True)))

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


@define(types.float64, FLOATS, types.int64)
def lane(b: ir.IRBuilder, x: Any, index: Any) -> Any:
    return b.extract_element(x, index)


def _across(combine: Callable[..., Any]) -> Any:
    def emit(b: ir.IRBuilder, x: Any) -> Any:
        undefined = ir.Constant(FLOATS.representation, ir.Undefined)
        for distance in (4, 2, 1):
            swapped = ir.Constant(vector(I32), [i ^ distance for i in range(WIDTH)])
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
        partner = ir.Constant(vector(I32), [i ^ distance for i in range(WIDTH)])
        other = b.shuffle_vector(x, ir.Constant(x.type, ir.Undefined), partner)
        second = ir.Constant(MASK.representation, [int(bool(i & distance)) for i in range(WIDTH)])
        return b.select(second, b.fsub(other, x), b.fadd(x, other))

    emit.__name__ = f"butterfly_{distance}"
    return define(FLOATS, FLOATS)(emit)


#: One stage of a Walsh-Hadamard transform across the lanes: x + y in the lower lane of each pair, x - y in the upper.
butterfly_1, butterfly_2, butterfly_4 = map(_butterfly, (1, 2, 4))


@define(types.int64, types.uint64)
def count_bits(b: ir.IRBuilder, x: Any) -> Any:
    """Number of bits that are set."""
    return call("llvm.ctpop.i64", b, x)


@define(types.int64, MASK)
def bits_of(b: ir.IRBuilder, mask: Any) -> Any:
    """The mask as a number; lane 0 is the lowest bit."""
    return b.zext(b.bitcast(mask, I8), I64)


@define(types.int64, MASK)
def count_of(b: ir.IRBuilder, mask: Any) -> Any:
    """How many lanes are set."""
    return b.zext(call("llvm.ctpop.i8", b, b.bitcast(mask, I8)), I64)
