"""The operator's endpoint of a running server: a unix socket of mode 0600, so that the file's owner is who may ask.

One line of JSON asks (``{"ask": "clients"}``, ``{"ask": "groups"}``, or ``"grant"`` with what `Guard.grant` takes), one
line answers. It is never on TCP.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import socket
import socketserver
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hardening.errors import ConfigError, HardeningError
from hardening.types import Alarm, Standing

_LONGEST_QUESTION = 8192
_TIMEOUT = 5.0
#: Seconds that an answer may take: a server with many clients to tell of is busy with others, too.
_PATIENCE = 60.0
_OPTION = "--control"
Standings = Callable[[], dict[str, Standing]]
Alarms = Callable[[], tuple[Alarm, ...]]


def accounts(standings: dict[str, Standing]) -> list[dict[str, Any]]:
    """Standings as plain data, those who have been told most first; infinite is None."""
    rows = sorted(standings.items(), key=lambda item: (-item[1].bits, item[0]))
    return [{"client": name, **{k: _finite(v) for k, v in row._asdict().items()}} for name, row in rows]


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


class _Answer(socketserver.StreamRequestHandler):
    timeout = _TIMEOUT
    server: _Listener

    def handle(self) -> None:
        try:
            question = json.loads(self.rfile.readline(_LONGEST_QUESTION))
            asked = question.pop("ask") if isinstance(question, dict) else None
        except (ValueError, OSError, RecursionError, KeyError):
            asked = None
        self.wfile.write(json.dumps(self._answer(asked, question if asked else {})).encode() + b"\n")

    def _answer(self, asked: Any, question: dict[str, Any]) -> dict[str, Any]:
        if asked == "clients":
            return {"clients": accounts(self.server.standings())}
        if asked == "groups":
            return {"groups": [{k: _finite(v) for k, v in a._asdict().items()} for a in self.server.alarms()]}
        if asked != "grant" or self.server.grant is None:
            return {"error": 'ask {"ask": "clients"}'}
        try:
            self.server.grant(**question)
        except HardeningError as problem:
            return {"error": str(problem)}
        except TypeError:
            return {"error": "grant: give client, reason, rung, and bits or rho"}
        return {"granted": question}


class _Listener(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, path: Path, standings: Standings, grant: Callable[..., None] | None, alarms: Alarms) -> None:
        self.standings, self.grant, self.alarms = standings, grant, alarms
        super().__init__(str(path), _Answer, bind_and_activate=False)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """An operator who hangs up is no event."""


class Control:
    """Listens on `path` from construction on, until `close`; also a context manager.

    A socket that a dead server left is replaced, that of a live one is not. `standings`, `grant` and `alarms` are
    those of a guard. Raises ConfigError.
    """

    def __init__(
        self, path: Path, standings: Standings, grant: Callable[..., None] | None = None, alarms: Alarms = tuple
    ) -> None:
        self._path = path
        _check_free(path)
        # Bound under another name and without a listener, made private, and only then put in its place.
        draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        self._listener = _Listener(draft, standings, grant, alarms)
        try:
            self._listener.server_bind()
            draft.chmod(0o600)
            self._listener.server_activate()
            self._inode = draft.stat().st_ino
            draft.replace(path)
        except OSError as problem:
            self._listener.server_close()
            draft.unlink(missing_ok=True)
            raise ConfigError(_OPTION, f"cannot listen on {str(path)!r}: {problem.strerror or problem}") from None
        self._thread = threading.Thread(target=self._listener.serve_forever, name="hardening-control", daemon=True)
        self._thread.start()

    def __enter__(self) -> Control:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening, and remove the socket's file if it still is ours."""
        self._listener.shutdown()
        self._thread.join()
        self._listener.server_close()
        try:
            if self._path.lstat().st_ino == self._inode:
                os.unlink(self._path)
        except FileNotFoundError:
            pass


def _check_free(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as problem:
        raise ConfigError(_OPTION, f"cannot listen on {str(path)!r}: {problem.strerror}") from None
    if not stat.S_ISSOCK(mode):
        raise ConfigError(_OPTION, f"{str(path)!r} exists and is not a socket: name another path")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_TIMEOUT)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return
        except OSError as problem:
            raise ConfigError(_OPTION, f"cannot tell whether {str(path)!r} is in use: {problem}") from None
    raise ConfigError(_OPTION, f"{str(path)!r} is the socket of a running server: name another path, or stop it")


def ask_clients(path: Path) -> list[dict[str, Any]]:
    """The accounts of the server behind `path`, as `accounts` gives them. Raises HardeningError."""
    clients: list[dict[str, Any]] = _ask(path, {"ask": "clients"}, "clients")
    return clients


def ask_groups(path: Path) -> list[dict[str, Any]]:
    """The groups that the server behind `path` suspects, as `Guard.alarms` has them. Raises HardeningError."""
    groups: list[dict[str, Any]] = _ask(path, {"ask": "groups"}, "groups")
    return groups


def ask_grant(path: Path, grant: dict[str, Any]) -> None:
    """Have the server behind `path` do what `Guard.grant` does with `grant`. Raises HardeningError."""
    _ask(path, {"ask": "grant", **grant}, "granted")


def _ask(path: Path, question: dict[str, Any], wanted: str) -> Any:
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_TIMEOUT)
            connection.connect(str(path))
            connection.sendall(json.dumps(question).encode() + b"\n")
            connection.settimeout(_PATIENCE)
            with connection.makefile("rb") as stream:
                answer = json.loads(stream.readline())
        if isinstance(answer, dict) and "error" in answer:
            raise HardeningError(str(answer["error"]))
        return answer[wanted]
    except PermissionError:
        raise HardeningError(f"{str(path)!r} answers only its owner: ask as the user who runs the server") from None
    except OSError as problem:
        reason = problem.strerror or problem
        raise HardeningError(f"no server answers at {str(path)!r}: {reason}; start it with --control") from None
    except (ValueError, KeyError, TypeError):
        raise HardeningError(f"{str(path)!r} is not the control socket of a hardening server") from None
