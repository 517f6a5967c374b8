"""A safe policy for a model, written for somebody who has never seen one: every line says what it does."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field

from hardening_onnx.findings import Finding
from hardening_onnx.graph import Graph, quoted
from hardening_onnx.recognise import recognise

TIERS = ("normal", "suspect", "label")


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
    order = ("simplex", "logits", "sigmoid", "scalar", "embedding")
    scores = sorted((n for n, f in out.found.items() if f.kind in order), key=lambda n: order.index(out.found[n].kind))
    for name in scores:
        found = out.found[name]
        if found.root in roots:
            out.closed[name] = f"a second view of the row that {quoted(roots[found.root])} releases: it would undo that"
        elif found.kind == "scalar" and not 0 < found.high - found.low < math.inf:
            out.closed[name] = "a value without a known range: write its section with the range of honest answers"
        else:
            out.opened[name], roots[found.root] = None, name
    labels = [n for n, f in out.found.items() if f.kind == "labels"]
    for name in labels:
        of = roots.get(out.found[name].root)
        if of is None:
            of = _only_pair(out, labels)
        if of is None and out.found[name].root not in {out.found[n].root for n in scores}:
            out.opened[name] = None
        elif of is None or out.found[of].kind not in ("simplex", "logits") or out.opened[of] is not None:
            out.closed[name] = "it is derived from the same scores as another output and would contradict it"
        else:
            out.opened[of] = name
    for name, found in out.found.items():
        if found.kind == "unknown":
            out.closed[name] = "not recognised"
    return out


def _only_pair(out: Plan, labels: list[str]) -> str | None:
    """One label and one row of class scores in a model belong together even where the graph does not prove it."""
    scores = [n for n in out.opened if out.found[n].kind in ("simplex", "logits")]
    return scores[0] if len(scores) == len(labels) == 1 else None


def classes_of(out: Plan, name: str) -> tuple[int | str, ...]:
    """Values of the label that `name` governs, by index; empty if they are 0, 1, 2, ..."""
    label = out.opened.get(name)
    classes = out.found[name].classes or (out.found[label].classes if label else ())
    return () if label is None or classes == tuple(range(len(classes))) else classes


def _number(value: float) -> str:
    return f"{value:.12g}"


def _noise(sigma: float) -> str:
    return f'{{kind = "gaussian", sigma = {_number(float(f"{sigma:.2g}"))}, key = "input"}}'


def _clip(low: float, high: float) -> str:
    return f'{{kind = "clip", low = {_number(low)}, high = {_number(high)}}}'


def _round(decimals: int) -> str:
    return f'{{kind = "round", decimals = {min(9, max(0, decimals))}}}'


def _remark(text: str, indent: str = "# ") -> list[str]:
    return textwrap.wrap(text, 110, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


#: What a step does, for the end of its line.
_STEPS = {
    "gaussian": "Gaussian noise of standard deviation sigma, the same again for the same question",
    "project": "the nearest row that sums to one; the top class keeps its place",
    "types": "to multiples of 1/n that sum to one",
    "top_k": "only the k largest",
    "label_only": "the label as a row of zeros and ones",
    "clip": "nothing outside low and high",
    "round": "to this many decimals",
}


def _explained(step: str) -> str:
    return f"    {step},  # {_STEPS[step.split(chr(34))[1]]}"


Tiers = dict[str, tuple[str, list[str]]]


def _class_tiers(found: Finding) -> Tiers:
    return {
        "normal": (
            "noise that repeats for a repeated question, back to a distribution with the same top class, to 1/100",
            [_noise(0.05), '{kind = "project", keep_top1 = true}', '{kind = "types", n = 100}'],
        ),
        "suspect": ("the top class alone, its score lost", ['{kind = "top_k", k = 1}', '{kind = "types", n = 10}']),
        "label": ("one for the top class, zero for all others", ['{kind = "label_only"}']),
    }


def _logit_tiers(found: Finding) -> Tiers:
    high = min(10.0, found.high)
    clip = _clip(-10.0, high)
    k = max(1, min(3, (found.width or 4) // 2))
    return {
        "normal": (
            f"limited, keyed noise, limited again, the {k} largest kept, to one decimal; scores closer than about 1 "
            "may change places",
            [clip, _noise(0.5), clip, f'{{kind = "top_k", k = {k}}}', _round(1)],
        ),
        "suspect": ("the largest score alone, in whole steps", [clip, '{kind = "top_k", k = 1}', _round(0)]),
        "label": ("one for the top class, zero for all others", ['{kind = "label_only"}']),
    }


def _sigmoid_tiers(found: Finding) -> Tiers:
    return {
        "normal": (
            "noise that repeats for a repeated question, back into 0 to 1, to two decimals; a value within about 0.1 "
            "of one half may cross it",
            [_noise(0.05), _clip(0, 1), _round(2)],
        ),
        "suspect": ("in tenths", [_round(1)]),
        "label": ("0 or 1 at one half", ['{kind = "label_only"}']),
    }


def _scalar_tiers(found: Finding) -> Tiers:
    span = found.high - found.low
    digits = 2 - math.floor(math.log10(span))
    grid = 10.0 ** (digits + 1)
    clip = _clip(math.floor(found.low * grid) / grid, math.ceil(found.high * grid) / grid)
    return {
        "normal": ("noise of 2 % of the range, rounded", [clip, _noise(span * 0.02), clip, _round(digits)]),
        "suspect": (
            "noise of 10 % of the range, ten times coarser",
            [clip, _noise(span / 10), clip, _round(digits - 1)],
        ),
        "label": ("noise of 20 % of the range", [clip, _noise(span / 5), clip, _round(digits - 1)]),
    }


def _embedding_tiers(found: Finding) -> Tiers:
    scale = found.scale or 1.0
    high = float(f"{10 * scale:.2g}")  # wide: single entries of real embeddings stand out by that much
    clip = _clip(-high, high)
    digits = 2 - math.floor(math.log10(scale))
    return {
        "normal": ("limited, noise of a tenth of an entry", [clip, _noise(scale / 10), clip, _round(digits)]),
        "suspect": ("noise of half an entry", [clip, _noise(scale / 2), clip, _round(digits - 1)]),
        "label": ("noise as large as an entry", [clip, _noise(scale), clip, _round(digits - 1)]),
    }


_SPACES = {
    "simplex": ("class scores that sum to one", _class_tiers),
    "logits": ("raw class scores; the largest names the label", _logit_tiers),
    "sigmoid": ("independent values from 0 to 1", _sigmoid_tiers),
    "scalar": ("a value, not a class", _scalar_tiers),
    "embedding": ("a vector of features", _embedding_tiers),
}
_ADVICE = {
    "logits": "Logits tell a thief more than probabilities do. If your callers can take probabilities, end the model "
    "in a Softmax and declare a simplex.",
    "embedding": "The noise is a share of the size of one entry{0}. Measure your own embeddings and the search that "
    "uses them, and set clip and sigma by that.",
    "scalar": "The range above decides how much noise is added; if honest answers lie in a narrower one, write that.",
}


def _section(out: Plan, name: str) -> list[str]:
    found, label = out.found[name], out.opened[name]
    if found.kind == "labels":
        lines = [f"[outputs.{quoted(name)}]", *_remark(f"Recognised as labels: {found.why}.")]
        return [*lines, 'space = "labels"  # class labels, released as they are: there is nothing finer to hide', ""]
    meaning, tiers = _SPACES[found.kind]
    lines = [f"[outputs.{quoted(name)}]"]
    guess = "" if found.sure else " This is a guess: check it before you rely on it."
    lines += _remark(f"Recognised as {found.kind}: {found.why}.{guess}")
    advice = _ADVICE.get(found.kind, "")
    unknown = " (not known from the graph: 1 is assumed)" if found.scale is None else f" (about {found.scale:.2g})"
    lines += _remark(advice.format(unknown)) if advice else []
    lines.append(f'space = "{found.kind}"  # {meaning}')
    if label is not None:
        proved = "" if out.found[label].root == found.root else ", or so it seems: the graph does not prove it"
        lines += _remark(
            f"The output {quoted(label)} holds the label of these scores{proved}. It is released too: the class of the "
            "largest released score, even where the model itself decides otherwise, so that the two never disagree."
        )
        lines.append(f"label_output = {quoted(label)}")
        classes = classes_of(out, name)
        if classes:
            values = ", ".join(quoted(c) if isinstance(c, str) else str(c) for c in classes)
            lines += ["# the value of the label for each score, in order", f"classes = [{values}]"]
    lines += ["", f"[outputs.{quoted(name)}.tiers]  # the first is what every client gets; every output has the same"]
    for tier in TIERS:
        remark, steps = tiers(found)[tier]
        lines += [*_remark(remark), f"{tier} = [", *map(_explained, steps), "]"]
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
    if found.kind == "scalar":
        return "You decide: replace low and high by the range of honest answers, sigma by a share of it, and uncomment."
    if found.kind == "unknown":
        return (
            "You decide: if it holds scores, name their space (simplex, sigmoid, logits, embedding, scalar) and write "
            f"the tiers {', '.join(TIERS)}; if callers need it as it is and it reveals nothing, uncomment this."
        )
    return "You decide: leave it out of what callers get, or uncomment this and accept that it is released as it is."


def _suggestion(found: Finding) -> list[str]:
    if found.kind != "scalar":
        return ['# space = "open"  # released as it is, unhardened']
    tiers = _scalar_tiers(Finding("scalar", "", low=0.0, high=100.0))
    return ['# space = "scalar"', *(f"# tiers.{t} = [{', '.join(tiers[t][1])}]" for t in TIERS)]
