"""The same answers bit for bit whatever the processor can do: natively, and as if it could do less."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from llvmlite.binding import get_host_cpu_features

from hardening.noise import CIPHERS

ROOT = Path(__file__).parent.parent
SCRIPT = """
import hashlib, sys
import numpy as np
from hardening.noise import Key
from hardening.pipeline import Pipeline
from hardening.program import Program, Question, Task
from hardening.kernels.layout import Job
from hardening.transforms import *

key = Key(1, sys.argv[1], bytes(range(32)))
tiers = [
    ("simplex", (Types(n=100),)),
    ("simplex", (Gaussian(sigma=0.05), Project(keep_top1=True), Types(n=100))),
    ("simplex", (Laplace(scale=0.1), Project(), TopK(k=3), Round(decimals=3))),
    ("simplex", (Temperature(t=3.0), ReverseSigmoid(beta=0.5, gamma=0.3, allow_flip=True))),
    ("simplex", (RandomTarget(l1=0.5), MemGuard(l1=0.4))),
    ("simplex", (DynaNoise(variance=0.3, gain=2.0, t=3.0),)),
    ("simplex", (Mld(l1=1.0),)),
    ("simplex", (Grad2(l1=0.5, keep_top1=False), Mad(l1=0.5, surrogate="s"))),
    ("simplex", (Misinformation(tau=0.5, nu=30.0, surrogate="s"),)),
    ("scalar", (Gaussian(sigma=0.2, key="cell"), Round(decimals=2))),
    ("simplex", (Exponential(epsilon=12.0),)),
    ("simplex", (Canary(rate=0.5), PermuteAndFlip(epsilon=12.0, key="cell"))),
    ("logits", (Canary(rate=0.5), KRandomisedResponse(epsilon=2.0))),
    ("logits", (Clip(low=-5.0, high=5.0), BoundaryRandomisedResponse(epsilon=1.0, margin=1.0))),
    ("logits", (Clip(low=-5.0, high=5.0), Gaussian(sigma=0.25), Clip(low=-6.0, high=6.0), TopK(k=5))),
    ("scalar", (Clip(low=-1.3, high=2.7), Types(n=7))),
    ("embedding", (CoverageNoise(), Orthogonal(), Round(decimals=5))),
]
digest = hashlib.sha256()
for space, transforms in tiers:
    for rows, width in ((1, 10), (19, 10), (3, 70), (2, 1003)):
        for dtype in ("f2", "f4", "f8"):
            rng = np.random.default_rng(width)
            scores = rng.dirichlet(np.full(width, 0.5), rows).astype(dtype)
            if space != "simplex":
                scores = (rng.standard_normal((rows, width)) * 3).astype(dtype)
            x = rng.standard_normal((rows, 7))
            asked = {"x": x.astype("f4"), "half": x.astype("f2")}
            program = Program(Pipeline(space, transforms), width, key, "p", "m")
            question = Question(key, "m", asked, rows) if program.keyed_by_input else None
            other = rng.dirichlet(np.full(width, 0.5), rows) if program.unreleased else None
            task = Task(program, scores, rows, np.zeros((rows, 3), np.uint32), question, other)
            task.job[Job.COVERAGE] = 2000
            assert task.run() == 0
            digest.update(scores.tobytes())
print(digest.hexdigest())
"""


#: What processors can do: nothing beyond SSE2, AES in registers of one block, in registers of two.
LESS = {"chacha20": ("",), "aes-128-ctr": ("", "+aes", "+aes,+vaes,+avx2")}


def answers(cipher: str, **environment: str) -> str:
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, cipher],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env=os.environ | environment,
    )
    return run.stdout.strip()


@pytest.mark.parametrize("cipher", CIPHERS)
def test_every_machine_gives_the_same_answers(cipher: str) -> None:
    native = answers(cipher)
    assert len(native) == 64
    has = get_host_cpu_features()
    able = [f for f in LESS[cipher] if all(has.get(name.lstrip("+")) for name in f.split(",") if name)]
    with ThreadPoolExecutor(2) as pool:  # where nothing is compiled yet each takes a while
        less = pool.map(lambda f: answers(cipher, NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES=f), able)
        assert dict(zip(able, less, strict=True)) == dict.fromkeys(able, native)
