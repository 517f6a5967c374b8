"""Buffers of a thread that the runtime reads questions from and writes answers to, by IO binding.

ONNX Runtime's own `run` spends more on checking names and making arrays than hardening costs. A question of a shape
that a thread has asked before is copied into a buffer bound to the runtime; the answer is hardened where the runtime
put it, in memory that nobody else sees, and a copy of the hardened answer leaves.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnxruntime
from numpy import ndarray

from hardening.guard import Guard
from hardening.recent import Recent
from hardening.types import Decision
from hardening_onnx.feeds import DTYPES, Feeds

#: Most bytes of the buffers for one shape of question.
MOST_BYTES = 1 << 22
#: Booleans are left out: the runtime takes any byte but zero for true, and so must what the noise is keyed on.
_DTYPES = {name: dtype for name, dtype in DTYPES.items() if dtype.kind not in "bO"}


def about(names: tuple[str, ...], feed: Mapping[str, Any]) -> str:
    """What rows cost is the same for all questions of one such kind: names and shapes, the number of rows aside."""
    return repr((names, [(name, value.shape[1:]) for name, value in feed.items() if isinstance(value, np.ndarray)]))


class Bound:
    """Buffers for one shape of question.

    Attributes:
        rows: input rows.
        about: what questions have in common whose rows cost the same.
        names: outputs wanted, in order.
        inputs: name, buffer, shape and dtype of each input.
        free: False while a question is being answered. Whoever comes in between, from a signal or a finalizer, must
            not use the buffers; nor may anyone after an answer that was broken off.
    """

    def __init__(
        self,
        inner: onnxruntime.InferenceSession,
        guard: Guard,
        feeds: Feeds,
        inputs: dict[str, np.ndarray[Any, Any]],
        outputs: dict[str, np.ndarray[Any, Any]],
        names: tuple[str, ...],
    ) -> None:
        question, self.rows = feeds.question(inputs)
        self.about = about(names, inputs)
        self._answer = guard.bind(dict(outputs), question, self.rows)
        self._finish, self._forgo = guard.finish, guard.forgo
        io = inner.io_binding()
        for name, array in inputs.items():
            io.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        for name, array in outputs.items():
            io.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        # The session's own wrapper does nothing but pass these on.
        direct = getattr(getattr(inner, "_sess", None), "run_with_iobinding", None)
        bare = getattr(io, "_iobinding", None)
        self._run: Callable[[Any, Any], None] = inner.run_with_iobinding if bare is None or direct is None else direct
        self._io = io if bare is None or direct is None else bare
        self.names = names
        self.inputs = tuple((name, array, array.shape, array.dtype) for name, array in inputs.items())
        self._results = tuple(outputs[name] for name in names)
        self._only = self._results[0] if len(names) == 1 else None
        self.free = True

    def answer(self, decision: Decision, feed: Mapping[str, Any], run_options: Any) -> list[Any] | None:
        """Run, harden, and copy out; None if the runtime would not run, for whatever reason.

        Raises what `Guard.finish` raises; after that the buffers are of no more use.
        """
        self.free = False
        try:
            for name, buffer, _, _ in self.inputs:
                buffer[...] = feed[name]
            try:
                self._run(self._io, run_options)
            except Exception:
                self.free = True
                return None
            except BaseException:
                self._forgo(decision)
                raise
            self._finish(decision, self._answer)
            answer = [self._only.copy()] if self._only is not None else [result.copy() for result in self._results]
        except BaseException:
            self._answer.wipe()
            raise
        self.free = True
        return answer


class Buffers:
    """What each thread keeps, by the shapes it asks about."""

    def __init__(self, inner: onnxruntime.InferenceSession, guard: Guard, feeds: Feeds) -> None:
        self._inputs = {i.name: _DTYPES.get(i.type) for i in inner.get_inputs()}
        self._outputs = {o.name: _DTYPES.get(o.type) for o in inner.get_outputs()}
        self._able = inner.get_providers() == ["CPUExecutionProvider"] and all(
            d is not None for d in self._inputs.values()
        )
        self._inner, self._guard, self._feeds = inner, guard, feeds
        self._recent: Recent[Bound] = Recent()
        self._last = threading.local()

    def _key(self, names: tuple[str, ...], feed: Mapping[str, Any]) -> tuple[Any, ...] | None:
        if len(feed) != len(self._inputs):
            return None
        shapes = []
        for name, dtype in self._inputs.items():
            value = feed.get(name)
            if type(value) is not np.ndarray or value.dtype != dtype:
                return None
            shapes.append(value.shape)
        return names, *shapes

    def find(self, names: tuple[str, ...], feed: Mapping[str, Any]) -> Bound | None:
        """This thread's buffers for a question like this one, if there are any."""
        try:
            last: Bound = self._last.bound
        except AttributeError:
            return None
        if names == last.names and len(feed) == len(last.inputs):
            for name, _, shape, dtype in last.inputs:
                value = feed.get(name)
                if type(value) is not ndarray or value.shape != shape:
                    break
                if value.dtype is not dtype and value.dtype != dtype:
                    break
            else:
                return last if last.free else None
        found = self._recent.find(self._key(names, feed))
        if found is None or not found.free:
            return None
        self._last.bound = found
        return found

    def learn(
        self,
        names: tuple[str, ...],
        fetch: tuple[str, ...],
        feed: Mapping[str, Any],
        shapes: Mapping[str, tuple[int, ...]],
    ) -> None:
        """A question was answered without buffers; the second time this happens, buffers are made for it."""
        if not self._able or any(self._outputs[n] is None for n in fetch):
            return
        key = self._key(names, feed)
        if key is None or 0 in (d for shape in (*key[1:], *shapes.values()) for d in shape):
            return
        if not self._recent.again(key):
            return
        inputs = {name: np.empty(feed[name].shape, dtype) for name, dtype in self._inputs.items()}
        outputs = {name: np.empty(shapes[name], self._outputs[name]) for name in fetch}
        if sum(a.nbytes for a in (*inputs.values(), *outputs.values())) > MOST_BYTES:
            return
        self._last.bound = Bound(self._inner, self._guard, self._feeds, inputs, outputs, names)
        self._recent.keep(key, self._last.bound)

    def give_up(self) -> None:
        """Use buffers no more: the shape of this model's answers depends on more than the shape of the question."""
        self._able = False
        self.forget()

    def forget(self) -> None:
        """Drop this thread's buffers; an answer in them could not be hardened."""
        self._recent.forget()
        self._last.__dict__.clear()
