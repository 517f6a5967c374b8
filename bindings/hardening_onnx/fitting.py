"""How a policy fits a model: names, widths, dtypes and spaces held against what the graph shows."""

from __future__ import annotations

import os
from collections.abc import Iterator

from hardening.config import Output, Policy
from hardening.errors import ConfigError
from hardening.transforms.classes import INDEPENDENT
from hardening.types import ModelReport
from hardening_onnx.findings import Finding
from hardening_onnx.graph import Shape, Value, quoted, read
from hardening_onnx.recognise import recognise

#: Declared and recognised spaces that differ and still work, with what would be better.
_TOLERABLE = {
    ("sigmoid", "simplex"): "declared as a simplex its rows would keep their sum of one",
    ("sigmoid", "multilabel"): "declared as multilabel its rows could be cut by top_k",
    ("multilabel", "sigmoid"): "declared as sigmoid no entry is taken for a label among others",
    ("multilabel", "simplex"): "declared as a simplex its rows would keep their sum of one",
    ("logits", "simplex"): "declared as a simplex it would need no clip and reveal less",
    ("logits", "sigmoid"): "declared as sigmoid its values would stay between 0 and 1",
    ("logits", "multilabel"): "declared as multilabel its values would stay between 0 and 1",
    ("scalar", "sigmoid"): "declared as sigmoid its values would stay between 0 and 1",
    ("scalar", "multilabel"): "declared as multilabel its values would stay between 0 and 1",
    ("embedding", "scalar"): "as a scalar it can be limited to its range",
}


def check(policy: Policy, model: str | os.PathLike[str]) -> ModelReport:
    """Hold a policy against a model file; nothing is run and no session made.

    Raises ModelError if the file cannot be read.
    """
    graph = read(model)
    found = recognise(graph)
    values = {value.name: value for value in graph.outputs}
    problems: list[str] = []
    warnings: list[str] = []
    widths: dict[str, int] = {}
    for name, output in policy.outputs.items():
        if name not in values:
            problems.append(f"outputs.{name}: the model has no such output; it has {', '.join(map(quoted, values))}")
            continue
        width = values[name].width or found[name].width
        if width is not None:
            widths[name] = width
        if output.columns is not None and found[name].columns not in ((), output.columns):
            warnings.append(f"outputs.{name}.columns: they seem to be {', '.join(found[name].columns)}")
        problems += _width_problems(policy, name, width)
        for serious, sentence in _space_remarks(name, output, values[name], found[name]):
            (problems if serious else warnings).append(sentence)
        for serious, sentence in _label_remarks(name, output, values, found, width):
            (problems if serious else warnings).append(sentence)
        problems += _surrogate_problems(name, output, values, width)
    problems += _near_problems(policy, {value.name: value for value in graph.inputs})
    released = {*policy.outputs, *(o.label_output for o in policy.outputs.values())}
    closed = {n: _holds(f) for n, f in found.items() if n not in released}
    return ModelReport(tuple(problems), tuple(warnings), closed, widths)


def _holds(found: Finding) -> str:
    return f"{found.kind}{'' if found.sure else ' (a guess)'}: {found.why}" if found.kind != "unknown" else found.why


def _width_problems(policy: Policy, name: str, width: int | None) -> Iterator[str]:
    for tier in policy.tiers:
        if width is not None:
            try:
                policy.pipeline(name, tier).check_width(width)
            except ConfigError as problem:
                yield str(problem)


def _near_problems(policy: Policy, inputs: dict[str, Value]) -> Iterator[str]:
    if policy.detect.near is not None:
        path, name = "detect.near.input", policy.detect.near.input
        if name not in inputs:
            yield f"{path}: the model has no input {name!r}; it takes {', '.join(map(quoted, inputs))}"
        elif inputs[name].holds not in ("floats", "integers", "other"):
            yield f"{path}: {name!r} holds {inputs[name].holds}: an input of numbers is needed"


def _surrogate_problems(name: str, output: Output, values: dict[str, Value], width: int | None) -> Iterator[str]:
    for tier, transforms in output.tiers.items():
        for i, transform in enumerate(transforms):
            path, other = f"outputs.{name}.tiers.{tier}[{i}].surrogate", transform.unreleased
            if other is None:
                continue
            if other not in values:
                yield f"{path}: the model has no output {other!r}; it has {', '.join(map(quoted, values))}"
            elif values[other].holds != "floats":
                yield f"{path}: {other!r} holds {values[other].holds}; a surrogate's scores are floats"
            elif width is not None and values[other].width not in (None, width):
                yield f"{path}: rows of {other!r} have {values[other].width} entries, those of {name!r} {width}"


def _space_remarks(name: str, output: Output, value: Value, found: Finding) -> Iterator[tuple[bool, str]]:
    """What is wrong (True) or doubtful (False) about the declared space."""
    declared, path = output.space, f"outputs.{name}.space"
    if declared == "open":
        yield False, f"{path}: open, released unhardened; it seems to hold {_holds(found)}"
        return
    if declared == "labels":
        if value.holds not in ("integers", "strings"):
            yield True, f"{path}: labels are released as they are, and this output holds {value.holds}, not labels"
        elif found.kind != "labels":
            yield False, f"{path}: labels cannot be confirmed: {found.why}"
        return
    if value.holds not in ("floats", "maps"):
        yield True, f"{path}: {declared} needs float scores, and this output holds {value.holds}"
    elif found.kind == "unknown":
        yield False, f"{path}: {declared} cannot be confirmed: {found.why}"
    elif found.kind != declared:
        better = _TOLERABLE.get((declared, found.kind))
        if better:
            yield False, f"{path}: {declared} works, but {found.why}; {better}"
        else:
            yield found.sure, f"{path}: declared {declared}, but it seems to be {_holds(found)}"


def _label_remarks(
    name: str, output: Output, values: dict[str, Value], found: dict[str, Finding], width: int | None
) -> Iterator[tuple[bool, str]]:
    label, path = output.label_output, f"outputs.{name}.label_output"
    if output.classes is not None and width is not None and len(output.classes) != width:
        yield True, f"outputs.{name}.classes: names {len(output.classes)} classes, rows have {width} entries"
    if label is None:
        return
    if label not in values:
        yield True, f"{path}: the model has no output {label!r}; it has {', '.join(map(quoted, values))}"
        return
    value, scores = values[label], values[name]
    if value.holds not in ("integers", "strings"):
        yield True, f"{path}: {label!r} holds {value.holds}; labels are integers or strings"
        return
    each = output.space in INDEPENDENT
    if not (_fit(value.shape, scores.shape) if each else _one_for_each_row(value, scores)):
        what = "value" if each else "row"
        yield True, f"{path}: {label!r} has shape {value.shape}; one label for each {what} of {scores.shape} is needed"
    if each:
        if not (found[label].each and found[label].root == found[name].root):
            yield False, f"{path}: the graph does not prove that {label!r} says which of {name!r} are at least one half"
        return
    known = found[label].classes or found[name].classes
    yield from _class_remarks(f"outputs.{name}.classes", output.classes, known, value, scores)
    if found[label].root != found[name].root:
        yield False, f"{path}: the graph does not prove that {label!r} is the arg-max of {name!r}"


def _one_for_each_row(label: Value, scores: Value) -> bool:
    if label.shape is None or scores.shape is None:
        return True
    rest, rows = label.shape, scores.shape[:-1]
    if len(rest) == len(scores.shape) and rest[-1] == 1:
        rest = rest[:-1]
    return _fit(rest, rows)


def _fit(a: Shape | None, b: Shape | None) -> bool:
    """Whether two shapes may be the same, as far as they are known."""
    if a is None or b is None:
        return True
    return len(a) == len(b) and all(
        x == y for x, y in zip(a, b, strict=True) if isinstance(x, int) and isinstance(y, int)
    )


def _class_remarks(
    path: str, classes: tuple[int | str, ...] | None, known: tuple[int | str, ...], label: Value, scores: Value
) -> Iterator[tuple[bool, str]]:
    if classes is None:
        if scores.holds == "maps":  # they carry the names of their classes
            return
        if label.holds == "strings":
            yield True, f"{path}: missing; {label.name!r} holds strings, name them in the order of the scores"
        elif known and known != tuple(range(len(known))):
            yield True, f"{path}: missing; the model's classes are {list(known[:9])}, not 0, 1, 2, ..."
    elif {isinstance(c, str) for c in classes} != {label.holds == "strings"}:
        yield True, f"{path}: must be {label.holds}, as the label output {label.name!r} holds"
    elif known and classes != known:
        yield True, f"{path}: differ from those that the model declares: {list(known[:9])}"
