"""Walk a graph back from a tensor: a rule per operator says what its output is, given what its inputs are."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from hardening_onnx import findings
from hardening_onnx.findings import Finding
from hardening_onnx.graph import Graph, attributes

DEEPEST = 64
#: Operators that pass the meaning of their first input on.
_SAME = {"CastLike", "DequantizeLinear", "Dropout", "Flatten", "QuantizeLinear", "Reshape", "Squeeze", "Transpose"}
_SAME |= {"Cast", "Identity", "Unsqueeze"}
_LINEAR = {"Conv", "DynamicQuantizeMatMul", "FusedGemm", "FusedMatMul", "Gemm", "MatMul", "MatMulInteger", "QGemm"}
_LINEAR |= {"QLinearMatMul"}
_LAYER_NORM = {"EmbedLayerNormalization", "LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"}
_LAYER_NORM |= {"SkipLayerNormalization", "SkipSimplifiedLayerNormalization"}
_POOL = {"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool", "ReduceMax", "ReduceMean"}
#: Operators through which a sum or a norm is broadcast back to the rows that it divides.
_SPREAD = {"Add", "Cast", "Clip", "Expand", "Identity", "Max", "Reshape", "Squeeze", "Unsqueeze", "Where"}


class Recogniser:
    """Findings of one graph; every tensor is looked at once."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._found: dict[str, Finding] = {}

    def see(self, tensor: str, depth: int = 0) -> Finding:
        """What `tensor` holds."""
        if tensor not in self._found:
            if depth > DEEPEST:
                return Finding("unknown", "the graph goes on for too long without an operator that tells", False)
            self._found[tensor] = Finding("unknown", "it depends on itself", False)
            found = self._look(tensor, depth + 1)
            width = found.width or self.graph.width(tensor)
            self._found[tensor] = replace(found, width=width, root=found.root or tensor)
        return self._found[tensor]

    def _look(self, tensor: str, depth: int) -> Finding:
        made = self.graph.maker(tensor)
        if made is None:
            return Finding("unknown", "it is an input or a constant of the graph", False)
        node, which = made
        op = node.op_type
        if op in ("TreeEnsembleClassifier", "LinearClassifier", "SVMClassifier"):
            return findings.classifier(node, which)
        if op in ("TreeEnsembleRegressor", "LinearRegressor", "SVMRegressor"):
            return findings.regressor(node)
        if op in _SAME and which == 0:
            return self._same(node, tensor, depth)
        if op in ("Softmax", "LogSoftmax"):
            return self._softmax(node, tensor, depth)
        if op in _LAYER_NORM and which == 0:
            return self._layer_norm(op, node.input[2] if op.startswith("Skip") else node.input[1])
        if op in _POOL:
            return self._pool(node, depth)
        if op in _LINEAR:
            return Finding("unknown", f"{op} without an activation", False, self._columns(node))
        if op == "If":
            return self._if(node, which, depth)
        if op in _RULES and which == 0:
            return _RULES[op](self, node, tensor, depth)
        return Finding("unknown", f"no rule knows what {op} leaves", False)

    def _columns(self, node: Any) -> int | None:
        """Width of a product, from the shape of its second factor."""
        if len(node.input) < 2 or node.op_type not in ("Gemm", "MatMul"):
            return None
        shape = self.graph.shape(node.input[1])
        last = shape[0 if attributes(node).get("transB") else -1] if shape and len(shape) > 1 else None
        return last if isinstance(last, int) else None

    def _same(self, node: Any, tensor: str, depth: int) -> Finding:
        found = self.see(node.input[0], depth)
        before, after = self.graph.shape(node.input[0]), self.graph.shape(tensor)
        if node.op_type == "Transpose":
            order = attributes(node).get("perm")
            moved = not order or order[-1] != len(order) - 1
            return replace(found, last=found.last and not moved, width=None if moved else found.width)
        if node.op_type in ("Reshape", "Squeeze", "Unsqueeze", "Flatten"):
            kept = before and after and before[-1] == after[-1] and isinstance(after[-1], int)
            if found.kind in ("simplex", "sigmoid", "logits") and not kept:
                last = self.graph.width(tensor)
                if found.kind == "sigmoid":
                    return replace(found, width=last)
                fits = last is None or found.width is None or last == found.width
                return replace(found, sure=False, last=found.last and fits, width=last or found.width)
        return found

    def _softmax(self, node: Any, tensor: str, depth: int) -> Finding:
        op, shape = node.op_type, self.graph.shape(tensor)
        axis = attributes(node).get("axis", -1 if self.graph.opset >= 13 else 1)
        last = axis == -1 or shape is None or axis == len(shape) - 1
        root = self.see(node.input[0], depth)
        width = self.graph.width(tensor) or root.width
        if op == "LogSoftmax":
            why = "it ends in LogSoftmax: log-probabilities, whose arg-max is the label"
            return Finding("logits", why, width=width, root=root.root, low=-math.inf, high=0.0, last=last)
        why = "it ends in Softmax" if last else f"it ends in Softmax over axis {axis}, not over the last"
        return Finding("simplex", why, sure=shape is not None or axis == -1, width=width, root=root.root, last=last)

    def _sigmoid(self, node: Any, tensor: str, depth: int) -> Finding:
        root = self.see(node.input[0], depth)
        why = f"it ends in {node.op_type}: independent values from 0 to 1"
        return Finding("sigmoid", why, width=self.graph.width(tensor) or root.width, root=root.root, low=0.0, high=1.0)

    def _tanh(self, node: Any, tensor: str, depth: int) -> Finding:
        width = self.graph.width(tensor)
        if width == 1:
            return Finding("scalar", "it ends in Tanh: one value from -1 to 1", width=1, low=-1.0, high=1.0)
        return Finding("embedding", "it ends in Tanh: a vector of values from -1 to 1", width=width, scale=0.5)

    def _clip(self, node: Any, tensor: str, depth: int) -> Finding:
        found = self.see(node.input[0], depth)
        bounds = [self.graph.constant(name) if name else None for name in (*node.input[1:3], "", "")[:2]]
        old = attributes(node)
        low = float(bounds[0]) if bounds[0] is not None else float(old.get("min", -math.inf))
        high = float(bounds[1]) if bounds[1] is not None else float(old.get("max", math.inf))
        if found.kind != "unknown" or not math.isfinite(high - low):
            return replace(found, sure=False)
        if self.graph.width(tensor) == 1:
            why = f"it ends in Clip: one value from {low:g} to {high:g}"
            return Finding("scalar", why, width=1, low=low, high=high)
        return replace(found, low=low, high=high)

    def _exp(self, node: Any, tensor: str, depth: int) -> Finding:
        made = self.graph.maker(node.input[0])
        found = self.see(node.input[0], depth)
        if made and made[0].op_type == "LogSoftmax":
            return replace(found, kind="simplex", why="it ends in Exp of LogSoftmax", low=0.0, high=1.0)
        if made and made[0].op_type == "Sub" and found.kind == "logits":
            return replace(found, kind="simplex", why="it ends in Exp of scores less their ReduceLogSumExp: a softmax")
        return Finding("unknown", "it ends in Exp, not divided by its sum", False)

    def _div(self, node: Any, tensor: str, depth: int) -> Finding:
        above, below = node.input[:2]
        total = self._reduction(below, above, {"ReduceSum", "ReduceL1"})
        if total is not None:
            made = self.graph.maker(above)
            last = self._is_last(total)
            if made and made[0].op_type == "Exp":
                root = self.see(self._without_shift(made[0].input[0]), depth)
                why = "it ends in Exp, ReduceSum and Div: a softmax"
                width = self.graph.width(tensor) or root.width
                return Finding("simplex", why, width=width, root=root.root, last=last)
            why = "it ends in Div by its own ReduceSum; that nothing is negative is not shown by the graph"
            return Finding("simplex", why, sure=False, root=self.see(above, depth).root, last=last)
        if self._reduction(below, above, {"ReduceL2", "ReduceSumSquare"}) or self._is_norm(below):
            return self._normalised(tensor, "Div by its own L2 norm")
        return self._scaled(node, tensor, depth)

    def _scaled(self, node: Any, tensor: str, depth: int) -> Finding:
        """A sum, difference, product or quotient with a constant: still a linear end, and bounds move along."""
        sides = [self.graph.constant(name) for name in node.input[:2]]
        weight = [self.graph.maker(name) is None or self._is_constant(name) for name in node.input[:2]]
        if all(weight) or not any(weight):
            return Finding("unknown", f"no rule knows what this {node.op_type} leaves", False)
        found = self.see(node.input[0] if weight[1] else node.input[1], depth)
        other = sides[1] if weight[1] else sides[0]
        width = self.graph.width(tensor) or found.width
        bounded = math.isfinite(found.high - found.low)
        if found.kind == "scalar" and bounded and other is not None and other.size == 1:
            by = float(other.reshape(-1)[0])
            low, high = sorted(self._moved(node.op_type, bound, by) for bound in (found.low, found.high))
            return replace(found, low=low, high=high, why=f"{found.why}, then moved by a constant {node.op_type}")
        if found.kind in ("unknown", "scalar") and not bounded:
            return replace(found, width=width, root="")
        return Finding("unknown", f"{node.op_type} changes what was {found.kind}", False, width)

    @staticmethod
    def _moved(op: str, bound: float, by: float) -> float:
        if op == "Div":
            return bound / by if by else math.nan
        return {"Add": bound + by, "Sub": bound - by, "Mul": bound * by}[op]

    def _sub(self, node: Any, tensor: str, depth: int) -> Finding:
        total = self._reduction(node.input[1], node.input[0], {"ReduceLogSumExp"})
        if total is not None:
            why = "it ends in scores less their ReduceLogSumExp: log-probabilities, whose arg-max is the label"
            root = self.see(node.input[0], depth).root
            return Finding("logits", why, root=root, high=0.0, last=self._is_last(total))
        return self._scaled(node, tensor, depth)

    def _add(self, node: Any, tensor: str, depth: int) -> Finding:
        for name in node.input[:2]:
            scaled = self.graph.maker(name)
            if scaled and scaled[0].op_type == "Mul":
                for factor, gamma in (scaled[0].input[:2], scaled[0].input[1::-1]):
                    made = self.graph.maker(factor)
                    if made and made[0].op_type == "Div" and self._is_norm(made[0].input[1]):
                        return self._layer_norm("a layer normalisation", gamma)
        return self._scaled(node, tensor, depth)

    def _is_constant(self, tensor: str) -> bool:
        made = self.graph.maker(tensor)
        return made is None or made[0].op_type == "Constant"

    def _is_norm(self, tensor: str) -> bool:
        return self._reached(tensor, lambda node: node.op_type == "Sqrt") is not None

    def _without_shift(self, tensor: str) -> str:
        """The scores behind ``x - max(x)``."""
        made = self.graph.maker(tensor)
        return str(made[0].input[0]) if made and made[0].op_type == "Sub" else tensor

    def _reduction(self, tensor: str, of: str, ops: set[str]) -> Any:
        """The node that reduced `of` to what was broadcast back to `tensor`, or None."""
        return self._reached(tensor, lambda node: node.op_type in ops and node.input[0] == of)

    def _reached(self, tensor: str, wanted: Callable[[Any], bool], steps: int = 6) -> Any:
        made = self.graph.maker(tensor)
        if made is None or not steps:
            return None
        if wanted(made[0]):
            return made[0]
        if made[0].op_type not in _SPREAD:
            return None
        found = (self._reached(name, wanted, steps - 1) for name in made[0].input if name)
        return next((node for node in found if node is not None), None)

    def _is_last(self, node: Any) -> bool:
        """Whether a reduction is along the last axis alone."""
        axes = attributes(node).get("axes")
        if axes is None and len(node.input) > 1:
            given = self.graph.constant(node.input[1])
            axes = None if given is None else given.reshape(-1).tolist()
        shape = self.graph.shape(node.input[0])
        return axes == [-1] or (axes is not None and axes == [1 if shape is None else len(shape) - 1])

    def _layer_norm(self, op: str, gamma: str) -> Finding:
        weights = self.graph.constant(gamma)
        scale = None if weights is None else float(np.sqrt(np.mean(np.square(weights.astype(np.float64)))))
        return Finding("embedding", f"it ends in {op}: a vector of features", scale=scale)

    def _normalised(self, tensor: str, how: str) -> Finding:
        width = self.graph.width(tensor)
        return Finding(
            "embedding", f"it ends in {how}: a vector of length one", width=width, scale=(width or 256) ** -0.5
        )

    def _lp_normalization(self, node: Any, tensor: str, depth: int) -> Finding:
        if attributes(node).get("p", 2) == 2:
            return self._normalised(tensor, "LpNormalization")
        return Finding("simplex", "it ends in LpNormalization with p = 1; that nothing is negative is not shown", False)

    def _normalizer(self, node: Any, tensor: str, depth: int) -> Finding:
        norm = attributes(node).get("norm", "MAX")
        found = self.see(node.input[0], depth)
        if norm == "L2":
            return self._normalised(tensor, "Normalizer (L2)")
        if norm == "L1":
            sure = found.kind in ("simplex", "sigmoid")
            return replace(found, kind="simplex", why="it ends in Normalizer (L1): rows that sum to one", sure=sure)
        return Finding("unknown", f"no rule knows what Normalizer ({norm}) leaves", False)

    def _pool(self, node: Any, depth: int) -> Finding:
        found = self.see(node.input[0], depth)
        if found.kind == "sigmoid":
            return replace(found, why=f"{found.why}, then {node.op_type}, which stays between 0 and 1")
        return Finding("unknown", f"it ends in {node.op_type}: pooled features", False)

    def _zipmap(self, node: Any, tensor: str, depth: int) -> Finding:
        found = self.see(node.input[0], depth)
        classes = findings.class_names(attributes(node))
        return replace(found, why=f"{found.why}, then ZipMap", classes=classes, width=len(classes) or found.width)

    def _concat(self, node: Any, tensor: str, depth: int) -> Finding:
        if len(node.input) == 2:
            for rest, part in (node.input, node.input[::-1]):
                made = self.graph.maker(rest)
                found = self.see(part, depth)
                if made and made[0].op_type == "Sub" and made[0].input[1] == part and found.kind == "sigmoid":
                    one = self.graph.constant(made[0].input[0])
                    if one is not None and one.size == 1 and float(one.reshape(-1)[0]) == 1.0:
                        return Finding("simplex", "it ends in Concat of 1 - p and p", width=2)
        shape, axis = self.graph.shape(tensor), attributes(node).get("axis")
        if axis == -1 or (shape is not None and axis == len(shape) - 1):
            parts = [(self.see(part, depth), self.graph.width(part)) for part in node.input]
            if columns := findings.columns_of_boxes(parts):
                why = "it ends in Concat of four numbers, scores from 0 to 1 and labels: boxes"
                return Finding("boxes", why, False, len(columns), columns=columns)
        return Finding("unknown", "it ends in Concat: parts of different meaning stand side by side", False)

    def _argmax(self, node: Any, tensor: str, depth: int) -> Finding:
        scores = self.see(node.input[0], depth)
        return Finding("labels", "it ends in ArgMax", width=scores.width, root=scores.root)

    def _at_half(self, node: Any, tensor: str, depth: int) -> Finding:
        """Zeros and ones, as a value is below one half or not."""
        found, bound = self.see(node.input[0], depth), attributes(node).get("threshold")
        if node.op_type != "Binarizer":
            constant = self.graph.constant(node.input[1])
            bound = float(constant.reshape(-1)[0]) if constant is not None and constant.size == 1 else None
        if found.kind != "sigmoid" or bound is None or abs(bound - 0.5) > 1e-6:
            return Finding("unknown", f"no rule knows what {node.op_type} leaves", False)
        why = f"it ends in {node.op_type} at one half: a 0 or 1 for each value"
        return Finding("labels", why, width=found.width, root=found.root, each=True)

    def _array_feature_extractor(self, node: Any, tensor: str, depth: int) -> Finding:
        return self._picked(node, node.input[1], depth)

    def _gather(self, node: Any, tensor: str, depth: int) -> Finding:
        if self.graph.constant(node.input[0]) is not None:
            return self._picked(node, node.input[1], depth)
        found = self.see(node.input[0], depth)
        if found.kind == "embedding" or found.why.endswith("pooled features"):
            return found
        return Finding("unknown", "no rule knows what Gather leaves", False)

    def _picked(self, node: Any, index: str, depth: int) -> Finding:
        """Names of classes picked by a label."""
        found, names = self.see(index, depth), self.graph.constant(node.input[0])
        if found.kind != "labels" or names is None:
            return Finding("unknown", f"no rule knows what {node.op_type} leaves", False)
        values = names.reshape(-1).tolist()
        classes = tuple(v.decode() if isinstance(v, bytes) else int(v) if isinstance(v, float) else v for v in values)
        return replace(found, why=f"{found.why}, by which {node.op_type} picks a class", classes=classes)

    def _if(self, node: Any, which: int, depth: int) -> Finding:
        seen = []
        for proto in (a.g for a in node.attribute if a.HasField("g")):
            inner = Recogniser(self.graph.branch(proto))
            seen.append(inner.see(proto.output[which].name, depth))
        if len({f.kind for f in seen}) == 1:
            sure = all(f.sure for f in seen)
            return replace(seen[0], why=f"both branches of If agree: {seen[0].why}", sure=sure, root="")
        return Finding("unknown", "the branches of If leave different things", False)


_RULES: dict[str, Callable[[Recogniser, Any, str, int], Finding]] = {
    "Add": Recogniser._add,
    "ArgMax": Recogniser._argmax,
    "ArrayFeatureExtractor": Recogniser._array_feature_extractor,
    "Binarizer": Recogniser._at_half,
    "Clip": Recogniser._clip,
    "Concat": Recogniser._concat,
    "Div": Recogniser._div,
    "Exp": Recogniser._exp,
    "Gather": Recogniser._gather,
    "Greater": Recogniser._at_half,
    "GreaterOrEqual": Recogniser._at_half,
    "HardSigmoid": Recogniser._sigmoid,
    "LpNormalization": Recogniser._lp_normalization,
    "Mul": Recogniser._scaled,
    "Normalizer": Recogniser._normalizer,
    "Sigmoid": Recogniser._sigmoid,
    "Sub": Recogniser._sub,
    "Tanh": Recogniser._tanh,
    "ZipMap": Recogniser._zipmap,
}
