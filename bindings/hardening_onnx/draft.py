"""A safe policy for a model, written for somebody who has never seen one: every line says what it does."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from hardening.transforms.classes import INDEPENDENT
from hardening_onnx.findings import Finding
from hardening_onnx.graph import Graph, quoted
from hardening_onnx.recognise import recognise
from hardening_onnx.tiers import MEANINGS, TIERS, declared_range, explained, tiers_for


@dataclass(frozen=True)
class Plan:
    """What a policy for a model opens and what it leaves closed.

    Attributes:
        found: the evidence for every output.
        opened: outputs that get a section, with the label output that each of them governs, or None.
        closed: outputs left closed, with the reason.
    """

    found: Mapping[str, Finding]
    opened: dict[str, str | None] = field(default_factory=dict)
    closed: dict[str, str] = field(default_factory=dict)


def plan(graph: Graph) -> Plan:
    """Open one view of each row of class scores and the label that belongs to it; close whatever is not understood."""
    out = Plan(recognise(graph))
    roots: dict[str, str] = {}
    order = ("simplex", "logits", "sigmoid", "multilabel", "scalar", "embedding", "boxes")
    scores = sorted((n for n, f in out.found.items() if f.kind in order), key=lambda n: order.index(out.found[n].kind))
    for name in scores:
        found = out.found[name]
        if found.root in roots:
            out.closed[name] = f"a second view of the row that {quoted(roots[found.root])} releases: it would undo that"
        elif found.kind in ("scalar", "boxes") and not 0 < found.high - found.low < math.inf:
            what = "a value" if found.kind == "scalar" else "coordinates"
            out.closed[name] = f"{what} without a known range: write its section with the range of honest answers"
        else:
            out.opened[name], roots[found.root] = None, name
    labels = [n for n, f in out.found.items() if f.kind == "labels"]
    for name in labels:
        of = roots.get(out.found[name].root)
        if of is None:
            of = _only_pair(out, labels)
        if of is None and out.found[name].root not in {out.found[n].root for n in scores}:
            out.opened[name] = None
        elif of is None or not _agree(out.found[of], out.found[name]) or out.opened[of] is not None:
            out.closed[name] = "it is derived from the same scores as another output and would contradict it"
        else:
            out.opened[of] = name
    for name, found in out.found.items():
        if found.kind == "unknown":
            out.closed[name] = "not recognised"
    return out


def _agree(scores: Finding, label: Finding) -> bool:
    """Whether the label can be told from the released scores."""
    return scores.kind in (INDEPENDENT if label.each else ("simplex", "logits"))


def _only_pair(out: Plan, labels: list[str]) -> str | None:
    """One label and one row of class scores in a model belong together even where the graph does not prove it."""
    scores = [n for n in out.opened if out.found[n].kind in ("simplex", "logits")]
    return scores[0] if len(scores) == len(labels) == 1 else None


def classes_of(out: Plan, name: str) -> tuple[int | str, ...]:
    """Values of the label that `name` governs, by index; empty if they are 0, 1, 2, ..."""
    label = out.opened.get(name)
    classes = out.found[name].classes or (out.found[label].classes if label else ())
    return () if label is None or classes == tuple(range(len(classes))) else classes


def _remark(text: str, indent: str = "# ") -> list[str]:
    return textwrap.wrap(text, 110, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


_ADVICE = {
    "logits": "Logits tell a thief more than probabilities do. If your callers can take probabilities, end the model "
    "in a Softmax and declare a simplex.",
    "embedding": "The noise is a share of the size of one entry{0}. Measure your own embeddings and the search that "
    'uses them, and set clip and sigma by that. With {{kind = "orthogonal"}} last, vectors of two clients cannot be '
    "compared, if nobody has to.",
    "scalar": "The range above decides how much noise is added; if honest answers lie in a narrower one, write that.",
}


def _section(out: Plan, name: str) -> list[str]:
    found, label = out.found[name], out.opened[name]
    if found.kind == "labels":
        lines = [f"[outputs.{quoted(name)}]", *_remark(f"Recognised as labels: {found.why}.")]
        return [*lines, 'space = "labels"  # class labels, released as they are: there is nothing finer to hide', ""]
    lines = [f"[outputs.{quoted(name)}]"]
    guess = "" if found.sure else " This is a guess: check it before you rely on it."
    lines += _remark(f"Recognised as {found.kind}: {found.why}.{guess}")
    advice = _ADVICE.get(found.kind, "")
    unknown = " (not known from the graph: 1 is assumed)" if found.scale is None else f" (about {found.scale:.2g})"
    lines += _remark(advice.format(unknown)) if advice else []
    lines.append(f'space = "{found.kind}"  # {MEANINGS[found.kind]}')
    if found.kind in ("scalar", "boxes"):
        lines.append(f"{declared_range(found)}  # of honest answers; what lies beyond is taken for the nearest end")
    if found.columns:
        lines += ["# what the columns hold; labels are released as they are", _columns(found)]
    if label is not None:
        which = "the class of the largest released score" if not out.found[label].each else "one from one half on"
        proved = "" if out.found[label].root == found.root else ", or so it seems: the graph does not prove it"
        lines += _remark(
            f"The output {quoted(label)} holds the label of these scores{proved}. It is released too: {which}, even "
            "where the model itself decides otherwise, so that the two never disagree."
        )
        lines.append(f"label_output = {quoted(label)}")
        classes = classes_of(out, name)
        if classes:
            values = ", ".join(quoted(c) if isinstance(c, str) else str(c) for c in classes)
            lines += ["# the value of the label for each score, in order", f"classes = [{values}]"]
    lines += ["", f"[outputs.{quoted(name)}.tiers]  # the first is what every client gets; every output has the same"]
    for tier in TIERS:
        remark, steps = tiers_for(found)[tier]
        lines += [*_remark(remark), f"{tier} = [", *map(explained, steps), "]"]
    return [*lines, ""]


_TITLE = """\
# What this model may reveal, to whom: a policy for hardening, drafted from the graph of
# {model}.
# An output without a section below is refused. `hardening explain` says what each tier promises;
# `hardening check THIS --model MODEL` tells whether this policy still fits the model.

schema = 1  # version of this format

# Noise is drawn from a secret key and the question, so asking again gives the same answer and averaging gains nothing.
[key]
source = "file:hardening.key"  # beside this policy; or env:NAME. Every replica needs the same key, no caller may see it
create = true  # made on first use, readable by its owner only
"""


def text(out: Plan, model: str) -> str:
    """The policy as TOML. Without any output that can be opened it does not load, until somebody decides."""
    lines = [_TITLE.format(model=quoted(model))]
    for name in out.opened:
        lines += _section(out, name)
    for name, reason in out.closed.items():
        found = out.found[name]
        lines += _remark(f"The output {quoted(name)} stays closed: {reason}. Evidence: {found.why}.")
        lines += _remark(_decision(found))
        lines += [f"# [outputs.{quoted(name)}]", *_suggestion(found), ""]
    return "\n".join(lines)


def _decision(found: Finding) -> str:
    if found.kind in ("scalar", "boxes"):
        return (
            "You decide: replace range, low and high by the range of honest answers, sigma by a share of it, and "
            "uncomment."
        )
    if found.kind == "unknown":
        return (
            "You decide: if it holds scores, name their space (simplex, sigmoid, multilabel, logits, embedding, "
            f"scalar, boxes) and write the tiers {', '.join(TIERS)}; if callers need it as it is and it reveals "
            "nothing, uncomment this."
        )
    return "You decide: leave it out of what callers get, or uncomment this and accept that it is released as it is."


def _suggestion(found: Finding) -> list[str]:
    if found.kind not in ("scalar", "boxes"):
        return ['# space = "open"  # released as it is, unhardened']
    guess = replace(found, low=0.0, high=100.0 if found.kind == "scalar" else 640.0)
    tiers = tiers_for(guess)
    lines = [f'space = "{found.kind}"', declared_range(guess)]
    lines += [_columns(found)] if found.columns else []
    return [f"# {line}" for line in (*lines, *(f"tiers.{t} = [{', '.join(tiers[t][1])}]" for t in TIERS))]


def _columns(found: Finding) -> str:
    return f"columns = [{', '.join(map(quoted, found.columns))}]"
