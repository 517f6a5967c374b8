"""Say in plain words what each tier releases and promises, how much a client can learn in all, and what alarms mean."""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import textwrap
from typing import Any

from hardening.cli.alarms import alarms, alarms_in_words
from hardening.cli.budgets import budgets, budgets_in_words, ledger
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
    table = {}
    for name in policy.outputs:
        width = widths.get(name, options.classes)
        try:
            table[name] = {tier: describe(policy.pipeline(name, tier), width) for tier in policy.tiers}
        except ConfigError:
            if not problems:  # else it has been said
                raise
            table[name] = {tier: describe(policy.pipeline(name, tier), None) for tier in policy.tiers}
    facts: dict[str, Any] = {
        "outputs": table,
        "budgets": budgets(policy, _bits(table)),
        "ledger": ledger(policy),
        "alarms": alarms(policy),
    }
    if options.json:
        print(json.dumps(facts, indent=2))
        return 1 if problems else 0
    _tell(policy, table)
    for title, lines in (
        ("budgets", budgets_in_words(facts["budgets"], facts["ledger"])),
        ("alarms", alarms_in_words(facts["alarms"])),
    ):
        for number, (name, text) in enumerate(lines):
            if not number:
                print(title)
            _line(name, text, 12)
    return 1 if problems else 0


def _bits(table: dict[str, dict[str, dict[str, Any]]]) -> dict[str, float | None]:
    """Bits of one answer of all outputs, by tier; None where they are not known."""
    tiers = next(iter(table.values()))
    each = {tier: [facts[tier]["bits_per_answer"] for facts in table.values()] for tier in tiers}
    return {tier: None if None in bits else math.fsum(bits) for tier, bits in each.items()}


def _line(name: str, text: str, column: int = 10) -> None:
    """Wrapped for a terminal; one line for whatever else reads it."""
    width = max(40, shutil.get_terminal_size((10_000, 24)).columns)
    indent = " " * (column + 5)
    print(textwrap.fill(f"    {name:<{column}} {text}", width, subsequent_indent=indent, break_on_hyphens=False))


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
