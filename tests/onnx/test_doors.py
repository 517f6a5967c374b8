"""Every way to make a hardened session, and every way around it that calling code could take by accident.

Out of scope: code in the same process that means to get around the session. It can assign ``__class__``, read name-
mangled attributes or search the garbage collector; the boundary against it is another process.
"""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import hardening_onnx
import magika
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hardening_onnx.session import HardenedSession
from onnx import TensorProto as T
from onnx import helper, numpy_helper
from onnxruntime.capi import _pybind_state as C

import hardening
from hardening import InputError, Output, Policy
from hardening.errors import ModelError
from hardening.transforms import Gaussian, Project, Types
from tests.keys import fixed_key

TIER = (Gaussian(sigma=0.05), Project(keep_top1=True), Types(n=100))
RNG = np.random.default_rng(3)
X = RNG.normal(size=(5, 6)).astype("f4")


def model(elements: int = T.FLOAT) -> bytes:
    """x -> Cast -> MatMul -> Softmax -> p, for an input of any numeric kind."""
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=T.FLOAT),
        helper.make_node("MatMul", ["f", "w"], ["z"]),
        helper.make_node("Softmax", ["z"], ["p"]),
    ]
    inputs = [helper.make_tensor_value_info("x", elements, ["N", 6])]
    outputs = [helper.make_tensor_value_info("p", T.FLOAT, ["N", 4])]
    weights = [numpy_helper.from_array(np.random.default_rng(0).normal(size=(6, 4)).astype("f4"), "w")]
    graph = helper.make_graph(nodes, "doors", inputs, outputs, weights)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(made.SerializeToString())


MODEL = model()
RAW = ort.InferenceSession(MODEL).run(["p"], {"x": X})[0]


@pytest.fixture
def policy(tmp_path: Path) -> Policy:
    return Policy({"p": Output("simplex", {"normal": TIER})}, key=fixed_key(tmp_path), root=tmp_path)


@pytest.fixture
def session(policy: Policy) -> HardenedSession:
    return hardening_onnx.wrap(MODEL, policy)


CPU = "CPUExecutionProvider"


@pytest.mark.parametrize(
    ("arguments", "keywords"),
    [
        ((), {}),
        ((None, [CPU]), {}),
        ((), {"providers": [CPU]}),
        ((), {"providers": [(CPU, {})]}),
        ((), {"providers": [CPU], "provider_options": [{}]}),
        ((None, [CPU], [{}]), {}),
        ((), {"disabled_optimizers": ["ConstantFolding"]}),
        ((), {"enable_fallback": 0}),
        ((), {"read_config_from_model": 0}),
    ],
)
def test_signatures_of_the_constructor(policy: Policy, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    """Each accepted by the bare constructor, each accepted by `wrap`."""
    bare = ort.InferenceSession(MODEL, *arguments, **keywords)
    session = hardening_onnx.wrap(MODEL, policy, *arguments, **keywords)
    assert session.get_providers() == bare.get_providers() == [CPU]
    assert session.get_provider_options() == bare.get_provider_options()
    assert np.array_equal(session.run(None, {"x": X})[0].argmax(axis=1), RAW.argmax(axis=1))


def test_session_options_arrive(policy: Policy) -> None:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = hardening_onnx.wrap(MODEL, policy, options)
    assert session.get_session_options().intra_op_num_threads == 1
    assert session.get_session_options().get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert not np.array_equal(session.run(None, {"x": X})[0], RAW)


def test_options_that_write_the_model_or_a_profile_out_are_refused(policy: Policy, tmp_path: Path) -> None:
    """The optimized model holds every weight, a profile every node: neither belongs in a file that nobody protects."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    with pytest.raises(ModelError, match="optimized_model_filepath writes the whole model"):
        hardening_onnx.wrap(MODEL, policy, options)
    assert not (tmp_path / "optimized.onnx").exists()
    hardening_onnx.wrap(ort.InferenceSession(MODEL, options), policy)  # written before we were asked
    assert (tmp_path / "optimized.onnx").exists()
    options = ort.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    with pytest.raises(ModelError, match="enable_profiling"):
        hardening_onnx.wrap(MODEL, policy, options)
    assert not list(tmp_path.glob("profile*"))
    with pytest.raises(ModelError, match="enable_profiling"):
        hardening_onnx.wrap(ort.InferenceSession(MODEL, options), policy)


@pytest.mark.filterwarnings("ignore:onnx.version is deprecated")  # imported by onnxruntime.backend
def test_backend_prepare_takes_a_hardened_session(session: HardenedSession) -> None:
    from onnxruntime import backend

    prepared = backend.prepare(session)
    expected = session.run(None, {"x": X})[0]
    assert np.array_equal(prepared.run([X])[0], expected)
    assert np.array_equal(prepared.run(X)[0], expected)
    assert np.array_equal(backend.run(session, [X])[0], expected)
    with pytest.raises(RuntimeError, match="not permitted"):
        prepared.run([X], terminate=True)


@pytest.mark.parametrize("step", ["_bind_session", "_create_inference_session", "_reset_session"])
def test_private_steps_of_construction_bind_no_raw_session(session: HardenedSession, step: str) -> None:
    with pytest.raises(InputError, match="closed on a hardened session"):
        getattr(session, step)(ort.InferenceSession(MODEL)._sess, None)
    with pytest.raises(InputError, match="C session"):
        session._sess.run(["p"], {"x": X}, None)


def test_no_hardened_session_is_made_around_a_c_session() -> None:
    with pytest.raises(InputError, match="_from_initialized_c_session is closed"):
        HardenedSession._from_initialized_c_session(ort.InferenceSession(MODEL)._sess)


def test_a_session_from_a_c_session_is_wrapped_like_any_other(policy: Policy) -> None:
    """The route of model packages: no constructor ran, there is neither path nor bytes to take a digest of."""
    made = ort.InferenceSession._from_initialized_c_session(ort.InferenceSession(MODEL)._sess)
    session = hardening_onnx.wrap(made, policy)
    assert not np.array_equal(session.run(None, {"x": X})[0], RAW)


def test_a_hardened_session_is_not_hardened_twice(session: HardenedSession, policy: Policy) -> None:
    with pytest.raises(ModelError, match="hardened already"):
        hardening_onnx.wrap(session, policy)


def test_subclasses_of_the_session_are_wrapped(policy: Policy) -> None:
    class Theirs(ort.InferenceSession):  # type: ignore[misc]
        def run(self, *_: Any, **__: Any) -> Any:
            return [np.full((5, 4), 0.25, "f4")]

    assert hardening_onnx.wrap(Theirs(MODEL), policy).run(None, {"x": X})[0].shape == (5, 4)


@pytest.mark.parametrize("name", ["x", "w"])
def test_an_adapter_in_the_run_options_writes_neither_inputs_nor_weights(
    policy: Policy, tmp_path: Path, name: str
) -> None:
    """The runtime would put its parameters in the place of the question that the noise is keyed on."""
    made = onnx.load_from_string(MODEL)
    made.graph.input.append(helper.make_tensor_value_info("w", T.FLOAT, [6, 4]))  # an overridable initializer
    session = hardening_onnx.wrap(made.SerializeToString(), policy)
    adapter, file = ort.AdapterFormat(), str(tmp_path / "a.onnx_adapter")
    adapter.set_adapter_version(1)
    adapter.set_model_version(1)
    value = np.full((1, 6) if name == "x" else (6, 4), 7, "f4")
    adapter.set_parameters({name: ort.OrtValue.ortvalue_from_numpy(value)})
    adapter.export_adapter(file)
    loaded, options = ort.LoraAdapter(), ort.RunOptions()
    loaded.Load(file)
    options.add_active_adapter(loaded)
    options.add_run_config_entry("hardening.client", "alice")
    options.logid = "question"
    expected = session.run(None, {"x": X[:1]})[0]
    for _ in range(4):
        assert np.array_equal(session.run(None, {"x": X[:1]}, options)[0], expected)
    assert session.guard.standing("alice").queries == 4


def test_bindings_find_a_closed_door(session: HardenedSession) -> None:
    for bind in (ort.IOBinding, lambda s: C.SessionIOBinding(s._sess), lambda s: C.SessionIOBinding(s)):
        with pytest.raises((TypeError, InputError)):
            bind(session)
    bound = ort.InferenceSession(MODEL).io_binding()
    with pytest.raises(InputError, match="run_with_iobinding is closed"):
        session.run_with_iobinding(bound)
    with pytest.raises((ValueError, InputError)):
        ort.InferenceSession.run_with_iobinding(session, bound)


def test_the_conduit_of_pybind_hands_nothing_out(session: HardenedSession) -> None:
    """pybind11 takes a foreign object for its own if it offers ``_pybind11_conduit_v1_``."""
    with pytest.raises(InputError, match="_pybind11_conduit_v1_"):
        _ = session._sess._pybind11_conduit_v1_
    assert not hasattr(session, "_pybind11_conduit_v1_")


@pytest.mark.parametrize("method", ["run", "run_async", "run_with_ort_values", "io_binding", "end_profiling"])
def test_unbound_methods_of_the_base_class_are_closed(session: HardenedSession, method: str) -> None:
    value = ort.OrtValue.ortvalue_from_numpy(X)
    arguments: dict[str, tuple[Any, ...]] = {
        "run": (["p"], {"x": X}),
        "run_async": (["p"], {"x": X}, lambda *_: None, None),
        "run_with_ort_values": (["p"], {"x": value}),
    }
    with pytest.raises(InputError):
        getattr(ort.InferenceSession, method)(session, *arguments.get(method, ()))


def test_set_providers_is_closed_and_leaves_the_session_hardened(session: HardenedSession) -> None:
    before = session.run(None, {"x": X})[0]
    with pytest.raises(InputError, match="set_providers is closed"):
        session.set_providers([CPU])
    with pytest.raises(InputError, match="_reset_session is closed"):
        ort.InferenceSession.set_providers(session, [CPU])
    assert np.array_equal(session.run(None, {"x": X})[0], before)


def test_assigning_the_class_gives_no_answer(session: HardenedSession) -> None:
    """Beyond what is promised: even so the C session is not where the base class looks for it."""
    session.__class__ = ort.InferenceSession  # type: ignore[assignment]
    with pytest.raises(InputError, match="C session"):
        session.run(["p"], {"x": X})


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_copies_are_refused(session: HardenedSession, copied: Any) -> None:
    with pytest.raises(TypeError, match="call wrap again"):
        copied(session)


def test_attributes_that_libraries_read(session: HardenedSession, policy: Policy, tmp_path: Path) -> None:
    assert session._providers == [CPU]
    assert session._model_bytes == MODEL
    (tmp_path / "m.onnx").write_bytes(MODEL)
    assert hardening_onnx.wrap(tmp_path / "m.onnx", policy)._model_path == str(tmp_path / "m.onnx")
    assert session.get_modelmeta().graph_name == "doors"
    session.disable_fallback()
    session.enable_fallback()


def test_one_question_has_one_answer_however_it_is_written(session: HardenedSession) -> None:
    """What the runtime rounds away or ignores must not key another noise, or averaging would work again."""
    x = np.array([[0.1, -0.5, 0.25, 0.0, 1.0, 2.0]], "f4")
    expected = session.run(None, {"x": x})[0]
    off = x.astype("f8") * (1 + 1e-12)
    assert not np.array_equal(off, x)
    asked = [x.tolist(), off.tolist(), x.copy("F"), np.asarray(ort.OrtValue.ortvalue_from_numpy(x)), list(x), x + 0]
    asked += [np.where(x == 0, np.float32(-0.0), x), ort.OrtValue.ortvalue_from_numpy(x)]
    for value in asked:
        assert np.array_equal(session.run(None, {"x": value})[0], expected), type(value)
    with pytest.raises(InputError, match="'x' is not a tensor of float32"):
        session.run(None, {"x": [["a"] * 6]})
    assert not np.array_equal(session.run(None, {"x": x + np.float32(0.01)})[0], expected)


def test_any_byte_but_zero_is_true(policy: Policy) -> None:
    session = hardening_onnx.wrap(model(T.BOOL), policy)
    true = np.array([[1, 0, 1, 1, 0, 0]], np.uint8)
    expected = session.run(None, {"x": true.astype(bool)})[0]
    assert np.array_equal(session.run(None, {"x": (true * 7).view(bool)})[0], expected)


def test_texts_are_keyed_by_what_they_say(policy: Policy) -> None:
    """Neither the width of numpy's dtype nor a longer text in the same batch may change a row's noise."""
    nodes = [
        helper.make_node("LabelEncoder", ["x"], ["f"], domain="ai.onnx.ml", keys_strings=["a"], values_floats=[1.0]),
        helper.make_node("MatMul", ["f", "w"], ["z"]),
        helper.make_node("Softmax", ["z"], ["p"]),
    ]
    inputs = [helper.make_tensor_value_info("x", T.STRING, ["N", 1])]
    outputs = [helper.make_tensor_value_info("p", T.FLOAT, ["N", 4])]
    weights = [numpy_helper.from_array(np.eye(1, 4, dtype="f4"), "w")]
    graph = helper.make_graph(nodes, "texts", inputs, outputs, weights)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    onnx.checker.check_model(made)
    session = hardening_onnx.wrap(made.SerializeToString(), policy)
    expected = session.run(None, {"x": np.array([["a"]])})[0][0]
    for value in (np.array([["a"]], "U9"), np.array([["a"]], object), [["a"]], np.array([["a"], ["a longer one"]])):
        assert np.array_equal(session.run(None, {"x": value})[0][0], expected)
    assert not np.array_equal(session.run(None, {"x": np.array([["a longer one"]])})[0][0], expected)


def test_bytes_in_the_other_order_are_numbers(session: HardenedSession) -> None:
    """The runtime ignores byte order, so an array that says so must not reach it, nor be another question."""
    expected = session.run(None, {"x": X})[0]
    assert np.array_equal(session.run(None, {"x": X.astype(">f4")})[0], expected)


def _of_texts(inputs: list[Any], nodes: list[Any], policy: Policy) -> HardenedSession:
    """A model whose output p says how often "a" is among its texts t."""
    encode = helper.make_node(
        "LabelEncoder", ["t"], ["p"], domain="ai.onnx.ml", keys_strings=["a"], values_floats=[1.0], default_float=0.0
    )
    outputs = [helper.make_tensor_value_info("p", T.FLOAT, ["N"])]
    zero = [numpy_helper.from_array(np.array(0), "zero")]
    graph = helper.make_graph([*nodes, encode], "texts", inputs, outputs, zero)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    rules = Output("scalar", {"normal": (Gaussian(sigma=0.1),)})
    return hardening_onnx.wrap(made.SerializeToString(), Policy({"p": rules}, policy.key, root=policy.root))


def test_what_the_runtime_does_not_read_of_a_text_keys_nothing(policy: Policy) -> None:
    session = _of_texts([helper.make_tensor_value_info("t", T.STRING, ["N"])], [], policy)
    expected = session.run(None, {"t": np.array(["a"])})[0]
    for same in (np.array([b"a\0b"]), np.array([b"a\0c"], "S9"), np.array([b"a"])):
        assert np.array_equal(session.run(None, {"t": same})[0], expected)
    octets = session.run(None, {"t": np.array([b"a"], object)})[0]  # read as the text of the object
    assert np.array_equal(session.run(None, {"t": np.array(["b'a'"])})[0], octets)
    with pytest.raises(InputError, match="'t' holds text that is not UTF-8"):
        session.run(None, {"t": np.array([b"\xff"])})


def test_sequences_are_one_question_however_they_are_written(policy: Policy) -> None:
    texts = helper.make_tensor_sequence_value_info("s", T.STRING, ["M"])
    session = _of_texts([texts], [helper.make_node("SequenceAt", ["s", "zero"], ["t"])], policy)
    spelt = [np.array(["a"], kind) for kind in ("U1", "U9", "S1", "S4", object)]
    assert len({session.run(None, {"s": [text]})[0].tobytes() for text in spelt}) == 1
    for elements, same in (
        (T.FLOAT, [np.zeros(3, "f4"), -np.zeros(3, "f4"), np.zeros(3, ">f4")]),
        (T.FLOAT, [(np.full(3, 0x7FC00000 + i, "u4")).view("f4") for i in range(3)]),
        (T.BOOL, [np.full(3, i, "u1").view(bool) for i in (1, 2, 255)]),
    ):
        nodes = [
            helper.make_node("ConcatFromSequence", ["s"], ["c"], axis=0),
            helper.make_node("Cast", ["c"], ["f"], to=T.FLOAT),
            helper.make_node("IsNaN", ["f"], ["b"]),
            helper.make_node("Cast", ["b"], ["g"], to=T.FLOAT),
            helper.make_node("ReduceMax", ["g"], ["p"], keepdims=1),
        ]
        inputs = [helper.make_tensor_sequence_value_info("s", elements, ["M"])]
        graph = helper.make_graph(nodes, "s", inputs, [helper.make_tensor_value_info("p", T.FLOAT, [1])])
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        rules = Policy({"p": Output("scalar", {"normal": (Gaussian(sigma=0.1),)})}, policy.key, root=policy.root)
        session = hardening_onnx.wrap(made.SerializeToString(), rules)
        assert len({session.run(None, {"s": [value]})[0].tobytes() for value in same}) == 1


def test_an_input_of_fixed_length_is_part_of_every_row(policy: Policy) -> None:
    """Also where the batch happens to have as many rows: a row's noise follows from the row and all that it shares."""
    nodes = [helper.make_node("ReduceSum", ["s"], ["t"], keepdims=1), helper.make_node("Mul", ["x", "t"], ["p"])]
    inputs = [helper.make_tensor_value_info(n, T.FLOAT, s) for n, s in (("x", ["N", 4]), ("s", [3]))]
    outputs = [helper.make_tensor_value_info("p", T.FLOAT, ["N", 4])]
    graph = helper.make_graph(nodes, "shared", inputs, outputs)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    rules = Policy({"p": Output("scalar", {"normal": (Gaussian(sigma=2.0**-8),)})}, policy.key, root=policy.root)
    session = hardening_onnx.wrap(made.SerializeToString(), rules)
    x, s = np.round(X[:4, :4] * 16) / 16, np.array([1, 2, 3], "f4")
    for _ in range(4):
        whole = session.run(None, {"x": x, "s": s})[0]
        for rows in (1, 2, 3):
            assert np.array_equal(session.run(None, {"x": x[:rows], "s": s})[0], whole[:rows])
        # The noise of row 0 changes with an element of s that stands at row 1.
        moved = np.array([1, 2.5, 3], "f4")
        one, other = (session.run(None, {"x": x[:3], "s": v})[0] for v in (s, moved))
        assert not np.array_equal((one - x[:3] * s.sum())[0], (other - x[:3] * moved.sum())[0])


def test_an_optional_input_may_be_left_out_and_that_is_one_question(policy: Policy) -> None:
    optional = helper.make_optional_type_proto(helper.make_tensor_type_proto(T.FLOAT, [2]))
    nodes = [helper.make_node("OptionalHasElement", ["o"], ["y"]), helper.make_node("Softmax", ["x"], ["p"])]
    inputs = [helper.make_tensor_value_info("x", T.FLOAT, ["N", 4]), helper.make_value_info("o", optional)]
    outputs = [helper.make_tensor_value_info("p", T.FLOAT, ["N", 4]), helper.make_tensor_value_info("y", T.BOOL, [])]
    graph = helper.make_graph(nodes, "optional", inputs, outputs)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    outputs = dict(policy.outputs) | {"y": Output("open")}
    session = hardening_onnx.wrap(made.SerializeToString(), Policy(outputs, policy.key, root=policy.root))
    p, given = session.run(None, {"x": X[:, :4]})
    assert not given
    assert np.array_equal(session.run(["p"], {"x": X[:, :4], "o": None})[0], p)
    other, given = session.run(None, {"x": X[:, :4], "o": np.ones(2, "f4")})
    assert given
    assert not np.array_equal(other, p)
    with pytest.raises(InputError, match="missing inputs: x"):
        session.run(None, {"o": None})


MAGIKA = Path(magika.__file__).parent / "models" / "standard_v3_3" / "model.onnx"


def test_magika_identifies_files_through_a_hardened_session(policy: Policy, tmp_path: Path) -> None:
    """The library as it is on PyPI, its own session replaced; it feeds plain lists."""
    identifier = magika.Magika()
    files = {
        "python": Path(__file__),
        "ini": Path(__file__).parents[2] / "setup.cfg",
        "markdown": Path(__file__).parents[2] / "README.md",
        "html": tmp_path / "page",
        "png": Path(str(tmp_path / "image")),
    }
    files["html"].write_text("<!DOCTYPE html><html><head><title>t</title></head><body><p>text</p></body></html>" * 3)
    files["png"].write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + RNG.bytes(600))
    bare = {path: identifier.identify_path(path).output.label for path in files.values()}
    output = Output("simplex", {"normal": TIER})
    own = Policy({"target_label": output}, key=policy.key, root=tmp_path)
    session = hardening_onnx.wrap(identifier._onnx_session, own)
    identifier._onnx_session = session
    with hardening.as_client("alice"):
        ours = {path: identifier.identify_path(path) for path in files.values()}
        together = identifier.identify_paths(list(files.values()))
    for path, result in ours.items():
        assert result.output.label == bare[path]
        assert round(result.score * 100) == pytest.approx(result.score * 100, abs=1e-4)
    assert [r.output.label for r in together] == [bare[p] for p in files.values()]
    assert len(set(bare.values())) >= 4
    assert session.guard.standing("alice").queries == 2 * len(files)
