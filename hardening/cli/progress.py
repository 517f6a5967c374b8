"""What to tell a user who would otherwise wait in silence."""

from __future__ import annotations

import sys

from hardening.kernels import cache_directory


def say_if_kernels_are_compiled() -> None:
    """A line on the standard error if this machine has no compiled kernels yet."""
    directory = cache_directory()
    if directory is None:
        print(
            "compiling kernels, which takes about ten seconds and is not kept: no private directory can be written; "
            "HARDENING_CACHE may name one",
            file=sys.stderr,
            flush=True,
        )
    elif not any(directory.rglob("*.nbi")):
        print(
            f"compiling kernels, about ten seconds, this once: they are kept in {str(directory)!r}",
            file=sys.stderr,
            flush=True,
        )
