"""ChaCha20 (RFC 8439) keystream and alias draws, as device functions: linked into the kernels that use them."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

_I32 = ir.IntType(32)


@intrinsic
def add32(_ctx: Any, x: Any, y: Any) -> Any:
    """Sum modulo 2**32; numba would widen to 64 bits."""
    return types.uint32(types.uint32, types.uint32), lambda c, b, s, a: b.add(a[0], a[1])


@intrinsic
def xor_rotate32(_ctx: Any, x: Any, y: Any, n: Any) -> Any:
    """(x xor y) rotated left by n."""

    def emit(_context: Any, b: ir.IRBuilder, _signature: Any, args: Any) -> Any:
        rotate = b.module.declare_intrinsic("llvm.fshl", [_I32], ir.FunctionType(_I32, [_I32, _I32, _I32]))
        mixed = b.xor(args[0], args[1])
        return b.call(rotate, [mixed, mixed, args[2]])

    return types.uint32(types.uint32, types.uint32, types.uint32), emit


U = np.uint32
_C0, _C1, _C2, _C3 = U(0x61707865), U(0x3320646E), U(0x79622D32), U(0x6B206574)
_R16, _R12, _R8, _R7 = U(16), U(12), U(8), U(7)


@njit(inline="always")
def _quarter(a: Any, b: Any, c: Any, d: Any) -> Any:
    a = add32(a, b)
    d = xor_rotate32(d, a, _R16)
    c = add32(c, d)
    b = xor_rotate32(b, c, _R12)
    a = add32(a, b)
    d = xor_rotate32(d, a, _R8)
    c = add32(c, d)
    b = xor_rotate32(b, c, _R7)
    return a, b, c, d


@njit
def chacha_block(k: Any, counter: Any, n0: Any, n1: Any, n2: Any, out: Any) -> None:
    """One block: key uint32 ``(8,)`` in, sixteen uint32 words out."""
    x0, x1, x2, x3 = _C0, _C1, _C2, _C3
    x4, x5, x6, x7, x8, x9, x10, x11 = k[0], k[1], k[2], k[3], k[4], k[5], k[6], k[7]
    x12, x13, x14, x15 = counter, n0, n1, n2
    for _ in range(10):
        x0, x4, x8, x12 = _quarter(x0, x4, x8, x12)
        x1, x5, x9, x13 = _quarter(x1, x5, x9, x13)
        x2, x6, x10, x14 = _quarter(x2, x6, x10, x14)
        x3, x7, x11, x15 = _quarter(x3, x7, x11, x15)
        x0, x5, x10, x15 = _quarter(x0, x5, x10, x15)
        x1, x6, x11, x12 = _quarter(x1, x6, x11, x12)
        x2, x7, x8, x13 = _quarter(x2, x7, x8, x13)
        x3, x4, x9, x14 = _quarter(x3, x4, x9, x14)
    out[0], out[1], out[2], out[3] = add32(x0, _C0), add32(x1, _C1), add32(x2, _C2), add32(x3, _C3)
    out[4], out[5], out[6], out[7] = add32(x4, k[0]), add32(x5, k[1]), add32(x6, k[2]), add32(x7, k[3])
    out[8], out[9], out[10], out[11] = add32(x8, k[4]), add32(x9, k[5]), add32(x10, k[6]), add32(x11, k[7])
    out[12], out[13], out[14], out[15] = add32(x12, counter), add32(x13, n0), add32(x14, n1), add32(x15, n2)


@njit
def fill(k: Any, nonce: Any, counter: int, out: Any, words: int) -> None:
    """Keystream from block `counter` on: at least `words` uint64; `out` has room for whole blocks of eight."""
    narrow = out.view(np.uint32)
    n0, n1, n2 = nonce[0], nonce[1], nonce[2]
    for block in range((words + 7) // 8):
        chacha_block(k, U(counter + block), n0, n1, n2, narrow[16 * block : 16 * block + 16])


@njit
def draw(raw: Any, n: int, threshold: Any, alias: Any, bits: int, offset: int, out: Any) -> None:
    """n integers by the alias method, as float64; constant work, no branch on what is drawn."""
    down, up = np.uint64(64 - bits), np.uint64(bits)
    for j in range(n):
        r = raw[j]
        slot = np.int64(r >> down)
        keep = np.int64((r << up) < threshold[slot])
        other = np.int64(alias[slot])
        out[j] = float(other + keep * (slot - offset - other))
