"""The shape of the house: imports point down, every package is listed."""

from __future__ import annotations

import ast
import configparser
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hardening.cli import commands

ROOT = Path(__file__).parent.parent
PICTURE = re.search(r"^    (errors, types.* <- .*(?:\n    .*)*)", (ROOT / "README.md").read_text(), re.M)
assert PICTURE, "the README has no picture of the house"
#: One tuple of modules for each layer, from the bottom up, as the README draws them.
LAYERS = [tuple(layer.replace(",", " ").split()) for layer in PICTURE[1].split("<-")]
RANK = {module: rank for rank, layer in enumerate(LAYERS) for module in layer}


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{a.name}" for a in node.names)


@pytest.mark.parametrize("path", sorted((ROOT / "hardening").rglob("*.py")), ids=lambda p: p.name)
def test_imports_point_down(path: Path) -> None:
    own = path.relative_to(ROOT / "hardening").parts[0].removesuffix(".py")
    rank = len(LAYERS) if own in ("__init__", "__main__") else RANK[own]
    for name in imported(path):
        top, _, rest = name.partition(".")
        assert top not in {"hardening_onnx", "hardening_grpc", "onnxruntime", "grpc"}
        if top == "hardening":
            assert RANK[rest.split(".")[0]] <= rank, f"{own} imports {name}"


def test_every_package_is_listed() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = set(config["options"]["packages"].split())
    found = {".".join(p.parent.relative_to(ROOT).parts) for p in (ROOT / "hardening").rglob("__init__.py")}
    bindings = ROOT / "bindings"
    found |= {".".join(p.parent.relative_to(bindings).parts) for p in bindings.rglob("__init__.py")}
    assert listed == found


#: What users rely on. A name more or less is a decision about the public surface, made here.
PUBLIC = {
    "hardening": {
        "ConfigError", "Denied", "Guard", "HardeningError", "Identity", "InputError", "KeySource", "ModelError",
        "Output", "Policy", "ReleaseError", "as_client", "load_policy",
    },
    "hardening.testing": {"FakeClock", "RecordingSink"},
    "hardening_grpc": {"Server"},
    "hardening_onnx": {"HardenedSession", "wrap"},
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLIC)
def test_the_public_surface(name: str) -> None:
    module = importlib.import_module(name)
    assert set(module.__all__) == PUBLIC[name]
    own = {n for n, v in vars(module).items() if not n.startswith("_") and not inspect.ismodule(v)}
    assert own - {"annotations", "Event"} == PUBLIC[name]


def test_every_command_is_a_module_of_the_same_shape() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = config["options.entry_points"]["hardening.commands"].strip().splitlines()
    registered = dict(line.replace(" ", "").split("=") for line in lines)
    assert set(registered.items()) <= set(commands().items())
    for name, path in commands().items():
        module = importlib.import_module(path)
        assert module.EXAMPLE.startswith(f"hardening {name}"), name
        assert callable(module.configure)
        assert callable(module.run)


def test_importing_compiles_nothing_and_reads_no_numba() -> None:
    script = "import sys, hardening.program; print('numba' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_one_request_is_followed_through_the_files_that_the_readme_names(tmp_path: Path) -> None:
    """A question of a known shape and client passes through these files alone (kernels are compiled, so unseen)."""
    readme = (ROOT / "README.md").read_text()
    path = re.findall(r"`([a-z_/]+\.py)`", readme.split("One request:")[1].split("##")[0])
    assert len(path) <= 6
    assert all((ROOT / file).is_file() for file in path)
    script = (
        "import sys, numpy as np, hardening, hardening_onnx\n"
        "from hardening.config import Output, Policy\n"
        "from hardening.transforms import Types\n"
        "from onnx import TensorProto as T, helper\n"
        "graph = helper.make_graph([helper.make_node('Softmax', ['x'], ['p'])], 'g',\n"
        "    [helper.make_tensor_value_info('x', T.FLOAT, ['N', 4])],\n"
        "    [helper.make_tensor_value_info('p', T.FLOAT, ['N', 4])])\n"
        "model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=9)\n"
        "policy = Policy({'p': Output('simplex', {'normal': (Types(n=10),)})})\n"
        "session = hardening_onnx.wrap(model.SerializeToString(), policy)\n"
        "x = np.ones((2, 4), np.float32)\n"
        "for _ in range(3): session.run(None, {'x': x}, client='alice')\n"
        "seen = set()\n"
        "sys.setprofile(lambda frame, *_: seen.add(frame.f_code.co_filename))\n"
        "session.run(None, {'x': x}, client='alice')\n"
        "sys.setprofile(None)\n"
        "print(*seen, sep='\\n')\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path)
    seen = {Path(line) for line in run.stdout.split() if "hardening" in line}
    assert seen
    assert {str(file.relative_to(ROOT)) for file in seen} <= set(path)
