"""Compiled kernels. Importing this compiles nothing; the first use of an entry point does.

Machine code is kept in a private directory (0700) under the user's cache, keyed by the kernels' own sources and by
numba's version; where nothing is writable, kernels are compiled afresh in every process.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import logging
import os
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Bytes that memory comes in.
LINE = 64
_log = logging.getLogger("hardening.kernels")
#: numba takes the directory from a variable of the whole process, which has to be as it was afterwards.
_compiling = threading.Lock()
#: Machine code that addresses point at.
_alive: list[Any] = []


@functools.cache
def cache_directory() -> Path | None:
    """Where compiled kernels are kept, or None if no private directory can be had."""
    import numba

    digest = hashlib.sha256(numba.__version__.encode())
    for source in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(source.read_bytes())
    base = os.environ.get("HARDENING_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    path = Path(base) / "hardening" / digest.hexdigest()[:16]
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.stat()
        private = found.st_uid == os.geteuid() and not stat.S_IMODE(found.st_mode) & 0o077
    except (OSError, RuntimeError):
        return None
    return path if private and os.access(path, os.W_OK) else None


def _compile(function: Callable[..., Any], decorate: Callable[[bool], Any]) -> Any:
    """What numba makes of `function`; `decorate` is given whether machine code is kept on disk."""
    import numba

    directory, start = cache_directory(), time.perf_counter()
    with _compiling:
        before = numba.config.CACHE_DIR
        if directory is not None:
            numba.config.CACHE_DIR = str(directory)
        try:
            compiled = decorate(directory is not None)(function)
        finally:
            numba.config.CACHE_DIR = before
    kept = compiled.cache_hits if hasattr(compiled, "cache_hits") else sum(compiled.stats.cache_hits.values())
    took = time.perf_counter() - start
    _log.info("%s %s in %.1f s", "loaded" if kept else "compiled", function.__name__, took)
    return compiled


def lines(octets: int) -> NDArray[np.uint8]:
    """Zeroed memory, uint8 ``(octets,)``, that begins where a line of the cache does: vectors then lie in one each."""
    memory = np.empty(octets + LINE, np.uint8)
    memory.fill(0)  # touches every page now, so that no query pays for it
    start = -int(memory.ctypes.data) % LINE
    return memory[start : start + octets]


@functools.cache
def entry(function: Callable[..., Any], *arguments: str, nogil: bool = False) -> Callable[..., Any]:
    """`function` compiled for `arguments` (numba types, such as ``int64[::1]``), its machine code kept on disk.

    With `nogil` it runs without the interpreter's lock. What is returned skips numba's look-up of types, which costs as
    much as hardening a row; it raises TypeError for arguments of other types.
    """
    import numba

    signature = f"({', '.join(arguments)},)"
    compiled = _compile(function, lambda kept: numba.njit(signature, cache=kept, nogil=nogil))
    (overload,) = compiled.overloads.values()
    return getattr(overload, "entry_point", compiled)


@functools.cache
def address(name: str) -> int:
    """Where the compiled instruction is, given as ``module.function`` in `hardening.kernels.instructions`."""
    module, _, function = name.partition(".")
    found = importlib.import_module(f"hardening.kernels.instructions.{module}")
    return _address(getattr(found, function), "void(int64)")


@functools.cache
def harden_address() -> int:
    """Where `program.harden` is; what calls it has it by address, so that it is compiled once."""
    from hardening.kernels.program import harden

    return _address(harden, "int64(int64)")


def _address(function: Callable[..., Any], signature: str) -> int:
    import numba

    compiled = _compile(function, lambda kept: numba.cfunc(signature, cache=kept))
    _alive.append(compiled)
    return int(compiled.address)
