"""The whole demo: ask a real model about real files, harden its answers, attack both, and report."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

import hardening_onnx
from hardening.audit.extraction import Extraction
from hardening.types import Guarantee
from hardening_onnx.demo import files, models, thief, watch
from hardening_onnx.demo.measure import Overhead, Repeats, averaging_error, overhead
from hardening_onnx.demo.policy import TEXT, noise_only, policy
from hardening_onnx.demo.questions import OUTPUT, Answers, Asked, Progress, ask_files, asking
from hardening_onnx.session import HardenedSession

TIERS = ("normal", "suspect", "label")
REPEATS = (1, 4, 16, 64)


@dataclass(frozen=True)
class Example:
    """One file and what it is told to be: (class, score) pairs, best first, by tier."""

    file: str
    folder: str
    answers: Mapping[str, tuple[tuple[str, float], ...]]


@dataclass(frozen=True)
class Tier:
    """What a tier promises for one answer, and what an honest user pays for it.

    Attributes:
        l1: mean L1 distance between hardened and bare scores on held-out files.
        kept: share of held-out files whose best class is the bare model's.
    """

    promise: Guarantee
    l1: float
    kept: float


@dataclass(frozen=True)
class Story:
    """Everything the demo found; plain numbers."""

    seconds: float
    seed: int
    model: str
    classes: int
    runtime: str
    policy: str
    folders: tuple[str, ...]
    asked: int
    held_out: int
    raw_bits: float
    examples: tuple[Example, ...]
    tiers: Mapping[str, Tier]
    overheads: tuple[Overhead, ...]
    copies: Mapping[str, tuple[Extraction, ...]]
    solutions: Mapping[str, tuple[Extraction, ...]]
    repeats: Repeats
    alarms: watch.Alarms
    took: float


def tell(seconds: float, seed: int, progress: Progress) -> Story:
    """Run it all in about `seconds`, less on a fast machine, with one `seed` for every random choice.

    Raises ModelError without magika, HardeningError on a machine with too few files.
    """
    start = time.monotonic()
    magika = models.find_magika()
    with tempfile.TemporaryDirectory(prefix="hardening-demo-") as folder:
        root = Path(folder)
        progress("loading the model", 0.0)
        bare = onnxruntime.InferenceSession(str(magika.path), providers=["CPUExecutionProvider"])
        asked = ask_files(bare, seconds, seed, progress)
        progress("hardening the answers in each tier (compiles once)", 0.5)
        sessions = {tier: hardening_onnx.wrap(bare, policy(OUTPUT, root, tier)) for tier in TIERS}
        hardened = {tier: _harden(s, asked) for tier, s in sessions.items()}
        tiers = {tier: _tier(s, hardened[tier][1], asked.held_out) for tier, s in sessions.items()}
        examples = _examples(asked, sessions, magika.classes, bare)
        progress("timing bare and hardened calls in turn", 0.6)
        overheads = _overheads(bare, sessions["normal"], asked.corpus, root, seconds, seed)
        progress("training copies of the model on its answers", 0.68)
        copies = _copies(asked, hardened, seed, progress)
        progress("solving a softmax regression from its scores", 0.86)
        solutions = _solutions(root, seed)
        progress("repeating questions", 0.88)
        repeats = _repeats(root, seed)
        progress("watching what clients ask", 0.9)
        alarms = watch.alarms(bare, sessions["normal"].guard, asked, root, seed)
        progress("done", 1.0)
        return Story(
            seconds=seconds,
            seed=seed,
            model=f"magika {magika.version}",
            classes=len(magika.classes),
            runtime=f"onnxruntime {onnxruntime.__version__}",
            policy=TEXT.format(output=OUTPUT),
            folders=tuple(map(str, files.roots())),
            asked=len(asked.pool),
            held_out=len(asked.held_out),
            raw_bits=8.0 * asked.pool.itemsize * len(magika.classes),
            examples=examples,
            tiers=tiers,
            overheads=overheads,
            copies=copies,
            solutions=solutions,
            repeats=repeats,
            alarms=alarms,
            took=time.monotonic() - start,
        )


def _harden(session: HardenedSession, asked: Asked) -> tuple[Answers, Answers]:
    """What the session's guard makes of the bare answers, which are not computed again for each tier."""
    guard = session.guard
    questions = ((asked.pool, asked.corpus.pool_inputs), (asked.held_out, asked.corpus.held_out_inputs))
    pool, held_out = (
        guard.harden({OUTPUT: scores}, client="the demo", inputs={"bytes": inputs})[OUTPUT]
        for scores, inputs in questions
    )
    return pool, held_out


def _tier(session: HardenedSession, hardened: Answers, clean: Answers) -> Tier:
    chosen = session.guard.policy
    promise = chosen.pipeline(OUTPUT, chosen.tiers[0]).guarantee(clean.shape[1], clean.itemsize)
    kept = float((hardened.argmax(axis=1) == clean.argmax(axis=1)).mean())
    return Tier(promise, float(np.abs(hardened - clean).sum(axis=1).mean()), kept)


def _examples(
    asked: Asked, sessions: Mapping[str, HardenedSession], classes: tuple[str, ...], bare: Any
) -> tuple[Example, ...]:
    """Files of different kinds, from those the model is sure of to those it is not, asked through the sessions."""
    best = asked.held_out.max(axis=1)
    picked: list[int] = []
    for sure in (0.99, 0.9, 0.75, 0.6, 0.45):
        kinds = {asked.corpus.held_out[i].suffix for i in picked}
        for i in np.argsort(np.abs(best - sure), kind="stable"):
            path = asked.corpus.held_out[i]
            if path.suffix and path.suffix not in kinds and len(path.name) <= 22 and i not in picked:
                picked.append(int(i))
                break
    named = {thief.BARE: lambda x: bare.run([OUTPUT], {"bytes": x})[0]} | {
        tier: asking(session, OUTPUT, "bytes", "a visitor") for tier, session in sessions.items()
    }
    out = []
    for i in picked:
        x = asked.corpus.held_out_inputs[i : i + 1]
        answers = {}
        for name, ask in named.items():
            row = ask(x)[0]
            top = np.argsort(-row, kind="stable")[:3]
            answers[name] = tuple((classes[j], float(row[j])) for j in top if row[j] >= 0.0005)
        path = asked.corpus.held_out[i]
        out.append(Example(path.name, str(path.parent), answers))
    return tuple(out)


def _overheads(
    bare: Any, hardened: HardenedSession, corpus: files.Corpus, root: Path, seconds: float, seed: int
) -> tuple[Overhead, ...]:
    rng = np.random.default_rng([seed, 1])
    small = onnxruntime.InferenceSession(models.perceptron(rng), providers=["CPUExecutionProvider"])
    wrapped = hardening_onnx.wrap(small, policy("p", root))
    return (
        overhead(
            "magika",
            lambda x: bare.run([OUTPUT], {"bytes": x}),
            lambda x: hardened.run([OUTPUT], {"bytes": x}, client="a visitor"),
            np.split(corpus.pool_inputs, len(corpus.pool_inputs)),
            max(20, int(4 * seconds)),
        ),
        overhead(
            "tiny perceptron",
            lambda x: small.run(["p"], {"x": x}),
            lambda x: wrapped.run(["p"], {"x": x}, client="a visitor"),
            np.split(rng.normal(size=(2000, models.INPUTS)).astype(np.float32), 2000),
            max(200, int(100 * seconds)),
        ),
    )


def _copies(
    asked: Asked, hardened: Mapping[str, tuple[Answers, Answers]], seed: int, progress: Progress
) -> Mapping[str, tuple[Extraction, ...]]:
    features, held_out = thief.compress(
        files.features(asked.corpus.pool_inputs),
        files.features(asked.corpus.held_out_inputs),
        np.random.default_rng([seed, 2]),
    )
    answers = {thief.BARE: asked.pool} | {tier: pool for tier, (pool, _) in hardened.items()}
    size = len(asked.pool)
    budgets = sorted({n for n in (50, 200, 800) if n < size} | {size})
    return thief.copies(
        answers,
        features,
        held_out,
        asked.held_out.argmax(axis=1),
        budgets,
        seed,
        lambda share: progress("training copies of the model on its answers", 0.68 + 0.18 * share),
    )


def _solutions(root: Path, seed: int) -> Mapping[str, tuple[Extraction, ...]]:
    bare = onnxruntime.InferenceSession(
        models.regression(np.random.default_rng([seed, 3])), providers=["CPUExecutionProvider"]
    )
    queries: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
        thief.BARE: lambda x: np.asarray(bare.run(["p"], {"x": x})[0])
    }
    for tier in TIERS:
        queries[tier] = asking(hardening_onnx.wrap(bare, policy("p", root, tier)), "p", "x", "a thief")
    return thief.solutions(queries, models.INPUTS, (20, 100, 500), seed)


def _repeats(root: Path, seed: int) -> Repeats:
    """On questions to which every class is a possible answer, so that nothing but noise stands before the scores."""
    rng = np.random.default_rng([seed, 4])
    bare = onnxruntime.InferenceSession(models.perceptron(rng), providers=["CPUExecutionProvider"])
    questions = (0.2 * rng.normal(size=(200, models.INPUTS))).astype(np.float32)
    clean = bare.run(["p"], {"x": questions})[0]
    errors = {
        key: averaging_error(
            asking(hardening_onnx.wrap(bare, noise_only("p", root, key)), "p", "x", "a repeater"),
            clean,
            questions,
            REPEATS,
        )
        for key in ("input", "fresh")
    }
    return Repeats(REPEATS, errors["input"], errors["fresh"])
