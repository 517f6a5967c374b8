"""What was found out about one output, and the operators of the ``ai.onnx.ml`` domain, which say it themselves."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hardening.transforms.boxes import BOX
from hardening.types import Column
from hardening_onnx.graph import attributes

Kind = Literal["simplex", "sigmoid", "multilabel", "logits", "labels", "embedding", "scalar", "boxes", "unknown"]


@dataclass(frozen=True)
class Finding:
    """What a tensor holds.

    Attributes:
        kind: a space of `hardening.types.SPACES`, or ``unknown``.
        why: the evidence, as a sentence without a full stop.
        sure: whether the graph proves it; else it is a guess by width, rank or name.
        width: entries of a row, if fixed.
        root: the tensor that this one is a monotone function of, row by row; scores and labels of one root agree.
        classes: values of the label, by index; empty if they are 0, 1, 2, ... or unknown.
        low, high: bounds of the values, where the graph gives them.
        scale: typical size of an entry of an embedding, where the graph gives it.
        last: whether the scores of one row lie along the last axis.
        columns: what the columns of boxes hold.
        each: whether labels are zeros and ones, one for each value from 0 to 1 that is at least one half.
    """

    kind: Kind
    why: str
    sure: bool = True
    width: int | None = None
    root: str = ""
    classes: tuple[int | str, ...] = ()
    low: float = -math.inf
    high: float = math.inf
    scale: float | None = None
    last: bool = True
    columns: tuple[Column, ...] = ()
    each: bool = False


def class_names(attribute: dict[str, Any]) -> tuple[int | str, ...]:
    """The classes that a node of ``ai.onnx.ml`` declares, in the order of its scores."""
    for name in ("classlabels_ints", "classlabels_int64s", "classlabels_strings"):
        if attribute.get(name):
            return tuple(attribute[name])
    return ()


def _array(attribute: dict[str, Any], name: str) -> NDArray[np.float64]:
    value = attribute.get(name)
    if value is None and attribute.get(f"{name}_as_tensor") is not None:
        from onnx import numpy_helper

        value = numpy_helper.to_array(attribute[f"{name}_as_tensor"])
    return np.asarray([] if value is None else value, np.float64)


def classifier(node: Any, output: int) -> Finding:
    """TreeEnsembleClassifier, LinearClassifier or SVMClassifier: output 0 is the label, output 1 the scores."""
    attribute = attributes(node)
    classes = class_names(attribute)
    root = f"node {node.output[0]}"
    op, width = node.op_type, len(classes) or None
    if output == 0:
        return Finding("labels", f"it is the label output of {op}", width=width, root=root, classes=classes)

    def scores(kind: Kind, why: str, sure: bool = True) -> Finding:
        return Finding(kind, why, sure, width, root, classes)

    after = attribute.get("post_transform", "NONE")
    if op == "SVMClassifier" and attribute.get("prob_a"):
        return scores("simplex", "SVMClassifier with Platt coefficients (prob_a) writes probabilities")
    if after == "SOFTMAX":
        return scores("simplex", f"{op} ends in SOFTMAX")
    if after == "LOGISTIC":
        if width == 2:
            return scores("simplex", f"{op} ends in LOGISTIC over two classes and writes 1 - p and p")
        return scores("sigmoid", f"{op} ends in LOGISTIC, one independent value a class")
    if after != "NONE":
        return scores("unknown", f"{op} ends in {after}, whose values have no space of their own", sure=False)
    if op == "TreeEnsembleClassifier" and _leaves_are_distributions(attribute, len(classes)):
        return scores("simplex", "the leaves of TreeEnsembleClassifier add up to one in every tree")
    return scores("logits", f"{op} has no post-transform: raw class scores")


def _leaves_are_distributions(attribute: dict[str, Any], classes: int) -> bool:
    weights = _array(attribute, "class_weights")
    trees, nodes = _array(attribute, "class_treeids"), _array(attribute, "class_nodeids")
    ids, base = _array(attribute, "class_ids"), _array(attribute, "base_values")
    if not len(weights) or not len(weights) == len(trees) == len(nodes) == len(ids) or (weights < 0).any():
        return False
    leaves, at = np.unique(np.stack([trees, nodes]), axis=1, return_inverse=True)
    sums = np.bincount(at.reshape(-1), weights)
    _, of = np.unique(leaves[0], return_inverse=True)
    least, most = np.full(of.max() + 1, np.inf), np.zeros(of.max() + 1)
    np.minimum.at(least, of, sums)
    np.maximum.at(most, of, sums)
    if classes == 2 and len(np.unique(ids)) == 1:  # one column; the runtime writes 1 - p and p
        return bool(most.sum() + base.sum() <= 1 + 1e-3)
    return bool(abs(most.sum() + base.sum() - 1) <= 1e-3 and abs(least.sum() + base.sum() - 1) <= 1e-3)


def columns_of_boxes(parts: list[tuple[Finding, int | None]]) -> tuple[Column, ...]:
    """What stands side by side, if it is four numbers without a meaning of their own, then scores and labels."""
    (first, four), *rest = parts
    if first.kind != "unknown" or four != 4 or "sigmoid" not in {found.kind for found, _ in rest}:
        return ()
    columns: list[Column] = [*BOX]
    for found, width in rest:
        if width is None or found.kind not in ("sigmoid", "labels"):
            return ()
        columns += ["score" if found.kind == "sigmoid" else "label"] * width
    return tuple(columns)


def regressor(node: Any) -> Finding:
    """TreeEnsembleRegressor, LinearRegressor or SVMRegressor; the range of a sum of trees follows from their leaves."""
    attribute = attributes(node)
    op = node.op_type
    width = int(attribute.get("n_targets", attribute.get("targets", 1)))
    found = Finding("scalar", f"it is the output of {op}", width=width)
    if op != "TreeEnsembleRegressor" or attribute.get("post_transform", "NONE") != "NONE" or width != 1:
        return found
    weights, trees = _array(attribute, "target_weights"), _array(attribute, "target_treeids")
    how = attribute.get("aggregate_function", "SUM")
    if not len(weights) or len(weights) != len(trees) or how not in ("SUM", "AVERAGE"):
        return found
    names, of = np.unique(trees, return_inverse=True)
    least, most = np.full(len(names), np.inf), np.full(len(names), -np.inf)
    np.minimum.at(least, of, weights)
    np.maximum.at(most, of, weights)
    share = len(names) if how == "AVERAGE" else 1
    base = _array(attribute, "base_values").sum()
    low, high = float(least.sum() / share + base), float(most.sum() / share + base)
    why = f"it is the output of TreeEnsembleRegressor, whose leaves allow {low:.6g} to {high:.6g}"
    return Finding("scalar", why, width=1, low=low, high=high)
