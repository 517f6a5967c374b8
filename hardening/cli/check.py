"""Validate a policy: every key, every pipeline, every parameter; with --model, whether it fits the model.

Also whether a guard or a server would start: the key, the baseline, the ledger, credentials and certificates that the
policy names are read as these read them. Nothing is created, and nobody is connected to without --connect.
"""

from __future__ import annotations

import argparse
import json
import sys

from hardening.cli.models import examine
from hardening.cli.startup import refused
from hardening.config import Policy, load_policy
from hardening.types import ModelReport

EXAMPLE = "hardening check policy.toml --model model.onnx"
FOUND = "the policy does not fit the model"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("policy", metavar="POLICY", help="a policy file (TOML)")
    parser.add_argument("--model", metavar="MODEL", help="a model file: its outputs are held against the policy")
    parser.add_argument("--no-files", action="store_true", help="the policy alone, not the files that it names")
    parser.add_argument("--connect", action="store_true", help="ask a ledger on Redis as well, whether it is durable")
    parser.add_argument("--json", action="store_true", help="print a JSON object for machines")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    policy = load_policy(options.policy)
    report = examine(policy, options.model) if options.model else None
    problems = () if options.no_files else refused(policy, report.widths if report else {}, options.connect)
    if options.json:
        print(json.dumps(_facts(policy, report, problems)))
    else:
        _tell(options, policy, report)
    for problem in problems:
        print(f"hardening check: {problem}", file=sys.stderr)
    if problems:
        return 2
    return 1 if report and report.problems else 0


def _facts(policy: Policy, report: ModelReport | None, problems: tuple[str, ...]) -> dict[str, object]:
    facts: dict[str, object] = {"valid": True, "outputs": list(policy.outputs), "tiers": list(policy.tiers)}
    facts["warnings"], facts["problems"] = list(policy.warnings), list(problems)
    if report is not None:
        facts["model"] = {
            "fits": not report.problems,
            "problems": list(report.problems),
            "warnings": list(report.warnings),
            "closed": dict(report.closed),
        }
    return facts


def _tell(options: argparse.Namespace, policy: Policy, report: ModelReport | None) -> None:
    print(f"{options.policy}: valid; outputs {', '.join(policy.outputs)}; tiers {', '.join(policy.tiers)}")
    for warning in policy.warnings:
        print(f"warning: {warning}")
    if report is None:
        return
    for problem in report.problems:
        print(f"problem: {problem}")
    for warning in report.warnings:
        print(f"warning: {warning}")
    for name, holds in report.closed.items():
        print(f"closed: {name if name.isprintable() else repr(name)}: {holds}")
    print(f"{options.model}: {'does not fit' if report.problems else 'fits'}")
