"""Asking the bare model about real files, once; and a session, as an attacker does."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardening.errors import HardeningError
from hardening_onnx.demo import files

#: magika's only output, and rows a call.
OUTPUT = "target_label"
BATCH = 8

Answers = NDArray[np.float32]
#: Called with what is being done and the share of the whole that is behind.
Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Asked:
    """The files, and the bare model's answers to them."""

    corpus: files.Corpus
    pool: Answers
    held_out: Answers


def ask_files(bare: Any, seconds: float, seed: int, progress: Progress) -> Asked:
    """Collect files and ask the bare model, as many as fit into half of the time, at most 40 a second of it."""
    progress("choosing files of this machine", 0.02)
    corpus = files.collect(seed, int(40 * seconds), int(14 * seconds))
    if min(len(corpus.pool), len(corpus.held_out)) < 50:
        raise HardeningError(
            f"the demo found only {len(corpus.pool)} and {len(corpus.held_out)} usable files in "
            f"{', '.join(map(str, files.roots()))}; it needs 50 of each"
        )
    until = time.monotonic() + seconds / 2
    total = len(corpus.pool) + len(corpus.held_out)
    held_out = _answers(
        bare, corpus.held_out_inputs, lambda n: progress("asking the bare model", 0.05 + 0.45 * n / total)
    )
    before = len(held_out)
    pool = _answers(
        bare,
        corpus.pool_inputs,
        lambda n: progress("asking the bare model", 0.05 + 0.45 * (before + n) / total),
        lambda n: n >= 64 and time.monotonic() > until,
    )
    kept = corpus._replace(pool=corpus.pool[: len(pool)], pool_inputs=corpus.pool_inputs[: len(pool)])
    return Asked(kept, pool, held_out)


def _answers(
    session: Any, inputs: NDArray[Any], done: Callable[[int], None], enough: Callable[[int], bool] = lambda _: False
) -> Answers:
    out: list[Answers] = []
    for start in range(0, len(inputs), BATCH):
        if enough(start):
            break
        out.append(session.run([OUTPUT], {"bytes": inputs[start : start + BATCH]})[0])
        done(min(len(inputs), start + BATCH))
    return np.concatenate(out)


def asking(session: Any, output: str, feed: str, client: str) -> Callable[[NDArray[Any]], NDArray[Any]]:
    def ask(inputs: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(session.run([output], {feed: inputs}, client=client)[0])

    return ask
