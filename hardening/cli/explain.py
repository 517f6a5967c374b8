"""Say in plain words what each tier releases, its bits per answer, its guarantee and its program."""

from __future__ import annotations

import argparse
import json
import math
from typing import Any

from hardening.cli.models import examine
from hardening.config import load_policy
from hardening.kernels import opcodes
from hardening.pipeline import Pipeline

EXAMPLE = "hardening explain policy.toml --model model.onnx"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("policy", metavar="POLICY", help="a policy file (TOML)")
    parser.add_argument("--classes", type=int, metavar="N", help="width of a row; bits per answer depend on it")
    parser.add_argument("--model", metavar="MODEL", help="a model file, to read the widths from")
    parser.add_argument("--json", action="store_true", help="print JSON for machines")
    parser.set_defaults(run=run)


def describe(pipeline: Pipeline, classes: int | None) -> dict[str, Any]:
    """What one tier does to one output, as plain data; bits are null when unknown."""
    promise = pipeline.guarantee(classes)
    return {
        "transforms": [repr(t) for t in pipeline.transforms],
        "relation": promise.relation,
        "unit": promise.unit,
        "parameters": {k: v for k, v in promise.parameters.items() if math.isfinite(v)},
        "scope": promise.scope,
        "assumptions": list(promise.assumptions),
        "bits_per_answer": promise.bits if math.isfinite(promise.bits) else None,
        "keeps_top1": promise.keeps_top1,
        "program": [[opcodes.NAMES[op.code], *op.params] for _, op in pipeline.lower()],
    }


_WORDS = {
    "capacity": "an answer carries no more than its bits; nothing else is promised",
    "output-metric": "models whose scores are close are hard to tell apart",
    "label": "models whose scores are close and whose labels agree are hard to tell apart; the label is released",
    "shard": "one training record is hard to detect",
    "none": "no guarantee: deception only",
}


def run(options: argparse.Namespace) -> int:
    policy = load_policy(options.policy)
    widths = examine(policy, options.model).widths if options.model else {}
    table = {
        name: {tier: describe(policy.pipeline(name, tier), widths.get(name, options.classes)) for tier in policy.tiers}
        for name in policy.outputs
    }
    if options.json:
        print(json.dumps(table, indent=2))
        return 0
    unknown = "unknown; give --classes or --model"
    for name, tiers in table.items():
        print(f"{name} ({policy.outputs[name].space})")
        for tier, facts in tiers.items():
            bits = facts["bits_per_answer"]
            print(f"  {tier}")
            print(f"    does       {', '.join(facts['transforms']) or 'nothing: released as it is'}")
            print(f"    promises   {facts['relation']}, per {facts['unit']}: {_WORDS[facts['relation']]}")
            if facts["parameters"]:
                print(f"    with       {', '.join(f'{k} = {v:.6g}' for k, v in facts['parameters'].items())}")
            for sentence in facts["assumptions"]:
                print(f"    if         {sentence}")
            print(f"    bits       {unknown if bits is None else f'{bits:.1f} per answer'}")
            print(f"    top class  {'kept' if facts['keeps_top1'] else 'may change'}")
            program = (" ".join([op[0], *(f"{v:g}" for v in op[1:])]) for op in facts["program"])
            print(f"    program    {'; '.join(program) or 'empty'}")
    return 0
