"""What a process that was just forked must not go on with."""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Forked(Protocol):
    def begin_again(self) -> None:
        """Drop what belongs to the parent, and touch none of it."""


_watched: weakref.WeakSet[Forked] = weakref.WeakSet()
_registered = False


def watch(each: Forked) -> None:
    """Have `begin_again` called in every child, before anything else runs there."""
    global _registered
    if not _registered:
        os.register_at_fork(after_in_child=_begin_again)
        _registered = True
    _watched.add(each)


def _begin_again() -> None:
    for each in list(_watched):
        each.begin_again()
