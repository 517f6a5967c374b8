"""The wrapped session: same signature and results' shapes, and no door through which raw scores leave."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import hardening_onnx
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hardening_onnx.session import HARMLESS, HardenedSession
from onnx import TensorProto as T
from onnx import helper, numpy_helper

import hardening
from hardening import answer
from hardening.config import Output, Policy
from hardening.errors import InputError, ModelError, ReleaseError
from hardening.program import Question, Task
from hardening.transforms import Clip, Gaussian, Project, TopK, Types
from tests.keys import fixed_key

TIER = (Gaussian(sigma=0.05), Project(keep_top1=True), Types(n=100))


def mlp() -> bytes:
    """x -> Gemm -> Relu -> Gemm -> logits, Softmax -> p; the bias of the last layer is an overridable initializer."""
    rng = np.random.default_rng(0)
    weights = {"w1": rng.normal(size=(8, 16)), "w2": rng.normal(size=(16, 4)), "b2": rng.normal(size=4)}
    nodes = [
        helper.make_node("Gemm", ["x", "w1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w2", "b2"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["p"]),
        helper.make_node("ArgMax", ["logits"], ["label"], axis=1, keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("x", T.FLOAT, ["N", 8]), helper.make_tensor_value_info("b2", T.FLOAT, [4])],
        [
            helper.make_tensor_value_info("p", T.FLOAT, ["N", 4]),
            helper.make_tensor_value_info("logits", T.FLOAT, ["N", 4]),
            helper.make_tensor_value_info("label", T.INT64, ["N"]),
        ],
        [numpy_helper.from_array(v.astype("f4"), k) for k, v in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


MODEL = mlp()
X = np.random.default_rng(1).normal(size=(6, 8)).astype("f4")


@pytest.fixture
def policy(tmp_path: Path) -> Policy:
    output = Output(space="simplex", tiers={"normal": TIER}, label_output="label")
    return Policy({"p": output}, key=fixed_key(tmp_path), root=tmp_path)


@pytest.fixture
def session(policy: Policy) -> HardenedSession:
    return hardening_onnx.wrap(MODEL, policy)


def test_run_keeps_signature_order_shapes_and_dtypes(session: HardenedSession) -> None:
    bare = ort.InferenceSession(MODEL)
    assert isinstance(session, ort.InferenceSession)
    assert [i.name for i in session.get_inputs()] == [i.name for i in bare.get_inputs()]
    assert [o.name for o in session.get_outputs()] == ["p", "label"]
    raw = bare.run(["p", "label"], {"x": X})
    out = session.run(None, {"x": X}, client="alice")
    for a, b in zip(out, raw, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
    assert not np.array_equal(out[0], raw[0])
    assert np.array_equal(out[0], np.rint(out[0] * 100).astype("f4") / np.float32(100))
    assert np.array_equal(out[1], raw[1])
    again = session.run(["label", "p", "p"], {"x": X}, None)
    assert np.array_equal(again[1], out[0])
    assert not np.shares_memory(again[1], again[2])
    assert np.array_equal(session.run(["label"], {"x": X})[0], out[1])
    assert session.guard.standing("alice").queries == 6


def test_every_way_in_gives_the_same_answers(policy: Policy, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(MODEL)
    ways: list[Any] = [
        MODEL,
        str(tmp_path / "m.onnx"),
        tmp_path / "m.onnx",
        ort.InferenceSession(MODEL),
        ort.InferenceSession(str(tmp_path / "m.onnx")),
    ]
    answers = [hardening_onnx.wrap(way, policy).run(["p"], {"x": X})[0] for way in ways]
    assert all(np.array_equal(a, answers[0]) for a in answers)


def test_who_is_asking(session: HardenedSession) -> None:
    options = ort.RunOptions()
    options.add_run_config_entry("hardening.client", "entry")
    with hardening.as_client("context"):
        session.run(None, {"x": X}, options, client="argument")
        session.run(None, {"x": X}, options)
        session.run(None, {"x": X}, ort.RunOptions())
    session.run(None, {"x": X})
    assert list(session.guard.clients()) == ["argument", "entry", "context", "anonymous"]


def test_only_declared_inputs_and_released_outputs(session: HardenedSession) -> None:
    assert [i.name for i in session.get_overridable_initializers()] == ["b2"]
    with pytest.raises(InputError, match="'b2' is not declared"):
        session.run(None, {"x": X, "b2": np.zeros(4, "f4")})
    with pytest.raises(InputError, match="'logits' is not released"):
        session.run(["logits"], {"x": X})
    with pytest.raises(InputError, match="missing inputs: x"):
        session.run(None, {})
    assert session.guard.clients() == {}


def test_a_nan_answer_releases_nothing(session: HardenedSession) -> None:
    bad = X.copy()
    bad[3] = np.nan
    with pytest.raises(ReleaseError, match="row 3"):
        session.run(None, {"x": bad}, client="alice")
    assert session.guard.standing("alice").queries == 6


STEPS = [
    ("Programs.get", answer.Programs, "get"),
    ("Answer._take", answer.Answer, "_take"),
    ("Answer.prepare", answer.Answer, "prepare"),
    ("Answer.complete", answer.Answer, "complete"),
    ("labels", answer, "_labels"),
    ("Question", Question, "__init__"),
    ("Task", Task, "__init__"),
    ("the kernel", None, "_serve"),
]


def holds_raw(value: Any, raw: Any, depth: int = 3) -> bool:
    """Whether the raw scores can be reached from a value, through containers and through our own objects."""
    if isinstance(value, np.ndarray):
        return value.shape == raw.shape and np.array_equal(value, raw)
    if depth == 0:
        return False
    if isinstance(value, dict | list | tuple):
        inside: Any = value.values() if isinstance(value, dict) else value
    elif type(value).__module__.startswith("hardening"):
        inside = vars(value).values() if hasattr(value, "__dict__") else ()
    else:
        return False
    return any(holds_raw(v, raw, depth - 1) for v in inside)


@pytest.mark.parametrize("warm", [0, 3], ids=["first", "bound"])
@pytest.mark.parametrize(("owner", "step"), [s[1:] for s in STEPS], ids=[s[0] for s in STEPS])
def test_a_failure_at_any_step_lets_nothing_raw_out(
    session: HardenedSession, owner: Any, step: str, warm: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = ort.InferenceSession(MODEL).run(["p"], {"x": X})[0]
    for _ in range(warm):
        session.run(None, {"x": X})

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("injected")

    monkeypatch.setattr(owner or session.guard, step, fail)
    if warm and step in ("get", "_take", "__init__"):
        assert session.run(None, {"x": X})[0].shape == raw.shape  # bound buffers have these steps behind them
        return
    with pytest.raises(ReleaseError, match=r"hardening failed \(RuntimeError\); nothing was released") as caught:
        session.run(None, {"x": X})
    assert caught.value.__context__ is None
    assert caught.value.__cause__ is None
    frames = caught.traceback[1:]  # the first is this test, which knows the raw scores
    assert frames
    for frame in frames:
        assert not holds_raw(frame.frame.f_locals, raw), frame


@pytest.mark.parametrize("warm", [0, 3], ids=["first", "bound"])
@pytest.mark.parametrize("problem", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize(("owner", "step"), [s[1:] for s in STEPS], ids=[s[0] for s in STEPS])
def test_an_interrupt_at_any_step_leaves_nothing_raw_behind(
    policy: Policy, owner: Any, step: str, problem: Any, warm: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half-precision scores, which are copied to be worked on; our own objects are searched to the bottom."""
    made = onnx.load_from_string(MODEL)
    made.graph.node[3].output[0] = "single"
    made.graph.node.append(helper.make_node("Cast", ["single"], ["p"], to=T.FLOAT16))
    made.graph.output[0].type.tensor_type.elem_type = T.FLOAT16
    session = hardening_onnx.wrap(made.SerializeToString(), policy)
    raw = ort.InferenceSession(made.SerializeToString()).run(["p"], {"x": X})[0]
    for _ in range(warm):
        expected = session.run(None, {"x": X})[0]

    def fail(*_: object, **__: object) -> None:
        raise problem("injected")

    with monkeypatch.context() as patched:
        patched.setattr(owner or session.guard, step, fail)
        if warm and step in ("get", "_take", "__init__"):
            return
        with pytest.raises((problem, ReleaseError)) as caught:
            session.run(None, {"x": X})
    for frame in caught.traceback[1:]:
        assert not holds_raw(frame.frame.f_locals, raw, depth=9), frame
    if warm:
        assert np.array_equal(session.run(None, {"x": X})[0], expected)


@pytest.mark.parametrize("warm", [0, 3], ids=["first", "bound"])
def test_an_interrupt_between_the_run_and_the_guard_leaves_nothing_raw_behind(
    session: HardenedSession, warm: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = ort.InferenceSession(MODEL).run(["p"], {"x": X})[0]
    for _ in range(warm):
        session.run(None, {"x": X})

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    if warm:
        monkeypatch.setattr(session._HardenedSession__buffers._last.bound, "_finish", interrupt)
    else:
        monkeypatch.setattr(session.guard, "release", interrupt)
    with pytest.raises(KeyboardInterrupt) as caught:
        session.run(None, {"x": X})
    for frame in caught.traceback[1:]:
        assert not holds_raw(frame.frame.f_locals, raw, depth=9), frame


@pytest.mark.parametrize("warm", [1, 4])
def test_a_question_in_the_middle_of_another(
    session: HardenedSession, warm: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a signal or a finalizer may ask it: each gets its own answer, from the session and from the guard."""
    scores = {name: ort.InferenceSession(MODEL).run(["p"], {"x": x})[0] for name, x in (("a", X[:1]), ("b", X[1:2]))}
    asked = {"a": X[:1], "b": X[1:2]}
    doors = (
        lambda name: session.run(["p"], {"x": asked[name]})[0],
        lambda name: session.guard.harden({"p": scores[name]}, inputs={"x": asked[name]})["p"],
    )
    finish = session.guard.finish
    for ask in doors:
        expected = {name: ask(name) for name in ("a", "b")}
        for _ in range(warm):
            ask("a")
        between = []

        def interrupted(*args: Any, ask: Any = ask, between: Any = between) -> Any:
            if not between:
                between.append(None)
                between.append(ask("b"))
            return finish(*args)

        with monkeypatch.context() as patched:
            patched.setattr(session.guard, "finish", interrupted)
            patched.setattr(session._HardenedSession__buffers._last.bound, "_finish", interrupted)
            assert np.array_equal(ask("a"), expected["a"])
        assert np.array_equal(between[1], expected["b"])
        assert not np.array_equal(expected["a"], expected["b"])


@pytest.mark.parametrize("asked", [1, 4])
def test_nothing_is_released_once_the_guard_is_closed(session: HardenedSession, asked: int) -> None:
    for _ in range(asked):
        session.run(["p"], {"x": X}, client="alice")
    session.guard.close()
    for client in ("alice", "bob"):
        for names in (None, ["p"]):
            with pytest.raises(InputError, match="closed"):
                session.run(names, {"x": X}, client=client)
        with pytest.raises(InputError, match="closed"):
            session.guard.admit(client, len(X))


def test_bound_buffers_answer_as_the_runtime_does(session: HardenedSession, policy: Policy) -> None:
    """The first call of a shape goes the long way, later ones through buffers; nobody can tell."""
    rng = np.random.default_rng(7)
    fresh = hardening_onnx.wrap(MODEL, policy)
    for rows in (1, 3, 8, 9, 64):
        questions = [rng.normal(size=(rows, 8)).astype("f4") for _ in range(5)]
        strided = [np.asfortranarray(q) for q in questions]
        expected = [hardening_onnx.wrap(MODEL, policy).run(None, {"x": q}) for q in questions]
        for feed in (questions, strided):
            for question, (p, label) in zip(feed, expected, strict=True):
                for names in (None, ["label", "p"]):
                    answer = dict(zip(names or ["p", "label"], fresh.run(names, {"x": question}), strict=True))
                    assert np.array_equal(answer["p"], p)
                    assert np.array_equal(answer["label"], label)
    assert fresh._HardenedSession__buffers._last.bound.names == ("label", "p"), "the last call went through buffers"


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"])
def test_inputs_of_every_numeric_dtype_are_bound(tmp_path: Path, dtype: str) -> None:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [helper.make_node("Cast", ["x"], ["f"], to=T.FLOAT), helper.make_node("Identity", ["x"], ["y"])]
    inputs = [helper.make_tensor_value_info("x", kind, ["N", 3])]
    outputs = [
        helper.make_tensor_value_info("f", T.FLOAT, ["N", 3]),
        helper.make_tensor_value_info("y", kind, ["N", 3]),
    ]
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    rules = {"f": Output("scalar", {"normal": (Gaussian(sigma=0.1),)}), "y": Output("open")}
    policy = Policy(rules, key=fixed_key(tmp_path), root=tmp_path)
    session = hardening_onnx.wrap(made.SerializeToString(), policy)
    x = np.arange(6).reshape(2, 3).astype(dtype)
    first, raw = session.run(None, {"x": x})
    for _ in range(3):
        again, y = session.run(None, {"x": x})
        assert np.array_equal(again, first)
        assert np.array_equal(y, raw)
    assert session._HardenedSession__buffers.find(("f", "y"), {"x": x}) is not None


def test_answers_of_bound_buffers_are_the_callers_own(session: HardenedSession) -> None:
    first = [session.run(["p"], {"x": X})[0] for _ in range(4)][-1]
    kept = first.copy()
    session.run(["p"], {"x": X + 1})
    assert np.array_equal(first, kept)
    first[...] = 7
    assert np.array_equal(session.run(["p"], {"x": X})[0], kept)


def test_labels_that_are_floats_follow_the_released_scores_too(tmp_path: Path) -> None:
    """Through bound buffers as well: there the label's array is the one that the runtime wrote the raw label to."""
    nodes = [
        helper.make_node("Softmax", ["x"], ["p"]),
        helper.make_node("ArgMax", ["x"], ["index"], axis=1, keepdims=0),
        helper.make_node("Cast", ["index"], ["label"], to=T.FLOAT),
    ]
    inputs = [helper.make_tensor_value_info("x", T.FLOAT, ["N", 8])]
    outputs = [helper.make_tensor_value_info(n, T.FLOAT, s) for n, s in (("p", ["N", 8]), ("label", ["N"]))]
    made = helper.make_model(
        helper.make_graph(nodes, "g", inputs, outputs), opset_imports=[helper.make_opsetid("", 17)], ir_version=9
    )
    tier = (Gaussian(sigma=0.5), Project(), Types(n=10))
    rules = Output("simplex", {"normal": tier}, label_output="label", classes=tuple(range(8)))
    key = fixed_key(tmp_path)
    session = hardening_onnx.wrap(made.SerializeToString(), Policy({"p": rules}, key=key, root=tmp_path))
    x = np.random.default_rng(0).normal(size=(100, 8)).astype("f4")
    for _ in range(4):
        p, label = session.run(["p", "label"], {"x": x})
        assert label.dtype == np.float32
        assert np.array_equal(label, p.argmax(axis=1))
    assert not np.array_equal(label, x.argmax(axis=1))


def test_threads_do_not_share_buffers(session: HardenedSession) -> None:
    questions = [np.random.default_rng(i).normal(size=(4, 8)).astype("f4") for i in range(8)]
    expected = [session.run(["p"], {"x": q})[0] for q in questions]

    def ask(i: int) -> bool:
        return all(
            np.array_equal(session.run(["p"], {"x": questions[i]}, client=str(i))[0], expected[i]) for _ in range(300)
        )

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(8)))
    assert all(session.guard.standing(str(i)).queries == 1200 for i in range(8))


def test_answers_whose_shape_depends_on_the_data() -> None:
    """Buffers of one size would not do; the session finds out, and goes the long way from then on."""
    graph = helper.make_graph(
        [helper.make_node("NonZero", ["x"], ["i"]), helper.make_node("Cast", ["i"], ["y"], to=T.FLOAT)],
        "nonzero",
        [helper.make_tensor_value_info("x", T.FLOAT, ["N", 3])],
        [helper.make_tensor_value_info("y", T.FLOAT, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()
    session, bare = hardening_onnx.wrap(model, Policy({"y": Output("open")})), ort.InferenceSession(model)
    for i in range(12):
        x = (np.random.default_rng(i).random((2, 3)) < 0.5).astype("f4")
        assert np.array_equal(session.run(None, {"x": x})[0], bare.run(None, {"x": x})[0])
    assert session.guard.standing("anonymous").queries == 24


def test_a_shape_that_the_model_refuses_is_the_runtimes_error(session: HardenedSession) -> None:
    for _ in range(3):
        session.run(None, {"x": X})
    with pytest.raises(Exception, match="INVALID_ARGUMENT"):
        session.run(None, {"x": X[:, :5]})
    assert session.run(None, {"x": X})[0].shape == (6, 4)


def test_doors_are_all_known() -> None:
    """A door that a new ONNX Runtime opens must be looked at before it is allowed."""
    public = {n for n in dir(ort.InferenceSession) if not n.startswith("_")}
    closed = {
        "create_ortvalue_from_shape_and_type", "end_profiling", "get_profiling_start_time_ns", "get_tuning_results",
        "io_binding", "release_captured_graph", "run_async", "run_with_iobinding", "run_with_ort_values",
        "run_with_ortvaluevector", "set_ep_dynamic_options", "set_providers", "set_tuning_results",
    }  # fmt: skip
    assert public - HARMLESS - closed == {"run"}


def test_every_other_door_is_closed(session: HardenedSession) -> None:
    bare = ort.InferenceSession(MODEL)
    value = ort.OrtValue.ortvalue_from_numpy(X)
    attempts: dict[str, Any] = {
        "run_with_ort_values": lambda: session.run_with_ort_values(["p"], {"x": value}),
        "run_async": lambda: session.run_async(["p"], {"x": X}, lambda *_: None, None),
        "run_with_iobinding": lambda: session.run_with_iobinding(bare.io_binding()),
        "run_with_ortvaluevector": lambda: session.run_with_ortvaluevector(None, [], [], [], [], []),
        "io_binding": lambda: session.io_binding(),
        "set_providers": lambda: session.set_providers(["CPUExecutionProvider"]),
        "_sess.run": lambda: session._sess.run(["p"], {"x": X}, None),
        "unbound run": lambda: ort.InferenceSession.run(session, ["p"], {"x": X}),
        "unbound values": lambda: ort.InferenceSession.run_with_ort_values(session, ["p"], {"x": value}),
    }
    for name, attempt in attempts.items():
        with pytest.raises(InputError):
            pytest.fail(f"{name} returned {attempt()!r}")
    with pytest.raises((TypeError, InputError)):
        ort.IOBinding(session)
    with pytest.raises(TypeError, match="wrap again"):
        pickle.dumps(session)


def third_party(session: Any) -> Any:
    """What downstream libraries do with a session they are given."""
    if not isinstance(session, ort.InferenceSession):
        raise TypeError("expected an InferenceSession")
    assert "CPUExecutionProvider" in session.get_providers()
    assert isinstance(session.get_modelmeta().custom_metadata_map, dict)
    assert hasattr(session, "_model_path")
    return session.run([session.get_outputs()[0].name], {session.get_inputs()[0].name: X})[0]


def test_third_party_code_accepts_it(session: HardenedSession) -> None:
    assert np.array_equal(third_party(session), session.run(["p"], {"x": X})[0])


@pytest.mark.parametrize("data", [MODEL[: len(MODEL) // 2], b"not a model"])
def test_broken_models(policy: Policy, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "broken.onnx").write_bytes(data)
    with pytest.raises(ModelError, match=r"broken\.onnx"):
        hardening_onnx.wrap(tmp_path / "broken.onnx", policy)
    with pytest.raises(ModelError, match="cannot read"):
        hardening_onnx.wrap(tmp_path / "absent.onnx", policy)


def test_policy_that_does_not_fit_the_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"'scores'.*p, logits, label"):
        hardening_onnx.wrap(MODEL, Policy({"scores": Output("open")}))
    tier = (TopK(k=1, remainder="other", other=9),)
    with pytest.raises(hardening.ConfigError, match="class 9 does not exist"):
        hardening_onnx.wrap(MODEL, Policy({"p": Output("simplex", {"normal": tier})}))
    named = Output("simplex", {"normal": (Types(n=4),)}, label_output="label", classes=("cat", "dog"))
    with pytest.raises(hardening.ConfigError, match=r"outputs\.p\.classes: names 2 classes, the model has 4"):
        hardening_onnx.wrap(MODEL, Policy({"p": named}))


def test_logits_and_open_outputs(tmp_path: Path) -> None:
    tier = (Clip(low=-5.0, high=5.0), TopK(k=2))
    session = hardening_onnx.wrap(MODEL, Policy({"logits": Output("logits", {"normal": tier}), "p": Output("open")}))
    p, logits = session.run(None, {"x": X})
    assert np.array_equal(p, ort.InferenceSession(MODEL).run(["p"], {"x": X})[0])
    assert ((logits == -6).sum(axis=1) == 2).all()


def test_telemetry_is_off_before_the_runtime_is_imported() -> None:
    script = (
        "import sys, os\n"
        "class Watch:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'onnxruntime': print(os.environ.get('ORT_DISABLE_TELEMETRY'))\n"
        "sys.meta_path.insert(0, Watch())\n"
        "import hardening_onnx\n"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("CI", "ORT_DISABLE_TELEMETRY")}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    result = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["1"]
