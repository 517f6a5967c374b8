"""Searches of the Adversarial Robustness Toolbox, against a model that answers at the other end of a socket.

Run as a program of its own, in an environment of its own, with the socket's number. For each job it is sent - a dict
with `attack`, `options`, `x` (float32, one picture with its channel first), `seed` - it asks `("ask", rows)`, is
answered with scores, or with None if it is to stop, and at the end says `("done", adversarial picture, or None)`.
"""

from __future__ import annotations

import random
import sys
from multiprocessing.connection import Connection
from typing import Any

import art.attacks.evasion
import numpy as np
from art.estimators.classification import BlackBoxClassifierNeuralNetwork

np.mat = np.asmatrix  # which NumPy 2 took away from GeoDA


class Stopped(Exception):
    """Nobody answers any more."""


def search(server: Connection, job: dict[str, Any]) -> np.ndarray:
    def ask(x: np.ndarray) -> Any:
        server.send(("ask", np.asarray(x, np.float32)))
        answer = server.recv()
        if answer is None:
            raise Stopped
        return answer

    np.random.seed(job["seed"])
    random.seed(job["seed"])
    x = job["x"][None]
    model = BlackBoxClassifierNeuralNetwork(ask, x.shape[1:], 10, clip_values=(0.0, 1.0))
    return getattr(art.attacks.evasion, job["attack"])(model, verbose=False, **job["options"]).generate(x)


if __name__ == "__main__":
    with Connection(int(sys.argv[1])) as server:
        while (job := server.recv()) is not None:
            try:
                found = search(server, job)[0]
            except Stopped:
                found = None
            server.send(("done", found))
