"""The command line. One file per command; each has `EXAMPLE` and `configure(parser)`, which sets `run`.

A command that can find something says with `FOUND` what its exit code 1 means.

Commands that need more than the core are registered by other packages under the entry-point group `GROUP`, as a module
of the same shape; such a module is imported only when its command is called or all commands are listed.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import signal
import sys
import textwrap
from collections.abc import Sequence
from importlib import metadata
from types import ModuleType

from hardening.errors import HardeningError

GROUP = "hardening.commands"
_OWN = {
    "attribute": "hardening.cli.attribute",
    "check": "hardening.cli.check",
    "explain": "hardening.cli.explain",
}


def commands() -> dict[str, str]:
    """Every command and the module behind it."""
    return _OWN | {point.name: point.value for point in sorted(metadata.entry_points(group=GROUP))}


def _missing(module: str, problem: ImportError) -> str:
    extra = module.partition(".")[0].removeprefix("hardening_")
    return f"needs the package {problem.name!r}: pip install 'hardening[{extra}]'"


def _wrapped(text: str) -> str:
    width = shutil.get_terminal_size().columns - 2
    return "\n\n".join(textwrap.fill(" ".join(part.split()), width) for part in text.strip().split("\n\n"))


def _exit_codes(module: ModuleType) -> str:
    found = getattr(module, "FOUND", None)
    one = f"  1  {found}\n" if found else ""
    return f"exit codes:\n  0  all is well\n{one}  2  a wrong policy, file or option"


def _add(choices: argparse._SubParsersAction[argparse.ArgumentParser], name: str, module: ModuleType) -> None:
    summary = (module.__doc__ or "").splitlines()[0]
    parser = choices.add_parser(
        name,
        help=summary,
        description=_wrapped(module.__doc__ or ""),
        epilog=f"example:\n  {module.EXAMPLE}\n\n{_exit_codes(module)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.configure(parser)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Exit codes: 0 all is well, 1 something was found, 2 a wrong policy, file or option."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="hardening", description="Harden what an ONNX model says.")
    parser.add_argument("--version", action="version", version=f"hardening {metadata.version('hardening')}")
    choices = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    known = commands()
    called = next((a for a in arguments if not a.startswith("-")), None)
    for name in [called] if called in known else known:
        try:
            _add(choices, name, importlib.import_module(known[name]))
        except ImportError as problem:
            if called == name:
                print(f"hardening {name}: {_missing(known[name], problem)}", file=sys.stderr)
                return 2
            choices.add_parser(name, help=_missing(known[name], problem))
    options = parser.parse_args(arguments)
    try:
        code = int(options.run(options))
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever read the output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except HardeningError as problem:
        print(f"hardening {options.command}: {problem}", file=sys.stderr)
        return 2
