"""Between arrays and lanes: contiguous, strided, gathered, masked."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from hardening.kernels.lanes import (
    DOUBLE,
    FLOATS,
    I8,
    I32,
    I64,
    LONGS,
    MASK,
    MORE_WORDS,
    WIDTH,
    WORDS,
    LanesType,
    device,
    splat,
    vector,
)
from hardening.kernels.words import integers, to_floats


def _place(context: Any, b: ir.IRBuilder, kind: Any, array: Any, index: Any, kind_of: ir.Type) -> Any:
    data = context.make_array(kind)(context, b, array).data
    return b.bitcast(b.gep(data, [b.mul(index, ir.Constant(I64, WIDTH))]), kind_of.as_pointer())


@intrinsic
def load(_context: Any, array: Any, index: Any) -> Any:
    """Elements 8 * index and on of a float64 array."""

    def codegen(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return b.load(_place(context, b, signature.args[0], args[0], args[1], FLOATS.representation), align=8)

    return FLOATS(array, types.int64), codegen


@intrinsic
def flip(_context: Any, values: Any, signs: Any, index: Any) -> Any:
    """Floats, negated where elements 8 * index and on of a uint8 array are 128; elsewhere these are 0."""

    def codegen(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> Any:
        wide = LONGS.representation
        octets = b.load(_place(context, b, signature.args[1], args[1], args[2], vector(I8)), align=1)
        bits = b.shl(b.zext(octets, wide), splat(b, ir.Constant(I64, 56)))
        return b.bitcast(b.xor(b.bitcast(args[0], wide), bits), args[0].type)

    return FLOATS(FLOATS, signs, types.int64), codegen


@intrinsic
def store(_context: Any, array: Any, index: Any, value: Any) -> Any:
    """Writes what `load` reads; `value` may be floats or longs, the array has elements of eight bytes."""

    def codegen(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> Any:
        b.store(args[2], _place(context, b, signature.args[0], args[0], args[1], args[2].type), align=8)
        return context.get_dummy_value()

    return types.void(array, types.int64, value), codegen


@intrinsic
def store_stream(_context: Any, array: Any, word: Any, low: Any, high: Any) -> Any:
    """64-bit words from their halves; that of lane 8 h + l goes to element ``64 * h + 8 * word + l``."""

    def codegen(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> Any:
        array_type, wide, lanes = signature.args[0], LONGS.representation, args[2].type.count
        for group in range(lanes // WIDTH):
            pairs = [i for k in range(group * WIDTH, (group + 1) * WIDTH) for i in (k, lanes + k)]
            chosen = ir.Constant(ir.VectorType(I32, 2 * WIDTH), pairs)
            joined = b.bitcast(b.shuffle_vector(args[2], args[3], chosen), wide)
            index = b.add(args[1], ir.Constant(I64, group * WIDTH))
            b.store(joined, _place(context, b, array_type, args[0], index, wide), align=8)
        return context.get_dummy_value()

    return types.void(array, types.int64, low, high), codegen


@intrinsic
def load_longs(_context: Any, array: Any, index: Any) -> Any:
    """Elements 8 * index and on of a uint64 array."""

    def codegen(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return b.load(_place(context, b, signature.args[0], args[0], args[1], LONGS.representation), align=8)

    return LONGS(array, types.int64), codegen


def _load_words(kind: LanesType) -> Any:
    def load_words(_context: Any, array: Any, index: Any) -> Any:
        def codegen(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> Any:
            eight = b.load(_place(context, b, signature.args[0], args[0], args[1], vector(I32)), align=4)
            lanes = [i % WIDTH for i in range(kind.representation.count)]
            return b.shuffle_vector(eight, eight, ir.Constant(ir.VectorType(I32, len(lanes)), lanes))

        return kind(array, types.int64), codegen

    return intrinsic(load_words)


#: Elements 8 * index to 8 * index + 7 of a uint32 array, over and over.
load_twice, load_four_times = _load_words(WORDS), _load_words(MORE_WORDS)


@intrinsic
def transpose(_context: Any, array: Any, first: Any) -> Any:
    """Turns the eight by eight 64-bit elements from 64 * first on, rows into columns, in registers."""

    def codegen(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> Any:
        index = b.mul(args[1], ir.Constant(I64, WIDTH))
        at = [b.add(index, ir.Constant(I64, k)) for k in range(WIDTH)]
        places = [_place(context, b, signature.args[0], args[0], i, LONGS.representation) for i in at]
        rows = [b.load(place, align=8) for place in places]
        for d in (4, 2, 1):
            low = ir.Constant(vector(I32), [i if not i & d else WIDTH + i - d for i in range(WIDTH)])
            high = ir.Constant(vector(I32), [i + d if not i & d else WIDTH + i for i in range(WIDTH)])
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
        data = b.bitcast(context.make_array(signature.args[0])(context, b, args[0]).data, I64.as_pointer())
        out = ir.Constant(LONGS.representation, ir.Undefined)
        for lane in range(WIDTH):
            at = ir.Constant(I32, lane)
            out = b.insert_element(out, b.load(b.gep(data, [b.extract_element(args[1], at)])), at)
        return out

    return LONGS(array, LONGS), codegen


@intrinsic
def gather_by_top(_context: Any, array: Any, words: Any, index: Any, shift: Any) -> Any:
    """One 64-bit element per lane: that which elements 8 * index and on of a uint64 array, shifted right, are about.

    Both are read by single words, for what a lane has to be moved to an address costs more than to read it.
    """

    def codegen(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> Any:
        data = b.bitcast(context.make_array(signature.args[0])(context, b, args[0]).data, I64.as_pointer())
        raw = b.bitcast(_place(context, b, signature.args[1], args[1], args[2], I64), I64.as_pointer())
        out = ir.Constant(LONGS.representation, ir.Undefined)
        for lane in range(WIDTH):
            at = ir.Constant(I32, lane)
            slot = b.lshr(b.load(b.gep(raw, [at])), args[3])
            out = b.insert_element(out, b.load(b.gep(data, [slot])), at)
        return out

    return LONGS(array, words, types.int64, types.int64), codegen


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
        values = b.load(b.bitcast(data, vector(element).as_pointer()), align=4)
        return values if element == DOUBLE else b.fpext(values, FLOATS.representation)

    return FLOATS(array, types.int64), codegen


@intrinsic
def store_at(_context: Any, array: Any, first: Any, values: Any) -> Any:
    """Writes what `load_at` reads, rounded to the array's dtype."""

    def codegen(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> Any:
        data = b.gep(context.make_array(signature.args[0])(context, b, args[0]).data, [args[1]])
        element = data.type.pointee
        values = args[2] if element == DOUBLE else b.fptrunc(args[2], vector(element))
        b.store(values, b.bitcast(data, values.type.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(array, types.int64, FLOATS), codegen


def _masked(b: ir.IRBuilder, name: str, returns: ir.Type, *values: Any) -> Any:
    function = b.module.globals.get(name)
    if function is None:
        function = ir.Function(b.module, ir.FunctionType(returns, [v.type for v in values]), name)
    return b.call(function, values)


def _as_words(context: Any, b: ir.IRBuilder, kind: Any, array: Any, index: Any) -> Any:
    return b.gep(b.bitcast(context.make_array(kind)(context, b, array).data, I32.as_pointer()), [index])


@intrinsic
def store_columns(_context: Any, array: Any, index: Any, first: Any, mask: Any) -> Any:
    """The columns first, first + 1, ... in the lanes of the mask, in order, as 32-bit words `index` and on of an array.

    Eight words are written; those that follow the columns hold nothing in particular.
    """

    def codegen(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> Any:
        eight = vector(I32)
        columns = b.add(splat(b, b.trunc(args[2], I32)), ir.Constant(eight, list(range(WIDTH))))
        name = "llvm.experimental.vector.compress.v8i32"
        chosen = _masked(b, name, eight, columns, args[3], ir.Constant(eight, ir.Undefined))
        place = _as_words(context, b, signature.args[0], args[0], args[1])
        b.store(chosen, b.bitcast(place, eight.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(array, types.int64, types.int64, MASK), codegen


@intrinsic
def column_at(_context: Any, array: Any, index: Any) -> Any:
    """One of the columns that `store_columns` has left."""

    def codegen(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return b.zext(b.load(_as_words(context, b, signature.args[0], args[0], args[1]), align=4), I64)

    return types.int64(array, types.int64), codegen


@intrinsic
def load_some(_context: Any, array: Any, first: Any, mask: Any) -> Any:
    """`load_at` in the lanes of the mask, and zero in the others; nothing is read there."""

    def codegen(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> Any:
        data = b.gep(context.make_array(signature.args[0])(context, b, args[0]).data, [args[1]])
        kind = vector(data.type.pointee)
        name = "llvm.masked.load.v8f64.p0" if data.type.pointee == DOUBLE else "llvm.masked.load.v8f32.p0"
        place, align = b.bitcast(data, kind.as_pointer()), ir.Constant(I32, 4)
        values = _masked(b, name, kind, place, align, args[2], ir.Constant(kind, [0.0] * WIDTH))
        return values if data.type.pointee == DOUBLE else b.fpext(values, FLOATS.representation)

    return FLOATS(array, types.int64, MASK), codegen


@intrinsic
def store_some(_context: Any, array: Any, first: Any, mask: Any, values: Any) -> Any:
    """`store_at` in the lanes of the mask."""

    def codegen(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> Any:
        data = b.gep(context.make_array(signature.args[0])(context, b, args[0]).data, [args[1]])
        double = data.type.pointee == DOUBLE
        values = args[3] if double else b.fptrunc(args[3], vector(data.type.pointee))
        name = "llvm.masked.store.v8f64.p0" if double else "llvm.masked.store.v8f32.p0"
        place = b.bitcast(data, values.type.as_pointer())
        _masked(b, name, ir.VoidType(), values, place, ir.Constant(I32, 4), args[2])
        return context.get_dummy_value()

    return types.void(array, types.int64, MASK, FLOATS), codegen


@intrinsic
def load_every(_context: Any, array: Any, first: Any, stride: Any) -> Any:
    """Elements first, first + stride, ... of a float32 or float64 array, one per lane."""

    def codegen(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> Any:
        data, at = context.make_array(signature.args[0])(context, b, args[0]).data, args[1]
        element = data.type.pointee
        out = ir.Constant(vector(element), ir.Undefined)
        for index in range(WIDTH):
            out = b.insert_element(out, b.load(b.gep(data, [at])), ir.Constant(I32, index))
            at = b.add(at, args[2])
        return out if element == DOUBLE else b.fpext(out, FLOATS.representation)

    return FLOATS(array, types.int64, types.int64), codegen


@intrinsic
def store_every(_context: Any, array: Any, first: Any, stride: Any, values: Any) -> Any:
    """Writes what `load_every` reads, rounded to the array's dtype."""

    def codegen(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> Any:
        data, at = context.make_array(signature.args[0])(context, b, args[0]).data, args[1]
        element = data.type.pointee
        values = args[3] if element == DOUBLE else b.fptrunc(args[3], vector(element))
        for index in range(WIDTH):
            b.store(b.extract_element(values, ir.Constant(I32, index)), b.gep(data, [at]))
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
            at = ir.Constant(I32, lane)
            b.store(b.extract_element(args[2], at), b.gep(data, [b.extract_element(where_to, at)]))
        return context.get_dummy_value()

    return types.void(array, FLOATS, FLOATS), codegen
