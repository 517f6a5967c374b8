"""A small convolutional network that reads real digits, those who ask it, and somebody who watches them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import hardening_onnx
import numpy as np
from sklearn.datasets import load_digits

from hardening.clients import Clients
from hardening.clients.baseline import calibrate
from hardening.clients.fingerprints import Fingerprints
from hardening.config import Output, Policy
from hardening.transforms import Types
from tests.attacks import cnn
from tests.clients import crowd

ALPHA = 1e-3


class Pictures:
    """Pictures float32 ``(n, side, side)`` in [0, 1] of classes `y`; the network is trained on the first `known`.

    `window`: entries that fingerprints hash together. The other arguments are those of `cnn.train`.
    """

    def __init__(
        self, x: np.ndarray, y: np.ndarray, known: int, window: int, filters: int, size: int, steps: int
    ) -> None:
        self.window, self.side = window, x.shape[1]
        self.x, self.y = x[known:], y[known:]
        self.model = cnn.exported(cnn.train(x[:known], y[:known], filters, size, steps), self.side)
        self.bare = cnn.bare(self.model)
        self.labels = self.scores(self.x).argmax(axis=1)

    @property
    def accuracy(self) -> float:
        """On pictures that the network was not trained on."""
        return float((self.labels == self.y).mean())

    def scores(self, x: np.ndarray) -> np.ndarray:
        return asking(self.bare)(x)

    def hardened(self, root: Path) -> Any:
        """A session that rounds scores to hundredths."""
        return hardening_onnx.wrap(self.model, Policy({"p": Output("simplex", {"normal": (Types(n=100),)})}, root=root))

    def targets(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Different pictures that are read rightly."""
        return rng.choice(np.flatnonzero(self.labels == self.y), count, replace=False)

    def browsing(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Pictures that nobody changed: some are asked by many clients."""
        return self.x[rng.choice(len(self.x), count, replace=False)]

    def streaming(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """A camera: ten to thirty frames of one thing, moved by up to half a pixel, lighter or darker, with noise."""
        ends = np.cumsum(rng.integers(10, 31, count))
        frames = self.x[rng.choice(len(self.x), count, replace=False)][np.searchsorted(ends, np.arange(count), "right")]
        shift = rng.uniform(0, 0.5, (count, 1, 1))
        frames = (1 - shift) * frames + shift * np.roll(frames, 1, axis=2)
        frames = frames * rng.uniform(0.9, 1.1, (count, 1, 1)) + rng.normal(0, 0.02, frames.shape)
        return np.clip(frames, 0, 1).astype(np.float32)


def asking(session: Any, **names: str) -> Any:
    """What can be done by somebody who reaches this session: scores of pictures ``(n, [1,] side, side)``."""
    side = session.get_inputs()[0].shape[-1]
    return lambda x: session.run(["p"], {"x": np.asarray(x, np.float32).reshape(-1, 1, side, side)}, **names)[0]


@functools.cache
def digits() -> Pictures:
    """Eight by eight, 897 of them held out (Alpaydin & Kaynak 1998)."""
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.images))
    x = (data.images[order] / 16).astype(np.float32)
    return Pictures(x, data.target[order], 900, window=8, filters=32, size=3, steps=1500)


class Seen(NamedTuple):
    """Questions until a client was flagged, None if it never was; shares of near duplicates; who had asked those."""

    after: int | None
    duplicates: float
    owners: np.ndarray


class Watch:
    """An index that has seen ordinary traffic, and a baseline with what it found in it.

    A share of those who made the traffic, `streaming`, are cameras.
    """

    def __init__(self, of: Pictures, streaming: float = 0.0) -> None:
        self.of, self.index, logs = of, Fingerprints(b"secret", 1.0, of.window), {}
        rng = np.random.default_rng(1)
        for i in range(300):
            x = of.streaming(rng, 150) if i < 300 * streaming else of.browsing(rng, 150)
            logs[f"client-{i}"] = crowd.as_log(self._summed_up(x), self.index.seen(x, i).duplicate > 0)
        self.baseline = calibrate(logs, "p")

    def _summed_up(self, x: np.ndarray) -> crowd.Summaries:
        return crowd.summed_up(x, self.of.scores(x))

    def client(self, x: np.ndarray, slot: int, between: int = 0) -> Seen:
        """Somebody, at `slot`, who asks `x`; others ask so many questions before each."""
        return self.clients(x, [slot] * len(x), between)[slot]

    def clients(self, x: np.ndarray, slots: Sequence[int], between: int = 0) -> dict[int, Seen]:
        """Those at `slots` ask a question of `x` each, in this order."""
        clients, asked, who = Clients(len(set(slots))), self._summed_up(x), np.asarray(slots)
        rng, found = np.random.default_rng(slots[0]), []
        for row, slot in zip(x, slots, strict=True):
            if between:
                self.index.seen(self.of.browsing(rng, between))
            found.append(self.index.seen(row[None], slot))
        nearly = np.concatenate([f.duplicate for f in found])
        owners = np.concatenate([f.owner for f in found])
        places, after, count = (
            {s: clients.slot(str(s)) for s in dict.fromkeys(slots)},
            dict[int, int](),
            dict[int, int](),
        )
        for t, slot in enumerate(slots):
            count[slot] = count.get(slot, 0) + 1
            if slot in after:
                continue
            one = slice(t, t + 1)
            crowd.fold(clients, self.baseline, np.array([places[slot]]), asked.take(one), nearly[one])
            if clients.suspicion(str(slot), ALPHA) >= 1:
                after[slot] = count[slot]
        return {s: Seen(after.get(s), float(nearly[who == s].mean()), owners[who == s]) for s in places}
