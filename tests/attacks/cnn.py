"""A small convolutional network that reads pictures, trained in plain numpy and run by ONNX Runtime."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import onnxruntime
from numpy.lib.stride_tricks import sliding_window_view
from onnx import TensorProto, checker, helper, numpy_helper

from hardening.audit.extraction import softmax


class Cnn(NamedTuple):
    """A convolution with ReLU, the largest of each two by two, a linear layer; float32.

    Attributes:
        kernel, bias: ``(k * k, filters)`` and ``(filters,)``, k odd: pictures keep their size.
        weight, shift: ``(side / 2 * side / 2 * filters, classes)`` and ``(classes,)``.
    """

    kernel: np.ndarray
    bias: np.ndarray
    weight: np.ndarray
    shift: np.ndarray


def _patches(x: np.ndarray, size: int) -> np.ndarray:
    """What a kernel sees at each place of pictures ``(n, side, side)``: ``(n, side, side, size * size)``."""
    around = np.pad(x, ((0, 0), (size // 2, size // 2), (size // 2, size // 2)))
    seen = sliding_window_view(around, (size, size), axis=(1, 2))
    return np.ascontiguousarray(seen).reshape(*x.shape, size * size)


def _gradients(net: Cnn, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, ...]:
    """Of the mean cross-entropy of pictures `x` of classes `y`, by every parameter."""
    n, half = len(x), x.shape[1] // 2
    patches = _patches(x, math.isqrt(len(net.kernel)))
    raised = np.maximum(patches @ net.kernel + net.bias, 0)
    quarters = raised.reshape(n, half, 2, half, 2, -1)
    pooled = quarters.max(axis=(2, 4), keepdims=True)
    flat = pooled.reshape(n, -1)
    p = softmax(flat @ net.weight + net.shift)
    p[np.arange(n), y] -= 1
    p /= n
    back = (p @ net.weight.T).reshape(pooled.shape)
    back = (back * ((quarters == pooled) & (quarters > 0))).reshape(-1, len(net.bias))
    return patches.reshape(-1, len(net.kernel)).T @ back, back.sum(axis=0), flat.T @ p, p.sum(axis=0)


def train(x: np.ndarray, y: np.ndarray, filters: int, size: int, steps: int, batch: int = 64) -> Cnn:
    """By Adam (Kingma & Ba 2015), cosine decay, on pictures ``(n, side, side)`` in [0, 1], moved by a pixel or not."""
    rng, classes, inner = np.random.default_rng(0), int(y.max()) + 1, (x.shape[1] // 2) ** 2 * filters
    net = [
        rng.normal(size=(size * size, filters)) * math.sqrt(2) / size,
        np.zeros(filters),
        rng.normal(size=(inner, classes)) / math.sqrt(inner),
        np.zeros(classes),
    ]
    net = [np.asarray(w, np.float32) for w in net]
    first, second = [np.zeros_like(w) for w in net], [np.zeros_like(w) for w in net]
    for step in range(1, steps + 1):
        chosen = rng.integers(len(x), size=batch)
        moved = np.roll(x[chosen], rng.integers(-1, 2, 2), axis=(1, 2))
        rate = 3e-3 * 0.5 * (1 + math.cos(math.pi * step / steps))
        for i, g in enumerate(_gradients(Cnn(*net), moved, y[chosen])):
            first[i] += 0.1 * (g - first[i])
            second[i] += 0.001 * (g * g - second[i])
            unbiased = np.sqrt(second[i] / (1 - 0.999**step)) + 1e-8
            net[i] = (net[i] - rate * first[i] / (1 - 0.9**step) / unbiased).astype(np.float32)
    return Cnn(*net)


def exported(net: Cnn, side: int) -> bytes:
    """As an ONNX model from float32 ``x`` ``(n, 1, side, side)`` to distributions ``p``."""
    size, filters = math.isqrt(len(net.kernel)), len(net.bias)
    # Of an ONNX tensor the channel comes before the place.
    weight = net.weight.reshape(side // 2, side // 2, filters, -1).transpose(2, 0, 1, 3).reshape(net.weight.shape)
    weights = {"k": net.kernel.T.reshape(filters, 1, size, size), "b": net.bias, "w": weight, "s": net.shift}
    nodes = [
        helper.make_node("Conv", ["x", "k", "b"], ["c"], kernel_shape=[size, size], pads=[size // 2] * 4),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("MaxPool", ["r"], ["m"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["m"], ["f"]),
        helper.make_node("Gemm", ["f", "w", "s"], ["z"]),
        helper.make_node("Softmax", ["z"], ["p"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "cnn",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1, side, side])],
        [helper.make_tensor_value_info("p", TensorProto.FLOAT, ["N", len(net.shift)])],
        [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    checker.check_model(model)
    return bytes(model.SerializeToString())


def bare(model: bytes) -> onnxruntime.InferenceSession:
    """A session that hardens nothing, of one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])
