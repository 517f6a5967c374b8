"""HardenedSession: a subclass of InferenceSession whose only open door is `run`.

Downstream libraries test ``isinstance`` and read private attributes, so this is a subclass and not a proxy. Every other
method that could return results is refused with an error that names `run`; so is any public method of a future ONNX
Runtime that is not in `HARMLESS`. The C session is not reachable as ``_sess``: ``IOBinding(session)`` and the base
class's own methods find a closed door there. In one process hostile Python cannot be stopped; what is closed here is
accidental bypass.
"""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import onnxruntime

from hardening.answer import wipe
from hardening.config import Policy
from hardening.errors import ConfigError, Denied, InputError, ModelError, ReleaseError
from hardening.guard import Guard
from hardening.types import Decision, Identity
from hardening_onnx.buffers import Buffers
from hardening_onnx.feeds import Feeds

#: Public methods of the base class that return no scores and run nothing.
HARMLESS = frozenset(
    {
        "disable_fallback",
        "enable_fallback",
        "get_input_epdevices",
        "get_input_memory_infos",
        "get_inputs",
        "get_modelmeta",
        "get_output_memory_infos",
        "get_outputs",
        "get_overridable_initializers",
        "get_provider_graph_assignment_info",
        "get_provider_options",
        "get_providers",
        "get_session_options",
    }
)
#: Private steps of the base class that would bind a raw C session to this object, or make one.
CONSTRUCTION = ("_bind_session", "_create_inference_session", "_from_initialized_c_session", "_reset_session")
CLIENT_ENTRY = "hardening.client"
#: What is passed on of a caller's run options.
OPTIONS = ("log_severity_level", "log_verbosity_level", "logid", "only_execute_path_to_fetches", "terminate")
ENTRIES = ("disable_synchronize_execution_providers", "gpu_graph_id", "memory.enable_memory_arena_shrinkage")


def _closed(name: str) -> Callable[..., NoReturn]:
    def closed(*_: object, **__: object) -> NoReturn:
        raise InputError(f"{name} is closed on a hardened session, its results would not be hardened: use run")

    closed.__name__ = name
    return closed


def _check_width(policy: Policy, name: str, widths: Mapping[str, int]) -> None:
    """Raise ConfigError if what the policy says of an output does not fit its rows; `widths` is by output."""
    width = widths[name]
    for other in policy.unreleased(name):
        if widths.get(other, width) != width:
            raise ConfigError(
                f"outputs.{name}", f"has {width} classes, its surrogate {other!r} has {widths[other]}: they must agree"
            )
    for tier in policy.tiers:
        policy.pipeline(name, tier).check_width(width)
    classes = policy.outputs[name].classes
    if classes is not None and len(classes) != width:
        raise ConfigError(f"outputs.{name}.classes", f"names {len(classes)} classes, the model has {width}")


class _ClosedDoor:
    """Stands where the runtime keeps its C session."""

    def __getattr__(self, name: str) -> NoReturn:
        raise InputError(f"the C session behind a hardened session is closed ({name}): use run")


class HardenedSession(onnxruntime.InferenceSession):  # type: ignore[misc]
    """An InferenceSession whose answers are hardened. Made by `wrap`.

    Attributes:
        guard: the `hardening.Guard` that admits queries and releases answers.
    """

    guard: Guard

    def __init__(self, inner: onnxruntime.InferenceSession, policy: Policy, digest: str) -> None:
        for key, value in vars(inner).items():
            if key != "_sess":
                setattr(self, key, value)
        self._sess = _ClosedDoor()
        self.__inner = inner
        self.guard = Guard(policy, digest)
        names = [o.name for o in inner.get_outputs()]
        for name in self.guard.released | self.guard.unreleased:
            if name not in names:
                raise ModelError(f"the policy names output {name!r}, the model has: {', '.join(names)}")
        widths = {o.name: o.shape[-1] for o in inner.get_outputs() if o.shape and isinstance(o.shape[-1], int)}
        for name in policy.outputs:
            if name in widths:
                _check_width(policy, name, widths)
        self.__outputs = [o for o in inner.get_outputs() if o.name in self.guard.released]
        self.__all = tuple(o.name for o in self.__outputs)
        self.__feeds = Feeds(inner)
        if policy.detect.near is not None:
            self.__feeds.check_rows(policy.detect.near.input, "detect.near.input")
        self.__buffers = Buffers(inner, self.guard, self.__feeds)

    def get_outputs(self) -> list[Any]:
        """The outputs that the policy releases, in the model's order."""
        return list(self.__outputs)

    def run(
        self,
        output_names: Sequence[str] | None,
        input_feed: Mapping[str, Any],
        run_options: Any = None,
        *,
        client: str | Identity | None = None,
    ) -> list[Any]:
        """As `InferenceSession.run`, hardened: same order, names, dtypes and shapes.

        Args:
            output_names: outputs to return, or None for all that the policy releases.
            input_feed: declared inputs only; an initializer that is also an input cannot be written here. Nobody may
                change its arrays until this returns: they are read by the runtime, and again to key the noise.
            run_options: an entry ``hardening.client`` names the client where `client` does not. Of the rest, what
                `OPTIONS` and `ENTRIES` name has an effect, as it is at the call; an active adapter has none.
            client: who is asking, a name or an `Identity`; else the entry, else `hardening.as_client`, else the
                anonymous account.

        Raises InputError, Denied, ReleaseError; what the runtime raises passes as it is. Rows are charged first.
        """
        names = tuple(output_names) if output_names else self.__all
        if client is None and run_options is not None:
            client = _entry(run_options, CLIENT_ENTRY)
        bound = self.__buffers.find(names, input_feed)
        if bound is None:
            return self._run_once(names, input_feed, run_options, client)
        decision = self.guard.admit(client, bound.rows)
        try:
            answer = bound.answer(decision, input_feed, run_options)
        except (ReleaseError, Denied):
            self.__buffers.forget()
            raise
        if answer is None:
            answer = self._answer(decision, names, input_feed, run_options)
            self.__buffers.give_up()  # the runtime would answer, but not into our buffers
        return answer

    def _run_once(
        self, names: tuple[str, ...], input_feed: Mapping[str, Any], run_options: Any, client: str | Identity | None
    ) -> list[Any]:
        """For questions and answers of every kind: through arrays that the runtime makes."""
        self.guard.needs(names)
        feed = self.__feeds.read(input_feed)
        decision = self.guard.admit(client, self.__feeds.question(feed)[1])
        return self._answer(decision, names, feed, run_options)

    def _answer(
        self, decision: Decision, names: tuple[str, ...], feed: Mapping[str, Any], run_options: Any
    ) -> list[Any]:
        fetch = self.guard.needs(names)
        question = self.__feeds.question(feed)[0]
        results = self.__inner.run(list(fetch), feed, _without_adapters(run_options))
        try:
            # The guard empties this dict whatever happens; until then, what breaks in finds nothing either.
            outputs = dict(zip(fetch, results, strict=True))
            shapes = {n: v.shape for n, v in outputs.items() if isinstance(v, np.ndarray)}
            released = self.guard.release(decision, outputs, question)
        except BaseException:
            wipe(results)
            raise
        finally:
            del results
        self.__buffers.learn(names, fetch, feed, shapes)
        seen: set[str] = set()
        answer = []
        for name in names:
            value = released[name]
            answer.append(copy.deepcopy(value) if name in seen else value)
            seen.add(name)
        return answer

    def __reduce__(self) -> NoReturn:
        raise TypeError("a hardened session is not pickled: call wrap again where it is needed")


for _name in dir(onnxruntime.InferenceSession):
    if (
        not _name.startswith("_")
        and _name not in HARMLESS | {"run"}
        and callable(getattr(onnxruntime.InferenceSession, _name))
    ):
        setattr(HardenedSession, _name, _closed(_name))
for _name in CONSTRUCTION:
    setattr(HardenedSession, _name, _closed(_name))


def _entry(run_options: Any, key: str) -> str | None:
    try:
        return str(run_options.get_run_config_entry(key))
    except RuntimeError:  # the runtime's way of saying that there is no such entry
        return None


def _without_adapters(run_options: Any) -> Any:
    """The same options, but for an active adapter: it writes weights and even inputs, past those that key the noise.

    No method says whether there is one.
    """
    if run_options is None:
        return None
    plain = onnxruntime.RunOptions()
    for name in OPTIONS:
        setattr(plain, name, getattr(run_options, name))
    for key in ENTRIES:
        if (value := _entry(run_options, key)) is not None:
            plain.add_run_config_entry(key, value)
    return plain


def _refuse_writers(options: Any, made: bool) -> None:
    """Options by which the runtime would write the model or its profile to a file that nobody protects."""
    if options is None:
        return
    if options.enable_profiling:
        raise ModelError("enable_profiling writes nodes, shapes and timings to a file: profile a bare session instead")
    if not made and options.optimized_model_filepath:
        raise ModelError("optimized_model_filepath writes the whole model to a file: do that in a step of its own")


def wrap(
    model: str | os.PathLike[str] | bytes | onnxruntime.InferenceSession,
    policy: Policy,
    sess_options: Any = None,
    providers: Any = None,
    provider_options: Any = None,
    **kwargs: Any,
) -> HardenedSession:
    """Harden a model.

    The first axis of inputs and outputs is taken for a batch of rows that do not look at each other: a row's noise is
    keyed on that row and on what all rows share. Where a row's scores depend on others as well, they can be changed
    through these while the noise stays, and differences of answers are then free of it.

    Args:
        model: path of an ONNX file, its bytes, or an existing session. The digest that keys the noise is the SHA-256 of
            the file or bytes; weights kept in further files are not part of it.
        policy: see `hardening.load_policy`.
        sess_options, providers, provider_options, kwargs: as for `onnxruntime.InferenceSession`, for a path or bytes.

    Raises ModelError if the model cannot be read, lacks an output of the policy or would be written out (profiling,
    ``optimized_model_filepath``), ConfigError.
    """
    if isinstance(model, HardenedSession):
        raise ModelError("this session is hardened already")
    if isinstance(model, onnxruntime.InferenceSession):
        _refuse_writers(model.get_session_options(), made=True)
        data = getattr(model, "_model_bytes", None)
        path = getattr(model, "_model_path", None)
        digest = _digest(data if data else Path(path).read_bytes() if path else b"")
        return HardenedSession(model, policy, digest)
    _refuse_writers(sess_options, made=False)
    name = "the model's bytes" if isinstance(model, bytes) else repr(os.fspath(model))
    try:
        data = model if isinstance(model, bytes) else Path(model).read_bytes()
    except OSError as problem:
        raise ModelError(f"cannot read {name}: {problem.strerror}") from None
    source = model if isinstance(model, bytes) else os.fspath(model)
    try:
        inner = onnxruntime.InferenceSession(source, sess_options, providers, provider_options, **kwargs)
    except Exception as problem:
        raise ModelError(f"ONNX Runtime cannot load {name}; is it a whole ONNX model?") from problem
    return HardenedSession(inner, policy, _digest(data))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest() if data else ""
