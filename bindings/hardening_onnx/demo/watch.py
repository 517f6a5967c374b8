"""Alarms: a log of ordinary clients makes a baseline; others, and thieves, are held against it while they ask."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardening.clients.baseline import Baseline, calibrate
from hardening.clients.log import read_log, records
from hardening.config import parse_policy
from hardening.errors import Denied
from hardening.guard import Guard
from hardening.testing import RecordingSink
from hardening_onnx.demo import files
from hardening_onnx.demo.policy import TEXT
from hardening_onnx.demo.questions import OUTPUT, Answers, Asked

FALSE_ALARM, _WRITTEN = 1e-4, "1e-4"
BASELINE = "baseline.json"
#: What is added to the policy once there is a baseline.
ADDED = f"""\
[detect]
baseline = "{BASELINE}"
false_alarm = {_WRITTEN}

[respond]
suspicion = [ {{at = 1.0, tier = "suspect"}},
              {{at = 1.5, tier = "label"}},
              {{at = 2.0, deny = true}} ]
"""
#: Ordinary clients whose log makes and tests the baseline, and as many others as are judged by it.
LOGGED, JUDGED = 400, 60
#: What each asks at most: labels that come up too often, or too seldom, speak against a client after 127 questions.
QUESTIONS = 200
REAL = "real files only"
HALF = "half real files"

Inputs = NDArray[np.int32]


@dataclass(frozen=True)
class Watched:
    """What became of one client.

    Attributes:
        answers: how many questions each tier answered, in the order in which they did.
        suspicion: the highest that there was.
        flagged: questions after which it had reached 1, or None.
        refused: whether it ended by being refused.
    """

    client: str
    answers: Mapping[str, int]
    suspicion: float
    flagged: int | None
    refused: bool

    @property
    def questions(self) -> int:
        return sum(self.answers.values())


@dataclass(frozen=True)
class Alarms:
    """A baseline, and what it made of others: ordinary clients with other files, and thieves."""

    baseline: Baseline
    questions: int
    ordinary: tuple[Watched, ...]
    thieves: tuple[Watched, ...]


def alarms(bare: Any, logging: Guard, asked: Asked, root: Path, seed: int) -> Alarms:
    """Ordinary clients ask `QUESTIONS` each of the guard `logging`, and make a baseline, which is kept in `root`.

    Then a guard with `ADDED` in its policy answers others, one question at a time. Thieves may ask as many questions,
    but for the one with real files, who copied the model.
    """
    rng = np.random.default_rng([seed, 6])
    inputs = np.concatenate([asked.corpus.pool_inputs, asked.corpus.held_out_inputs])
    scores = np.concatenate([asked.pool, asked.held_out])
    kinds = [path.suffix.lower() for path in (*asked.corpus.pool, *asked.corpus.held_out)]
    lines: list[str] = []
    for i in range(LOGGED):
        chosen = ordinary_files(kinds, QUESTIONS, rng)
        lines += logged(logging, f"logged {i + 1}", scores[chosen], inputs[chosen])
    baseline = calibrate(read_log(lines), OUTPUT, classes=scores.shape[1])
    (root / BASELINE).write_text(baseline.to_json(), "utf-8")
    made = {kind: files.synthetic(kind, asked.corpus.pool_inputs, QUESTIONS, rng) for kind in files.SYNTHETIC}
    made[HALF] = np.where(rng.random((QUESTIONS, 1)) < 0.5, made[files.SPLICED], rng.permutation(inputs)[:QUESTIONS])
    with Guard(parse_policy(TEXT.format(output=OUTPUT) + ADDED, root), "magika", sink=RecordingSink()) as guard:
        ordinary = []
        for i in range(JUDGED):
            chosen = ordinary_files(kinds, QUESTIONS, rng)
            ordinary.append(follow(guard, f"ordinary {i + 1}", inputs[chosen], scores[chosen].__getitem__))
        thieves = [follow(guard, kind, asks, _answering(bare, asks)) for kind, asks in made.items()]
        thieves.append(follow(guard, REAL, asked.corpus.pool_inputs, asked.pool.__getitem__))
    return Alarms(baseline, QUESTIONS, tuple(ordinary), tuple(thieves))


def ordinary_files(kinds: Sequence[str], count: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Indices of the files that one ordinary client sends: `count` draws among a random half of the `kinds` there are.

    Clients differ, as people do; a baseline of equal clients would be too narrow.
    """
    names = np.array(sorted(set(kinds)))
    own = rng.permutation(names)[: max(1, len(names) // 2)]
    available = np.flatnonzero(np.isin(np.asarray(kinds), own))
    return np.asarray(rng.choice(available, count, replace=len(available) < count))


def logged(guard: Guard, client: str, scores: Answers, inputs: Inputs) -> Iterator[str]:
    """Lines of a log of what `client` asks; `scores` are the bare model's answers."""
    rows = len(inputs)
    decision = guard.admit(client, rows)
    answer = guard.finish(decision, guard.bind({OUTPUT: scores.copy()}, {"bytes": inputs}, rows))
    for _, task, _ in answer.entries:
        if task is not None:
            yield from records(client, *task.asked())


def _answering(bare: Any, inputs: Inputs) -> Callable[[slice], Answers]:
    return lambda part: np.asarray(bare.run([OUTPUT], {"bytes": inputs[part]})[0])


def follow(guard: Guard, client: str, inputs: Inputs, answers: Callable[[slice], Answers]) -> Watched:
    """Ask question after question as `client`, until it is refused; `answers` are the bare model's."""
    told = Counter[str]()
    highest, flagged, now = 0.0, None, guard.standing(client)
    for i in range(len(inputs)):
        one = slice(i, i + 1)
        try:
            guard.harden({OUTPUT: answers(one)}, client=client, inputs={"bytes": inputs[one]})
        except Denied:
            return Watched(client, dict(told), highest, flagged, refused=True)
        told[now.tier] += 1
        now = guard.standing(client)
        highest = max(highest, now.suspicion)
        if flagged is None and now.suspicion >= 1:
            flagged = i + 1
    return Watched(client, dict(told), highest, flagged, refused=False)
