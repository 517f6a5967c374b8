"""The policy of the demo."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hardening.config import KeySource, Output, Policy, parse_policy
from hardening.transforms import Gaussian, Project

TEXT = """\
schema = 1

[key]
source = "file:demo.key"
create = true

[outputs.{output}]
space = "simplex"
[outputs.{output}.tiers]
normal  = [ {{kind = "gaussian", sigma = 0.02}},
            {{kind = "project", keep_top1 = true}},
            {{kind = "top_k", k = 5}}, {{kind = "types", n = 20}} ]
suspect = [ {{kind = "gaussian", sigma = 0.05}},
            {{kind = "project", keep_top1 = true}},
            {{kind = "top_k", k = 2}}, {{kind = "types", n = 5}} ]
label   = [ {{kind = "label_only"}} ]
"""
SIGMA = 0.02


def policy(output: str, root: Path, tier: str = "normal") -> Policy:
    """The demo's policy for `output`, answering everybody in `tier`; the key is kept in the folder `root`."""
    whole = parse_policy(TEXT.format(output=output), root)
    tiers = whole.outputs[output].tiers
    first = {tier: tiers[tier]} | dict(tiers)
    return replace(whole, outputs={output: replace(whole.outputs[output], tiers=first)})


def noise_only(output: str, root: Path, key: str) -> Policy:
    """Noise and nothing that would hide its mean; `key` is "input" (by question) or "fresh" (anew for each answer)."""
    steps = (Gaussian(sigma=SIGMA, key=key), Project())  # type: ignore[arg-type]
    return Policy({output: Output("simplex", {"normal": steps})}, KeySource("file:demo.key", create=True), root=root)
