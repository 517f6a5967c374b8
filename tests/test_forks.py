"""A process that is forked while another thread holds a lock of ours: the child is not stopped by it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import os, signal, sys, threading
from pathlib import Path
import numpy as np
import hardening
from hardening.config import Output, Policy
from hardening.ledger import Budget, LedgerRules
from hardening.policy import Response, Step
from hardening.transforms import Types

rules = Policy(
    {"p": Output("simplex", {"normal": (Types(n=10),), "strict": (Types(n=4),)})},
    budgets={"credential": Budget(bits=1e6)}, ledger=LedgerRules("sqlite:///books.db"),
    respond=Response((Step(1.0, tier="strict"),)), root=Path(sys.argv[1]),
)
guard = hardening.Guard(rules, suspicion=lambda name: 2.0 * (name == "thief"))
guard.harden({"p": np.eye(3, dtype="f4")}, client="alice")

held, done = threading.Event(), threading.Event()
def hold():
    with guard._admission._stepping, guard._clients._opening, guard._programs._building, guard._admission._ledger._lock:
        held.set()
        done.wait()

holder = threading.Thread(target=hold)
holder.start()
held.wait()
child = os.fork()
if not child:
    signal.alarm(120)  # ends a child that waits for ever
    for width in (3, 5):
        for name in ("alice", "new", "thief"):
            scores = np.eye(width, dtype="f4")
            assert np.array_equal(guard.harden({"p": scores}, client=name)["p"], scores)
    os._exit(0)
status = os.waitpid(child, 0)[1]
done.set()
holder.join()
assert len(guard.harden({"p": np.eye(7, dtype="f4")}, client="thief")["p"]) == 7, "the parent goes on"
guard.close()
sys.exit(status != 0)
"""


def test_a_lock_that_another_thread_held_does_not_stop_the_child(tmp_path: Path) -> None:
    run = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
