"""What noise is drawn from: keystreams, and the integers of a table drawn from them.

A cipher turns a key and a row's nonce of 96 bits into the row's stream of 64-bit words, counted in units of eight. Its
module has two functions, which write `vectors` times eight words of it (at most `CHUNK`), and maybe more, to `out`:

    along(key, nonces, unit, vectors, out)    of one row, in order
    across(key, nonces, unit, vectors, out)   of eight rows: word 8 * unit + i of row l becomes element 8 * i + l

The stream of a row is the same in both. `nonces` is uint32 ``(4 * WIDTH,)``: the first words of eight rows' nonces,
their second words, their third, and the unit at which each row begins, to which `unit` is added; `along` takes the
first row. Units are counted modulo 2**32 for ChaCha20 and 2**30 for AES.
"""

from __future__ import annotations

from typing import Any

from hardening.kernels.lanes import WIDTH, device
from hardening.kernels.memory import gather_by_top, load_longs
from hardening.kernels.words import below, less, low_bits, shift_right, where_longs

#: 64-bit words in a unit.
UNIT = 8
#: Vectors of eight words that are made at a time, at most.
CHUNK = 4 * WIDTH


@device
def draw(stream: Any, i: int, table: Any, bits: int, offset: int) -> Any:
    """Eight integers by the alias method from eight 64-bit words, as floats.

    Constant work: nothing branches on what is drawn. `table` is uint64 ``(2**bits,)``, see `noise.packed`.
    """
    raw = load_longs(stream, i)
    slot = shift_right(raw, 64 - bits)
    entry = gather_by_top(table, stream, i, 64 - bits)
    keep = below(low_bits(raw, 64 - bits), shift_right(entry, bits))
    drawn = where_longs(keep, slot, low_bits(entry, bits))
    return less(drawn, offset)
