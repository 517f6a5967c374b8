"""Frozen values that cross layers. Nothing here computes, reads a clock or holds a lock."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, get_args

#: What a vector of scores means, and therefore which transforms may touch it.
#:
#: ``simplex``: non-negative, sums to one. ``sigmoid``: each entry answers a yes/no question of its own with a value in
#: [0, 1], such as a mask. ``multilabel``: one value in [0, 1] for each label, of which any number may apply.
#: ``logits``: any finite scores whose arg-max is the label. ``labels``: class labels.
#: ``embedding``: any finite vector. ``scalar``: regression values. ``boxes``: detections, with coordinates, scores and
#: labels side by side in the last axis. ``open``: explicitly unhardened.
SpaceKind = Literal["simplex", "sigmoid", "multilabel", "logits", "labels", "embedding", "scalar", "boxes", "open"]
SPACES: tuple[str, ...] = get_args(SpaceKind)
#: What one column of detections holds: a coordinate, a score in [0, 1], or a label or other number released as it is.
Column = Literal["box", "score", "label"]


@dataclass(frozen=True, slots=True)
class OutputSpace:
    """Where a vector of scores lives while a pipeline works on it.

    Attributes:
        kind: one of `SPACES`.
        on_simplex: whether the vector is a distribution at this point; noise takes it off, ``project`` puts it back.
        low, high: bounds of every entry, declared or established by a ``clip``, or infinities.
        support: most entries that can differ from zero, or on logits from a constant, if a ``top_k`` has limited them.
        units: if set, every entry is a multiple of 1/units.
        relabelled: whether another label may stand in for the model's own; what keeps the top class keeps that one.
    """

    kind: SpaceKind
    on_simplex: bool = False
    low: float = -math.inf
    high: float = math.inf
    support: int | None = None
    units: int | None = None
    relabelled: bool = False


class Standing(NamedTuple):
    """What one client has learnt so far. Entropies are in bits per row, coverage is in [0, 1].

    Attributes:
        queries: rows asked for and charged.
        bits: released bits, an upper bound on what all answers together say about the model.
        rho: zero-concentrated privacy loss spent, for tiers that declare a sensitivity.
        posterior_entropy: mean entropy of the model's own (clean) scores.
        label_entropy: entropy of the released labels, corrected for bias.
        code_length: bits needed to write down the sequence of released labels (Krichevsky-Trofimov).
        coverage: share of the output space's cells that the client has visited.
        suspicion: evidence against the client in units of the alarm threshold; 0 without a detector.
        tier: name of the tier that answers this client now, or ``deny``.
        histogram: rows by entropy of the clean scores, in eighths of the largest possible entropy.
        spent: share of the client's own lifetime budget that is spent, in [0, 1]; 0 where there is none.
        window: how far the client's last full window of questions stands out, in units of what few windows of ordinary
            clients exceed; 0 without a detector.
        stale: whether the books could not be had, so that bits, rho and spent are what this process knows by itself.
    """

    queries: int = 0
    bits: float = 0.0
    rho: float = 0.0
    posterior_entropy: float = 0.0
    label_entropy: float = 0.0
    code_length: float = 0.0
    coverage: float = 0.0
    suspicion: float = 0.0
    tier: str = ""
    histogram: tuple[int, ...] = (0,) * 8
    spent: float = 0.0
    window: float = 0.0
    stale: bool = False


class Alarm(NamedTuple):
    """A group of clients who together ask what ordinary ones do not.

    Attributes:
        group: how the group was formed, in words.
        members: how many they are.
        clients: names of some of them, those with the most evidence of their own first.
        rows: rows that they asked for the first time.
        evidence: logarithm of an e-value against all of them being ordinary.
        lanes: what speaks against them: by name, the mean score, and what it stays below for ordinary clients.
        gap: near 1 where each asks about classes of its own, near 0 where all ask alike.
        distance: total variation between the entropies of their answers and those of ordinary clients'.
        since: when it was told of, in seconds since the epoch.
    """

    group: str
    members: int
    clients: tuple[str, ...]
    rows: int
    evidence: float
    lanes: tuple[tuple[str, float, float], ...]
    gap: float
    distance: float
    since: float


class Identity(NamedTuple):
    """Who is asking, as far as a binding has made sure of it; each a name of 1 to 64 printable characters, or "".

    Attributes:
        credential: what the caller has shown; the client's name. One that is replaced keeps its name.
        principal: person or program that the credential belongs to; "": the credential is on its own.
        organisation: whom the principal belongs to; "": all who have none count as one.
        prefix: network that the call came from, such as ``203.0.113.0/24``; "": all of unknown origin count as one.
        since: when the credential was made, in seconds since the epoch; None: unknown, so it counts as new for good.
    """

    credential: str
    principal: str = ""
    organisation: str = ""
    prefix: str = ""
    since: float | None = None


class Decision(NamedTuple):
    """What `Guard.admit` allows: the tier that will answer these rows, and who is charged for them. For one answer.

    `accounts` are those of the ledger, a rung and a name each; none without budgets. `about` is what was asked, as
    `Guard.admit` was told; `advance` holds what was charged for the answer beforehand, until that is settled; `step` is
    the number of the response that was in force, or -1.
    """

    client: str
    slot: int
    tier: str
    rows: int
    accounts: tuple[Any, ...] = ()
    about: Any = None
    advance: Any = None
    step: int = -1


@dataclass(frozen=True, slots=True)
class Event:
    """Something that a security team should know.

    Attributes:
        kind: such as ``denied``, ``release-failed``, ``tier-changed``, ``window-alarm``, ``budget-exhausted``,
            ``budget-granted``, ``accounts-pooled``, ``fleet-suspected``, ``clients-suspected``, ``started`` or
            ``stopped``.
        time: seconds since the epoch (UTC).
        client: account concerned, or "".
        evidence: further facts; never raw inputs, raw outputs or secrets.
    """

    kind: str
    time: float
    client: str = ""
    evidence: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelReport:
    """How a policy fits a model; a checker registered under the entry-point group ``hardening.models`` returns it.

    Attributes:
        problems: what is wrong, in sentences; empty if the policy fits.
        warnings: what could not be told from the model, or would be served better otherwise.
        closed: outputs that the policy leaves closed, with what they seem to hold.
        widths: entries of a row by output of the policy, where they are fixed.
    """

    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    closed: Mapping[str, str] = field(default_factory=dict)
    widths: Mapping[str, int] = field(default_factory=dict)


class Clock(Protocol):
    def __call__(self) -> float:
        """Seconds since the epoch."""


class Sink(Protocol):
    def emit(self, event: Event) -> None:
        """Take one event. Must not block and must not raise."""

    def close(self) -> None:
        """Write out what is still held."""


#: capacity: bits an answer can carry. output-metric: models whose clean outputs are close are hard to tell apart.
#: label: output-metric, but only among models that agree on the label. label-rr: the label is drawn, and any two
#: models, however they differ, give it with nearly the same chances. shard: one training record, for ensembles on
#: disjoint shards. none: deception or nothing.
Relation = Literal["capacity", "output-metric", "shard", "label", "label-rr", "none"]


@dataclass(frozen=True, slots=True)
class Guarantee:
    """What a pipeline promises about one answer. Unknown is the pessimistic element, never zero.

    Attributes:
        relation: what is protected, see `Relation`.
        unit: what the parameters are counted in, in words.
        parameters: named numbers; empty when nothing is promised. ``rho``, or ``epsilon`` with ``delta``: the privacy
            loss between two sides of the relation that are ``sensitivity_l1``, ``_l2`` or ``_linf`` apart; ``tv``: how
            far, in total variation, the answer's law is from the ideal one that a rho is about; ``sigma``, ``scale``.
        scope: ``client`` when every client has noise of its own, else ``global``.
        assumptions: sentences that must hold for the promise to hold.
        bits: most bits one row of the answer can carry; infinite when unknown.
        keeps_top1: whether the released arg-max is the model's own.
    """

    relation: Relation = "none"
    unit: str = "answer"
    parameters: Mapping[str, float] = field(default_factory=dict)
    scope: Literal["client", "global"] = "global"
    assumptions: tuple[str, ...] = ()
    bits: float = math.inf
    keeps_top1: bool = False

    def __post_init__(self) -> None:
        if self.relation in ("none", "capacity") and not {"epsilon", "delta", "rho"}.isdisjoint(self.parameters):
            raise ValueError(f"a guarantee of relation {self.relation!r} has no privacy loss to state")
