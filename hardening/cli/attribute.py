"""Tell from the labels of a suspected copy whose answers it was learnt from: a p-value for each client.

For each client a file of numpy arrays (.npz): `scores`, the model's own scores for what the client asked, one row for
each question; `labels`, the copy's label for each of them as an index, -1 where it was not asked; and, where the tier
has noise before its canary, the inputs by their names. Put all of a client's questions to the copy, or a random part.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from hardening.audit.attribution import Attribution, attribute, canaries_of
from hardening.config import load_policy
from hardening.errors import InputError

EXAMPLE = "hardening attribute policy.toml --model model.onnx alice=alice.npz bob=bob.npz"
FOUND = "a client is named"
#: A client is named when his corrected p-value is at most this.
LEVEL = 1e-6


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("policy", metavar="POLICY", help="the policy that the clients were answered under (TOML)")
    parser.add_argument("told", metavar="CLIENT=FILE", nargs="+", help="a client under suspicion, and arrays (.npz)")
    parser.add_argument("--model", metavar="MODEL", required=True, help="the file of the model that answered")
    parser.add_argument("--output", metavar="NAME", help="the output with the canary, if several have one")
    parser.add_argument("--tier", metavar="NAME", help="the tier that answered; by default the first")
    parser.add_argument("--json", action="store_true", help="print JSON for machines")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    policy = load_policy(options.policy)
    digest = hashlib.sha256(_bytes_of(options.model)).hexdigest()
    told, labels = {}, {}
    for argument in options.told:
        client, equals, file = argument.partition("=")
        if not (client and equals and file):
            raise InputError(f"{argument!r}: must be CLIENT=FILE")
        arrays = _arrays(file)
        labels[client] = arrays.pop("labels")
        scores = arrays.pop("scores")
        told[client] = canaries_of(
            policy, digest, client, scores, output=options.output, tier=options.tier, inputs=arrays or None
        )
    try:
        found = attribute(told, labels)
    except ValueError as problem:
        raise InputError(str(problem)) from None
    if options.json:
        print(json.dumps([dataclasses.asdict(one) | {"named": _named(one)} for one in found], indent=2))
    else:
        for one in found:
            print(_line(one))
    return int(any(map(_named, found)))


def _named(one: Attribution) -> bool:
    return one.corrected <= LEVEL


def _line(one: Attribution) -> str:
    chance = f"p = {one.p_value:.3g}, {one.corrected:.3g} for all clients together"
    hits = f"{one.hits} of {one.canaries} canaries and {one.control_hits} of {one.controls} other cells"
    return f"{one.client}: {'named' if _named(one) else 'not named'}: {hits}; {chance}"


def _bytes_of(file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as problem:
        raise InputError(f"cannot read {file!r}: {problem.strerror}") from None


def _arrays(file: str) -> dict[str, Any]:
    """The arrays of an .npz file. Raises InputError for any other file, and if scores or labels are missing."""
    try:
        with np.load(file, allow_pickle=False) as found:
            arrays = {name: found[name] for name in found.files}
    except OSError as problem:
        raise InputError(f"cannot read {file!r}: {problem.strerror or 'not an .npz file'}") from None
    except (ValueError, AttributeError, zipfile.BadZipFile):
        raise InputError(f"{file!r} does not hold numpy arrays: write it with numpy.savez") from None
    for name, kinds, sides in (("scores", "f", 2), ("labels", "iu", 1)):
        if name not in arrays or arrays[name].dtype.kind not in kinds or arrays[name].ndim != sides:
            shape = "(questions, classes) of floats" if sides == 2 else "(questions,) of whole numbers"
            raise InputError(f"{file!r}: needs an array {name!r}, {shape}")
    return arrays
