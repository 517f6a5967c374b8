"""Show what each client of a running server has learnt, those who have been told most first."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from hardening.cli.options import seconds
from hardening_grpc.control import ask_clients

EXAMPLE = "hardening clients --control hardening.sock --watch"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--control", required=True, type=Path, metavar="PATH", help="as given to `hardening serve`")
    parser.add_argument("--watch", action="store_true", help="go on until interrupted; with --json a line each time")
    parser.add_argument(
        "--every", type=seconds(0.001), default=1.0, metavar="SECONDS", help="how often to look (default 1)"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object for machines")
    parser.set_defaults(run=run)


def _number(value: float | None, form: str) -> Text:
    return Text("unbounded" if value is None else format(value, form))


def table(clients: list[dict[str, Any]]) -> Table:
    """What the operator looks at."""
    total = sum(c["queries"] for c in clients)
    title = f"clients: {len(clients)}, queries: {total:,}"
    out = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    out.add_column("client", overflow="fold", min_width=8)
    for heading in ("queries", "bits", "posterior\nentropy", "label\nentropy", "code\nlength", "coverage"):
        out.add_column(heading, justify="right", no_wrap=True)
    out.add_column("tier", no_wrap=True)
    for c in clients:
        out.add_row(
            Text(c["client"]),
            _number(c["queries"], ","),
            _number(c["bits"], ",.0f"),
            _number(c["posterior_entropy"], ".3f"),
            _number(c["label_entropy"], ".3f"),
            _number(c["code_length"], ",.0f"),
            _number(c["coverage"], ".1%"),
            Text(c["tier"]),
        )
    return out


def run(options: argparse.Namespace) -> int:
    with contextlib.suppress(KeyboardInterrupt):
        if options.json:
            for clients in _looks(options):
                print(json.dumps({"clients": clients}), flush=True)
        elif not (options.watch and sys.stdout.isatty()):
            for clients in _looks(options):
                Console().print(table(clients))
                sys.stdout.flush()
        else:
            with Live(screen=True, auto_refresh=False) as live:
                for clients in _looks(options):
                    live.update(table(clients), refresh=True)
    return 0


def _looks(options: argparse.Namespace) -> Iterator[list[dict[str, Any]]]:
    yield ask_clients(options.control)
    while options.watch and not threading.Event().wait(options.every):
        yield ask_clients(options.control)
