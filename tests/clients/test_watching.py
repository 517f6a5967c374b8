"""What a guard notes of questions while it answers: names, near duplicates, a log. And nothing where nobody asks."""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hardening
from hardening.clients import fleet
from hardening.clients.evidence import scores
from hardening.clients.log import read_log
from hardening.config import Detect, KeySource, Near, Output, Policy, parse_policy
from hardening.errors import ConfigError, InputError, ReleaseError
from hardening.kernels.layout import PARTS
from hardening.ledger import Budget
from hardening.noise import CIPHERS, SECRET_BYTES, Key
from hardening.testing import RecordingSink
from hardening.transforms import Gaussian, LabelOnly, Project, Types
from tests.clients.test_evidence import flat

KEYED = (Gaussian(sigma=0.05), Project())
BLIND = (Types(n=100),)
FRESH = (Gaussian(sigma=0.05, key="fresh"), Project())


def policy(folder: Path, tier: Any = KEYED, **detect: Any) -> Policy:
    """Of one output p, with a baseline; `detect` as in the policy's section."""
    made = dataclasses.replace(flat(0.1), output="p")
    (folder / "baseline.json").write_text(made.to_json())
    keyed = None if tier == BLIND else KeySource("file:k.key")
    (folder / "k.key").write_text(Key(1, CIPHERS[0], bytes(range(SECRET_BYTES))).format())
    (folder / "k.key").chmod(0o600)
    detect = {"baseline": "baseline.json"} | detect
    return Policy({"p": Output("simplex", {"normal": tier})}, keyed, detect=Detect(**detect), root=folder)


def near(**more: Any) -> Near:
    return Near("x", 1.0, **({"window": 4} | more))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def ask(guard: hardening.Guard, x: np.ndarray, client: str = "alice", dtype: Any = np.float32) -> np.ndarray:
    own = np.random.default_rng(int(np.abs(x.astype(np.float64)).sum() * 1e6) % 2**32)
    p = {"p": own.dirichlet(np.ones(5), len(x)).astype(dtype)}
    return np.asarray(guard.harden(p, client=client, inputs={"x": x})["p"])


# Names


@pytest.mark.parametrize("tier", [KEYED, BLIND, FRESH], ids=["keyed", "blind", "fresh"])
def test_polling_hard_questions_is_no_evidence_whatever_the_noise_is_keyed_on(
    tier: Any, tmp_path: Path, rng: np.random.Generator
) -> None:
    """Answers differ from time to time by a little, as a runtime's do, and still the question is the same."""
    x = rng.random((3, 6)).astype("f4")
    with hardening.Guard(policy(tmp_path, tier), "m") as guard:
        for i in range(100):
            p = np.full((3, 4), 0.25, np.float32) + np.float32(1e-6 * i) * np.array([1, -1, 0, 0], np.float32)
            guard.harden({"p": p}, client="poller", inputs={"x": x})
        row = guard._clients.row("poller")
        assert (row["firsts"], row["observed"]) == (3, 300)
        before = guard.standing("poller").suspicion
        guard.harden({"p": p}, client="poller", inputs={"x": x})
        assert guard.standing("poller").suspicion == before
        guard.harden({"p": p}, client="poller", inputs={"x": x + 1})
        assert guard._clients.row("poller")["firsts"] == 6


def test_without_inputs_the_answer_stands_for_the_question(tmp_path: Path, rng: np.random.Generator) -> None:
    p = rng.dirichlet(np.ones(4), 3).astype("f4")
    with hardening.Guard(policy(tmp_path, BLIND), "m") as guard:
        for _ in range(4):
            guard.harden({"p": p}, client="alice")
        assert guard._clients.row("alice")["firsts"] == 3
        for shared in (np.zeros(7), np.array(["a", "b"]), np.array([1j, 2.0])):  # nothing tells the rows apart
            guard.harden({"p": p}, client="alice", inputs={"x": shared})
        guard.harden({"p": p}, client="alice", inputs={"x": np.array([object()] * 3)})
        assert guard._clients.row("alice")["firsts"] == 3


def test_fresh_noise_stays_fresh_where_questions_are_named(tmp_path: Path, rng: np.random.Generator) -> None:
    x, p = rng.random((4, 6)).astype("f4"), rng.dirichlet(np.ones(4), 4)
    with hardening.Guard(policy(tmp_path, FRESH), "m") as guard:
        answers = [guard.harden({"p": p}, inputs={"x": x})["p"] for _ in range(5)]
        assert guard._clients.row("anonymous")["firsts"] == 4
    assert len({a[i].tobytes() for a in answers for i in range(4)}) == 20


def test_answers_are_the_same_with_and_without_watching(tmp_path: Path, rng: np.random.Generator) -> None:
    x = rng.random((9, 6)).astype("f4")
    bare = dataclasses.replace(policy(tmp_path), detect=Detect())
    watched = policy(tmp_path, near=near(), log="log.jsonl")
    with hardening.Guard(bare, "m") as one, hardening.Guard(watched, "m") as other:
        for _ in range(4):  # bound from the third time on
            assert np.array_equal(ask(one, x), ask(other, x))


def test_what_nobody_asks_for_costs_nothing(tmp_path: Path) -> None:
    """One call of a kernel is all there is to do, as without this section; no name, no thread, no index."""
    for made, names in (
        (dataclasses.replace(policy(tmp_path, BLIND), detect=Detect()), False),
        (policy(tmp_path), True),
    ):
        with hardening.Guard(made, "m") as guard:
            answer = guard.bind({"p": np.full((1, 4), 0.25, np.float32)}, {"x": np.zeros((1, 3))}, 1)
            assert answer.only is not None
            assert (answer.searched, guard._recorder, guard._fingerprints, guard.links()) == (None, None, None, ())
            assert (answer._names is not None) == names


# Near duplicates


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[hardening.Guard]:
    with hardening.Guard(policy(tmp_path, near=near()), "m") as guard:
        yield guard


def nearly(guard: hardening.Guard, client: str = "alice") -> int:
    """Near duplicates among what a client asked for the first time."""
    return int(guard._clients.row(client)["sums"][7]) // PARTS


@pytest.mark.parametrize("dtype", ["f4", "f8", "f2", ">f4"])
def test_near_duplicates_are_found_in_arrays_that_are_used_again(
    watched: hardening.Guard, dtype: str, rng: np.random.Generator
) -> None:
    """Each call of the same shape from the third on goes through the same arrays."""
    for i in range(12):
        base = rng.random((1, 40))
        ask(watched, base.astype(dtype))
        ask(watched, (base + 0.002).astype(dtype))
        assert nearly(watched) == i + 1


def test_rows_of_a_batch_are_looked_up_in_order(watched: hardening.Guard, rng: np.random.Generator) -> None:
    base = rng.random((4, 40))
    batch = np.concatenate([base, base[:2] + 0.001, base[2:], base[:1] + 0.002])
    answer = watched.bind({"p": rng.dirichlet(np.ones(4), 9)}, {"x": batch}, 9)
    for expected in ([0, 0, 0, 0, 1, 1, 0, 0, 1], [0] * 9):  # asked again, all are known
        answer.outputs["p"][...] = rng.dirichlet(np.ones(4), 9)
        watched.finish(watched.admit("alice", 9), answer)
        assert answer.nearly.tolist() == expected
    batch += 0.0005  # the same answer, over new questions
    answer.outputs["p"][...] = rng.dirichlet(np.ones(4), 9)
    watched.finish(watched.admit("alice", 9), answer)
    assert answer.nearly.tolist() == [1, 1, 1, 1, 1, 1, 0, 0, 1], "the same within the batch are one question"


def test_threads_search_one_index(tmp_path: Path) -> None:
    """Rows so long that they are hashed without the interpreter's lock; each thread finds its own, and no other's."""

    def search(which: int) -> None:
        own = np.random.default_rng(which)
        for _ in range(20):
            base = own.random((9, 2000))
            for x in (base, base + 1e-4, base):
                ask(guard, x, f"c{which}")

    with hardening.Guard(policy(tmp_path, near=near(window=20)), "m") as guard:
        threads = [threading.Thread(target=search, args=(i,)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [nearly(guard, f"c{i}") for i in range(6)] == [180] * 6
        assert guard.links() == ()


def test_all_of_an_input_belongs_to_the_one_row_that_was_asked(
    watched: hardening.Guard, rng: np.random.Generator
) -> None:
    x = rng.random(40)
    for asked in (x, x + 0.001, x):
        watched.harden({"p": rng.dirichlet(np.ones(4), 1)}, client="alice", inputs={"x": asked})
    assert nearly(watched) == 1


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        (None, "pass inputs= with it, an array of 3 rows"),
        ({"y": np.zeros((3, 2))}, "pass inputs= with it, an array of 3 rows"),
        ({"x": np.zeros((1, 2)), "y": np.zeros(3)}, r"it has shape \(1, 2\), and 3 rows were asked"),
        ({"x": np.zeros((2, 3)), "y": np.zeros(3)}, r"it has shape \(2, 3\), and 3 rows were asked"),
        ({"x": np.array(1.0), "y": np.zeros(3)}, r"it has shape \(\), and 3 rows were asked"),
        ({"x": np.array(["a", "b", "c"])}, "it must hold numbers, not <U1"),
        ({"x": np.array([1j, 2, 3])}, "it must hold numbers, not complex128"),
    ],
)
def test_inputs_that_cannot_be_searched(inputs: Any, said: str, tmp_path: Path, rng: np.random.Generator) -> None:
    p = rng.dirichlet(np.ones(4), 3)
    with hardening.Guard(policy(tmp_path, BLIND, near=near()), "m", sink=RecordingSink()) as guard:
        outputs = {"p": p.copy()}
        with pytest.raises(InputError, match=said):
            guard.release(guard.admit("alice", 3), outputs, inputs)
        assert outputs == {}


def test_questions_that_are_not_answered_teach_the_index_nothing(tmp_path: Path, rng: np.random.Generator) -> None:
    x = rng.random((1, 40))
    budgets = {"credential": Budget(bits=1.0)}
    made = dataclasses.replace(policy(tmp_path, BLIND, near=near()), budgets=budgets)
    with hardening.Guard(made, "m", sink=RecordingSink()) as guard:
        with pytest.raises(hardening.Denied):
            ask(guard, x)
        assert guard._fingerprints is not None
        assert not guard._fingerprints._index.any()


def test_identities_that_search_together_are_linked(watched: hardening.Guard, rng: np.random.Generator) -> None:
    for i in range(10):
        ask(watched, rng.random((5, 40)), f"honest-{i}")
    start = rng.random((1, 40))
    for t in range(60):
        ask(watched, start + 1e-3 * rng.random((1, 40)), f"thief-{t % 4}")
    names = tuple(watched.clients())
    (found,) = fleet.clusters(watched.links(), 5)
    assert {names[i] for i in found} == {f"thief-{i}" for i in range(4)}


def test_who_has_no_account_of_his_own_is_linked_to_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    monkeypatch.setattr(hardening.guard, "CAPACITY", 2)
    x = rng.random((1, 40))
    with hardening.Guard(policy(tmp_path, near=near()), "m", sink=RecordingSink()) as guard:
        for i in range(6):
            ask(guard, x + 1e-4 * i, f"c{i}")
        assert {pair[:2] for pair in guard.links()} == {(0, 1)}


# The log


def test_the_log_is_what_the_guard_goes_by(tmp_path: Path) -> None:
    """Read again and scored by the baseline, its lines add up to the sums in each client's row; batches, one row,
    repeats and near duplicates among them, most through arrays that are used again."""
    rng = np.random.default_rng(0)
    made = policy(tmp_path, near=near(), log="benign.jsonl")
    rows: dict[str, Any] = {}
    with hardening.Guard(made, "m") as guard:
        base = rng.random((20, 12)).astype("f4")
        for i in range(60):
            x = base[rng.integers(0, 20, (1, 7)[i % 2])] + np.float32(rng.integers(0, 3) * 0.003)
            ask(guard, x, f"client-{i % 3}")
        rows = {name: guard._clients.row(name) for name in guard.clients()}
    text = (tmp_path / "benign.jsonl").read_text()
    assert "client-0" not in text
    logs = read_log(text.splitlines(), math.log2(5))
    numbers, found = flat(0.1).numbers(), []
    for log in logs.values():
        scored = scores(numbers, log.firsts())
        found.append((len(scored), len(log.label), *np.floor(scored * PARTS + 0.5).sum(axis=0).astype(int).tolist()))
    expected = [(int(r["firsts"]), int(r["observed"]), *r["sums"].tolist()) for r in rows.values()]
    assert sorted(found) == sorted(expected)
    assert sum(f[-1] for f in found) > 10 * PARTS, "near duplicates among them"


def test_names_in_the_log_are_the_keys(tmp_path: Path, rng: np.random.Generator) -> None:
    def names(key: str, digest: str) -> set[str]:
        made = dataclasses.replace(policy(tmp_path, log="log"), key=KeySource(f"file:{key}", create=True))
        with hardening.Guard(made, digest) as guard:
            for client in ("alice", "bob"):
                ask(guard, rng.random((2, 4)), client)
        found = set(read_log((tmp_path / "log").read_text().splitlines()))
        (tmp_path / "log").unlink()
        return found

    first = names("one", "m")
    assert len(first) == 2
    assert all(len(name) == 16 and int(name, 16) for name in first)
    assert names("one", "m") == first
    assert not first & names("two", "m")
    assert not first & names("one", "other model")


def test_without_a_key_names_are_those_of_the_process(tmp_path: Path, rng: np.random.Generator) -> None:
    for _ in range(2):
        with hardening.Guard(policy(tmp_path, BLIND, log="log"), "m") as guard:
            ask(guard, rng.random((2, 4)))
    (log,) = read_log((tmp_path / "log").read_text().splitlines()).values()
    assert len(log.label) == 4
    assert log.question.all()


@pytest.mark.parametrize(("output", "logged"), [(None, "p"), ("q", "q")])
def test_whose_rows_are_logged(output: str | None, logged: str, tmp_path: Path) -> None:
    two = {
        "language": Output("labels"),
        "p": Output("simplex", {"normal": BLIND}, label_output="label"),
        "q": Output("simplex", {"normal": (LabelOnly(),)}),
    }
    detect = Detect(log="log", output=output)
    with hardening.Guard(Policy(two, detect=detect, root=tmp_path), "m") as guard:
        # Two vectors for each row, of which there are three.
        p, q = np.full((3, 2, 4), 0.25), np.eye(5)[[1, 2, 4]]
        outputs = {"p": p, "q": q, "label": np.zeros((3, 2), int), "language": np.arange(3)}
        guard.harden(outputs, inputs={"x": np.arange(3.0)})
        guard.harden({"language": np.arange(3)})
        guard.harden({"p": p[:0], "q": q[:0]})
    (log,) = read_log((tmp_path / "log").read_text().splitlines()).values()
    assert log.label.tolist() == ([0] * 6 if logged == "p" else [1, 2, 4])
    assert len(set(log.question[::2].tolist())) == len(log.question[::2])
    assert logged == "q" or np.array_equal(log.question[::2], log.question[1::2])


def test_the_baselines_output_is_the_one_that_is_logged(tmp_path: Path) -> None:
    made = policy(tmp_path, BLIND, log="log")
    both = {"first": Output("simplex", {"normal": BLIND}), **made.outputs}
    with hardening.Guard(dataclasses.replace(made, outputs=both), "m") as guard:
        guard.harden({"first": np.eye(4)[[1]], "p": np.eye(4)[[2]]})
    (log,) = read_log((tmp_path / "log").read_text().splitlines()).values()
    assert log.label.tolist() == [2]


def test_an_answer_does_not_fail_because_the_log_does(tmp_path: Path, rng: np.random.Generator) -> None:
    sink = RecordingSink()
    with hardening.Guard(policy(tmp_path, log="no/such/folder"), "m", sink=sink) as guard:
        for _ in range(5):
            assert ask(guard, rng.random((2, 4))).shape == (2, 5)
    told = [(e.kind, e.evidence) for e in sink.events]
    assert ("log-failed", {"problem": "cannot write 'folder': No such file or directory"}) in told
    assert sum(e["rows"] for kind, e in told if kind == "log-lost") == 10
    assert sink.closed


def test_what_is_refused_or_broken_is_not_logged(tmp_path: Path) -> None:
    with hardening.Guard(policy(tmp_path, log="log"), "m", sink=RecordingSink()) as guard:
        for _ in range(3):
            with pytest.raises(ReleaseError):
                guard.harden({"p": np.full((1, 4), 0.7)}, inputs={"x": np.zeros((1, 2))})
    assert not (tmp_path / "log").exists()


# The policy

TEXT = """schema = 1
[outputs.p]
space = "simplex"
tiers.normal = [ {kind = "types", n = 10} ]
[outputs.language]
space = "labels"
[detect]
"""


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('log = ""', "detect.log: must name a file"),
        ('log = "log"\nlog_bytes = 0', "detect.log_bytes: must be at least 1, not 0"),
        ('output = "p"', "detect.output: means nothing without detect.log"),
        ('log = "log"\noutput = "language"', "detect.output: a log is of an output that has tiers; these have: p"),
        ('log = "log"\noutput = "q"', "detect.output: a log is of an output that has tiers; these have: p"),
        ("near = true", "detect.near: must be a table"),
        ("near = {span = 1.0}", "detect.near.input: missing"),
        ('near = {input = "x"}', "detect.near.span: missing"),
        ('near = {input = "x", span = 0.0}', "detect.near.span: must be a finite number above 0, not 0.0"),
        ('near = {input = "x", span = inf}', "detect.near.span: must be a finite number above 0, not inf"),
        ('near = {input = "x", span = 1, window = 0}', "detect.near.window: must be at least 1, not 0"),
        ('near = {input = "x", span = 1, rows = 0}', "detect.near.rows: must be at least 1, not 0"),
        ('near = {input = "x", span = 1, windows = 3}', "detect.near.windows: unknown key; did you mean 'window'?"),
    ],
)
def test_policies_that_are_wrong(line: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_policy(TEXT + line)
    assert said in str(caught.value)


def test_a_log_of_nothing_is_wrong() -> None:
    with pytest.raises(ConfigError, match=r"detect.output: .* these have: none"):
        Policy({"language": Output("labels")}, detect=Detect(log="log"))


def test_near_duplicates_that_speak_against_nobody_are_warned_of() -> None:
    said = parse_policy(TEXT + 'near = {input = "x", span = 1}').warnings
    assert ["detect.near" in s for s in said] == [True]
    assert not parse_policy(TEXT + 'near = {input = "x", span = 1}\nlog = "log"').warnings
