"""AES-128 (FIPS 197) in counter mode (NIST SP 800-38A): thirty-two blocks of keystream side by side.

A counter block is a 96-bit nonce and a 32-bit big-endian counter from 0 on, as in GCM (NIST SP 800-38D); four blocks
are a unit of `prf`, their bytes read as little-endian words. The blocks of a key never repeat, as those of true
randomness may: 2**40 of them can be told from it with an advantage of at most 2**-49 (the switching lemma, Bellare &
Rogaway 2006).

The same bits on every machine: by AES instructions where it has some, elsewhere by a circuit of logic gates. Nothing
branches on, or is looked up by, what is secret.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from hardening.kernels.bitslice import round_key, sliced
from hardening.kernels.lanes import I8, I32, I64, LONGS, WIDTH, WORDS, apart, call, splat, vector
from hardening.kernels.memory import store
from hardening.kernels.prf import UNIT
from hardening.kernels.schedule import ROUNDS

#: 64-bit words of key material: the round keys.
KEY = 2 * (ROUNDS + 1)
#: What is encrypted at a time: eight vectors of four blocks.
STATES = 8
_STATES = types.UniTuple(LONGS, STATES)


def best(context: Any) -> tuple[str, int]:
    """The form of the cipher that suits the machine compiled for, one of `_FORMS`, and the bits of its registers."""
    triple, _, features = context.codegen().magic_tuple()
    has = set(features.split(","))
    wide = 512 if "+avx512f" in has else 256 if "+avx2" in has else 128
    if "+aes" in has and triple.startswith("x86_64"):
        return "x86", wide if "+vaes" in has else 128
    if "+aes" in has and triple.startswith(("aarch64", "arm64")):
        return "arm", 128
    return "sliced", wide


def _round_keys(b: ir.IRBuilder, keys: Any, kind: ir.Type) -> list[Any]:
    return [round_key(b, keys, ir.Constant(I64, r), kind) for r in range(ROUNDS + 1)]


def _x86(b: ir.IRBuilder, keys: Any, states: Sequence[Any]) -> list[Any]:
    """Encrypt by x86's instructions: each does a round, and there is one for registers of each width."""
    bits = 64 * states[0].type.count
    name = "" if bits == 128 else f".{bits}"
    k = _round_keys(b, keys, states[0].type)
    x = [b.xor(state, k[0]) for state in states]
    for key in k[1:ROUNDS]:
        x = [call(f"llvm.x86.aesni.aesenc{name}", b, state, key) for state in x]
    return [call(f"llvm.x86.aesni.aesenclast{name}", b, state, k[ROUNDS]) for state in x]


def _arm(b: ir.IRBuilder, keys: Any, states: Sequence[Any]) -> list[Any]:
    """Encrypt by ARM's instructions: one adds the key, substitutes and shifts, the other mixes columns."""
    octets = ir.VectorType(I8, 16)
    x = [b.bitcast(state, octets) for state in states]
    k = [b.bitcast(key, octets) for key in _round_keys(b, keys, states[0].type)]
    for key in k[: ROUNDS - 1]:
        x = [call("llvm.aarch64.crypto.aesmc", b, call("llvm.aarch64.crypto.aese", b, state, key)) for state in x]
    x = [b.xor(call("llvm.aarch64.crypto.aese", b, state, k[ROUNDS - 1]), k[ROUNDS]) for state in x]
    return [b.bitcast(state, states[0].type) for state in x]


_FORMS = {"x86": _x86, "arm": _arm, "sliced": sliced}


def _in_parts(b: ir.IRBuilder, states: Sequence[Any], lanes: int, emit: Callable[[Sequence[Any]], list[Any]]) -> Any:
    """Do `emit` on eight vectors of `lanes` lanes at a time, which together are `states`."""
    if lanes == WIDTH:
        return emit(states)
    parts = []
    for first in range(0, WIDTH, lanes):
        chosen = ir.Constant(ir.VectorType(I32, lanes), list(range(first, first + lanes)))
        parts.append(emit([b.shuffle_vector(state, state, chosen) for state in states]))
    while len(parts) > 1:
        count = 2 * parts[0][0].type.count
        joined = ir.Constant(ir.VectorType(I32, count), list(range(count)))
        pairs = zip(parts[::2], parts[1::2], strict=True)
        parts = [[b.shuffle_vector(*halves, joined) for halves in zip(*pair, strict=True)] for pair in pairs]
    return parts[0]


def encrypt_with(choice: tuple[str, int] | None = None) -> Any:
    """The cipher on `STATES` vectors of four blocks, in a form and for registers of some bits; None: as `best` says."""

    @intrinsic
    def encrypt(_context: Any, keys: Any, states: Any) -> Any:
        def codegen(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> Any:
            data = context.make_array(signature.args[0])(context, b, args[0]).data
            form, bits = choice or best(context)
            vectors = cgutils.unpack_tuple(b, args[1], STATES)
            return context.make_tuple(b, _STATES, _in_parts(b, vectors, bits // 64, lambda x: _FORMS[form](b, data, x)))

        return _STATES(keys, _STATES), codegen

    return encrypt


encrypt = encrypt_with()


@intrinsic
def count_along(_context: Any, nonces: Any, unit: Any) -> Any:
    """Counter blocks of the first row from its 64-byte `unit` on, block by block."""

    def codegen(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> Any:
        data, kind = context.make_array(signature.args[0])(context, b, args[0]).data, WORDS.representation
        nonce, last = ir.Constant(kind, [0] * 2 * WIDTH), ir.Constant(kind, [0, 0, 0, -1] * 4)
        for i in range(2 * WIDTH):
            if i % 4 < 3:
                word = b.load(b.gep(data, [ir.Constant(I32, WIDTH * (i % 4))]))
                nonce = b.insert_element(nonce, word, ir.Constant(I32, i))
        begin = b.add(b.load(b.gep(data, [ir.Constant(I32, 3 * WIDTH)])), args[1])
        first = splat(b, b.shl(begin, ir.Constant(I32, 2)), 2 * WIDTH)
        states = []
        for s in range(STATES):
            counter = b.add(first, ir.Constant(kind, [4 * s + i // 4 for i in range(2 * WIDTH)]))
            counter = b.and_(call("llvm.bswap.v16i32", b, counter), last)
            states.append(b.bitcast(b.or_(nonce, counter), LONGS.representation))
        return context.make_tuple(b, _STATES, states)

    return _STATES(nonces, types.uint32), codegen


def _interleaved(b: ir.IRBuilder, x: Any, y: Any) -> tuple[Any, Any]:
    """x0, y0, x2, y2, ... and x1, y1, x3, y3, ...; done again it is undone."""
    even, odd = ([i + start + WIDTH * (i % 2) - i % 2 for i in range(WIDTH)] for start in (0, 1))
    low, high = (ir.Constant(ir.VectorType(I32, WIDTH), places) for places in (even, odd))
    return b.shuffle_vector(x, y, low), b.shuffle_vector(x, y, high)


@intrinsic
def count_across(_context: Any, nonces: Any, unit: Any) -> Any:
    """Counter blocks of one unit of each of eight rows: the first of rows 0, 2, 4, 6, of 1, 3, 5, 7, the second ..."""

    def codegen(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> Any:
        data, kind = context.make_array(signature.args[0])(context, b, args[0]).data, LONGS.representation
        eight = b.bitcast(data, vector(I32).as_pointer())
        n0, n1, n2, first = (b.load(b.gep(eight, [ir.Constant(I32, k)]), align=4) for k in range(4))
        half = splat(b, ir.Constant(I64, 32))
        head = b.or_(b.zext(n0, kind), b.shl(b.zext(n1, kind), half))
        begin = b.shl(b.add(first, splat(b, args[1])), splat(b, ir.Constant(I32, 2)))
        states: list[Any] = []
        for block in range(STATES // 2):
            counter = call("llvm.bswap.v8i32", b, b.add(begin, splat(b, ir.Constant(I32, block))))
            states += _interleaved(b, head, b.or_(b.zext(n2, kind), b.shl(b.zext(counter, kind), half)))
        return context.make_tuple(b, _STATES, states)

    return _STATES(nonces, types.uint32), codegen


@intrinsic
def words_across(_context: Any, states: Any) -> Any:
    """From `count_across`'s order: the eight rows' first words, their second words, ..."""

    def codegen(context: Any, b: ir.IRBuilder, _signature: Any, args: Any) -> Any:
        x = cgutils.unpack_tuple(b, args[0], STATES)
        words = [w for k in range(0, STATES, 2) for w in _interleaved(b, x[k], x[k + 1])]
        return context.make_tuple(b, _STATES, words)

    return _STATES(_STATES), codegen


@apart
def along(keys: Any, nonces: Any, unit: int, vectors: int, out: Any) -> None:
    """The first row's stream in order; see `prf`."""
    for done in range(0, vectors, STATES):
        x = encrypt(keys, count_along(nonces, np.uint32(unit + done)))
        for i in range(STATES):
            store(out, done + i, x[i])


@apart
def across(keys: Any, nonces: Any, unit: int, vectors: int, out: Any) -> None:
    """The streams of eight rows side by side; see `prf`."""
    for done in range(0, vectors, STATES):
        x = words_across(encrypt(keys, count_across(nonces, np.uint32(unit + done // UNIT))))
        for i in range(STATES):
            store(out, done + i, x[i])
