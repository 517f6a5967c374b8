"""TOML to frozen dataclasses, strictly: an unknown key is an error with its dotted path and the valid choices.

Nothing here reads a secret; a policy holds references to them (``file:PATH``, ``env:NAME``).
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, cast, get_args

from hardening.errors import ConfigError
from hardening.ledger import Budget, LedgerRules
from hardening.ledger.amounts import RUNGS, milliseconds
from hardening.pipeline import Pipeline
from hardening.policy import DENY, ClientRules, Response
from hardening.references import Auth, KeySource, Tls
from hardening.strict import build, read, table, unknown
from hardening.transforms import TRANSFORMS, Transform
from hardening.transforms.boxes import BOX
from hardening.transforms.classes import INDEPENDENT
from hardening.types import SPACES, Column, SpaceKind

__all__ = ["Auth", "ClientRules", "KeySource", "Output", "Policy", "Tls", "load_policy", "parse_policy"]

SCHEMA = 1


#: Spaces whose rows say a label.
_LABELLED = ("simplex", "logits", *INDEPENDENT)


def _only_of(path: str, space: str, *kinds: str) -> None:
    if space not in kinds:
        raise ConfigError(path, f"has a meaning for {' and '.join(kinds)} alone, not for {space}")


@dataclass(frozen=True)
class Output:
    """How one model output is hardened: a pipeline per tier, the first tier being the default.

    Attributes:
        space: one of `hardening.types.SPACES`.
        tiers: transforms by tier; may be left out only for ``labels`` and ``open``.
        label_output: the output that holds the arg-max of this one, or for ``sigmoid`` and ``multilabel`` a one for
            each value of at least one half; it is derived from the released row.
        classes: values of the label output, by index; 0, 1, 2, ... if left out.
        range: lowest and highest honest value of a ``scalar``, or of the coordinates of ``boxes``. What the model says
            beyond it is brought to its ends before anything else is done, and tiers have to keep to it.
        columns: what the columns of ``boxes`` hold; four coordinates if left out.
        dense: whether tiers may release more than a few ``logits`` of a row.
    """

    space: SpaceKind
    tiers: Mapping[str, tuple[Transform, ...]] = field(default_factory=dict)
    label_output: str | None = None
    classes: tuple[int | str, ...] | None = None
    range: tuple[float, ...] | None = None
    columns: tuple[Column, ...] | None = None
    dense: bool = False

    def check(self, path: str) -> None:
        """Raise ConfigError for what does not go with the space; `path` is the section's."""
        if self.space not in SPACES:
            raise ConfigError(f"{path}.space", f"unknown space {self.space!r}; known: {', '.join(SPACES)}")
        if not self.tiers and self.space not in ("labels", "open"):
            raise ConfigError(f"{path}.tiers", "at least one tier is needed; the first is the default")
        if self.label_output is not None and self.space not in _LABELLED:
            raise ConfigError(f"{path}.label_output", f"a label agrees with class scores, not with {self.space}")
        if self.label_output is not None and self.classes is not None and self.space in INDEPENDENT:
            raise ConfigError(f"{path}.classes", f"the labels of {self.space} are zeros and ones: leave it out")
        if self.range is not None:
            _only_of(f"{path}.range", self.space, "scalar", "boxes")
            if len(self.range) != 2 or not -math.inf < self.range[0] < self.range[1] < math.inf:
                raise ConfigError(f"{path}.range", f"must be [low, high], finite and in order, not {list(self.range)}")
        if self.columns is not None:
            _only_of(f"{path}.columns", self.space, "boxes")
            if "box" not in self.columns or not set(self.columns) <= set(get_args(Column)):
                known = ", ".join(get_args(Column))
                raise ConfigError(f"{path}.columns", f"must name coordinates; known: {known}, not {list(self.columns)}")
        if self.dense:
            _only_of(f"{path}.dense", self.space, "logits")


@dataclass(frozen=True)
class Near:
    """How near duplicates of earlier questions are looked for; see `hardening.clients.fingerprints`.

    Attributes:
        input: the model's input whose rows are compared; numbers.
        span: range of its ordinary values, largest less smallest.
        window: entries that are compared together: 20 or more for pictures, 1 for a few unrelated columns.
        rows: questions of all clients that are remembered, some 500 bytes each.
    """

    input: str
    span: float
    window: int = 20
    rows: int = 20_000

    def __post_init__(self) -> None:
        if not 0 < self.span < math.inf:
            raise ConfigError("detect.near.span", f"must be a finite number above 0, not {self.span!r}")
        for name in ("window", "rows"):
            if getattr(self, name) < 1:
                raise ConfigError(f"detect.near.{name}", f"must be at least 1, not {getattr(self, name)!r}")


@dataclass(frozen=True)
class Detect:
    """The policy's section ``[detect]``.

    Attributes:
        baseline: file that `hardening calibrate` wrote, relative to the policy; without one nobody is ever suspected.
        false_alarm: chance that an ordinary client ever reaches a suspicion of 1, however much it asks; s: its s-th
            power.
        log: file that what clients ask is appended to, relative to the policy, for `hardening calibrate` to read.
        log_bytes: size beyond which the log does not grow; a row takes some 170 bytes.
        output: whose rows the log has; left out, the baseline's or the first that has tiers.
        near: how near duplicates are looked for, if at all.
        every: how often, such as ``1m``, evidence is written to the ledger and all clients together are looked at.
    """

    baseline: str | None = None
    false_alarm: float = 1e-4
    log: str | None = None
    log_bytes: int = 1 << 28
    output: str | None = None
    near: Near | None = None
    every: str = "1m"

    def __post_init__(self) -> None:
        try:
            often = milliseconds(self.every)
        except ValueError as problem:
            raise ConfigError("detect.every", str(problem)) from None
        if often > milliseconds("1d"):
            raise ConfigError("detect.every", f"must be a day at most, not {self.every!r}")
        if not 1e-12 <= self.false_alarm <= 0.1:
            raise ConfigError("detect.false_alarm", f"must be between 1e-12 and 0.1, not {self.false_alarm!r}")
        if self.log == "":
            raise ConfigError("detect.log", "must name a file")
        if self.log_bytes < 1:
            raise ConfigError("detect.log_bytes", f"must be at least 1, not {self.log_bytes!r}")
        if self.output is not None and self.log is None:
            raise ConfigError("detect.output", "means nothing without detect.log, whose rows are of it")

    @property
    def watches(self) -> bool:
        """Whether there is more to do about a question than to harden its answer."""
        return self.log is not None or self.near is not None


@dataclass(frozen=True)
class Policy:
    """What may be released. Build it in Python, or load it with `load_policy`; equal settings give equal objects.

    Raises ConfigError.
    """

    outputs: Mapping[str, Output]
    key: KeySource | None = None
    clients: ClientRules = field(default_factory=ClientRules)
    budgets: Mapping[str, Budget] = field(default_factory=dict)
    ledger: LedgerRules = field(default_factory=LedgerRules)
    detect: Detect = field(default_factory=Detect)
    respond: Response = field(default_factory=Response)
    auth: Auth | None = None
    tls: Tls | None = None
    schema: int = SCHEMA
    root: Path = field(default=Path(), compare=False)

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise ConfigError("schema", f"must be {SCHEMA}, not {self.schema!r}")
        if not self.outputs:
            raise ConfigError("outputs", "name at least one output: everything else is refused")
        tiers: tuple[str, ...] | None = None
        for name, output in self.outputs.items():
            path = f"outputs.{name}"
            output.check(path)
            if output.label_output in self.outputs:
                raise ConfigError(
                    f"{path}.label_output", f"{output.label_output!r} has a section of its own; remove one"
                )
            for tier in output.tiers:
                pipeline = self.pipeline(name, tier)
                if self.key is None and any(op.keyed for _, op in pipeline.lower()):
                    raise ConfigError("key", f"missing: what {pipeline.path} draws is keyed, add [key] with a source")
            if output.tiers:
                if DENY in output.tiers:
                    raise ConfigError(f"{path}.tiers.{DENY}", "that word stands for a refusal: name the tier otherwise")
                tiers = tiers or tuple(output.tiers)
                if set(tiers) != set(output.tiers):
                    raise ConfigError(f"{path}.tiers", f"every output defines every tier: {', '.join(tiers)}")

        self._check_surrogates()
        self._check_budgets()
        if self.detect.log is not None:
            scored = [name for name, output in self.outputs.items() if output.tiers]
            if self.detect.output not in (None, *scored) or not scored:
                known = ", ".join(scored) or "none"
                raise ConfigError("detect.output", f"a log is of an output that has tiers; these have: {known}")

    def _check_budgets(self) -> None:
        for rung, budget in self.budgets.items():
            if rung not in RUNGS:
                raise unknown("budgets", rung, RUNGS)
            told_apart = (*self.clients.identity, "model", "global", "probation")
            if rung not in told_apart:
                raise ConfigError(f"budgets.{rung}", f"nobody is told apart by it: add {rung!r} to clients.identity")
            if not budget.bounds:
                raise ConfigError(f"budgets.{rung}", "bounds nothing: give bits, rho or queries")
            if budget.on_exhausted != DENY:
                self._check_tier(f"budgets.{rung}.on_exhausted", budget.on_exhausted)
            if budget.on_exhausted == self.tiers[0]:
                raise ConfigError(f"budgets.{rung}.on_exhausted", "is the default tier: name a stricter one, or 'deny'")
            if budget.rho is not None:
                self._check_losses(f"budgets.{rung}.rho")
        if ("probation" in self.budgets) != (self.clients.probation is not None):
            here, there = "clients.probation", "budgets.probation"
            if "probation" in self.budgets:
                here, there = there, here
            raise ConfigError(here, f"means nothing without {there}")
        for i, step in enumerate(self.respond.suspicion):
            if step.tier is not None:
                self._check_tier(f"respond.suspicion[{i}].tier", step.tier)

    def _check_tier(self, path: str, tier: str) -> None:
        if tier not in self.tiers:
            raise ConfigError(path, f"unknown tier {tier!r}; known: {', '.join(self.tiers)}")

    def _check_losses(self, path: str) -> None:
        """Raise ConfigError at `path` if there is an answer whose privacy loss is not stated."""
        for name, output in self.outputs.items():
            if not output.tiers:
                raise ConfigError(path, f"outputs.{name} is released as it is: nothing bounds what that gives away")
            for tier in self.reachable:
                promise = self.pipeline(name, tier).guarantee(None)
                if promise.relation not in ("output-metric", "label", "shard"):
                    raise ConfigError(
                        path, f"outputs.{name}.tiers.{tier} promises no privacy loss (its relation: {promise.relation})"
                    )
                if not any(p.startswith("sensitivity") for p in promise.parameters):
                    raise ConfigError(path, f"outputs.{name}.tiers.{tier} needs noise with a sensitivity to be counted")

    @property
    def selective(self) -> bool:
        """Whether it depends on who asks, and on what they asked before, how they are answered."""
        return bool(self.budgets or self.respond.suspicion or self.clients.credentials is not None)

    @property
    def reachable(self) -> tuple[str, ...]:
        """The tiers that can come to answer a client, the default first."""
        steps = (step.tier for step in self.respond.suspicion)
        falls = (budget.on_exhausted for budget in self.budgets.values())
        chosen = {self.tiers[0], *steps, *falls}
        return tuple(tier for tier in self.tiers if tier in chosen)

    def _check_surrogates(self) -> None:
        labels = {o.label_output: name for name, o in self.outputs.items() if o.label_output}
        for name, output in self.outputs.items():
            for tier, transforms in output.tiers.items():
                for i, transform in enumerate(transforms):
                    path, other = f"outputs.{name}.tiers.{tier}[{i}].surrogate", transform.unreleased
                    if other in self.outputs:
                        raise ConfigError(path, f"{other!r} is released: whoever sees both could undo the perturbation")
                    if other in labels:
                        raise ConfigError(path, f"{other!r} holds the labels of {labels[other]!r}, and is released")

    @property
    def tiers(self) -> tuple[str, ...]:
        """Names of the tiers, the default first, from the mildest to the strictest."""
        return next((tuple(o.tiers) for o in self.outputs.values() if o.tiers), ("normal",))

    def unreleased(self, output: str) -> tuple[str, ...]:
        """Model outputs that any tier looks at beside `output`, and that are not released."""
        names = (t.unreleased for transforms in self.outputs[output].tiers.values() for t in transforms)
        return tuple(dict.fromkeys(name for name in names if name is not None))

    def pipeline(self, output: str, tier: str) -> Pipeline:
        """What `tier` does to `output`."""
        rules = self.outputs[output]
        return Pipeline(
            rules.space,
            tuple(rules.tiers.get(tier, ())),
            f"outputs.{output}.tiers.{tier}",
            bounds=None if rules.range is None else (rules.range[0], rules.range[1]),
            columns=rules.columns or BOX,
            dense=rules.dense or tier not in rules.tiers,
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is allowed and should be known: sentences for whoever checks the policy."""
        said = [
            f"outputs.{name}.dense: whole rows of logits are released; a few hundred answers tell the width of the "
            "layer before them, and its weights up to a linear map"
            for name, output in self.outputs.items()
            if output.dense
        ]
        if self.budgets and self.ledger.place.backend == "memory":
            said.append("ledger.url: budgets are kept in memory: they begin anew with every process")
        if self.respond.suspicion and self.detect.baseline is None:
            said.append("detect.baseline: without one nobody is suspected, and [respond] has nothing to respond to")
        if self.detect.near is not None and self.detect.baseline is None and self.detect.log is None:
            said.append("detect.near: near duplicates speak against nobody without a baseline or a log for one")
        return tuple(said)


def _transform(value: Any, path: str) -> Transform:
    values = dict(table(value, path))
    kind = values.pop("kind", None)
    if not isinstance(kind, str) or kind not in TRANSFORMS:
        raise ConfigError(f"{path}.kind", f"unknown transform {kind!r}; known: {', '.join(TRANSFORMS)}")
    return cast(Transform, build(TRANSFORMS[kind], values, path))


def _output(value: Any, path: str) -> Output:
    values = table(value, path)
    tiers = {}
    for tier, steps in table(values.get("tiers", {}), f"{path}.tiers").items():
        if not isinstance(steps, list):
            raise ConfigError(f"{path}.tiers.{tier}", f"must be a list of transforms, not {steps!r}")
        tiers[tier] = tuple(_transform(step, f"{path}.tiers.{tier}[{i}]") for i, step in enumerate(steps))
    return cast(Output, build(Output, values, path, {"tiers": tiers}))


def _budget(value: Any, rung: str) -> Budget:
    if rung not in RUNGS:
        raise unknown("budgets", rung, RUNGS)
    return cast(Budget, build(Budget, table(value, f"budgets.{rung}"), f"budgets.{rung}"))


#: Sections of a policy that are one dataclass each; `Policy` has a field of the same name.
_SECTIONS: dict[str, type[Any]] = {
    "key": KeySource,
    "clients": ClientRules,
    "ledger": LedgerRules,
    "detect": Detect,
    "respond": Response,
    "auth": Auth,
    "tls": Tls,
}


def parse_policy(text: str, root: Path = Path()) -> Policy:
    """A policy from TOML text; relative references are relative to `root`. Raises ConfigError."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as problem:
        raise ConfigError("", f"not valid TOML: {problem}") from None
    known = ("schema", "outputs", "budgets", *_SECTIONS)
    for section in document:
        if section not in known:
            raise unknown("", section, known)
    if "schema" not in document:
        raise ConfigError("schema", f"missing; write schema = {SCHEMA}")
    outputs = {n: _output(o, f"outputs.{n}") for n, o in table(document.get("outputs", {}), "outputs").items()}
    budgets = {n: _budget(b, n) for n, b in table(document.get("budgets", {}), "budgets").items()}
    schema = read(document["schema"], int, "schema")
    sections = {n: build(k, table(document[n], n), n) for n, k in _SECTIONS.items() if n in document}
    return Policy(outputs, budgets=budgets, schema=schema, root=root, **sections)


def load_policy(path: str | PathLike[str]) -> Policy:
    """Read a policy file. Raises ConfigError, which names the dotted path of what is wrong."""
    try:
        text = Path(path).read_text("utf-8")
    except OSError as problem:
        raise ConfigError("", f"cannot read the policy {str(path)!r}: {problem.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError("", f"cannot read the policy {str(path)!r}: it is not text in UTF-8") from None
    return parse_policy(text, Path(path).resolve().parent)
