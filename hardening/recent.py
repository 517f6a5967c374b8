"""A thread's memory for what it made for questions of a shape that it was asked about before."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Mapping
from typing import Any, Generic, TypeVar

import numpy as np

T = TypeVar("T")
#: Shapes that a thread keeps something for.
MOST = 16


class Recent(Generic[T]):
    """Values by key, `MOST` of them for each thread, the oldest forgotten first.

    Callers choose shapes, so nothing is made for a key the first time it is seen.
    """

    def __init__(self) -> None:
        self._local = threading.local()

    def find(self, key: Hashable) -> T | None:
        """This thread's value for `key`, if there is one."""
        try:
            found: T | None = self._local.values.get(key)
        except AttributeError:
            return None
        return found

    def again(self, key: Hashable) -> bool:
        """Note that `key` was seen; whether it had been, lately."""
        local = self._local
        if not hasattr(local, "seen"):
            local.values, local.seen = {}, {}
        if key in local.seen:
            return True
        while len(local.seen) >= MOST:
            del local.seen[next(iter(local.seen))]
        local.seen[key] = None
        return False

    def keep(self, key: Hashable, value: T) -> None:
        """Keep `value` for `key`, which was seen `again`."""
        values = self._local.__dict__.setdefault("values", {})
        while len(values) >= MOST:
            del values[next(iter(values))]
        values[key] = value

    def forget(self) -> None:
        """Drop all that this thread keeps."""
        self._local.__dict__.clear()


#: Most bytes of the arrays of one answer that is kept.
_MOST_BYTES = 1 << 22


def layout_of(outputs: Mapping[str, Any], inputs: Mapping[str, Any] | None) -> tuple[Any, ...] | None:
    """What has to be the same for an answer to be used again; None for what is better made anew."""
    parts: list[Any] = [len(outputs)]
    size = 0
    for arrays in (outputs, inputs or {}):
        for name, array in arrays.items():
            if type(array) is not np.ndarray or array.dtype.kind not in "fiu" or not array.size:
                return None
            size += array.nbytes
            parts += name, array.shape, array.dtype
    return tuple(parts) if size <= _MOST_BYTES else None
