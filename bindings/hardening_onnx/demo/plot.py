"""Fidelity of the copies against the number of questions, as a picture."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from hardening.errors import HardeningError
from hardening_onnx.demo.story import Story


def check(path: Path) -> None:
    """Raise HardeningError if no picture can be drawn, before anybody waits for its contents."""
    if importlib.util.find_spec("matplotlib") is None:
        raise HardeningError("--plot needs the package 'matplotlib': pip install 'hardening[audit]'")
    if path.suffix.lower() != ".png":
        raise HardeningError(f"--plot: {str(path)!r} must end in .png")
    if not path.parent.is_dir():
        raise HardeningError(f"--plot: there is no folder {str(path.parent)!r}")


def draw(story: Story, path: Path) -> None:
    """Write the picture to `path`. Raises HardeningError if it cannot be written."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.subplots()
    for shift, (tier, row) in enumerate(story.copies.items()):
        # Tiers beside one another, or their intervals would hide each other.
        x = [found.queries * 1.04**shift for found in row]
        values = [found.fidelity.value for found in row]
        below = [found.fidelity.value - found.fidelity.interval[0] for found in row]
        above = [found.fidelity.interval[1] - found.fidelity.value for found in row]
        axes.errorbar(x, values, yerr=[below, above], marker="o", markersize=4, linewidth=1.2, capsize=2, label=tier)
    budgets = [found.queries for found in next(iter(story.copies.values()))]
    axes.set_xscale("log")
    axes.set_xticks(budgets, [str(n) for n in budgets])
    axes.minorticks_off()
    axes.set_ylim(0, 1)
    axes.set_xlabel("questions the thief may ask")
    axes.set_ylabel("copy agrees with the model (95 % interval)")
    axes.set_title(f"Copying {story.model}: the number of questions decides")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    try:
        figure.savefig(path, dpi=150)
    except OSError as problem:
        raise HardeningError(f"--plot: cannot write {str(path)!r}: {problem.strerror}") from None
