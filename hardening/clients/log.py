"""What a client asked, as a log keeps it: nothing of inputs or scores but the few numbers that evidence is made of.

One JSON object a line: ``{"client": "alice", "entropy": 0.25, "label": 3, "cell": 1025, "margin": 0.9,
"question": 3735928559, "duplicate": false}`` - entropy (bits) and margin of the clean row, the released label, the
cell of the score space, what tells the question from others (0: not known), and whether it is nearly one asked before.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardening.clients.evidence import Rows
from hardening.errors import ConfigError
from hardening.kernels.layout import HISTOGRAM_BINS, LABEL_BINS, REMEMBERED


@dataclass(frozen=True)
class Log:
    """The rows of one client, in the order in which they were asked; arrays of one length.

    Attributes:
        entropy, margin: float64, of the clean rows. label, cell: int64.
        question: uint32, what the question is remembered by; 0 is not known: the answer then stands for it.
        duplicate: bool.
        most: largest possible entropy, bits.
    """

    entropy: NDArray[np.float64]
    margin: NDArray[np.float64]
    label: NDArray[np.int64]
    cell: NDArray[np.int64]
    question: NDArray[np.uint32]
    duplicate: NDArray[np.bool_]
    most: float

    def keys(self) -> NDArray[np.uint32]:
        """What each question is remembered by, uint32, never 0."""
        with np.errstate(over="ignore"):
            mixed = (self.entropy * 2.0**40).astype(np.int64) * 31 + (self.margin * 2.0**40).astype(np.int64)
            mixed = (mixed * 4097 + self.cell) * 1048583 + self.label
            answers = (mixed.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)
        return np.maximum(np.where(self.question > 0, self.question, answers), 1).astype(np.uint32)

    def firsts(self) -> Rows:
        """The rows asked for the first time, as far as a client's `REMEMBERED` last different questions show."""
        keys, n = self.keys(), len(self.label)
        bins = self.label % LABEL_BINS
        _, first, kind = np.unique(keys, return_index=True, return_inverse=True)
        is_first = np.zeros(n, np.bool_)
        is_first[first] = True
        latest = np.full(len(first), -1)
        for i in np.flatnonzero(np.bincount(kind)[kind] > 1):  # others were asked but once
            if not is_first[i]:
                since = latest[kind[i]] + 1
                is_first[i] = i - since >= REMEMBERED and len(set(kind[since:i].tolist())) >= REMEMBERED
            latest[kind[i]] = i
        asked = np.cumsum(np.eye(LABEL_BINS, dtype=np.int64)[bins], axis=0)
        same = (asked[np.arange(n), bins] - 1) / np.maximum(np.arange(n), 1)
        new = np.zeros(n, np.bool_)
        new[np.unique(self.cell, return_index=True)[1]] = True
        index = np.flatnonzero(is_first)
        return Rows(
            self.entropy[index], self.margin[index], self.label[index], same[index], new[index], self.duplicate[index]
        )

    def histogram(self) -> NDArray[np.int64]:
        """All rows by entropy, in eighths of the largest possible."""
        scale = HISTOGRAM_BINS / self.most if self.most > 0 else 0.0
        bins = np.minimum((self.entropy * scale).astype(np.int64), HISTOGRAM_BINS - 1)
        return np.bincount(bins, minlength=HISTOGRAM_BINS)


def records(
    client: str,
    summary: NDArray[np.float64],
    questions: NDArray[np.uint32] | None = None,
    duplicates: NDArray[Any] | None = None,
) -> Iterator[str]:
    """Lines of a log for an answer's rows.

    Args:
        summary: float64 ``(SUMMARY, n)``, what the kernel found (`Task.summary`, without the padding).
        questions: uint32 ``(n,)``, the first words of the nonces, where these name questions.
        duplicates: ``(n,)``, where that is known.
    """
    for i, (entropy, label, cell, margin) in enumerate(summary.T.tolist()):
        yield json.dumps(
            {
                "client": client,
                "entropy": entropy,
                "label": int(label),
                "cell": int(cell),
                "margin": margin,
                "question": 0 if questions is None else int(questions[i]),
                "duplicate": bool(duplicates is not None and duplicates[i]),
            }
        )


_FIELDS = {
    "client": (str, "text"),
    "entropy": (float, "a number that is not negative"),
    "label": (int, "a whole number that is not negative"),
    "cell": (int, "a whole number that is not negative"),
    "margin": (float, "a number that is not negative"),
    "question": (int, "a whole number below 2**32"),
    "duplicate": (bool, "true or false"),
}
_OPTIONAL: dict[str, Any] = {"question": 0, "duplicate": False}


def _record(line: str, where: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ConfigError(where, f"must be a JSON object with {', '.join(_FIELDS)}")
    if unknown := sorted(found.keys() - _FIELDS.keys()):
        raise ConfigError(f"{where}.{unknown[0]}", f"unknown key; known: {', '.join(_FIELDS)}")
    record = _OPTIONAL | found
    for name, (kind, right) in _FIELDS.items():
        value: Any = record.get(name)
        fits = isinstance(value, (int, float) if kind is float else kind) and (kind is bool) == isinstance(value, bool)
        if fits and kind in (int, float):
            fits = math.isfinite(value) and 0 <= value < 2**32
        if not fits:
            raise ConfigError(f"{where}.{name}", f"must be {right}" if name in record else f"is missing: {right}")
    return record


def read_log(lines: Iterable[str], most: float | None = None) -> dict[str, Log]:
    """What each client of a log asked.

    Args:
        lines: as `records` writes them; empty ones are passed over.
        most: largest possible entropy, bits; by default that of as many classes as the log has labels.

    Raises ConfigError, naming the line and what would be right.
    """
    rows: dict[str, list[dict[str, Any]]] = {}
    for number, line in enumerate(lines, 1):
        if line.strip():
            record = _record(line, f"line {number}")
            rows.setdefault(record["client"], []).append(record)
    if most is None:
        labels = max((r["label"] for own in rows.values() for r in own), default=0) + 1
        most = math.log2(labels)
        highest = max((r["entropy"] for own in rows.values() for r in own), default=0.0)
        most = max(most, highest)
    return {client: _log(own, most) for client, own in rows.items()}


def _log(own: list[dict[str, Any]], most: float) -> Log:
    def column(name: str, dtype: Any) -> NDArray[Any]:
        return np.array([r[name] for r in own], dtype)

    return Log(
        column("entropy", np.float64),
        column("margin", np.float64),
        column("label", np.int64),
        column("cell", np.int64),
        column("question", np.uint32),
        column("duplicate", np.bool_),
        most,
    )
