"""Make an API key for a client: its digest goes into a file, the key is printed once."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from hardening_grpc.auth import add_key

EXAMPLE = "hardening credential alice --keys keys.toml --organisation acme"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="the client's name, as `hardening clients` will show it")
    parser.add_argument("--keys", required=True, type=Path, metavar="FILE", help="the file that auth.api_keys names")
    parser.add_argument("--organisation", metavar="ORG", help="whom the client belongs to; its budget pays as well")
    parser.add_argument("--principal", metavar="WHO", help="who holds it, where one holds several credentials")
    parser.add_argument("--replace", action="store_true", help="give a new key; the old one ends, its budget goes on")
    parser.add_argument("--json", action="store_true", help="print a JSON object for machines")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    belongs = {"organisation": options.organisation, "principal": options.principal}
    key = add_key(options.keys, options.name, options.replace, **belongs)
    if options.json:
        print(json.dumps({"client": options.name, "key": key}))
    else:
        print(key)
        print(
            f"The key of {options.name}; it is shown this once. A running server reads {options.keys} when restarted.",
            file=sys.stderr,
        )
    return 0
