"""Who is asking: the key that a call shows, and the network that it came from."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from urllib.parse import unquote

from hardening.clients import ANONYMOUS
from hardening.config import Policy
from hardening.policy import ClientRules
from hardening.types import Identity
from hardening_grpc.auth import ApiKeys

Metadata = Iterable[tuple[str, str | bytes]]


class Callers:
    """Identities of calls, by what a policy lets them be told apart by.

    Args:
        policy: its sections ``clients`` and ``auth``.
        keys: who may ask, or None: everybody may, as the anonymous account.
    """

    def __init__(self, policy: Policy, keys: ApiKeys | None) -> None:
        self._keys, self._rules = keys, policy.clients
        self._hops = policy.auth.trusted_hops if policy.auth else 0
        self._by_prefix = "prefix" in policy.clients.identity

    def identify(self, metadata: Metadata, peer: str) -> Identity:
        """Who called with this `metadata` from `peer`, as grpcio writes an address. Raises Unauthenticated."""
        metadata = tuple(metadata)
        identity = Identity(ANONYMOUS) if self._keys is None else self._keys.client(metadata)
        if not self._by_prefix:
            return identity
        return identity._replace(prefix=prefix(address(metadata, peer, self._hops), self._rules))


def address(metadata: Metadata, peer: str, hops: int) -> str:
    """Where a call came from before it passed `hops` proxies of our own, "" if that is not known.

    Each proxy adds the address that it was called from at the end of ``x-forwarded-for``. What stands before those that
    our own proxies wrote was written by the caller, and is not looked at; without `hops`, nothing of it is.
    """
    if not hops:
        kind, _, rest = unquote(peer).partition(":")
        if kind not in ("ipv4", "ipv6"):
            return ""
        return rest.rpartition(":")[0].strip("[]")
    noted = [part.strip() for name, value in metadata if name == "x-forwarded-for" for part in str(value).split(",")]
    return noted[-hops] if len(noted) >= hops else ""


def prefix(text: str, rules: ClientRules) -> str:
    """The network of an address that counts as one, such as ``203.0.113.0/24``; "" for what is none."""
    try:
        found = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return ""
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    length = rules.ipv4 if found.version == 4 else rules.ipv6
    return str(ipaddress.ip_network((found, length), strict=False))
