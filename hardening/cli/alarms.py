"""What a policy's alarms mean: how often an honest client ever comes to each, and who is outside of that promise."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from hardening.cli.calibrate import describe
from hardening.cli.startup import baseline_of
from hardening.clients.evidence import chance
from hardening.config import Policy
from hardening.errors import ConfigError
from hardening.policy import Step

UNCALIBRATED = "uncalibrated: nobody is ever suspected"
#: Rarer than this a chance is given as a number.
_RARE = 1e-9


def alarms(policy: Policy) -> dict[str, Any]:
    """All of it as plain data; the chances are null without a baseline.

    A baseline that cannot be read is a ``problem``; the chances of an honest client inside it are known all the same.
    """
    rules, problem, baseline = policy.respond, None, None
    try:
        baseline = baseline_of(policy)
    except ConfigError as found:
        problem = str(found)
    calibrated = policy.detect.baseline is not None
    level = policy.detect.false_alarm
    steps = {step.at: step for step in rules.suspicion} | ({} if not calibrated else {1.0: _step_at(policy, 1.0)})
    return {
        "calibrated": calibrated,
        "false_alarm": level,
        "watches": baseline.output if baseline else None,
        "problem": problem,
        "steps": [
            {
                "at": at,
                "does": action(step),
                "tier": step.tier if step else None,
                "throttle": {"max": step.throttle.max, "per": step.throttle.per} if step and step.throttle else None,
                "deny": bool(step and step.deny),
                "chance": chance(at, level) if calibrated else None,
            }
            for at, step in sorted(steps.items())
        ],
        "baseline": {k: v for k, v in describe(baseline, level).items() if k != "levels"} if baseline else None,
        "shadow": rules.shadow,
        "hysteresis": rules.hysteresis,
        "ttl": rules.ttl,
    }


def _step_at(policy: Policy, at: float) -> Step | None:
    """The step in force from the suspicion `at` on."""
    return next((step for step in reversed(policy.respond.suspicion) if step.at <= at), None)


def action(step: Step | None) -> str:
    """What a step does."""
    if step is None:
        return "nothing is done"
    if step.deny:
        return "refused"
    tier = f"answered by {step.tier!r}" if step.tier is not None else ""
    throttle = f"throttled to {step.throttle.max:,} rows in {step.throttle.per}" if step.throttle else ""
    return ", ".join(part for part in (tier, throttle) if part)


def odds(probability: float) -> str:
    """The most that a chance can be, such as ``1 in 10,000``; rounded up."""
    if probability < _RARE:
        return f"{probability:.2g}"
    return f"1 in {math.floor(float(f'{1 / probability:.9g}')):,}"


def alarms_in_words(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What `alarms` found, as pairs of a word and a sentence."""
    if not facts["calibrated"]:
        yield "baseline", f"none; {UNCALIBRATED}"
    if facts["problem"]:
        yield "baseline", f"{facts['problem']}; no guard starts without it"
    if facts["baseline"]:
        yield "watches", _watched(facts)
    if facts["calibrated"]:
        yield "chance", "that an honest client inside the baseline ever reaches a suspicion, however much it asks"
    for step in facts["steps"]:
        if step["chance"] is None:
            yield f"at {step['at']:g}", f"never reached: {step['does']}"
        else:
            threshold = ", the alarm threshold" * (step["at"] == 1)
            yield f"at {step['at']:g}", f"at most {odds(step['chance'])}{threshold}: {step['does']}"
    if facts["baseline"]:
        yield "outside", _outside(facts["baseline"]["held_out"])
    if facts["calibrated"] and any(step["tier"] or step["throttle"] or step["deny"] for step in facts["steps"]):
        yield (
            "taken back",
            f"when the suspicion has fallen {facts['hysteresis']:g} below the step, or {facts['ttl']} after it was "
            "taken; then only more evidence than there was brings it back",
        )
        if facts["shadow"]:
            yield "shadow", "nothing of this is done; the events say what would have been"


def _watched(facts: dict[str, Any]) -> str:
    made = facts["baseline"]
    return (
        f"{facts['watches']!r}: what a client asks of it for the first time, held against {made['clients']:,} ordinary "
        f"clients with {made['rows']:,} questions"
    )


def _outside(held: dict[str, Any]) -> str:
    low, high = held["outside_interval"]
    return (
        f"{held['outside']} of {held['clients']} held-out clients, so {100 * low:.2f} % to {100 * high:.2f} % of "
        f"ordinary clients, with 95 % confidence, for whom no chance is promised; {held['flagged']} of "
        f"the {held['clients']} would have been flagged"
    )
