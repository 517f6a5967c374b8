"""Compiled kernels. Importing this compiles nothing; the first use of an entry point does.

Machine code is kept in a private directory (0700) under the user's cache, keyed by the kernels' own sources and by
numba's version; where nothing is writable, kernels are compiled afresh in every process.
"""

from __future__ import annotations

import functools
import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any


@functools.cache
def cache_directory() -> Path | None:
    """Where compiled kernels are kept, or None if no private directory can be had."""
    import numba

    digest = hashlib.sha256(numba.__version__.encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
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


@functools.cache
def entry(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` compiled on first call for the types it is given, with its machine code kept for the next process."""
    import numba

    directory = cache_directory()
    if directory is None:
        return numba.njit(function)
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(directory)
    try:
        return numba.njit(cache=True)(function)
    finally:
        numba.config.CACHE_DIR = before
