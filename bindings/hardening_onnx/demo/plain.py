"""The demo's findings as plain data for machines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from hardening.audit.extraction import Extraction
from hardening.cli.calibrate import describe
from hardening_onnx.demo.measure import Overhead
from hardening_onnx.demo.story import Story
from hardening_onnx.demo.watch import ADDED, FALSE_ALARM, Watched


def _attack(found: Extraction) -> dict[str, Any]:
    return {
        "queries": found.queries,
        "fidelity": found.fidelity.value,
        "interval": list(found.fidelity.interval),
        "judged_on": found.fidelity.trials,
        "best_view": found.view,
        "by_view": {view: fidelity.value for view, fidelity in found.by_view.items()},
    }


def _attacks(table: Mapping[str, tuple[Extraction, ...]]) -> dict[str, Any]:
    return {tier: [_attack(found) for found in row] for tier, row in table.items()}


def _watched(client: Watched) -> dict[str, Any]:
    return {**asdict(client), "questions": client.questions}


def _overhead(measured: Overhead) -> dict[str, Any]:
    return {**asdict(measured), "interval": list(measured.interval)}


def as_json(story: Story) -> dict[str, Any]:
    """Every number that the text shows, and the rest; ready for `json.dumps`."""
    return {
        "setting": {
            name: getattr(story, name)
            for name in ("model", "classes", "runtime", "folders", "asked", "held_out", "seconds", "seed", "took")
        },
        "policy": story.policy,
        "answers": [asdict(example) for example in story.examples],
        "tiers": {
            name: {
                "relation": tier.promise.relation,
                "unit": tier.promise.unit,
                "parameters": dict(tier.promise.parameters),
                "assumptions": list(tier.promise.assumptions),
                "bits_per_answer": tier.promise.bits,
                "bits_of_a_bare_answer": story.raw_bits,
                "keeps_top1": tier.promise.keeps_top1,
                "mean_l1": tier.l1,
                "top1_kept": tier.kept,
            }
            for name, tier in story.tiers.items()
        },
        "overhead": [_overhead(measured) for measured in story.overheads],
        "extraction": _attacks(story.copies),
        "equations": _attacks(story.solutions),
        "repeats": asdict(story.repeats),
        "alarms": {
            "policy": ADDED,
            "baseline": describe(story.alarms.baseline, FALSE_ALARM),
            "ordinary": [_watched(client) for client in story.alarms.ordinary],
            "thieves": [_watched(client) for client in story.alarms.thieves],
        },
    }
