"""Honest clients and thieves of a real model: a perceptron that reads digits, asked about real and made-up images."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from sklearn.datasets import load_digits

from hardening import kernels
from hardening.audit.extraction import Student, Training, one_hot, softmax, train
from hardening.clients.evidence import log_evidence
from hardening.clients.log import Log
from hardening.kernels import accounts
from hardening.kernels.layout import SUMMARY
from hardening.pipeline import Pipeline, Program, Task
from hardening.transforms import Types

MOST = float(np.log2(10))


class Summaries(NamedTuple):
    """Rows ``(n, SUMMARY)`` as the kernel sums them up, and what each question is remembered by."""

    rows: np.ndarray
    keys: np.ndarray

    def take(self, index: Any) -> Summaries:
        return Summaries(self.rows[index], self.keys[index])


@functools.cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.data))
    return (data.data[order] / 16).astype(np.float32), data.target[order]


@functools.cache
def model() -> Student:
    x, y = digits()
    return train(x[:900], one_hot(np.eye(10)[y[:900]]), np.random.default_rng(1), Training((64,)))


def scores(x: np.ndarray) -> np.ndarray:
    return softmax(model().activations(x)[-1])


def summed_up(x: np.ndarray) -> Summaries:
    """What hardening notes down of these questions, through the program that would answer them."""
    p = np.ascontiguousarray(scores(x), np.float32)
    task = Task(
        Program(Pipeline("simplex", (Types(n=100),)), 10, None, "p", "digits"), p, len(p), np.zeros((1, 3), "u4")
    )
    assert task.run() == 0
    keys = np.array([hash(row.tobytes()) & 0xFFFFFFFF or 1 for row in np.asarray(x, np.float32)], np.uint32)
    return Summaries(np.ascontiguousarray(task.summary[:, : len(p)].T), keys)


def images(rng: np.random.Generator, count: int, pool: slice = slice(900, None)) -> tuple[np.ndarray, np.ndarray]:
    """Digits that the model was not trained on, as cameras differ: light, noise, half a pixel to one side."""
    x, y = (a[pool] for a in digits())
    chosen = rng.integers(len(x), size=count)
    out = x[chosen].reshape(-1, 8, 8)
    shift = rng.random((count, 1, 1)) * 0.5 * rng.integers(0, 2, (count, 1, 1))
    out = (1 - shift) * out + shift * np.roll(out, 1, axis=2)
    out = out * rng.uniform(0.8, 1.1, (count, 1, 1)) + rng.normal(0, 0.03, out.shape)
    return np.clip(out, 0, 1).reshape(-1, 64).astype(np.float32), y[chosen]


class Honest(NamedTuple):
    """A population of questions, with the classes that they are really of."""

    asked: Summaries
    kinds: np.ndarray

    def client(self, rng: np.random.Generator, count: int) -> Summaries:
        """One honest client: some classes much more than others; one in ten polls, asking most things again."""
        weights = rng.dirichlet(np.full(10, 2.0))[self.kinds]
        chosen = rng.choice(len(self.kinds), count, p=weights / weights.sum())
        asked = self.asked.take(chosen)
        # Drawn again from a finite population, a row stands for another question of its like.
        asked = Summaries(asked.rows, rng.integers(1, 2**32, count, np.uint32))
        if rng.random() < 0.1:
            again = np.maximum.accumulate(np.where(rng.random(count) < 0.2, np.arange(count), 0))
            asked = asked.take(again)
        return asked


@functools.cache
def honest(count: int = 20_000) -> Honest:
    x, kinds = images(np.random.default_rng(5), count)
    return Honest(summed_up(x), kinds)


def as_log(asked: Summaries, duplicate: np.ndarray | None = None) -> Log:
    entropy, label, cell, margin = asked.rows.T
    nearly = np.zeros(len(entropy), bool) if duplicate is None else duplicate
    return Log(entropy, margin, label.astype(np.int64), cell.astype(np.int64), asked.keys, nearly, MOST)


@functools.cache
def logs(clients: int, rows: int, seed: int = 7) -> Mapping[str, Log]:
    rng = np.random.default_rng(seed)
    return {f"client-{i}": as_log(honest().client(rng, rows)) for i in range(clients)}


def _uniform(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.random((count, 64)).astype(np.float32)


def _foreign(rng: np.random.Generator, count: int) -> np.ndarray:
    """Strokes like those of digits, which are none: quarters of four digits, each turned."""
    whole = np.zeros((count, 8, 8), np.float32)
    for i in range(4):
        part = np.rot90(images(rng, count)[0].reshape(-1, 8, 8), i + 1, axes=(1, 2))
        r, c = 4 * (i // 2), 4 * (i % 2)
        whole[:, r : r + 4, c : c + 4] = part[:, 2:6, 2:6]
    return whole.reshape(-1, 64)


def _jacobian(rng: np.random.Generator, count: int) -> np.ndarray:
    """Papernot et al. (2017): seeds, moved along the sign of the gradient of their class, again and again.

    The thief knows the model's own gradient: his substitute could not be better.
    """
    seeds = max(10, count // 8)
    rounds = [images(rng, seeds)[0]]
    (w, b), (v, _) = model().layers
    while sum(map(len, rounds)) < count:
        x = np.concatenate(rounds)
        label = scores(x).argmax(axis=1)
        active = (x @ w + b > 0).astype(np.float32)
        gradient = (active * v[:, label].T) @ w.T
        rounds.append(np.clip(x + 0.1 * np.sign(gradient), 0, 1).astype(np.float32))
    return np.concatenate(rounds)[:count]


def _diluted(rng: np.random.Generator, count: int) -> np.ndarray:
    half = np.concatenate([_uniform(rng, (count + 1) // 2), images(rng, count // 2)[0]])
    return half[rng.permutation(count)]


ATTACKS: Mapping[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "uniform": _uniform,
    "foreign": _foreign,
    "jacobian": _jacobian,
    "diluted": _diluted,
}


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
