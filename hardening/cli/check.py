"""Validate a policy: every key, every pipeline, every parameter; with --model, whether it fits the model."""

from __future__ import annotations

import argparse
import json

from hardening.cli.models import examine
from hardening.config import Policy, load_policy
from hardening.types import ModelReport

EXAMPLE = "hardening check policy.toml --model model.onnx"
FOUND = "the policy does not fit the model"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("policy", metavar="POLICY", help="a policy file (TOML)")
    parser.add_argument("--model", metavar="MODEL", help="a model file: its outputs are held against the policy")
    parser.add_argument("--json", action="store_true", help="print a JSON object for machines")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    policy = load_policy(options.policy)
    report = examine(policy, options.model) if options.model else None
    if options.json:
        print(json.dumps(_facts(policy, report)))
    else:
        _tell(options, policy, report)
    return 1 if report and report.problems else 0


def _facts(policy: Policy, report: ModelReport | None) -> dict[str, object]:
    facts: dict[str, object] = {"valid": True, "outputs": list(policy.outputs), "tiers": list(policy.tiers)}
    facts["warnings"] = list(policy.warnings)
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
