"""Reads budgets.toml: what a row's ratio may be at most, and why."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BUDGETS = Path(__file__).with_name("budgets.toml")


@dataclass(frozen=True)
class Budget:
    """The allowed ratio of one row.

    Attributes:
        compare: two variants of the row's benchmark, as in ``hardened / session.run``.
        at_most: the highest allowed ratio of their times.
        why: one sentence.
        narrow: the same on machines without 512-bit vectors, where it is another.
    """

    compare: str
    at_most: float
    why: str
    narrow: float | None = None

    @property
    def subject(self) -> str:
        """The variant that is judged."""
        return self.compare.split(" / ")[0]

    @property
    def base(self) -> str:
        """The variant it is compared with."""
        return self.compare.split(" / ")[1]


def _budget(row: str, table: Any) -> Budget:
    known = {f.name for f in dataclasses.fields(Budget) if f.default is dataclasses.MISSING}
    if not isinstance(table, dict) or set(table) - {"narrow"} != known:
        found = ", ".join(sorted(table)) if isinstance(table, dict) else repr(table)
        raise ValueError(f"{row}: a budget has the keys {', '.join(sorted(known))} (and narrow), not {found}")
    compare, at_most, why, narrow = table["compare"], table["at_most"], table["why"], table.get("narrow")
    if not isinstance(compare, str) or len(compare.split(" / ")) != 2:
        raise ValueError(f"{row}.compare: must name two variants, as in 'hardened / session.run', not {compare!r}")
    for name, ratio in (("at_most", at_most), ("narrow", at_most if narrow is None else narrow)):
        if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not ratio > 0:
            raise ValueError(f"{row}.{name}: must be a ratio above 0, not {ratio!r}")
    if not isinstance(why, str) or not why.strip().endswith("."):
        raise ValueError(f"{row}.why: must be a sentence that says why")
    return Budget(compare, float(at_most), why, None if narrow is None else float(narrow))


def load(path: Path = BUDGETS) -> dict[str, Budget]:
    """Budgets by row. Raises ValueError, which names the dotted path of what is wrong."""
    return {row: _budget(row, table) for row, table in tomllib.loads(path.read_text("utf-8")).items()}


def allowed(budget: Budget, features: str, slack: float = 0.0) -> float:
    """The ratio that is allowed on a machine with these CPU features (LLVM's, such as ``+avx2,+avx512f``).

    Args:
        slack: share by which it may be exceeded, for measurements too short to be held to it.
    """
    wide = budget.narrow is None or "+avx512f" in features.split(",")
    return (budget.at_most if wide else float(budget.narrow or 0.0)) * (1.0 + slack)


def unmatched(rows: Iterable[str], budgets: Mapping[str, Budget]) -> list[str]:
    """What is wrong, in words, with a set of benchmarks and a set of budgets that should be about the same rows."""
    rows = list(rows)
    twice = sorted({row for row in rows if rows.count(row) > 1})
    return [
        *(f"benchmark {row!r} has no budget" for row in dict.fromkeys(rows) if row not in budgets),
        *(f"budget {row!r} has no benchmark" for row in budgets if row not in rows),
        *(f"{row!r} names more than one benchmark" for row in twice),
    ]
