"""Validate a policy: every key, every pipeline, every parameter."""

from __future__ import annotations

import argparse
import json

from hardening.config import load_policy

EXAMPLE = "hardening check policy.toml"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("policy", metavar="POLICY", help="a policy file (TOML)")
    parser.add_argument("--json", action="store_true", help="print a JSON object for machines")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    policy = load_policy(options.policy)
    if options.json:
        print(json.dumps({"valid": True, "outputs": list(policy.outputs), "tiers": list(policy.tiers)}))
    else:
        print(f"{options.policy}: valid; outputs {', '.join(policy.outputs)}; tiers {', '.join(policy.tiers)}")
    return 0
