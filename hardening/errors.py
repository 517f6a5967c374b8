"""Every error this library raises, in one tree.

    HardeningError
    |- ConfigError(path, problem)       a policy, a key or a credential file is wrong; also a ValueError
    |- SpaceError(problem)              a transform was given scores of a kind it cannot take; also a ValueError
    |- ModelError(problem)              the model cannot be read, or does not fit the policy; also a ValueError
    |- InputError(problem)              a query is malformed: names, shapes, dtypes; also a ValueError
    |- ReleaseError(output, row, problem)   an answer could not be hardened, so nothing was released
    |- LedgerError(problem, cause)      the books cannot be had, or cannot be trusted
    |- Denied(client, reason, code)     the policy refuses this caller

The message of an error is for the operator. A remote caller never sees it: bindings send one opaque sentence and the
evidence - the attributes below - goes to the event.
"""

from __future__ import annotations

from typing import Literal


class HardeningError(Exception):
    """Base of every error raised on purpose by this library."""


class ConfigError(HardeningError, ValueError):
    """A setting is wrong.

    Attributes:
        path: dotted path of the setting, such as ``outputs.probabilities.tiers.normal[0].sigma``.
        problem: what is wrong with it, and what would be right.
    """

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path}: {problem}" if path else problem)
        self.path = path
        self.problem = problem


class SpaceError(HardeningError, ValueError):
    """A transform was put where its input is not of a kind it accepts."""


class ModelError(HardeningError, ValueError):
    """A model file cannot be used: unreadable, or its graph does not fit the policy."""


class InputError(HardeningError, ValueError):
    """A query does not fit the model's declared inputs or outputs."""


class ReleaseError(HardeningError, RuntimeError):
    """An answer could not be hardened. Nothing was released.

    Attributes:
        output: name of the model output.
        row: index of the first offending row, or None when the whole output is at fault.
        problem: what was wrong.
    """

    def __init__(self, output: str, row: int | None, problem: str) -> None:
        where = f"output {output!r}" if row is None else f"output {output!r}, row {row}"
        super().__init__(f"{where}: {problem}; nothing was released")
        self.output = output
        self.row = row
        self.problem = problem


#: ``unreachable``: no answer. ``full``: no room to write. ``not-durable``: it may forget what it acknowledges.
LedgerCause = Literal["unreachable", "full", "not-durable"]


class LedgerError(HardeningError, RuntimeError):
    """The durable ledger cannot be had. Inside the hot path the policy's ``ledger.on_failure`` decides instead.

    Attributes:
        cause: see `LedgerCause`.
    """

    def __init__(self, problem: str, cause: LedgerCause = "unreachable") -> None:
        super().__init__(problem)
        self.cause = cause


#: ``exhausted``: the policy refuses by what it knows of the caller - a budget, window, throttle or suspicion, or one
#: credential too many - and which of them it was, nobody is told (gRPC RESOURCE_EXHAUSTED). ``forbidden``: the caller
#: has no name and the policy answers none such (``clients.anonymous``), a fact about nobody (PERMISSION_DENIED).
DenialCode = Literal["exhausted", "forbidden"]


class Denied(HardeningError, PermissionError):
    """The policy refuses this caller.

    ``str(error)`` is the one opaque sentence that every denial shares, safe to send to a stranger.

    Attributes:
        client: name of the account that was refused.
        reason: the evidence, for the operator only.
        code: the class of refusal, for a status code; one for all that follows from the state of an account.
    """

    SENTENCE = "The request was refused by policy."

    def __init__(self, client: str, reason: str, code: DenialCode = "exhausted") -> None:
        super().__init__(self.SENTENCE)
        self.client = client
        self.reason = reason
        self.code = code

    def __str__(self) -> str:
        return self.SENTENCE
