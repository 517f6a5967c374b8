"""Honest clients and thieves of real models: perceptrons of digits and of a table of measurements."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from sklearn.datasets import load_breast_cancer, load_digits

from hardening import kernels
from hardening.audit.extraction import Student, Training, one_hot, softmax, train
from hardening.clients import Baseline
from hardening.clients.baseline import calibrate
from hardening.clients.evidence import log_evidence
from hardening.clients.log import Log
from hardening.kernels import accounts
from hardening.kernels.layout import SUMMARY
from hardening.pipeline import Pipeline
from hardening.program import Program, Task
from hardening.transforms import Types

MOST = float(np.log2(10))
#: What honest clients do.
HABITS = ("browses", "repeats", "polls", "batches")


class Summaries(NamedTuple):
    """Rows ``(n, SUMMARY)`` as the kernel sums them up, and what each question is remembered by."""

    rows: np.ndarray
    keys: np.ndarray

    def take(self, index: Any) -> Summaries:
        return Summaries(self.rows[index], self.keys[index])


def summed_up(x: np.ndarray, scores: np.ndarray) -> Summaries:
    """What hardening notes down of questions `x`, through the program that would answer them."""
    p = np.ascontiguousarray(scores, np.float32)
    program = Program(Pipeline("simplex", (Types(n=100),)), p.shape[1], None, "p", "model")
    task = Task(program, p, len(p), np.zeros((1, 3), "u4"))
    assert task.run() == 0
    keys = np.array([zlib.crc32(row.tobytes()) or 1 for row in np.asarray(x, np.float32)], np.uint32)
    return Summaries(np.ascontiguousarray(task.summary[:, : len(p)].T), keys)


class Honest(NamedTuple):
    """A population of questions, with the classes that they are really of."""

    asked: Summaries
    kinds: np.ndarray

    def client(self, rng: np.random.Generator, count: int, habit: str | None = None) -> Summaries:
        """One honest client: some classes much more than others, each client to a degree and with a habit of its own.

        Of `HABITS`, seven in ten clients browse. The others ask most things again and again, poll one hard question
        between others, or send batches of one class after another.
        """
        skew = np.exp(rng.uniform(np.log(0.5), np.log(10)))
        weights = rng.dirichlet(np.full(int(self.kinds.max()) + 1, skew))[self.kinds]
        habit = habit or str(rng.choice(HABITS, p=(0.7, 0.1, 0.1, 0.1)))
        chosen = rng.choice(len(self.kinds), count, p=weights / weights.sum())
        if habit == "batches":
            batch = np.searchsorted(np.cumsum(rng.integers(20, 200, count)), np.arange(count), side="right")
            order = rng.permutation(int(self.kinds.max()) + 1)[self.kinds[chosen]]
            chosen = chosen[np.lexsort((order, batch))]
        # Drawn again from a finite population, a row stands for another question of its like.
        asked = Summaries(self.asked.rows[chosen], rng.integers(1, 2**32, count, np.uint32))
        if habit == "repeats":
            again = np.maximum.accumulate(np.where(rng.random(count) < 0.2, np.arange(count), 0))
            asked = asked.take(again)
        if habit == "polls":
            hard = rng.choice(np.flatnonzero(self.asked.rows[:, 0] > np.quantile(self.asked.rows[:, 0], 0.95)))
            polls = rng.random(count) < rng.uniform(0.2, 0.9)
            asked.rows[polls], asked.keys[polls] = self.asked.rows[hard], 7
        return asked


class World:
    """A model of real data, those who use it, and those who would have it.

    `vary` makes new rows of the same kind out of real ones, `foreign` natural rows of another, `augment` such as one
    would add to too small a training set.
    """

    def __init__(self, x: np.ndarray, y: np.ndarray, known: int, vary: Vary, foreign: Vary, augment: Vary) -> None:
        self.x, self.y, self.known, self._vary = x, y, known, vary
        self._new = {"foreign": foreign, "augmented": augment}
        self._logs: dict[tuple[int, int, int], Mapping[str, Log]] = {}

    @functools.cached_property
    def model(self) -> Student:
        classes = int(self.y.max()) + 1
        training = one_hot(np.eye(classes)[self.y[: self.known]])
        return train(self.x[: self.known], training, np.random.default_rng(1), Training((64,)))

    def scores(self, x: np.ndarray) -> np.ndarray:
        return softmax(self.model.activations(x)[-1])

    def summed_up(self, x: np.ndarray) -> Summaries:
        return summed_up(x, self.scores(x))

    def draw(self, rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows such as the model was not trained on, and what they are."""
        x, y = self.x[self.known :], self.y[self.known :]
        chosen = rng.integers(len(x), size=count)
        return self._vary(rng, x, chosen, y).astype(np.float32), y[chosen]

    @functools.cached_property
    def honest(self) -> Honest:
        x, kinds = self.draw(np.random.default_rng(5), 20_000)
        return Honest(self.summed_up(x), kinds)

    def logs(self, clients: int, rows: int, seed: int = 7) -> Mapping[str, Log]:
        """What so many honest clients asked."""
        if (clients, rows, seed) not in self._logs:
            rng = np.random.default_rng(seed)
            made = {f"client-{i}": as_log(self.honest.client(rng, rows)) for i in range(clients)}
            self._logs[clients, rows, seed] = made
        return self._logs[clients, rows, seed]

    @functools.cached_property
    def baseline(self) -> Baseline:
        return calibrate(self.logs(400, 600), "p")

    @functools.cached_property
    def thorough(self) -> Baseline:
        """A baseline that enough clients make for one window in a thousand to be known."""
        return calibrate(self.logs(6000, 700), "p")

    def ask(self, attack: str, rng: np.random.Generator, count: int) -> np.ndarray:
        """What a thief asks: one of `ATTACKS`, or "noisy", which hardly differs from what he has."""
        if attack == "uniform":
            return rng.random((count, self.x.shape[1])).astype(np.float32)
        if attack in self._new:
            x, y = self.x[self.known :], self.y[self.known :]
            return self._new[attack](rng, x, rng.integers(len(x), size=count), y).astype(np.float32)
        if attack == "jacobian":
            return self._jacobian(rng, count)
        if attack == "between":
            # Zhang et al. (2018), "mixup", as far from either row as it takes to be another question.
            way = rng.uniform(0.3, 0.7, (count, 1))
            return ((1 - way) * self.draw(rng, count)[0] + way * self.draw(rng, count)[0]).astype(np.float32)
        if attack == "noisy":
            x, _ = self.draw(rng, count)
            return np.clip(x + rng.normal(0, 0.05, x.shape), 0, 1).astype(np.float32)
        return self.dilute(self.ask("uniform", rng, (count + 1) // 2), rng, count)

    def dilute(self, asked: np.ndarray, rng: np.random.Generator, count: int) -> np.ndarray:
        """The same hidden among honest questions, so that there are `count`."""
        return rng.permutation(np.concatenate([asked, self.draw(rng, count - len(asked))[0]]))

    def _jacobian(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Papernot et al. (2017): seeds, moved along the sign of the gradient of their class, again and again.

        The thief knows the model's own gradient: his substitute could not be better.
        """
        rounds = [self.draw(rng, max(10, count // 8))[0]]
        (w, b), (v, _) = self.model.layers
        while sum(map(len, rounds)) < count:
            x = np.concatenate(rounds)
            label = self.scores(x).argmax(axis=1)
            active = (x @ w + b > 0).astype(np.float32)
            step = rng.uniform(0.05, 0.15, (len(x), 1))  # from where he asked before, and not to where he asked before
            rounds.append(np.clip(x + step * np.sign((active * v[:, label].T) @ w.T), 0, 1).astype(np.float32))
        return np.concatenate(rounds)[:count]


ATTACKS = ("uniform", "foreign", "jacobian", "between", "augmented", "diluted")
#: New rows from real ones ``x[chosen]`` of classes `y`.
Vary = Callable[[np.random.Generator, np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def _as_cameras_differ(rng: np.random.Generator, x: np.ndarray, chosen: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Light, noise, half a pixel to one side."""
    out, count = x[chosen].reshape(-1, 8, 8), len(chosen)
    shift = rng.random((count, 1, 1)) * 0.5 * rng.integers(0, 2, (count, 1, 1))
    out = (1 - shift) * out + shift * np.roll(out, 1, axis=2)
    out = out * rng.uniform(0.8, 1.1, (count, 1, 1)) + rng.normal(0, 0.03, out.shape)
    return np.clip(out, 0, 1).reshape(-1, 64)


def _quarters(rng: np.random.Generator, x: np.ndarray, chosen: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Strokes like those of digits, which are none: quarters of four digits, each turned."""
    whole = np.zeros((len(chosen), 8, 8))
    for i in range(4):
        other = _as_cameras_differ(rng, x, rng.permutation(chosen), y)
        part = np.rot90(other.reshape(-1, 8, 8), i + 1, axes=(1, 2))
        r, c = 4 * (i // 2), 4 * (i % 2)
        whole[:, r : r + 4, c : c + 4] = part[:, 2:6, 2:6]
    return whole.reshape(-1, 64)


def _by_a_pixel(rng: np.random.Generator, x: np.ndarray, chosen: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Moved by a pixel, or not at all, in either direction, and a little brighter or darker."""
    grid, step = np.arange(8), rng.integers(-1, 2, (2, len(chosen), 1))
    rows, columns = (grid + step[0]) % 8, (grid + step[1]) % 8
    image = x[chosen].reshape(-1, 8, 8)[np.arange(len(chosen))[:, None, None], rows[:, :, None], columns[:, None, :]]
    return np.clip(image.reshape(-1, 64) * rng.uniform(0.9, 1.1, (len(chosen), 1)), 0, 1)


@functools.cache
def digits() -> World:
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.data))
    return World(
        (data.data[order] / 16).astype("f4"), data.target[order], 900, _as_cameras_differ, _quarters, _by_a_pixel
    )


def _between(rng: np.random.Generator, x: np.ndarray, chosen: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Part of the way to another row of the same class."""
    out = np.empty((len(chosen), x.shape[1]))
    for kind in np.unique(y):
        own, pool = np.flatnonzero(y[chosen] == kind), np.flatnonzero(y == kind)
        way = rng.random((len(own), 1)) * 0.5
        out[own] = (1 - way) * x[chosen[own]] + way * x[rng.choice(pool, len(own))]
    return np.clip(out + rng.normal(0, 0.01, out.shape), 0, 1)


def _columns_apart(rng: np.random.Generator, x: np.ndarray, chosen: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Every column as it should be, each of another row: public marginals, nobody's record."""
    return np.stack([rng.permutation(column) for column in x[chosen].T], axis=1)


def _columns_corrupted(rng: np.random.Generator, x: np.ndarray, chosen: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Six columns in ten of other rows, each of another (Bahri et al. 2022, "SCARF")."""
    corrupted = rng.random((len(chosen), x.shape[1])) < 0.6
    return np.where(corrupted, _columns_apart(rng, x, rng.integers(len(x), size=len(chosen)), y), x[chosen])


@functools.cache
def cells() -> World:
    """A table: thirty measurements of cell nuclei, benign or malignant (Street et al. 1993)."""
    data = load_breast_cancer()
    order = np.random.default_rng(0).permutation(len(data.data))
    ranks = data.data[order].argsort(axis=0).argsort(axis=0) / len(data.data)
    return World(ranks.astype("f4"), data.target[order], 280, _between, _columns_apart, _columns_corrupted)


def as_log(asked: Summaries, duplicate: np.ndarray | None = None) -> Log:
    entropy, label, cell, margin = asked.rows.T
    nearly = np.zeros(len(entropy), bool) if duplicate is None else duplicate
    return Log(entropy, margin, label.astype(np.int64), cell.astype(np.int64), asked.keys, nearly, MOST)


def fold(clients: Any, baseline: Any, slots: np.ndarray, asked: Summaries, nearly: np.ndarray | None = None) -> None:
    """Enter rows into a table, in order."""
    run = kernels.entry(
        accounts.fold, "int64", "int64", "float64", "int64[::1]", "uint32[::1]", "float64[:, ::1]", "uint8[::1]"
    )
    numbers = None if baseline is None else baseline.numbers()
    assert asked.rows.shape[1] == SUMMARY
    run(
        clients._address,
        0 if numbers is None else int(numbers.ctypes.data),
        MOST,
        np.ascontiguousarray(slots, np.int64),
        np.ascontiguousarray(asked.keys),
        np.ascontiguousarray(asked.rows),
        np.zeros(len(slots), np.uint8) if nearly is None else np.ascontiguousarray(nearly, np.uint8),
    )


def together(parts: list[Summaries]) -> Summaries:
    return Summaries(np.concatenate([p.rows for p in parts]), np.concatenate([p.keys for p in parts]))


def course(clients: Any, baseline: Any, each: list[Summaries]) -> np.ndarray:
    """Evidence ``(rows, clients)`` after each row, all clients asking as many, in turn."""
    count, length = len(each), len(each[0].keys)
    rows, keys = (np.stack([getattr(e, name) for e in each], axis=1) for name in ("rows", "keys"))
    out, slots = np.zeros((length, count)), np.arange(count)
    for t in range(length):
        fold(clients, baseline, slots, Summaries(rows[t], keys[t]))
        found = clients._rows[:count]
        out[t] = log_evidence(found["wealth"], found["restarts"])
    return out
