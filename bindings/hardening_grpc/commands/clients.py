"""Show what each client of a running server has learnt, those who have been told most first; or grant one more.

Of each client: rows asked, bits released and the share of its budget that they are, suspicion (1 is the alarm
threshold), the tier that answers next; then entropies of its questions in bits a row and the share of the score space
that it has seen, as far as the terminal has room. --json has all of it.

Below them stand groups of clients who together ask what ordinary ones do not, if there are any.

A grant is the only thing that gives a client more than the policy's budget. It stays in the books, with its reason.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rich import box
from rich.console import Console, ConsoleOptions, Group
from rich.live import Live
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from hardening.budgets import grant
from hardening.cli.options import amount, seconds
from hardening.config import load_policy
from hardening.errors import ConfigError
from hardening.ledger.amounts import RUNGS
from hardening_grpc.control import ask_clients, ask_grant, ask_groups

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
    parser.usage = "%(prog)s --control PATH [--watch] [--every SECONDS] [--json]\n       %(prog)s grant --help"
    actions = parser.add_subparsers(title="actions", metavar="ACTION", prog=parser.prog)
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


def _graded(text: str, share: float) -> Text:
    """Red from nine tenths of what is allowed on, yellow from half of it on."""
    return Text(text, "red" if share >= 0.9 else "yellow" if share >= 0.5 else "green")


def _bar(share: float) -> Text:
    """A share as ten steps; all of it is said of nothing less."""
    return _graded(f"{'█' * round(10 * share):░<10} {math.floor(100 * share):3}%", share)


class Column(NamedTuple):
    """A column of the table: its heading, what it says of a client; and whether it says anything, if it may not."""

    heading: str
    cell: Callable[[dict[str, Any]], Text]
    tells: Callable[[dict[str, Any]], bool] | None = None
    justify: Literal["left", "right"] = "right"


#: In the order in which they are shown. Where there is no room for all, the last ones go.
COLUMNS = (
    Column("client", lambda c: Text(c["client"]), justify="left"),
    Column("queries", lambda c: _number(c["queries"], ",")),
    Column("bits", lambda c: _number(c["bits"], ",.0f")),
    Column("rho", lambda c: _number(c["rho"], ",.4g"), lambda c: c.get("rho") != 0),
    Column("budget spent", lambda c: _bar(c["spent"] or 0.0), lambda c: c.get("spent") != 0, "left"),
    Column("tier", lambda c: Text(c["tier"], "red" if c["tier"] == "deny" else ""), justify="left"),
    Column("suspicion", lambda c: _suspicion(c["suspicion"]), lambda c: c.get("suspicion") != 0),
    Column("window", lambda c: _number(c["window"], ".2f"), lambda c: c.get("window") != 0),
    Column("posterior\nentropy", lambda c: _number(c["posterior_entropy"], ".3f")),
    Column("label\nentropy", lambda c: _number(c["label_entropy"], ".3f")),
    Column("code\nlength", lambda c: _number(c["code_length"], ",.0f")),
    Column("coverage", lambda c: _number(c["coverage"], ".1%")),
)
#: Columns without which a line says nothing; how many letters of a name stand in one line, and a line without end.
_FEWEST, _LONGEST, _WIDEST = 3, 24, 1000


def _suspicion(value: float | None) -> Text:
    return Text("unbounded", "red") if value is None else _graded(f"{value:.2f}", value)


class Accounts:
    """What the operator looks at: columns that say nothing about anybody are left out, and those that do not fit."""

    def __init__(self, clients: list[dict[str, Any]]) -> None:
        self._clients = clients
        self._columns = [c for c in COLUMNS if c.tells is None or any(map(c.tells, clients))]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        for count in range(len(self._columns), _FEWEST, -1):
            table = self._table(self._columns[:count])
            if Measurement.get(console, options.update(max_width=_WIDEST), table).maximum <= options.max_width:
                break
        yield table

    def _table(self, columns: list[Column]) -> Table:
        suspected = sum(c["suspicion"] is None or c["suspicion"] >= 1 for c in self._clients)
        title = f"clients: {len(self._clients)}, queries: {sum(c['queries'] for c in self._clients):,}"
        title += f", suspected: {suspected}" * bool(suspected)
        if any(c.get("stale") for c in self._clients):
            title += "\nThe books cannot be had: what follows is what the server counted itself since it started."
        out = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        names = min(max((len(c["client"]) for c in self._clients), default=0), _LONGEST)
        out.add_column("client", overflow="fold", width=max(names, len("client")))
        for column in columns[1:]:
            out.add_column(column.heading, justify=column.justify, no_wrap=True)
        for client in self._clients:
            out.add_row(*(column.cell(client) for column in columns))
        return out


def suspects(groups: list[dict[str, Any]]) -> Table:
    """Groups that seem to be one attack, most evidence first."""
    out = Table(
        title=f"suspected together: {len(groups)}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    out.add_column("group", overflow="fold", min_width=8)
    for heading in ("clients", "rows", "ln e", "label\ngap"):
        out.add_column(heading, justify="right", no_wrap=True)
    out.add_column("what speaks against them", overflow="fold")
    out.add_column("among them", overflow="fold")
    for g in groups:
        lanes = ", ".join(f"{lane} {mean:.2f} > {limit:.2f}" for lane, mean, limit in g["lanes"])
        numbers = [_number(g["members"], ","), _number(g["rows"], ","), _number(g["evidence"], ",.0f")]
        some = [*g["clients"][:3], *["..."] * (g["members"] > 3)]
        out.add_row(Text(g["group"]), *numbers, _number(g["gap"], ".2f"), Text(lanes), Text(", ".join(some)))
    return out


def _shown(looked: tuple[list[dict[str, Any]], list[dict[str, Any]]]) -> Group:
    clients, groups = looked
    return Group(Accounts(clients), *[suspects(groups)] * bool(groups))


def run(options: argparse.Namespace) -> int:
    if options.control is None:
        raise ConfigError("--control", "missing: the socket that `hardening serve --control` was given")
    with contextlib.suppress(KeyboardInterrupt):
        if options.json:
            for clients, groups in _looks(options):
                print(json.dumps({"clients": clients, "groups": groups}), flush=True)
        elif not (options.watch and sys.stdout.isatty()):
            for looked in _looks(options):
                Console().print(_shown(looked))
                sys.stdout.flush()
        else:
            with Live(screen=True, auto_refresh=False) as live:
                for looked in _looks(options):
                    live.update(_shown(looked), refresh=True)
    return 0


def _looks(options: argparse.Namespace) -> Iterator[tuple[list[dict[str, Any]], list[dict[str, Any]]]]:
    yield ask_clients(options.control), ask_groups(options.control)
    while options.watch and not threading.Event().wait(options.every):
        yield ask_clients(options.control), ask_groups(options.control)
