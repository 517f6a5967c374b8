"""Two processes share one client's budget through a durable ledger: together they release all of it, and no more.

    python examples/shared_ledger.py sqlite:///budgets.db
    python examples/shared_ledger.py redis://localhost:6379/0

Run it twice: the second time nothing is left, for budgets live as long as the client.
"""

import multiprocessing
import sys

import numpy as np

import hardening
from hardening.config import Output
from hardening.ledger import Budget, LedgerRules
from hardening.transforms import LabelOnly, Types

TIERS = {"normal": (Types(n=100),), "label": (LabelOnly(),)}
BUDGETS = {"credential": Budget(bits=10_000.0, on_exhausted="label")}


def answer_questions(url: str) -> tuple[int, int]:
    """Answer alice until the policy refuses; returns how many answers were full ones, and how many labels alone."""
    policy = hardening.Policy({"p": Output("simplex", TIERS)}, budgets=BUDGETS, ledger=LedgerRules(url))
    scores = np.array([[0.1, 0.2, 0.3, 0.4]])
    full = labels = 0
    with hardening.Guard(policy) as guard:
        while True:
            try:
                answer = guard.harden({"p": scores}, client="alice")["p"]
            except hardening.Denied:
                return full, labels
            if answer.max() == 1:
                labels += 1
            else:
                full += 1


if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        results = pool.map(answer_questions, sys.argv[1:2] * 2, chunksize=1)
    for full, labels in results:
        print(f"{full} full answers, then {labels} labels, then nothing")
    normal, label = (np.log2(176_851), 2.0)  # bits of one row: grid points of four classes, and labels
    bits = sum(full * normal + labels * label for full, labels in results)
    print(f"{bits:.0f} bits in all, of {BUDGETS['credential'].bits:.0f}")
