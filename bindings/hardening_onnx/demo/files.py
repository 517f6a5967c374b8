"""Real files of this machine, as magika reads them, and what an attacker computes from them.

Only files of the interpreter, its installed packages and the system's shared folders are read; nobody's documents.
"""

from __future__ import annotations

import os
import sysconfig
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

#: magika's input: the first and the last `WINDOW` bytes of a file without surrounding white space, padded with `PAD`.
WINDOW = 1024
PAD = 256
_BLOCK = 4096
_SMALLEST = 64
_TRIGRAMS = 2048


class Corpus(NamedTuple):
    """Files in two sets from disjoint folders: `pool` for whoever asks questions, `held_out` for judging.

    Attributes:
        pool, held_out: paths.
        pool_inputs, held_out_inputs: int32 ``(files, 2 * WINDOW)``, as the model takes them.
    """

    pool: tuple[Path, ...]
    held_out: tuple[Path, ...]
    pool_inputs: NDArray[np.int32]
    held_out_inputs: NDArray[np.int32]


def roots() -> list[Path]:
    """The folders that are read, without those inside another."""
    paths = sysconfig.get_paths()
    named = [paths["stdlib"], paths["purelib"], paths["platlib"], "/usr/share", "/usr/lib", "/usr/include"]
    real = sorted({Path(p).resolve() for p in named if Path(p).is_dir()})
    return [p for p in real if not any(q in p.parents for q in real)]


def _walk(root: Path) -> Iterator[str]:
    for folder, folders, names in os.walk(root):
        folders.sort()
        yield from (os.path.join(folder, name) for name in sorted(names))


def encode(content_start: bytes, content_end: bytes) -> NDArray[np.int32]:
    """int32 ``(2 * WINDOW,)`` from the first and last bytes of a file, the way magika's own package does it."""
    start, end = content_start.lstrip()[:WINDOW], content_end.rstrip()[-WINDOW:]
    row = np.full(2 * WINDOW, PAD, np.int32)
    row[: len(start)] = np.frombuffer(start, np.uint8)
    row[2 * WINDOW - len(end) :] = np.frombuffer(end, np.uint8)
    return row


def read(path: str | Path) -> NDArray[np.int32] | None:
    """The model's input for one file, or None if the file is too small, not regular or not readable."""
    try:
        if os.path.islink(path) or not os.path.isfile(path):
            return None
        with open(path, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if size < _SMALLEST:
                return None
            start = stream.read(_BLOCK)
            stream.seek(max(0, size - _BLOCK))
            row = encode(start, stream.read(_BLOCK))
    except OSError:
        return None
    return row if int((row != PAD).sum()) >= _SMALLEST else None


def collect(seed: int, pool: int, held_out: int) -> Corpus:
    """Choose `pool` and `held_out` different files, no more than a twelfth of each with the same extension.

    The same machine and seed give the same files. Fewer come back from a machine that has fewer.
    """
    everything = [path for root in roots() for path in _walk(root)]
    order = np.random.default_rng(seed).permutation(len(everything))
    wanted = (pool, held_out)
    chosen: tuple[list[str], list[str]] = ([], [])
    rows: tuple[list[NDArray[np.int32]], list[NDArray[np.int32]]] = ([], [])
    kinds: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
    seen: set[bytes] = set()
    for path in map(everything.__getitem__, order):
        side = int(zlib.crc32(f"{seed}:{os.path.dirname(path)}".encode()) % 4 == 0)
        kind = os.path.splitext(path)[1].lower()[:8]
        if len(chosen[side]) >= wanted[side] or kinds[side][kind] >= max(1, wanted[side] // 12):
            continue
        row = read(path)
        if row is None or row.tobytes() in seen:
            continue
        seen.add(row.tobytes())
        kinds[side][kind] += 1
        chosen[side].append(path)
        rows[side].append(row)
        if all(len(c) >= w for c, w in zip(chosen, wanted, strict=True)):
            break
    inputs = [np.array(r, np.int32).reshape(-1, 2 * WINDOW) for r in rows]
    return Corpus(tuple(map(Path, chosen[0])), tuple(map(Path, chosen[1])), inputs[0], inputs[1])


def features(inputs: NDArray[np.int32]) -> NDArray[np.float32]:
    """What an attacker without the model computes from its input: byte histograms, hashed trigrams, first bytes.

    Returns:
        float32 ``(files, 4618)``; counts are square-rooted.
    """
    symbols = PAD + 1
    out = np.zeros((len(inputs), 2 * symbols + _TRIGRAMS + 8 * symbols), np.float32)
    trigrams = out[:, 2 * symbols : 2 * symbols + _TRIGRAMS]
    for i, row in enumerate(inputs.astype(np.int64)):
        for half, start in enumerate((0, WINDOW)):
            part = row[start : start + WINDOW]
            out[i, half * symbols : (half + 1) * symbols] = np.bincount(part, minlength=symbols)
            hashed = (part[:-2] * 65599 + part[1:-1] * 257 + part[2:]) * 2654435761 % 2**32 >> 21
            trigrams[i] += np.bincount(hashed, minlength=_TRIGRAMS)
        out[i, 2 * symbols + _TRIGRAMS + np.arange(8) * symbols + row[:8]] = 64
    return np.asarray(np.sqrt(out))


def synthetic(kind: str, inputs: NDArray[np.int32], count: int, rng: np.random.Generator) -> NDArray[np.int32]:
    """Questions that no file asks, int32 ``(count, 2 * WINDOW)``. `kind` is one of `SYNTHETIC`.

    Random bytes; files spliced from chunks of 128 bytes of others; mutated files, half of whose bytes were replaced.
    """
    return np.stack([_SYNTHETIC[kind](inputs, rng) for _ in range(count)])


def _random_bytes(_: NDArray[np.int32], rng: np.random.Generator) -> NDArray[np.int32]:
    content = rng.integers(0, 256, 2 * WINDOW, dtype=np.uint8).tobytes()
    return encode(content[:WINDOW], content[WINDOW:])


def _spliced(inputs: NDArray[np.int32], rng: np.random.Generator) -> NDArray[np.int32]:
    chunk = 128
    starts = rng.integers(0, 2 * WINDOW // chunk, 2 * WINDOW // chunk) * chunk
    sources = rng.integers(0, len(inputs), len(starts))
    return np.concatenate([inputs[i, s : s + chunk] for i, s in zip(sources, starts, strict=True)])


def _mutated(inputs: NDArray[np.int32], rng: np.random.Generator) -> NDArray[np.int32]:
    row: NDArray[Any] = inputs[rng.integers(len(inputs))].copy()
    hit = (rng.random(len(row)) < 0.5) & (row != PAD)
    row[hit] = rng.integers(0, 256, int(hit.sum()))
    return row


SPLICED = "spliced chunks"
_SYNTHETIC = {"random bytes": _random_bytes, SPLICED: _spliced, "mutated files": _mutated}
SYNTHETIC = tuple(_SYNTHETIC)
