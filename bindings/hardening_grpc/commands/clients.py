"""Show what each client of a running server has learnt, those who have been told most first; or grant one more.

A grant is the only thing that gives a client more than the policy's budget. It stays in the books, with its reason.
"""

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

from hardening.budgets import grant
from hardening.cli.options import amount, seconds
from hardening.config import load_policy
from hardening.errors import ConfigError
from hardening.ledger.amounts import RUNGS
from hardening_grpc.control import ask_clients, ask_grant

EXAMPLE = """hardening clients --control hardening.sock --watch
  hardening clients grant alice --bits 1e6 --reason "contract renewed" --control hardening.sock"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--control", type=Path, metavar="PATH", help="as given to `hardening serve`")
    parser.add_argument("--watch", action="store_true", help="go on until interrupted; with --json a line each time")
    parser.add_argument(
        "--every", type=seconds(0.001), default=1.0, metavar="SECONDS", help="how often to look (default 1)"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object for machines")
    parser.set_defaults(run=run)
    actions = parser.add_subparsers(title="actions", metavar="ACTION")
    more = actions.add_parser("grant", help="allow a client more, for good", description="Allow a client more.")
    more.add_argument("name", metavar="NAME", help="the client, or whoever the budget on --rung is for")
    more.add_argument("--bits", type=amount, default=0.0, metavar="N", help="released bits")
    more.add_argument("--rho", type=amount, default=0.0, metavar="N", help="privacy loss (zCDP)")
    more.add_argument("--reason", required=True, metavar="TEXT", help="kept in the books and in the event")
    more.add_argument("--rung", choices=RUNGS, default="credential", help="whose budget (default credential)")
    way = more.add_mutually_exclusive_group(required=True)
    way.add_argument("--control", type=Path, metavar="PATH", help="of a running server")
    way.add_argument("--policy", type=Path, metavar="POLICY", help="straight into the ledger that this policy names")
    more.add_argument("--json", action="store_true", help="print a JSON object for machines")
    more.set_defaults(run=run_grant)


def run_grant(options: argparse.Namespace) -> int:
    facts = {"rung": options.rung, "bits": options.bits, "rho": options.rho, "reason": options.reason}
    given = {"client": options.name, **facts}
    if options.control is not None:
        ask_grant(options.control, given)
    else:
        grant(load_policy(options.policy), options.name, **facts)
    if options.json:
        print(json.dumps({"granted": given}))
    else:
        amounts = [f"{options.bits:,.6g} bits"] * bool(options.bits) + [f"rho {options.rho:.6g}"] * bool(options.rho)
        print(f"granted to {options.rung} {options.name}: {' and '.join(amounts)} more")
    return 0


def _number(value: float | None, form: str) -> Text:
    return Text("unbounded" if value is None else format(value, form))


def _bar(share: float) -> Text:
    """A share as ten steps, red from nine tenths on."""
    style = "red" if share >= 0.9 else "yellow" if share >= 0.5 else "green"
    return Text(f"{'█' * round(10 * share):░<10} {share:4.0%}", style)


def table(clients: list[dict[str, Any]]) -> Table:
    """What the operator looks at; columns that say nothing about anybody are left out."""
    total = sum(c["queries"] for c in clients)
    title = f"clients: {len(clients)}, queries: {total:,}"
    out = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    rho, spent, suspicion, window = (
        any(c.get(name) != 0 for c in clients) for name in ("rho", "spent", "suspicion", "window")
    )
    out.add_column("client", overflow="fold", min_width=8)
    for heading in ("queries", "bits", *["rho"] * rho):
        out.add_column(heading, justify="right", no_wrap=True)
    if spent:
        out.add_column("budget spent", no_wrap=True)
    entropies = (
        "posterior\nentropy",
        "label\nentropy",
        "code\nlength",
        "coverage",
        *["suspicion"] * suspicion,
        *["window"] * window,
    )
    for heading in entropies:
        out.add_column(heading, justify="right", no_wrap=True)
    out.add_column("tier", no_wrap=True)
    for c in clients:
        out.add_row(
            Text(c["client"]),
            _number(c["queries"], ","),
            _number(c["bits"], ",.0f"),
            *[_number(c["rho"], ",.4g")] * rho,
            *[_bar(c["spent"] or 0.0)] * spent,
            _number(c["posterior_entropy"], ".3f"),
            _number(c["label_entropy"], ".3f"),
            _number(c["code_length"], ",.0f"),
            _number(c["coverage"], ".1%"),
            *[_number(c["suspicion"], ".2f")] * suspicion,
            *[_number(c["window"], ".2f")] * window,
            Text(c["tier"], "red" if c["tier"] == "deny" else ""),
        )
    return out


def run(options: argparse.Namespace) -> int:
    if options.control is None:
        raise ConfigError("--control", "missing: the socket that `hardening serve --control` was given")
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
