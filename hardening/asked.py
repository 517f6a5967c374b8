"""The inputs of one run: told from others by a hash, and looked at as rows."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardening.errors import InputError
from hardening.noise import Key
from hardening.program import Question


def question_of(
    inputs: Mapping[str, NDArray[Any]] | None, rows: int, output: str, key: Key, model_digest: str
) -> Question:
    """What the kernel hashes to tell the question about an output from others.

    Raises InputError if there is nothing to tell its rows apart by.
    """
    if not inputs:
        raise InputError(
            f"output {output!r} has noise keyed on the input: pass inputs= (a dict of arrays), "
            'or use key = "cell" or key = "fresh" in the policy'
        )
    arrays = {n: _canonical(n, np.asarray(a)) for n, a in inputs.items()}
    if rows > 1 and not any(a.ndim and len(a) == rows for a in arrays.values()):
        raise InputError(
            f"output {output!r} has {rows} rows and no input has: noise keyed on the input would be one for all"
        )
    return Question(key, model_digest, arrays, rows)


def searched(inputs: Mapping[str, NDArray[Any]] | None, rows: int, name: str) -> NDArray[Any]:
    """The input in which near duplicates are looked for, ``(rows, ...)``: a view, where it is an array.

    Raises InputError if it is missing, holds no numbers, or is not made of so many rows.
    """
    wanted = f"near duplicates are looked for in the input {name!r} (detect.near)"
    if inputs is None or name not in inputs:
        raise InputError(f"{wanted}: pass inputs= with it, an array of {rows} rows")
    array = np.asarray(inputs[name])
    if array.dtype.kind not in "fiub":
        raise InputError(f"{wanted}: it must hold numbers, not {array.dtype}")
    if rows == 1 and array.shape[:1] != (1,):  # all of it belongs to the one row that was asked
        array = array[None]
    if array.shape[:1] != (rows,):
        raise InputError(f"{wanted}: it has shape {array.shape}, and {rows} rows were asked")
    return array


def _canonical(name: str, array: NDArray[Any]) -> NDArray[Any]:
    """Little-endian and contiguous: complex numbers as pairs, booleans by their truth, texts digested (BLAKE2b).

    Raises InputError for what has bytes that mean nothing, or that are not its own.
    """
    if array.dtype.kind == "b":  # any byte but zero is true
        array = array.view(np.uint8) != 0
    if array.dtype.kind in "OSU":
        texts = array.ravel().tolist()
        if not all(isinstance(t, str | bytes) for t in texts):
            raise InputError(f"input {name!r} holds neither numbers nor text: noise cannot be keyed on it")
        octets = (t if isinstance(t, bytes) else t.encode() for t in texts)
        out = np.frombuffer(b"".join(hashlib.blake2b(t, digest_size=32).digest() for t in octets), np.uint8)
        return out.reshape(*array.shape, 32)
    if array.dtype.kind not in "biufcmM" or array.dtype.char in "gG":
        raise InputError(
            f"input {name!r} holds {array.dtype} values: noise cannot be keyed on them, pass numbers of up to 64 bits "
            "for each part, or text"
        )
    if array.dtype.kind == "c":
        array = array.reshape(*array.shape, 1).view(array.real.dtype)
    little: NDArray[Any] = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False))
    return little.reshape(array.shape)
