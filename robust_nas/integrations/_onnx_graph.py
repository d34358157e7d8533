"""An ONNX graph in the operations that verifiers have in common.

Verifiers read few operations, and not all that their attributes say: auto_LiRPA's average pooling counts the padding
whatever `count_include_pad` is and knows no `ceil_mode`, nnenum's list of linear operations has neither `Div` nor
`BatchNormalization` nor `ReduceMean`, Marabou's parsers have no pooling but `MaxPool`, one no groups.
So that all of them see the same function, linear operations are written as convolutions and matrix products:

- Average pooling is a convolution with equal weights, padded by the same number of zeros on both sides. Where windows
  count different numbers of pixels, as they do at the border when padding is left out, a constant factor [1, 1, H, W]
  of the result makes up for it.
- Normalisation, batch norm, and other constants per channel go into the weights of the convolution or matrix product
  before them; where there is none, they are a convolution of size 1.
- The mean over all pixels goes into the weights of the matrix product after it.

Other operations are left as they are.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper, shape_inference

COMMON = frozenset({"Add", "Conv", "Flatten", "Gemm", "Mul", "Relu"})
"""Operations that auto_LiRPA, nnenum and Marabou's Python parser have in common."""

_CONSTANTS_PER_CHANNEL = {"Add", "Sub", "Mul", "Div", "BatchNormalization"}

Array = NDArray[Any]


def in_common_operations(model: ModelProto) -> ModelProto:
    """Return a model [1, C, H, W] -> [1, K] with the same function, up to rounding, in `COMMON` as far as possible."""
    graph = _Graph(model)
    for node in list(graph.nodes):
        if node.op_type == "AveragePool":
            _convolve_instead_of_pooling(graph, node)
        elif node.op_type == "Reshape":
            _flatten(graph, node)
        elif node.op_type == "MatMul":
            _matrix_product_with_bias(graph, node)
        elif node.op_type == "Gemm":
            _matrix_product_with_bias(graph, node)
            _take_in_mean(graph, graph.producer(node.output[0]))
        elif node.op_type in _CONSTANTS_PER_CHANNEL:
            _scale_and_shift(graph, node)
    return graph.model()


@dataclass(frozen=True)
class _Pooling:
    """Average pooling along one axis: its windows, and what each of them counts."""

    size: int
    stride: int
    before: int
    after: int
    counts: Array

    @classmethod
    def along(cls, length: int, outputs: int, size: int, stride: int, pads: tuple[int, int], padded: bool) -> _Pooling:
        """Return the pooling of `length` pixels to `outputs`; what `ceil_mode` adds at the end is not counted."""
        before, end = pads[0], length + (pads[1] if padded else 0)
        first = np.arange(outputs) * stride - before
        counts = np.minimum(first + size, end) - np.maximum(first, -before if padded else 0)
        return cls(size, stride, before, max(0, int(first[-1]) + size - length), counts)

    @property
    def padding(self) -> int:
        """The zeros on both sides: readers refuse convolutions with more of them on one side."""
        return max(self.before, self.after)

    def kernel(self) -> Array:
        """Ones, with zeros where the padding was extended."""
        return np.pad(np.ones(self.size), (self.padding - self.before, self.padding - self.after))


def _convolve_instead_of_pooling(graph: _Graph, node: NodeProto) -> None:
    given = {"strides": None, "pads": None, "count_include_pad": 0, "auto_pad": b"NOTSET", **_attributes(node)}
    shape, outputs, size = graph.shapes[node.input[0]], graph.shapes[node.output[0]], given["kernel_shape"]
    if len(shape) != 4 or given["auto_pad"] != b"NOTSET" or set(given.get("dilations", [1])) != {1}:
        return
    strides, pads = given["strides"] or [1, 1], given["pads"] or [0, 0, 0, 0]
    rows, columns = (
        _Pooling.along(
            shape[2 + axis], outputs[2 + axis], size[axis], strides[axis], (pads[axis], pads[2 + axis]),
            bool(given["count_include_pad"]),
        )
        for axis in (0, 1)
    )  # fmt: skip
    counts = np.outer(rows.counts, columns.counts)
    # One window on all channels: a convolution in groups is the same, but is not read by all.
    weight = np.einsum("oi,h,w->oihw", np.eye(shape[1]), rows.kernel(), columns.kernel()) / counts.max()
    correction = counts.max() / counts
    pooled = node.output[0] if (correction == 1).all() else f"{node.output[0]}_sums"
    padding = [rows.padding, columns.padding] * 2
    new = [graph.convolution(node.input[0], pooled, weight, np.zeros(shape[1]), strides=strides, pads=padding)]
    if pooled != node.output[0]:
        factors = graph.constant(f"{node.output[0]}_counts", correction[None, None])
        new.append(helper.make_node("Mul", [pooled, factors], node.output))
    graph.replace(node, new)


def _flatten(graph: _Graph, node: NodeProto) -> None:
    shape, new_shape = graph.shapes[node.input[0]], graph.shapes[node.output[0]]
    if shape[:1] == (1,) and new_shape == (1, math.prod(shape)):
        graph.replace(node, [helper.make_node("Flatten", [node.input[0]], node.output, axis=1)])


def _matrix_product_with_bias(graph: _Graph, node: NodeProto) -> None:
    given, weight = _attributes(node), graph.constants.get(node.input[1])
    if weight is None or weight.ndim != 2 or len(graph.shapes[node.input[0]]) != 2 or given.get("transA", 0):
        return
    weight = (weight if given.get("transB", 0) else weight.T) * given.get("alpha", 1.0)
    bias = np.zeros(len(weight))
    if len(node.input) == 3:
        if node.input[2] not in graph.constants:
            return
        bias = bias + graph.constants[node.input[2]].reshape(-1) * given.get("beta", 1.0)
    graph.replace(node, [graph.matrix_product(node.input[0], node.output[0], weight, bias)])


def _take_in_mean(graph: _Graph, node: NodeProto | None) -> None:
    """Let a matrix product of the means over all pixels be one of the pixels."""
    if node is None or node.input[1] not in graph.constants:
        return
    between: list[NodeProto] = []
    mean = graph.only_producer(node.input[0])
    while mean is not None and mean.op_type in ("Flatten", "Reshape", "Squeeze"):
        between.append(mean)
        mean = graph.only_producer(mean.input[0])
    if mean is None or mean.op_type not in ("ReduceMean", "GlobalAveragePool"):
        return
    shape = graph.shapes[mean.input[0]]
    if len(shape) != 4 or math.prod(graph.shapes[mean.output[0]]) != shape[1] or _axes(graph, mean) != {2, 3}:
        return
    pixels = shape[2] * shape[3]
    weight, bias = (graph.constants[name] for name in node.input[1:])
    flat = f"{mean.output[0]}_pixels"
    flatten = helper.make_node("Flatten", [mean.input[0]], [flat], axis=1)
    for old in [*between, mean]:
        graph.replace(old, [])
    product = graph.matrix_product(flat, node.output[0], np.repeat(weight / pixels, pixels, axis=1), bias)
    graph.replace(node, [flatten, product])


def _axes(graph: _Graph, node: NodeProto) -> set[int]:
    """Return the averaged ones of four axes."""
    if node.op_type == "GlobalAveragePool":
        return {2, 3}
    given = graph.constants[node.input[1]] if len(node.input) > 1 else _attributes(node).get("axes", range(4))
    return {int(axis) % 4 for axis in given}


def _scale_and_shift(graph: _Graph, node: NodeProto) -> None:
    """Put y = scale * x + shift, numbers per channel, into the weights before, or into a convolution of its own."""
    found = _scale_and_shift_of(graph, node)
    if found is None:
        return
    x, scale, shift = found
    before = graph.only_producer(x)
    if before is not None and before.op_type in ("Conv", "Gemm") and graph.has_plain_weights(before):
        weight = graph.constants[before.input[1]]
        bias = graph.constants[before.input[2]] if len(before.input) == 3 else np.zeros(len(weight))
        weight, bias = weight * scale.reshape(-1, *[1] * (weight.ndim - 1)), bias * scale + shift
        if before.op_type == "Conv":
            new = graph.convolution(before.input[0], node.output[0], weight, bias, **_attributes(before))
        else:
            new = graph.matrix_product(before.input[0], node.output[0], weight, bias)
        graph.replace(before, [])
    elif len(graph.shapes[x]) == 4:
        new = graph.convolution(x, node.output[0], np.diag(scale)[..., None, None], shift)
    else:
        new = graph.matrix_product(x, node.output[0], np.diag(scale), shift)
    graph.replace(node, [new])


def _scale_and_shift_of(graph: _Graph, node: NodeProto) -> tuple[str, Array, Array] | None:
    """Return an operation's input, scale [C] and shift [C], or None if it is not of that kind."""
    constants = [graph.constants.get(name) for name in node.input]
    shape, channels = graph.shapes[node.output[0]], graph.shapes[node.output[0]][1:2]
    if len(shape) not in (2, 4):
        return None
    if node.op_type == "BatchNormalization":
        weight, bias, mean, variance = constants[1:]
        if weight is None or bias is None or mean is None or variance is None:
            return None
        scale = weight / np.sqrt(variance + _attributes(node).get("epsilon", 1e-5))
        return node.input[0], scale, bias - mean * scale
    first, second = constants
    if (first is None) == (second is None):
        return None
    x, constant = (node.input[0], second) if first is None else (node.input[1], first)
    assert constant is not None
    per_channel = (1, *channels, *[1] * (len(shape) - 2))
    aligned = constant.reshape([1] * (len(shape) - constant.ndim) + list(constant.shape))
    if graph.shapes[x] != shape or any(
        size not in (1, full) for size, full in zip(aligned.shape, per_channel, strict=True)
    ):
        return None
    number = np.broadcast_to(aligned.reshape(-1), channels)
    one, zero = np.ones(channels), np.zeros(channels)
    if node.op_type == "Add":
        return x, one, number
    if node.op_type == "Sub":
        return (x, one, -number) if first is None else (x, -one, number)
    if node.op_type == "Mul":
        return x, number, zero
    return (x, 1 / number, zero) if first is None else None


class _Graph:
    """Nodes in their order, the constants in float64, and the shapes of all values."""

    def __init__(self, model: ModelProto) -> None:
        self._of = shape_inference.infer_shapes(model)
        graph = self._of.graph
        self.nodes = list(graph.node)
        self.constants: dict[str, Array] = {}
        for tensor in graph.initializer:
            array = numpy_helper.to_array(tensor)
            self.constants[tensor.name] = array.astype(np.float64) if array.dtype.kind == "f" else array
        # Of a shape that is not known, nothing is rewritten: no rule is for values without axes.
        self.shapes: defaultdict[str, tuple[int, ...]] = defaultdict(tuple)
        for value in [*graph.input, *graph.value_info, *graph.output]:
            self.shapes[value.name] = tuple(size.dim_value for size in value.type.tensor_type.shape.dim)

    def producer(self, name: str) -> NodeProto | None:
        """Return the node that a value comes from."""
        return next((node for node in self.nodes if name in node.output), None)

    def only_producer(self, name: str) -> NodeProto | None:
        """Return the node that a value comes from, if the value goes to one node only."""
        uses = sum(list(node.input).count(name) for node in self.nodes)
        is_output = any(value.name == name for value in self._of.graph.output)
        return self.producer(name) if uses == 1 and not is_output else None

    def has_plain_weights(self, node: NodeProto) -> bool:
        """Whether the weights of a convolution or matrix product are constants, the latter's as [outputs, inputs]."""
        plain = node.op_type == "Conv" or _attributes(node) == {"transB": 1}
        return plain and all(name in self.constants for name in node.input[1:])

    def replace(self, node: NodeProto, new: Sequence[NodeProto]) -> None:
        """Put other nodes in a node's place."""
        place = next(place for place, other in enumerate(self.nodes) if other is node)
        self.nodes[place : place + 1] = new

    def constant(self, name: str, value: Array) -> str:
        """Add a constant, under a name that is not taken."""
        while name in self.constants or name in self.shapes:
            name += "_"
        self.constants[name] = value
        return name

    def convolution(self, x: str, y: str, weight: Array, bias: Array, **attributes: Any) -> NodeProto:
        """Return y = weight * x + bias."""
        names = [self.constant(f"{y}_weight", weight), self.constant(f"{y}_bias", bias)]
        given = {"kernel_shape": weight.shape[2:], "pads": [0] * 4, "strides": [1, 1], **attributes}
        return helper.make_node("Conv", [x, *names], [y], **given)

    def matrix_product(self, x: str, y: str, weight: Array, bias: Array) -> NodeProto:
        """Return y = x weight^T + bias, with weights [outputs, inputs]."""
        names = [self.constant(f"{y}_weight", weight), self.constant(f"{y}_bias", bias)]
        return helper.make_node("Gemm", [x, *names], [y], transB=1)

    def model(self) -> ModelProto:
        """Return the whole, constants in float32 again."""
        used = {name for node in self.nodes for name in node.input}
        tensors = [
            numpy_helper.from_array(array.astype(np.float32) if array.dtype.kind == "f" else array, name)
            for name, array in self.constants.items()
            if name in used
        ]
        graph = self._of.graph
        new = helper.make_graph(self.nodes, "network", list(graph.input), list(graph.output), tensors)
        return helper.make_model(new, opset_imports=self._of.opset_import, ir_version=self._of.ir_version)


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
