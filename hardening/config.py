"""TOML to frozen dataclasses, strictly: an unknown key is an error with its dotted path and the valid choices.

Nothing here reads a secret; a policy holds references to them (``file:PATH``, ``env:NAME``).
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Literal, cast, get_args

from hardening.errors import ConfigError
from hardening.noise import CIPHERS
from hardening.pipeline import Pipeline
from hardening.transforms import TRANSFORMS, Transform
from hardening.transforms.boxes import BOX
from hardening.transforms.classes import INDEPENDENT
from hardening.types import SPACES, Column, SpaceKind

SCHEMA = 1


def _check_reference(path: str, reference: str, kinds: tuple[str, ...] = ("file", "env")) -> None:
    kind, _, name = reference.partition(":")
    if kind not in kinds or not name:
        known = " or ".join({"file": "file:PATH", "env": "env:NAME"}[k] for k in kinds)
        raise ConfigError(path, f"must be {known}, not {reference!r}")


@dataclass(frozen=True)
class KeySource:
    """Where the key is: `source` is ``file:PATH`` or ``env:NAME``; `create` makes a missing file, with mode 0600.

    `cipher`, one of `hardening.noise.CIPHERS`, is what a new key is made for and an existing one has to be for. Left
    out, an existing key keeps its own, and a new one gets the first.
    """

    source: str
    create: bool = False
    cipher: str | None = None

    def __post_init__(self) -> None:
        _check_reference("key.source", self.source)
        if self.cipher is not None and self.cipher not in CIPHERS:
            raise ConfigError("key.cipher", f"unknown cipher {self.cipher!r}; known: {', '.join(CIPHERS)}")
        if self.create and self.source.startswith("env:"):
            raise ConfigError("key.create", "only a file can be created; with env: leave it out")


@dataclass(frozen=True)
class Auth:
    """Who may ask a server: `api_keys` is ``file:PATH``, a TOML file of client names and digests of their keys.

    `allow_plaintext` lets the keys travel without TLS on an address other than loopback, for servers behind something
    that ends TLS for them.
    """

    api_keys: str
    allow_plaintext: bool = False

    def __post_init__(self) -> None:
        _check_reference("auth.api_keys", self.api_keys, ("file",))


@dataclass(frozen=True)
class Tls:
    """A server's certificate chain and private key (PEM), by reference; with `client_ca`, clients need certificates."""

    certificate: str
    key: str
    client_ca: str | None = None

    def __post_init__(self) -> None:
        for name in ("certificate", "key", "client_ca"):
            reference = getattr(self, name)
            if reference is not None:
                _check_reference(f"tls.{name}", reference)


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
class ClientRules:
    """Who may ask. `anonymous`: callers without a name share one ``account``, or are met with ``deny``."""

    anonymous: Literal["account", "deny"] = "account"

    def __post_init__(self) -> None:
        if self.anonymous not in ("account", "deny"):
            raise ConfigError("clients.anonymous", f"must be 'account' or 'deny', not {self.anonymous!r}")


@dataclass(frozen=True)
class Policy:
    """What may be released. Build it in Python, or load it with `load_policy`; equal settings give equal objects.

    Raises ConfigError.
    """

    outputs: Mapping[str, Output]
    key: KeySource | None = None
    clients: ClientRules = ClientRules()
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
                tiers = tiers or tuple(output.tiers)
                if set(tiers) != set(output.tiers):
                    raise ConfigError(f"{path}.tiers", f"every output defines every tier: {', '.join(tiers)}")

        self._check_surrogates()

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
        """Names of the tiers, the default first."""
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
        return tuple(
            f"outputs.{name}.dense: whole rows of logits are released; a few hundred answers tell the width of the "
            "layer before them, and its weights up to a linear map"
            for name, output in self.outputs.items()
            if output.dense
        )


def _unknown(path: str, key: str, known: Iterable[str]) -> ConfigError:
    known = list(known)
    close = difflib.get_close_matches(key, known, 1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return ConfigError(f"{path}.{key}".lstrip("."), f"unknown key; {hint}known: {', '.join(known)}")


def _value(value: Any, wanted: Any, path: str) -> Any:
    origin, inner = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (typing.Union, types.UnionType):
        inner = tuple(choice for choice in inner if choice is not types.NoneType)  # TOML has no way to say None
        if len(inner) == 1:
            return _value(value, inner[0], path)
        for choice in inner:
            try:
                return _value(value, choice, path)
            except ConfigError:
                continue
        raise ConfigError(path, f"wrong type: {value!r}")
    if origin is typing.Literal:
        if value not in inner:
            raise ConfigError(path, f"must be one of {', '.join(map(repr, inner))}, not {value!r}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise ConfigError(path, f"must be a list, not {value!r}")
        return tuple(_value(v, inner[0], f"{path}[{i}]") for i, v in enumerate(value))
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if wanted in (str, int, float, bool) and type(value) is wanted:
        return value
    names = {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}
    raise ConfigError(path, f"must be {names.get(wanted, str(wanted))}, not {value!r}")


def _table(value: Any, path: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(path, f"must be a table, not {value!r}")
    return value


def _build(kind: type[Any], table: dict[str, Any], path: str, given: Mapping[str, Any] | None = None) -> Any:
    """A dataclass from a table; `given` are fields that were decoded already."""
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    values = dict(given or {})
    for key, value in table.items():
        if key not in fields:
            raise _unknown(path, key, fields)
        if key not in values:
            values[key] = _value(value, hints[key], f"{path}.{key}")
    for name, f in fields.items():
        needed = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if needed and name not in values:
            raise ConfigError(f"{path}.{name}", "missing")
    try:
        return kind(**values)
    except ConfigError:
        raise
    except ValueError as problem:
        name, _, rest = str(problem).partition(": ")
        raise ConfigError(
            f"{path}.{name}" if name in fields else path, rest if name in fields else str(problem)
        ) from None


def _transform(value: Any, path: str) -> Transform:
    table = dict(_table(value, path))
    kind = table.pop("kind", None)
    if not isinstance(kind, str) or kind not in TRANSFORMS:
        raise ConfigError(f"{path}.kind", f"unknown transform {kind!r}; known: {', '.join(TRANSFORMS)}")
    return cast(Transform, _build(TRANSFORMS[kind], table, path))


def _output(value: Any, path: str) -> Output:
    table = _table(value, path)
    tiers = {}
    for tier, steps in _table(table.get("tiers", {}), f"{path}.tiers").items():
        if not isinstance(steps, list):
            raise ConfigError(f"{path}.tiers.{tier}", f"must be a list of transforms, not {steps!r}")
        tiers[tier] = tuple(_transform(step, f"{path}.tiers.{tier}[{i}]") for i, step in enumerate(steps))
    return cast(Output, _build(Output, table, path, {"tiers": tiers}))


#: Sections of a policy that are one dataclass each; `Policy` has a field of the same name.
_SECTIONS: dict[str, type[Any]] = {"key": KeySource, "clients": ClientRules, "auth": Auth, "tls": Tls}


def parse_policy(text: str, root: Path = Path()) -> Policy:
    """A policy from TOML text; relative references are relative to `root`. Raises ConfigError."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as problem:
        raise ConfigError("", f"not valid TOML: {problem}") from None
    known = ("schema", "outputs", *_SECTIONS)
    for section in document:
        if section not in known:
            raise _unknown("", section, known)
    if "schema" not in document:
        raise ConfigError("schema", f"missing; write schema = {SCHEMA}")
    outputs = {n: _output(o, f"outputs.{n}") for n, o in _table(document.get("outputs", {}), "outputs").items()}
    schema = _value(document["schema"], int, "schema")
    sections = {n: _build(k, _table(document[n], n), n) for n, k in _SECTIONS.items() if n in document}
    return Policy(outputs, schema=schema, root=root, **sections)


def load_policy(path: str | PathLike[str]) -> Policy:
    """Read a policy file. Raises ConfigError, which names the dotted path of what is wrong."""
    try:
        text = Path(path).read_text("utf-8")
    except OSError as problem:
        raise ConfigError("", f"cannot read the policy {str(path)!r}: {problem.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError("", f"cannot read the policy {str(path)!r}: it is not text in UTF-8") from None
    return parse_policy(text, Path(path).resolve().parent)
