"""Learn what ordinary clients ask from a log of them, so that an alarm has a meaning.

The log has a line of JSON for each row: {"client": "alice", "entropy": 0.25, "label": 3, "cell": 1025, "margin": 0.9,
"question": 12345, "duplicate": false}, as a guard keeps it ([detect] log); the last two may be missing. Half of the
clients make the baseline, the other half tests it.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from hardening.cli.options import whole
from hardening.clients.baseline import Baseline, calibrate
from hardening.clients.evidence import chance
from hardening.clients.log import Log, read_log
from hardening.clients.means import SETTLED
from hardening.clients.window import LEVEL, interval
from hardening.errors import ConfigError
from hardening.kernels.layout import WINDOW, Lane

EXAMPLE = "hardening calibrate --benign benign.jsonl --output p --classes 10 -o baseline.json"
FOUND = "held-out clients were flagged, or their windows stood out, more often than the levels allow"
#: Suspicions whose meaning is printed.
LEVELS = (0.5, 1.0, 1.5, 2.0)
_MEANINGS = {
    Lane.HIGH: "entropy high for its label",
    Lane.TAIL: "entropy very high for its label",
    Lane.LOW: "entropy low for its label",
    Lane.COLLAPSE: "label that the client had before",
    Lane.DIVERSE: "label that the client had not before",
    Lane.NOVEL: "cell that the client had not visited",
    Lane.BOUNDARY: "margin small for its label",
    Lane.DUPLICATE: "nearly a question asked before",
}


def probability(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"must be a number between 0 and 1, not {text!r}")
    return value


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--benign", required=True, type=Path, metavar="LOG", help="what ordinary clients asked (JSONL)")
    parser.add_argument("-o", "--out", type=Path, default=Path("baseline.json"), metavar="FILE", help="where it goes")
    parser.add_argument(
        "--output", default="", metavar="NAME", help="the model's output that the rows are of; a guard wants to know"
    )
    parser.add_argument("--classes", type=whole(2), metavar="N", help="width of a row (default: labels in the log)")
    parser.add_argument(
        "--quantile", type=probability, default=0.999, metavar="Q", help="share of clients to hold (default 0.999)"
    )
    parser.add_argument(
        "--false-alarm", type=probability, default=1e-4, metavar="ALPHA", help="per honest client, ever (default 1e-4)"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object for machines")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    try:
        with options.benign.open(encoding="utf-8") as lines:
            logs = read_log(lines, math.log2(options.classes) if options.classes else None)
    except (OSError, UnicodeDecodeError) as problem:
        reason = problem.strerror if isinstance(problem, OSError) else "it is not text in UTF-8"
        raise ConfigError("--benign", f"cannot read {str(options.benign)!r}: {reason}") from None
    except ConfigError as problem:
        raise ConfigError("--benign", f"{options.benign}, {problem}") from None
    _check(logs, options)
    baseline = calibrate(logs, options.output, options.quantile, options.classes or 0)
    try:
        options.out.write_text(baseline.to_json(), encoding="utf-8")
    except OSError as problem:
        raise ConfigError("--out", f"cannot write {str(options.out)!r}: {problem.strerror}") from None
    facts = describe(baseline, options.false_alarm)
    if options.json:
        print(json.dumps(facts))
    else:
        _tell(baseline, facts, options)
    held, window = facts["held_out"], facts["window"]
    too_often = window is not None and window["held_out"]["interval"][0] > window["level"]
    return int(too_often or held["flagged_interval"][0] > options.false_alarm)


def _check(logs: Mapping[str, Log], options: argparse.Namespace) -> None:
    highest = max((int(log.label.max()) for log in logs.values()), default=0)
    if options.classes is not None and highest >= options.classes:
        raise ConfigError("--classes", f"{options.classes}, but the log has the label {highest}: give the rows' width")
    if not options.output:
        print("warning: no guard takes a baseline of no output; name it with --output", file=sys.stderr)


def describe(baseline: Baseline, false_alarm: float) -> dict[str, Any]:
    """What a baseline means for alarms, as plain data: for `calibrate`, and for whoever explains a policy."""
    held = baseline.held_out
    flagged = held.flagged(false_alarm)
    return {
        "clients": baseline.clients,
        "rows": baseline.rows,
        "quantile": baseline.quantile,
        "false_alarm": false_alarm,
        "lanes": {
            lane.name.lower(): {"average": baseline.average[lane], "spread": baseline.spread[lane]} for lane in Lane
        },
        "levels": {str(at): chance(at, false_alarm) for at in LEVELS},
        "held_out": {
            "clients": held.clients,
            "outside": held.outside,
            "outside_interval": list(held.share_outside()),
            "flagged": flagged,
            "flagged_interval": list(interval(flagged, held.clients)),
        },
        "window": _window(baseline),
    }


def _window(baseline: Baseline) -> dict[str, Any] | None:
    window = baseline.window
    if window is None:
        return None
    return {
        "rows": WINDOW,
        "level": window.level,
        "windows": window.windows,
        "independent": window.independent,
        "reach": {lane.name.lower(): window.reach[lane] for lane in Lane},
        "held_out": asdict(window.tried) | {"interval": list(window.tried.rate())},
    }


def _tell(baseline: Baseline, facts: dict[str, Any], options: argparse.Namespace) -> None:
    width = max(40, shutil.get_terminal_size((10_000, 24)).columns)  # whatever else reads it gets one line
    print(
        textwrap.fill(f"{options.out}: {baseline.clients} clients, {baseline.rows:,} different questions", width), "\n"
    )
    print(f"{'what speaks against a client':<38} {'mean':>6} {'varies by':>10}  stays below")
    means = np.array(baseline.means)
    for lane in Lane:
        settled = means[SETTLED.get(lane, 0) :, lane]
        low, high = settled.min(), settled.max()
        below = f"{low:.3f}" if low == high else f"{low:.3f} to {high:.3f}"
        print(f"{_MEANINGS[lane]:<38} {baseline.average[lane]:>6.3f} {baseline.spread[lane]:>10.3f}  {below}")
    held = facts["held_out"]
    low, high = held["outside_interval"]
    said = (
        f"held out: {held['clients']} clients, {held['outside']} of them outside the baseline: {low:.2%} to {high:.2%} "
        f"of all, with 95 % confidence; {held['flagged']} would have been flagged",
        *(
            f"suspicion {at}: an honest client inside the baseline ever gets there with chance {level:.3g} at most"
            for at, level in facts["levels"].items()
        ),
        _said_of_windows(facts["window"]),
    )
    print("", *(textwrap.fill(sentence, width) for sentence in said), sep="\n")


def _said_of_windows(window: dict[str, Any] | None) -> str:
    if window is None:
        return f"windows: none, for no client asked {WINDOW} different questions; no window will ever stand out"
    held, (low, high) = window["held_out"], window["held_out"]["interval"]
    few = f" (so few as {window['independent']:,.0f} show no less)" if window["level"] > LEVEL else ""
    return (
        f"windows of {window['rows']} different questions: {window['level']:.2%} of ordinary ones may stand out"
        f"{few}; of {held['windows']:,} held out, as good as {held['independent']:,.0f} independent ones, "
        f"{held['beyond']} did: {low:.2%} to {high:.2%} of all, with 95 % confidence"
    )
