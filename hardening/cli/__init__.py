"""The command line. One file per command; each has `configure(parser)`, which sets `run`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from hardening.cli import check, explain
from hardening.errors import HardeningError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Exit codes: 0 all is well, 1 something was found, 2 a wrong policy, file or option."""
    parser = argparse.ArgumentParser(prog="hardening", description="Harden what an ONNX model says.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in (("check", check), ("explain", explain)):
        summary = (module.__doc__ or "").splitlines()[0]
        sub = commands.add_parser(name, help=summary, description=summary, epilog=f"example: {module.EXAMPLE}")
        module.configure(sub)
    options = parser.parse_args(arguments)
    try:
        return int(options.run(options))
    except HardeningError as problem:
        print(f"hardening {options.command}: {problem}", file=sys.stderr)
        return 2
