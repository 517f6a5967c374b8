"""Recognise what every output of a model holds.

What the graph proves is `sure`; what is guessed from width, rank or a name says which of them decided. Whatever no rule
knows stays ``unknown``, and an unknown output stays closed.
"""

from __future__ import annotations

import re
from dataclasses import replace

from hardening.transforms.boxes import BOX
from hardening_onnx.findings import Finding, Kind
from hardening_onnx.graph import Graph, Value, quoted
from hardening_onnx.walk import Recogniser

_SAYS_CLASSES = re.compile(r"logit|score|class|\bcls|pred|prob|\bfc\d*|categor", re.I)
_SAYS_EMBEDDING = re.compile(r"embed|feature|hidden|pool|vector|encod|represent|sentence|token", re.I)
_SAYS_STATE = re.compile(r"state|cache|past|present|memory|^[hc][nt]?(_|$)", re.I)
_SAYS_BOXES = re.compile(r"box|detection|anchor|landmark|keypoint|num_det", re.I)


def _is_state(value: Value, graph: Graph) -> bool:
    rank = len(value.shape or ())
    fed = (i for i in graph.inputs if i.holds == "floats" and rank >= 2 and len(i.shape or ()) == rank)
    return bool(_SAYS_STATE.search(value.name)) and any(_SAYS_STATE.search(i.name) for i in fed)


def _linear(found: Finding, value: Value) -> Finding:
    """Class scores, an embedding or a regression value? No operator tells; a name, a rank and a width may."""
    width, rank = found.width or value.width, len(value.shape or ())
    if width is None or rank > 3:
        return replace(found, why=f"{found.why}, and neither width nor rank tells what it is")
    if width == 1:
        return replace(found, kind="scalar", why=f"{found.why}, and rows of one value")
    name = re.sub(r"([a-z])([A-Z])", r"\1 \2", value.name).replace("_", " ")
    if _SAYS_CLASSES.search(name):
        return replace(found, kind="logits", why=f"{found.why}; decided by its name {quoted(value.name)}")
    if _SAYS_EMBEDDING.search(name):
        return replace(found, kind="embedding", why=f"{found.why}; decided by its name {quoted(value.name)}")
    wide = width % 64 == 0
    kind: Kind = "embedding" if wide else "logits"
    unlike = "a multiple of 64, as embeddings have and" if wide else "not a multiple of 64, as"
    rest = "class scores seldom do" if wide else "the number of classes is as a rule"
    return replace(found, kind=kind, why=f"{found.why}; decided by its width of {width}, {unlike} {rest}")


def recognise(graph: Graph) -> dict[str, Finding]:
    """What every output of a graph holds, by name."""
    recogniser = Recogniser(graph)
    return {value.name: _judge(recogniser.see(value.name), value, graph) for value in graph.outputs}


def _judge(found: Finding, value: Value, graph: Graph) -> Finding:
    """The walk's finding, held against what the model declares of the output."""
    if _is_state(value, graph):
        why = "its name and shape are those of an input: state that the caller feeds back, which noise would spoil"
        return Finding("unknown", why, False)
    fits = {"labels": ("integers", "strings"), "unknown": (value.holds,)}.get(found.kind, ("floats", "maps"))
    if value.holds not in fits:
        return Finding("unknown", f"{found.why}, but is declared to hold {value.holds}", False)
    if found.kind == "unknown" and value.holds != "floats":
        return replace(found, why=f"{found.why}; it is declared to hold {value.holds}")
    if found.kind in ("unknown", "sigmoid") and "box" in value.name.lower() and value.width == 4:
        why = f"{found.why}; its name {quoted(value.name)} and rows of four numbers speak of boxes"
        return replace(found, kind="boxes", why=why, sure=False, columns=BOX)
    if found.kind == "sigmoid" and not found.classes and (value.width or 1) > 1 and len(value.shape or ()) in (2, 3):
        return replace(found, kind="multilabel", why=f"{found.why}, one for each label")
    if found.kind == "unknown" and _SAYS_BOXES.search(value.name):
        return replace(found, why=f"{found.why}; its name {quoted(value.name)} speaks of detections")
    if found.kind == "unknown" and re.search("without an activation|pooled features", found.why):
        found = _linear(found, value)
    if found.kind not in ("simplex", "logits", "embedding") or (found.last and value.width != 1):
        return found
    why = f"{found.why}; the scores of one row must lie along the last axis, and its shape is {value.shape}"
    return replace(found, kind="unknown", why=why, sure=False)
