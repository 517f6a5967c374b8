"""What a guard or a server would refuse at its start, of the files and variables that a policy names.

The functions are those that read them then. What only a server reads, ``[auth]`` and ``[tls]``, is read by the checkers
under the entry-point group `GROUP`, so that the core needs no server.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata

from hardening.budgets import check_budgets
from hardening.clients import Baseline
from hardening.config import Policy
from hardening.errors import ConfigError
from hardening.keys import check_key, read_reference

GROUP = "hardening.servers"
BASELINE = "detect.baseline"


def baseline_of(policy: Policy) -> Baseline | None:
    """What alarms are measured against, None where the policy has no baseline. Raises ConfigError."""
    name = policy.detect.baseline
    return None if name is None else Baseline.read(policy.root / name, policy.outputs, BASELINE)


def refused(policy: Policy, widths: Mapping[str, int], connect: bool = False) -> tuple[str, ...]:
    """Sentences, each with the dotted path of what is wrong; none if all is well.

    Args:
        widths: entries of a row by output, as far as the model is known.
        connect: ask a ledger on another machine as well.
    """
    checks: list[Callable[[], object]] = [lambda: _check_baseline(policy, widths)]
    if policy.key is not None:
        key = policy.key
        checks.append(lambda: check_key(key, policy.root))
    if policy.budgets:
        checks.append(lambda: check_budgets(policy, connect))
    checks += _of_servers(policy)
    return tuple(_problems(checks))


def _problems(checks: list[Callable[[], object]]) -> Iterator[str]:
    for check in checks:
        try:
            check()
        except ConfigError as problem:
            yield str(problem)


def _check_baseline(policy: Policy, widths: Mapping[str, int]) -> None:
    baseline = baseline_of(policy)
    if baseline is None or not baseline.classes:
        return
    width = widths.get(baseline.output, baseline.classes)
    if width != baseline.classes:
        raise ConfigError(
            BASELINE,
            f"is of {baseline.classes} classes, and rows of {baseline.output!r} have {width} entries: it is of another "
            "model, run hardening calibrate on a log of this one",
        )


def _of_servers(policy: Policy) -> list[Callable[[], object]]:
    """Checks of ``[auth]`` and ``[tls]``: the server's own where it is installed, else whether the files are there."""
    named: dict[str, str | None] = {}
    if policy.auth is not None:
        named["auth.api_keys"] = policy.auth.api_keys
    if policy.tls is not None:
        named |= {f"tls.{name}": getattr(policy.tls, name) for name in ("certificate", "key", "client_ca")}
    if not named:
        return []
    for point in metadata.entry_points(group=GROUP):
        try:
            found: list[Callable[[], object]] = point.load()(policy)
        except ImportError:
            continue
        return found
    there = [(path, reference) for path, reference in named.items() if reference is not None]
    return [functools.partial(read_reference, said, policy.root, path) for path, said in there]
