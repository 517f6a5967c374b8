"""Two processes share one client's budget through a durable ledger: together they release all of it, and no more.

    python examples/shared_ledger.py sqlite:///budgets.db
    python examples/shared_ledger.py redis://localhost:6379/0

Run it twice: the second time nothing is left, for budgets live as long as the client.
"""

import multiprocessing
import sys

from hardening.ledger import Account, Budget, Cost, LedgerRules, open_ledger

BUDGETS = {"credential": Budget(bits=10_000.0), "organisation": Budget(bits=50_000.0)}
ACCOUNTS = Account("credential", "alice"), Account("organisation", "acme")


def answer_questions(url: str) -> tuple[int, str]:
    """Answer until the ledger refuses; returns how many answers there were, and why there are no more."""
    ledger = open_ledger(LedgerRules(url), BUDGETS)
    answers = 0
    while (shortfall := ledger.spend(ACCOUNTS, Cost.of(bits=8.0))) is None:
        answers += 1
    ledger.close()
    return answers, f"{shortfall.kind} of {shortfall.account} are {shortfall.cause}"


if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        results = pool.map(answer_questions, sys.argv[1:2] * 2)
    for answers, reason in results:
        print(f"{answers} answers, then {reason}")
    print(f"{sum(answers for answers, _ in results)} answers in all, of {int(BUDGETS['credential'].bits // 8)}")
