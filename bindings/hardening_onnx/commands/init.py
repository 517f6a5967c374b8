"""Read a model, recognise what each output holds and write a commented, safe policy for it.

Whatever is not recognised stays closed. If nothing is, the policy is written all the same, with every output commented
out and what has to be decided beside it, and the exit code is 1: such a policy does not load until somebody decides.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import shlex
import sys
from pathlib import Path
from typing import Any

from hardening.errors import ConfigError
from hardening_onnx import draft, graph

EXAMPLE = "hardening init model.onnx -o policy.toml"
FOUND = "nothing was recognised: decide what the written policy leaves open"
STANDARD_OUTPUT = "-"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="an ONNX file; weights in files beside it are found")
    parser.add_argument(
        "-o", "--output", metavar="FILE", default="policy.toml", help="default policy.toml; - prints it"
    )
    parser.add_argument("--force", action="store_true", help="overwrite the policy if there is one")
    parser.add_argument("--json", action="store_true", help="print what was recognised as a JSON object for machines")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    if options.json and options.output == STANDARD_OUTPUT:
        raise ConfigError("", "-o - and --json both print to the standard output: name a file")
    plan = draft.plan(graph.read(options.model))
    text = draft.text(plan, Path(options.model).name)
    if options.output == STANDARD_OUTPUT:
        print(text, end="")
    else:
        _write(Path(options.output), text, options.force)
    if options.json:
        print(json.dumps(_report(plan, options.output), indent=2))
    else:
        _tell(plan, options.output, options.model)
    return 0 if plan.opened else 1


def _report(plan: draft.Plan, path: str) -> dict[str, Any]:
    governed = {label: name for name, label in plan.opened.items() if label is not None}
    outputs = {}
    for name, found in plan.found.items():
        outputs[name] = {
            "kind": found.kind,
            "open": name in plan.opened or name in governed,
            "sure": found.sure,
            "evidence": found.why,
            "reason_closed": plan.closed.get(name),
            "width": found.width,
            "label_output": plan.opened.get(name),
            "label_of": governed.get(name),
            "classes": list(draft.classes_of(plan, name)) if name in plan.opened else [],
        }
    return {"policy": path, "outputs": outputs}


def _tell(plan: draft.Plan, path: str, model: str) -> None:
    to = sys.stderr if path == STANDARD_OUTPUT else sys.stdout
    for name, label in plan.opened.items():
        found = plan.found[name]
        also = f", with its label {graph.quoted(label)}" if label is not None else ""
        print(f"{graph.quoted(name)}: {found.kind}{also}{'' if found.sure else ', a guess'}: {found.why}", file=to)
    for name, reason in plan.closed.items():
        print(f"{graph.quoted(name)}: closed, {reason}: {plan.found[name].why}", file=to)
    if path == STANDARD_OUTPUT:
        return
    if plan.opened:
        print(f"{path}: written; next: hardening explain {shlex.quote(path)} --model {shlex.quote(model)}", file=to)
    else:
        print(f"{path}: written with every output commented out; decide what each one may reveal", file=to)


def _write(file: Path, text: str, force: bool) -> None:
    """Whole or not at all; without `force` never over a file that is there."""
    if os.path.lexists(file) and not force:
        raise ConfigError("", f"{str(file)!r} exists: --force overwrites it, -o writes elsewhere")
    draft_file = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    try:
        with draft_file.open("x", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        if force:
            draft_file.replace(file)
        else:
            os.link(draft_file, file)
    except FileExistsError:
        raise ConfigError("", f"{str(file)!r} exists: --force overwrites it, -o writes elsewhere") from None
    except OSError as problem:
        raise ConfigError("", f"cannot write {str(file)!r}: {problem.strerror}") from None
    finally:
        with contextlib.suppress(OSError):
            draft_file.unlink(missing_ok=True)
