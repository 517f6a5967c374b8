"""AES-128 (FIPS 197) for machines without instructions for it: a circuit of logic gates on thirty-two blocks at once.

Eight vectors of blocks are turned into eight planes, each with one bit of every byte; a substitution is then a few
gates a plane, and nothing is looked up in memory (Kasper & Schwabe 2009, "Faster and timing-attack resistant AES-GCM").
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba.core import cgutils

from hardening.kernels.lanes import I8, I32, I64, call
from hardening.kernels.schedule import ROUNDS

#: The S-box as a circuit, on bits from the highest, x0 and s0, to the lowest (Boyar & Peralta 2012, "A depth-16 circuit
#: for the AES S-box", section 4): ``^`` is exclusive or, ``&`` and, ``=`` the complement of exclusive or.
_CIRCUIT = """
y14 x3^x5  y13 x0^x6  y9 x0^x3  y8 x0^x5  t0 x1^x2  y1 t0^x7  y4 y1^x3  y12 y13^y14  y2 y1^x0  y5 y1^x6  y3 y5^y8
t1 x4^y12  y15 t1^x5  y20 t1^x1  y6 y15^x7  y10 y15^t0  y11 y20^y9  y7 x7^y11  y17 y10^y11  y19 y10^y8  y16 t0^y11
y21 y13^y16  y18 x0^y16
t2 y12&y15  t3 y3&y6  t4 t3^t2  t5 y4&x7  t6 t5^t2  t7 y13&y16  t8 y5&y1  t9 t8^t7  t10 y2&y7  t11 t10^t7  t12 y9&y11
t13 y14&y17  t14 t13^t12  t15 y8&y10  t16 t15^t12  t17 t4^t14  t18 t6^t16  t19 t9^t14  t20 t11^t16  t21 t17^y20
t22 t18^y19  t23 t19^y21  t24 t20^y18  t25 t21^t22  t26 t21&t23  t27 t24^t26  t28 t25&t27  t29 t28^t22  t30 t23^t24
t31 t22^t26  t32 t31&t30  t33 t32^t24  t34 t23^t33  t35 t27^t33  t36 t24&t35  t37 t36^t34  t38 t27^t36  t39 t29&t38
t40 t25^t39  t41 t40^t37  t42 t29^t33  t43 t29^t40  t44 t33^t37  t45 t42^t41
z0 t44&y15  z1 t37&y6  z2 t33&x7  z3 t43&y16  z4 t40&y1  z5 t29&y7  z6 t42&y11  z7 t45&y17  z8 t41&y10  z9 t44&y12
z10 t37&y3  z11 t33&y4  z12 t43&y13  z13 t40&y5  z14 t29&y2  z15 t42&y9  z16 t45&y14  z17 t41&y8
t46 z15^z16  t47 z10^z11  t48 z5^z13  t49 z9^z10  t50 z2^z12  t51 z2^z5  t52 z7^z8  t53 z0^z3  t54 z6^z7  t55 z16^z17
t56 z12^t48  t57 t50^t53  t58 z4^t46  t59 z3^t54  t60 t46^t57  t61 z14^t57  t62 t52^t58  t63 t49^t58  t64 z4^t59
t65 t61^t62  t66 z1^t63  s0 t59^t63  s6 t56=t62  s7 t48=t60  t67 t64^t65  s3 t53^t66  s4 t51^t66  s5 t47^t65
s1 t64=s3  s2 t55=t67
"""


def _substitute(b: ir.IRBuilder, planes: Sequence[Any]) -> list[Any]:
    bits = {f"x{7 - p}": plane for p, plane in enumerate(planes)}
    gates = _CIRCUIT.split()
    for name, gate in zip(gates[::2], gates[1::2], strict=True):
        first, sign, second = re.split("([&^=])", gate)
        value = (b.and_ if sign == "&" else b.xor)(bits[first], bits[second])
        bits[name] = b.not_(value) if sign == "=" else value
    return [bits[f"s{7 - p}"] for p in range(8)]


def _shift_rows(b: ir.IRBuilder, plane: Any) -> Any:
    size = 8 * plane.type.count
    octets = b.bitcast(plane, ir.VectorType(I8, size))
    moved = ir.Constant(ir.VectorType(I32, size), [i // 16 * 16 + (i + 4 * (i % 4)) % 16 for i in range(size)])
    return b.bitcast(b.shuffle_vector(octets, octets, moved), plane.type)


def _mix_columns(b: ir.IRBuilder, planes: Sequence[Any]) -> list[Any]:
    def rows_down(x: Any, count: int) -> Any:
        columns = b.bitcast(x, ir.VectorType(I32, 2 * x.type.count))
        distance = ir.Constant(columns.type, [32 - 8 * count] * columns.type.count)
        return b.bitcast(call(f"llvm.fshl.v{columns.type.count}i32", b, columns, columns, distance), x.type)

    below = [rows_down(x, 1) for x in planes]
    both = [b.xor(x, y) for x, y in zip(planes, below, strict=True)]
    mixed = [b.xor(x, rows_down(y, 2)) for x, y in zip(below, both, strict=True)]
    for p in range(8):  # twice a byte: its highest bit goes to where the field's polynomial has ones
        mixed[p] = b.xor(mixed[p], both[p - 1])
        mixed[p] = b.xor(mixed[p], both[7]) if p in (1, 3, 4) else mixed[p]
    return mixed


def _turned(b: ir.IRBuilder, x: Sequence[Any]) -> list[Any]:
    """Bit s of each byte of vector p becomes what bit p of that byte of vector s was."""
    x, lanes = list(x), x[0].type.count
    for d, pattern in ((1, 0x55), (2, 0x33), (4, 0x0F)):
        mask, distance = (ir.Constant(x[0].type, [n] * lanes) for n in (0x0101010101010101 * pattern, d))
        for k in range(8):
            if not k & d:
                moved = b.and_(b.xor(b.lshr(x[k], distance), x[k + d]), mask)
                x[k], x[k + d] = b.xor(x[k], b.shl(moved, distance)), b.xor(x[k + d], moved)
    return x


def _with_key(b: ir.IRBuilder, planes: Sequence[Any], key: Any) -> list[Any]:
    octets = ir.VectorType(I8, 8 * key.type.count)
    bits = [b.and_(b.bitcast(key, octets), ir.Constant(octets, [1 << p] * octets.count)) for p in range(8)]
    whole = [b.sext(b.icmp_unsigned("!=", bit, ir.Constant(octets, [0] * octets.count)), octets) for bit in bits]
    return [b.xor(plane, b.bitcast(k, key.type)) for plane, k in zip(planes, whole, strict=True)]


def sliced(b: ir.IRBuilder, keys: Any, states: Sequence[Any]) -> list[Any]:
    """Encrypt by a circuit on planes of bits: each vector holds one bit of every byte of all states."""
    kind = states[0].type
    first = _with_key(b, _turned(b, states), round_key(b, keys, ir.Constant(I64, 0), kind))
    places = [cgutils.alloca_once_value(b, plane) for plane in first]
    with cgutils.for_range(b, ir.Constant(I64, ROUNDS - 1)) as loop:
        x = [_shift_rows(b, plane) for plane in _substitute(b, [b.load(place) for place in places])]
        key = round_key(b, keys, b.add(loop.index, ir.Constant(I64, 1)), kind)
        for value, place in zip(_with_key(b, _mix_columns(b, x), key), places, strict=True):
            b.store(value, place)
    x = [_shift_rows(b, plane) for plane in _substitute(b, [b.load(place) for place in places])]
    return _turned(b, _with_key(b, x, round_key(b, keys, ir.Constant(I64, ROUNDS), kind)))


def round_key(b: ir.IRBuilder, keys: Any, r: Any, kind: ir.Type) -> Any:
    """Round key `r`, for each block of a vector of `kind`."""
    pairs = b.bitcast(keys, ir.VectorType(I64, 2).as_pointer())
    pair = b.load(b.gep(pairs, [r]), align=8)
    return b.shuffle_vector(pair, pair, ir.Constant(ir.VectorType(I32, kind.count), [0, 1] * (kind.count // 2)))
