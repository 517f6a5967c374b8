"""What a user installs: a wheel with the packages and nothing else, complete with its extras, also from an sdist."""

from __future__ import annotations

import configparser
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.deep

ROOT = Path(__file__).parent.parent
CONFIG = configparser.ConfigParser()
CONFIG.read(ROOT / "setup.cfg")
PACKAGES = CONFIG["options"]["packages"].split()
TOP = dict(line.replace(" ", "").split("=") for line in CONFIG["options"]["package_dir"].strip().splitlines())
COMMANDS = CONFIG["options.entry_points"]["hardening.commands"].split("\n")[1:]


def do(*command: object, cwd: Path) -> str:
    done = subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def files() -> set[str]:
    """What every installation has, as paths of import packages."""
    found = set()
    for package in PACKAGES:
        top, _, rest = package.partition(".")
        folder = ROOT / TOP[top] / rest.replace(".", "/")
        found |= {f"{package.replace('.', '/')}/{f.name}" for f in folder.glob("*.py")}
    return found | {f"{top}/py.typed" for top in TOP}


def contents(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {n for n in archive.namelist() if ".dist-info/" not in n}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree as it is, without what git ignores: a build must neither use nor change the folder of a developer."""
    folder = tmp_path_factory.mktemp("source")
    listed = do("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).splitlines()
    for name in listed:
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    return folder


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    do(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, source, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


def environment(folder: Path) -> Path:
    do(sys.executable, "-m", "venv", folder, cwd=folder.parent)
    return folder / "bin"


def imports_everything(python: Path, cwd: Path) -> None:
    modules = [n.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for n in files() if n.endswith(".py")]
    needed = sorted(m for m in modules if not m.endswith("__main__"))
    script = f"import importlib\nfor name in {needed!r}: importlib.import_module(name)"
    do(python, "-W", "error", "-c", script, cwd=cwd)


def test_the_wheel_holds_the_packages_and_nothing_else(wheel: Path) -> None:
    assert contents(wheel) == files()


def test_the_wheel_in_a_fresh_environment(wheel: Path, tmp_path: Path) -> None:
    bin_ = environment(tmp_path / "venv")
    do(bin_ / "pip", "install", "--quiet", f"{wheel}[onnx,grpc]", cwd=tmp_path)
    assert "No broken requirements" in do(bin_ / "pip", "check", cwd=tmp_path)
    imports_everything(bin_ / "python", tmp_path)
    listed = do(bin_ / "hardening", "--help", cwd=tmp_path)
    names = [line.split("=")[0].strip() for line in COMMANDS]
    assert len(names) >= 5
    for name in (*names, "check", "explain"):
        assert f"\n    {name}" in listed
        assert f"hardening {name}" in do(bin_ / "hardening", name, "--help", cwd=tmp_path)
    assert "pip install" not in listed


def test_the_core_alone_says_what_to_install(wheel: Path, tmp_path: Path) -> None:
    bin_ = environment(tmp_path / "venv")
    do(bin_ / "pip", "install", "--quiet", wheel, cwd=tmp_path)
    (tmp_path / "policy.toml").write_text('schema = 1\n[outputs.p]\nspace = "open"\n')
    assert "valid" in do(bin_ / "hardening", "check", "policy.toml", cwd=tmp_path)
    listed = " ".join(do(bin_ / "hardening", "--help", cwd=tmp_path).split())
    assert "pip install 'hardening[onnx]'" in listed
    assert "pip install 'hardening[grpc]'" in listed
    serve = [str(bin_ / "hardening"), "serve", "model.onnx", "--policy", "policy.toml"]
    refused = subprocess.run(serve, cwd=tmp_path, capture_output=True, text=True)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "pip install 'hardening[grpc]'" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_an_editable_installation(source: Path, tmp_path: Path) -> None:
    bin_ = environment(tmp_path / "venv")
    do(bin_ / "pip", "install", "--quiet", "--editable", f"{source}[onnx,grpc]", cwd=tmp_path)
    imports_everything(bin_ / "python", tmp_path)
    where = "import hardening, hardening_onnx; print(hardening.__file__, hardening_onnx.__file__)"
    assert do(bin_ / "python", "-c", where, cwd=tmp_path).count(str(source)) == 2


def test_an_sdist_gives_the_same_wheel(source: Path, tmp_path: Path) -> None:
    bin_ = environment(tmp_path / "venv")
    do(bin_ / "pip", "install", "--quiet", "build", cwd=tmp_path)
    do(bin_ / "python", "-m", "build", source, "--outdir", tmp_path / "dist", cwd=tmp_path)
    (sdist,), (wheel,) = (tmp_path / "dist").glob("*.tar.gz"), (tmp_path / "dist").glob("*.whl")
    assert contents(wheel) == files()
    with tarfile.open(sdist) as archive:
        names = {n.partition("/")[2] for n in archive.getnames()}
    assert {"LICENSE", "README.md", "pyproject.toml", "setup.cfg"} <= names
