"""Say in plain words what each tier releases, its bits per answer, its guarantee and its program."""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import textwrap
from typing import Any

from hardening.cli.budgets import budgets_in_words
from hardening.cli.models import examine
from hardening.cli.options import whole
from hardening.cli.promises import adds_up_in_words, conversion, in_words, loss_in_words
from hardening.config import Policy, load_policy
from hardening.errors import ConfigError
from hardening.pipeline import Pipeline

EXAMPLE = "hardening explain policy.toml --model model.onnx"
FOUND = "the policy does not fit the model"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("policy", metavar="POLICY", help="a policy file (TOML)")
    parser.add_argument("--classes", type=whole(1), metavar="N", help="width of a row; bits per answer depend on it")
    parser.add_argument("--model", metavar="MODEL", help="a model file, to read the widths from")
    parser.add_argument("--json", action="store_true", help="print JSON for machines")
    parser.set_defaults(run=run)


def describe(pipeline: Pipeline, classes: int | None) -> dict[str, Any]:
    """What one tier does to one output, as plain data; what is unknown without the width of a row is null."""
    fitted = pipeline if classes is None else pipeline.at(classes)
    promise = pipeline.guarantee(classes)
    return {
        "transforms": [str(t) for t in fitted.transforms],
        "relation": promise.relation,
        "unit": promise.unit,
        "parameters": {k: v for k, v in promise.parameters.items() if math.isfinite(v)},
        "scope": promise.scope,
        "promise": in_words(promise),
        "loss": loss_in_words(promise),
        "adds_up": adds_up_in_words(promise),
        "conversion": conversion(promise),
        "assumptions": list(promise.assumptions),
        "bits_per_answer": promise.bits if math.isfinite(promise.bits) else None,
        "keeps_top1": promise.keeps_top1,
        "looks_at": pipeline.unreleased,
        "program": [[op.call, *op.params] for _, op in fitted.lower()],
    }


def run(options: argparse.Namespace) -> int:
    policy = load_policy(options.policy)
    report = examine(policy, options.model) if options.model else None
    problems, widths = (report.problems, report.widths) if report else ((), {})
    for problem in problems:
        print(f"problem: {problem}", file=sys.stderr)
    print(*(f"warning: {warning}\n" for warning in policy.warnings), sep="", end="", file=sys.stderr)
    table = {}
    for name in policy.outputs:
        width = widths.get(name, options.classes)
        try:
            table[name] = {tier: describe(policy.pipeline(name, tier), width) for tier in policy.tiers}
        except ConfigError:
            if not problems:  # else it has been said
                raise
            table[name] = {tier: describe(policy.pipeline(name, tier), None) for tier in policy.tiers}
    if options.json:
        print(json.dumps(table, indent=2))
    else:
        _tell(policy, table)
        for line in budgets_in_words(policy):
            print(line)
    return 1 if problems else 0


def _line(name: str, text: str) -> None:
    """Wrapped for a terminal; one line for whatever else reads it."""
    width = max(40, shutil.get_terminal_size((10_000, 24)).columns)
    print(textwrap.fill(f"    {name:<10} {text}", width, subsequent_indent=" " * 15, break_on_hyphens=False))


def _tell(policy: Policy, table: dict[str, dict[str, dict[str, Any]]]) -> None:
    unknown = "unknown; give --classes or --model"
    for name, tiers in table.items():
        print(f"{name} ({policy.outputs[name].space})")
        for tier, facts in tiers.items():
            bits = facts["bits_per_answer"]
            print(f"  {tier}")
            _line("does", f"{', '.join(facts['transforms']) or 'nothing: released as it is'}")
            if facts["looks_at"]:
                _line("looks at", f"{facts['looks_at']!r} as well, an output that is fetched and never released")
            _line("promises", facts["promise"])
            for label in ("loss", "adds up"):
                if said := facts[label.replace(" ", "_")]:
                    _line(label, said)
            # Losses have been said with what they are about.
            rest = [f"{k} = {v:.6g}" for k, v in facts["parameters"].items() if k not in ("rho", "epsilon", "delta")]
            if rest:
                _line("with", ", ".join(rest))
            for sentence in facts["assumptions"]:
                _line("if", f"{sentence}")
            _line("bits", f"{unknown if bits is None else f'{bits:.1f} per answer'}")
            _line("top class", f"{'kept' if facts['keeps_top1'] else 'may change'}")
            program = (" ".join([op[0], *(f"{v:g}" for v in op[1:])]) for op in facts["program"])
            _line("program", f"{'; '.join(program) or 'empty'}")
