"""The whole story on a real model and the files of this machine, in about a minute."""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from hardening.cli.progress import say_if_kernels_are_compiled
from hardening.errors import HardeningError

EXAMPLE = "hardening demo"
#: Read by the linear algebra under numpy when it is imported.
_THREADS = "OPENBLAS_NUM_THREADS"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=60, metavar="N", help="about how long to take (default: 60)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of every random choice (default: 0)")
    parser.add_argument("--json", action="store_true", help="print a JSON object for machines")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="also draw fidelity against questions")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    if not 5 <= options.seconds <= 3600:
        raise HardeningError(f"--seconds: must be from 5 to 3600, not {options.seconds:g}")
    if options.seed < 0:
        raise HardeningError(f"--seed: must not be negative, not {options.seed}")
    from hardening_onnx.demo import models, plot

    models.find_magika()
    if options.plot:
        plot.check(options.plot)
    try:
        return _run(options) if _THREADS in os.environ else _again(options)
    except KeyboardInterrupt:
        return 130


def _again(options: argparse.Namespace) -> int:
    """In a process whose matrix products use one thread.

    The students' matrices are small; on a busy machine threads that wait for each other take twenty times as long.
    """
    command = [sys.executable, "-m", "hardening", "demo"]
    command += ["--seconds", str(options.seconds), "--seed", str(options.seed)]
    command += ["--json"] * options.json + (["--plot", str(options.plot)] if options.plot else [])
    return subprocess.call(command, env=os.environ | {_THREADS: "1"})


def _run(options: argparse.Namespace) -> int:
    from hardening_onnx.demo import plain, plot, show, story

    say_if_kernels_are_compiled()

    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=1.0)
        told = story.tell(
            options.seconds, options.seed, lambda what, share: bar.update(task, description=what, completed=share)
        )
    if options.plot:
        plot.draw(told, options.plot)
    if options.json:
        print(json.dumps(plain.as_json(told), indent=2))
    else:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # a terminal that lacks a character shows another
        show.show(told, Console())
    return 0
