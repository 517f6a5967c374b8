"""The table at the end: a row of the budgets each, its ratios, interval, budget and verdict."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.paired import Ratio, shown

STYLES = {"met": "green", "within noise": "yellow", "exceeded": "bold red"}
WIDTH = 160


@dataclass(frozen=True)
class Result:
    """One measured row.

    Attributes:
        group: the benchmark file.
        subject, base: the two variants that the budget compares.
        ratio: of these, which `verdict` rests on.
        variants: every other variant against the budget's base.
        leanest: further ratios, reported only.
        seconds: a call, by variant: medians on this machine now, for orientation only.
    """

    row: str
    group: str
    subject: str
    base: str
    ratio: Ratio
    budget: float
    verdict: str
    variants: dict[str, Ratio]
    leanest: dict[str, Ratio]
    seconds: dict[str, float]


def duration(seconds: float) -> str:
    """For people."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e9:.0f} ns"


def _table(results: Sequence[Result]) -> Table:
    subject, base = results[0].subject, results[0].base
    ratios = [{**r.variants, **r.leanest} for r in results]
    columns = list(dict.fromkeys(name for row in ratios for name in row if name != subject))
    table = Table(
        title=f"{results[0].group}: {subject} / {base}", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD
    )
    table.add_column("row", no_wrap=True)
    for name in ("ratio", "interval", "budget"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", style="dim")
    for name in (subject, base):
        table.add_column(f"{name} *", justify="right", style="dim")
    for result, row in zip(results, ratios, strict=True):
        style = STYLES[result.verdict]
        table.add_row(
            result.row,
            f"[{style}]{shown(result.ratio.median)}",
            f"{shown(result.ratio.low)} - {shown(result.ratio.high)}",
            shown(result.budget),
            f"[{style}]{result.verdict}",
            *(shown(row[name].median) if name in row else "" for name in columns),
            duration(result.seconds[subject]),
            duration(result.seconds[base]),
        )
    return table


def render(results: Sequence[Result], colour: bool) -> str:
    """All results as text, in one table for each pair of variants that a group of rows compares."""
    out = io.StringIO()
    console = Console(file=out, width=WIDTH, force_terminal=colour, no_color=not colour, highlight=False)
    for key in dict.fromkeys((r.group, r.subject, r.base) for r in results):
        console.print(_table([r for r in results if (r.group, r.subject, r.base) == key]))
    console.print("Dim: the other variants' times as ratios to the same base, not judged.")
    console.print("* One call on this machine now, median: for orientation, not comparable between runs.")
    return out.getvalue().rstrip()
