"""The files of a policy that only a server reads, as it reads them at its start: for `hardening check`."""

from __future__ import annotations

from collections.abc import Callable

from hardening.config import Policy
from hardening_grpc.auth import load_api_keys
from hardening_grpc.tls import server_credentials


def checks(policy: Policy) -> list[Callable[[], object]]:
    """What to call: each raises ConfigError where the server would."""
    auth, tls, found = policy.auth, policy.tls, list[Callable[[], object]]()
    if auth is not None:
        found.append(lambda: load_api_keys(auth, policy.root, policy.clients.credentials))
    if tls is not None:
        found.append(lambda: server_credentials(tls, policy.root))
    return found
