"""Serve a hardened model over gRPC, by the Open Inference Protocol, until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from hardening_onnx import wrap

from hardening.cli.options import seconds, whole
from hardening.cli.progress import say_if_kernels_are_compiled
from hardening.config import load_policy
from hardening_grpc.control import Control
from hardening_grpc.server import MAX_MESSAGE, MAX_STREAMS, THREADS, Server, check_exposure

EXAMPLE = "hardening serve model.onnx --policy policy.toml --port 8001 --control hardening.sock"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", type=Path, help="an ONNX file; clients call it by its stem")
    parser.add_argument("--policy", required=True, metavar="POLICY", help="a policy file (TOML)")
    parser.add_argument("--host", default="127.0.0.1", metavar="H", help="address to listen on (default 127.0.0.1)")
    parser.add_argument("--port", default=8001, type=whole(0, 65535), metavar="N", help="default 8001; 0: a free one")
    parser.add_argument("--control", type=Path, metavar="PATH", help="unix socket for `hardening clients`")
    parser.add_argument("--max-message", default=MAX_MESSAGE, type=whole(1), metavar="BYTES", help="largest request")
    parser.add_argument(
        "--max-streams", default=MAX_STREAMS, type=whole(1), metavar="N", help="calls at once, a connection"
    )
    parser.add_argument("--threads", default=THREADS, type=whole(1, 256), metavar="N", help="worker threads")
    parser.add_argument(
        "--grace", default=10.0, type=seconds(0), metavar="SECONDS", help="for running calls at the end"
    )
    parser.add_argument("--json", action="store_true", help="say where it listens as a JSON object")
    parser.set_defaults(run=run)


@contextlib.contextmanager
def stop_signals() -> Iterator[int]:
    """A descriptor that can be read from once SIGTERM or SIGINT has come, to whichever thread."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    wakeup = signal.set_wakeup_fd(write_end)
    before = {s: signal.signal(s, lambda *_: None) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield read_end
    finally:
        for number, action in before.items():
            signal.signal(number, action)
        signal.set_wakeup_fd(wakeup)
        os.close(read_end)
        os.close(write_end)


def run(options: argparse.Namespace) -> int:
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")  # to stderr
    policy = load_policy(options.policy)
    check_exposure(policy, options.host)
    say_if_kernels_are_compiled()
    session = wrap(options.model, policy)
    name = options.model.stem
    with contextlib.ExitStack() as stack:
        stack.callback(session.guard.close)
        if options.control:
            guard = session.guard
            stack.enter_context(Control(options.control, guard.clients, guard.grant, guard.alarms))
        stop = stack.enter_context(stop_signals())
        server = Server(
            name,
            session,
            policy,
            host=options.host,
            port=options.port,
            max_message=options.max_message,
            max_streams=options.max_streams,
            threads=options.threads,
        )
        stack.callback(server.stop, options.grace)
        facts = {"model": name, "host": options.host, "port": server.port}
        facts |= {"tls": policy.tls is not None, "api_keys": policy.auth is not None}
        if options.json:
            print(json.dumps(facts), flush=True)
        else:
            tls = "with TLS" if policy.tls else "without TLS"
            print(f"serving model {name!r} on {options.host}:{server.port}, {tls}", flush=True)
        if policy.auth is None:
            print(
                "no [auth] in the policy: listening on loopback only, every caller is the account 'anonymous'",
                file=sys.stderr,
                flush=True,
            )
        os.read(stop, 1)
    return 0
