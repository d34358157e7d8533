"""Networks as ONNX files: two other runtimes, onnxruntime and onnx's own in numpy, compute what torch does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn
from torch.nn import functional as F

from robust_nas import spaces
from robust_nas.core.errors import InputError
from robust_nas.datasets import Dataset, ImageSet
from robust_nas.ensembles import Ensemble
from robust_nas.integrations import onnx as exports
from robust_nas.integrations._onnx_graph import COMMON, in_common_operations
from robust_nas.integrations.onnx import classify, compare, export_onnx

# Odd, and not square: windows are cut off at the end, and an axis taken for the other would show.
SHAPE = (2, 9, 7)


def in_numpy(path: Path, images: Tensor) -> Tensor:
    runtime = ReferenceEvaluator(onnx.load(path))
    return torch.cat([torch.from_numpy(runtime.run(None, {"image": one.numpy()})[0]) for one in images.split(1)])


def random_images(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def cell() -> nn.Module:
    """A network with all five operations, whose batch norms have seen images, in training mode."""
    torch.manual_seed(0)
    images = ImageSet((random_images(64) * 255).byte(), torch.arange(64) % 3)
    space = spaces.load("nasbench201", channels=3, cells_per_stage=1, stages=2)
    architecture = space.parse(
        "|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|none~0|nor_conv_3x3~1|avg_pool_3x3~2|"
    )
    network = space.network(architecture, Dataset("random", ("a", "b", "c"), images, images, images))
    with torch.no_grad():
        for _ in range(3):
            network(images.images)
    return network


@pytest.fixture(scope="module")
def exported(cell: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> exports.Exported:
    return export_onnx(cell, tmp_path_factory.mktemp("onnx") / "cell.onnx", SHAPE)


def test_other_runtimes_compute_what_torch_does_on_a_cell_with_every_operation(
    cell: nn.Module, exported: exports.Exported
) -> None:
    assert cell.training  # as it was
    images = random_images(8, seed=1)
    cell.eval()
    with torch.no_grad():
        expected = cell(images)
    cell.train()
    scale = float(expected.abs().max())
    for found in (classify(exported.path, images), in_numpy(exported.path, images)):
        torch.testing.assert_close(found, expected, atol=1e-5 * scale, rtol=0)
    assert exported.largest_difference <= 1e-5 * scale and exported.num_points == 64 and exported.num_classes == 3


def test_a_cell_is_written_for_one_image_in_the_common_operations(exported: exports.Exported) -> None:
    model = onnx.load(exported.path)
    assert set(exported.operations) == {"Add", "Conv", "Flatten", "Gemm", "Mul", "Relu"} == COMMON
    assert exported.opset == 13 and model.ir_version == 7
    (image,), (logits,) = model.graph.input, model.graph.output
    for value, shape in ((image, [1, *SHAPE]), (logits, [1, 3])):
        assert [size.dim_value for size in value.type.tensor_type.shape.dim] == shape
        assert value.type.tensor_type.elem_type == TensorProto.FLOAT
    for node in model.graph.node:
        if node.op_type == "Conv":
            given = {item.name: helper.get_attribute_value(item) for item in node.attribute}
            assert given.get("group", 1) == 1 and given["pads"][:2] == given["pads"][2:]
    assert all(tensor.data_type == TensorProto.FLOAT for tensor in model.graph.initializer)


@pytest.mark.parametrize("count_include_pad", [False, True])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "ceil_mode"),
    [
        (3, 1, 1, False),  # the cells'
        (2, 2, 0, True),  # the reductions'
        (2, 2, 0, False),
        (3, 2, 1, True),
        ((3, 5), (2, 3), (1, 2), True),
        (4, 3, 2, False),
        ((9, 7), 1, 0, False),
    ],
)
def test_both_conventions_of_average_pooling_are_convolutions_with_as_many_zeros_on_both_sides(
    kernel: Any, stride: Any, padding: Any, ceil_mode: bool, count_include_pad: bool
) -> None:
    images = random_images(1)
    expected = F.avg_pool2d(images, kernel, stride, padding, ceil_mode, count_include_pad)
    pair = nn.modules.utils._pair
    node = helper.make_node(
        "AveragePool", ["x"], ["y"], kernel_shape=pair(kernel), strides=pair(stride), pads=[*pair(padding)] * 2,
        ceil_mode=int(ceil_mode), count_include_pad=int(count_include_pad),
    )  # fmt: skip
    rewritten = in_common_operations(one_node(node, list(images.shape), list(expected.shape)))
    assert [node.op_type for node in rewritten.graph.node] in (["Conv"], ["Conv", "Mul"])
    pads = helper.get_node_attr_value(rewritten.graph.node[0], "pads")
    assert pads[:2] == pads[2:]
    (found,) = ReferenceEvaluator(rewritten).run(None, {"x": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-6, rtol=0)


def one_node(node: onnx.NodeProto, shape: list[int], new_shape: list[int], **constants: np.ndarray) -> onnx.ModelProto:
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)
        for name, dims in zip("xy", (shape, new_shape), strict=True)
    ]
    tensors = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()]
    graph = helper.make_graph([node], "one", values[:1], values[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


@pytest.mark.parametrize(
    ("operation", "inputs", "constant", "expected"),
    [
        ("Sub", ["x", "c"], [[[0.5]], [[2.0]]], lambda x, c: x - c),
        ("Sub", ["c", "x"], [[[0.5]], [[2.0]]], lambda x, c: c - x),
        ("Div", ["x", "c"], [[[0.5]], [[2.0]]], lambda x, c: x / c),
        ("Div", ["c", "x"], [[[0.5]], [[2.0]]], lambda x, c: c / x),  # not linear, left as it is
        ("Mul", ["c", "x"], -3.0, lambda x, c: c * x),
        ("Mul", ["x", "c"], np.arange(7.0), lambda x, c: c * x),  # per column, left as it is
        ("Add", ["x", "c"], [[[[0.5]], [[2.0]]]], lambda x, c: x + c),
        ("Add", ["x", "x"], 0.0, lambda x, c: 2 * x),
    ],
)
def test_constants_per_channel_go_into_weights_the_right_way_round(
    operation: str, inputs: list[str], constant: Any, expected: Any
) -> None:
    images, c = random_images(1).numpy() + 0.1, np.array(constant)
    model = one_node(helper.make_node(operation, inputs, ["y"]), [1, *SHAPE], [1, *SHAPE], c=c)
    rewritten = in_common_operations(model)
    (found,) = ReferenceEvaluator(rewritten).run(None, {"x": images})
    np.testing.assert_allclose(found, expected(images, c), rtol=1e-5, atol=1e-6)
    per_channel = c.size <= 2 and inputs != ["x", "x"] and (operation, inputs) != ("Div", ["c", "x"])
    assert [node.op_type for node in rewritten.graph.node] == ["Conv" if per_channel else operation]


class Small(nn.Module):
    """Padded and adaptive pooling, a layer without a bias, and pixels scaled in `forward`."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv, self.pool = nn.Conv2d(2, 4, 3), nn.AvgPool2d(3, 2, 1, ceil_mode=True)
        self.last = nn.Linear(4, 3, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.pool(self.conv(2 * images - 1)))
        return self.last(F.adaptive_avg_pool2d(x, 1).flatten(1))


def test_an_ensemble_is_written_without_its_member_of_weight_zero(tmp_path: Path) -> None:
    members = [Small(seed).eval() for seed in range(3)]
    ensemble = Ensemble(members, [0.25, 0.0, 0.75], [1.0, 1.0, 3.0])
    written = export_onnx(ensemble, tmp_path / "ensemble.onnx", SHAPE)
    # By hand: w / Z is 0.25 and 0.25 for the two that count.
    with torch.no_grad():
        expected = (members[0](random_images(5)) + members[2](random_images(5))) / 2
    torch.testing.assert_close(in_numpy(written.path, random_images(5)), expected, atol=1e-5, rtol=0)
    # Of two members; the factors and the means are in the matrix products.
    assert (written.operations["Relu"], written.operations["Gemm"], written.operations["Add"]) == (2, 2, 1)
    assert set(written.operations) <= COMMON


class Shifted(nn.Module):
    """A network that writes into its input."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(126, 3)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.linear(images.sub_(0.5).flatten(1))
        return logits


def test_a_network_that_writes_into_its_input_is_written_like_one_that_does_not(tmp_path: Path) -> None:
    model, points = Shifted(), random_images(8)
    export_onnx(model, tmp_path / "model.onnx", SHAPE, points=points)
    assert torch.equal(points, random_images(8))
    expected = model.linear((points - 0.5).flatten(1))
    torch.testing.assert_close(in_numpy(tmp_path / "model.onnx", points), expected.detach())


def test_one_wrong_weight_is_found(cell: nn.Module, exported: exports.Exported, tmp_path: Path) -> None:
    points = random_images(16)
    assert compare(exported.path, cell, points) <= 1e-5
    with pytest.raises(InputError, match="onnxruntime does not compute what torch does"):
        compare(spoilt(exported.path, tmp_path / "spoilt.onnx"), cell, points)


def spoilt(path: Path, to: Path) -> Path:
    """Change one of the last layer's weights by a thousandth."""
    model = onnx.load(path)
    name = next(node for node in model.graph.node if node.op_type == "Gemm").input[1]
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    weights = numpy_helper.to_array(tensor).copy()
    weights.flat[np.abs(weights).argmax()] *= 1.001
    tensor.CopyFrom(numpy_helper.from_array(weights, name))
    onnx.save(model, to)
    return to


class OfTheBatch(nn.Module):
    """Logits that depend on the other images."""

    def forward(self, images: Tensor) -> Tensor:
        x = images.flatten(1)[:, :3]
        return x - 0.5 * x.mean(0)


class Deciding(nn.Module):
    """A forward pass that branches on a pixel, which no graph has."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :3] if images[0, 0, 0, 0] > 0.5 else images.flatten(1)[:, 1:4]


@pytest.mark.parametrize(
    ("model", "message"),
    [(OfTheBatch(), "does not compute what torch does"), (Deciding(), "cannot be written as ONNX")],
)
def test_a_model_that_a_file_cannot_stand_for_is_refused_and_an_older_file_is_kept(
    model: nn.Module, message: str, tmp_path: Path
) -> None:
    (tmp_path / "model.onnx").write_bytes(b"older")
    with pytest.raises(InputError, match=message) as refusal:
        export_onnx(model, tmp_path / "model.onnx", SHAPE)
    assert "\n" not in str(refusal.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"model.onnx": b"older"}


def test_without_the_packages_a_sentence_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(InputError, match=r"onnxscript is not installed; .* 'pip install onnx onnxruntime onnxscript'"):
        export_onnx(Small(0), tmp_path / "model.onnx", SHAPE)
    assert not list(tmp_path.iterdir())


def test_images_of_another_shape_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"got \[2, 9\] and \[64, 2, 9\]"):
        export_onnx(Small(0), tmp_path / "model.onnx", SHAPE[:2])
    with pytest.raises(InputError, match=r"got \[2, 9, 7\] and \[5, 2, 9, 8\]"):
        export_onnx(Small(0), tmp_path / "model.onnx", SHAPE, points=torch.rand(5, 2, 9, 8))


def test_forked_workers_can_differentiate_after_an_export(tmp_path: Path) -> None:
    # In a process of its own, whose first backward pass would be behind the export.
    program = f"""
import torch
import robust_nas as rn
from robust_nas.runtime.distributed import World
rn.export_onnx(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2)), {str(tmp_path / "m.onnx")!r}, (1, 2, 2))
def slope(x):
    y = x.clone().requires_grad_()
    return torch.autograd.grad((y * y).sum(), [y])[0]
slope(torch.ones(1))
print(World(workers=2).each(slope, [torch.ones(1), 2 * torch.ones(1)]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "[tensor([2.]), tensor([4.])]" in done.stdout, done.stderr
