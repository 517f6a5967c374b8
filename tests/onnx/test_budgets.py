"""Budgets through a wrapped session: its buffers answer for any tier; whoever is refused gets and leaves nothing."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import hardening_onnx
import numpy as np
import onnxruntime as ort
import pytest

import hardening
from hardening.config import Output, Policy
from hardening.errors import Denied
from hardening.ledger import Budget, Window
from hardening.transforms import Gaussian, LabelOnly, Project, Types
from hardening.types import Identity
from tests.keys import fixed_key
from tests.onnx.test_session import MODEL

NOISY = (Gaussian(sigma=0.05), Project(), Types(n=100))
NORMAL, LABEL = math.log2(176851), 2.0
X = np.random.default_rng(1).normal(size=(400, 8)).astype("f4")


def wrap(folder: Path, tiers: Any = None, **sections: Any) -> hardening_onnx.HardenedSession:
    output = Output("simplex", tiers or {"normal": NOISY, "label": (LabelOnly(),)}, label_output="label")
    rules = Policy({"p": output}, key=fixed_key(folder), root=folder, **sections)
    return hardening_onnx.wrap(MODEL, rules)


@pytest.mark.parametrize("names", [["p"], ["p", "label"], None])
@pytest.mark.parametrize("rows", [1, 3])
def test_every_answer_is_one_of_a_tier_and_agrees_with_its_label(tmp_path: Path, names: Any, rows: int) -> None:
    bits = 12 * rows * NORMAL + 5 * rows * LABEL + 1
    session = wrap(tmp_path, budgets={"credential": Budget(bits=bits, on_exhausted="label")})
    normal, label = wrap(tmp_path), wrap(tmp_path, {"label": (LabelOnly(),)})
    for i in range(17):
        x = {"x": X[i * rows : (i + 1) * rows]}
        got = session.run(names, x, client="alice")
        want = (normal if i < 12 else label).run(names, x)
        assert all(np.array_equal(g, w) for g, w in zip(got, want, strict=True)), i
        assert len(session.run(names, x, client="bob")) == len(want)
    for _ in range(4):
        with pytest.raises(Denied):
            session.run(names, {"x": X[-rows:]}, client="alice")
    fresh = {"x": X[100 : 100 + rows]}
    want = normal.run(names, fresh)
    assert all(np.array_equal(g, w) for g, w in zip(session.run(names, fresh, client="carol"), want, strict=True))
    session.guard.close()


def test_whoever_is_refused_leaves_no_scores_behind(tmp_path: Path) -> None:
    session = wrap(tmp_path, budgets={"credential": Budget(bits=5.5 * NORMAL)})
    raw = ort.InferenceSession(MODEL).run(["p"], {"x": X[9:10]})[0]
    for i in range(5):
        session.run(["p"], {"x": X[i : i + 1]}, client="alice")
    bound = session._HardenedSession__buffers._last.bound  # type: ignore[attr-defined]
    with pytest.raises(Denied) as caught:
        session.run(["p"], {"x": X[9:10]}, client="alice")
    assert not bound._results[0].any()
    assert caught.value.__traceback__ is not None
    frame = caught.value.__traceback__.tb_next  # past this very function
    while frame is not None:
        for value in frame.tb_frame.f_locals.values():
            assert not (isinstance(value, np.ndarray) and value.shape == raw.shape and np.allclose(value, raw))
        frame = frame.tb_next
    answer = session.run(["p"], {"x": X[9:10]}, client="bob")[0]
    assert np.array_equal(answer, wrap(tmp_path).run(["p"], {"x": X[9:10]})[0])
    session.guard.close()


def test_who_is_refused_at_the_door_does_not_run_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = wrap(tmp_path, budgets={"credential": Budget(bits=1.5 * NORMAL)})
    session.run(["p"], {"x": X[:1]}, client="alice")
    with pytest.raises(Denied):
        session.run(["p"], {"x": X[1:2]}, client="alice")
    ran: list[Any] = []
    inner = session._HardenedSession__inner  # type: ignore[attr-defined]
    run = inner.run
    monkeypatch.setattr(inner, "run", lambda *args: (ran.append(args), run(*args))[1])
    for _ in range(3):
        with pytest.raises(Denied):
            session.run(["p"], {"x": X[2:3]}, client="alice")
    assert ran == []
    session.run(["p"], {"x": X[2:3]}, client="bob")
    assert len(ran) == 1
    session.guard.close()


def test_threads_with_buffers_of_their_own_share_one_budget(tmp_path: Path) -> None:
    budgets = {
        "credential": Budget(bits=100 * NORMAL, queries=Window("1d", 10_000), on_exhausted="label"),
        "model": Budget(bits=250 * NORMAL),
    }
    session = wrap(tmp_path, budgets=budgets)

    def ask(i: int) -> tuple[int, int]:
        full = labels = 0
        for k in range(150):
            try:
                p = session.run(["p"], {"x": X[k : k + 1] + np.float32(i)}, client=Identity(f"c{i % 3}"))[0]
            except Denied:
                continue
            labels, full = labels + (p.max() == 1), full + (p.max() < 1)
        return full, labels

    with ThreadPoolExecutor(6) as pool:
        answered = list(pool.map(ask, range(6)))
    # Noise may release a label of its own accord, so that some of these were charged as full answers.
    assert sum(full * NORMAL + labels * LABEL for full, labels in answered) <= 250 * NORMAL
    spent = sum(s.bits for s in session.guard.clients().values())
    assert 245 * NORMAL < spent <= 250 * NORMAL
    session.guard.close()
    with pytest.raises(hardening.InputError, match="closed"):
        session.run(["p"], {"x": X[:1]}, client="alice")
