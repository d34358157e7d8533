"""Networks as Python modules: where this package cannot be imported, they compute what the networks do."""

from __future__ import annotations

import ast
import builtins
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from robust_nas import spaces
from robust_nas.architectures import AnyArchitecture
from robust_nas.core.errors import InputError
from robust_nas.datasets import DataForm, Dataset, ImageSet
from robust_nas.integrations.python_module import export_python
from robust_nas.spaces import BuiltFrom, NetworkSource, Space
from robust_nas.spaces.cell import CellSpace

Command = Callable[..., subprocess.CompletedProcess[str]]

# Odd, and not square: windows are cut off at the end, and an axis taken for the other would show.
SHAPE = (2, 9, 11)

DARTS = (
    "Genotype(normal=[('skip_connect', 0), ('max_pool_3x3', 1), ('dil_conv_3x3', 0), ('sep_conv_5x5', 2)], "
    "normal_concat=range(2, 4), reduce=[('avg_pool_3x3', 1), ('skip_connect', 0), ('skip_connect', 2), "
    "('sep_conv_3x3', 1)], reduce_concat=range(2, 4))"
)
RESIDUAL = "depths=1-2 widths=8-12 kernel={} activation={} norm={} se={} block={} stem=4"

SMALL = {"channels": 4, "cells_per_stage": 1, "stages": 2}
NETWORKS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "every operation of cells": (
        "nasbench201",
        "|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|none~0|nor_conv_3x3~1|avg_pool_3x3~2|",
        {**SMALL, "cells_per_stage": 3, "stem_stride": 2},
    ),
    "dead edges": (
        "nasbench201",
        "|none~0|+|nor_conv_1x1~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_3x3~1|none~2|",
        {**SMALL, "stages": 1},
    ),
    "a constant": ("nasbench201", "000000", SMALL),
    "a convolution of zeros": ("nasbench201", "300303", SMALL),
    "genotype": ("darts", DARTS, {"channels": 4, "num_nodes": 2, "num_cells": 6}),
    "reductions in a row": ("darts", DARTS, {"channels": 4, "num_nodes": 2, "num_cells": 3}),
    "size": (
        "nasbench201-size",
        "8:16:16:16:24",
        {"cell": "|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|skip_connect~0|none~1|nor_conv_3x3~2|"},
    ),
    "basic blocks": ("robust-resnet", RESIDUAL.format(3, "relu", "batch", "none", "basic"), {}),
    "bottlenecks": ("robust-resnet", RESIDUAL.format(5, "silu", "group", "relu", "bottleneck"), {}),
    "without norm": ("robust-resnet", RESIDUAL.format(3, "softplus", "none", "relu", "bottleneck"), {}),
    "ResNet": (
        "resnet-depth",
        "resnet-18 width=0.125 stem=cifar denoise=gaussian se=relu",
        {"widths": [0.125], "norms": ["batch"]},
    ),
    "pre-activation": (
        "resnet-depth",
        "wrn-13-1 norm=group:4 se=relu block=bottleneck",
        {
            "net": "wrn",
            "depths": [13],
            "widths": [1],
            "blocks": ["bottleneck"],
            "stems": ["cifar"],
            "norms": ["group:4"],
        },
    ),
    "instance norm": ("robust-resnet", RESIDUAL.format(3, "gelu", "instance", "none", "basic"), {}),
}


def random_images(count: int, shape: tuple[int, int, int] = SHAPE) -> Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(1))


def network_of(
    space: Space, text: str, shape: tuple[int, int, int] = SHAPE, classes: tuple[str, ...] = ("cat", "dog", "owl")
) -> nn.Module:
    """Return a network whose batch norms have seen images, in training mode."""
    images = ImageSet((random_images(32, shape) * 255).byte(), torch.arange(32) % len(classes))
    torch.manual_seed(0)
    network = space.network(space.parse(text), Dataset("random", classes, images, images, images))
    with torch.no_grad():
        for _ in range(3):
            network(images.images)
    return network


def as_a_stranger(path: Path) -> nn.Module:
    """Return a network as somebody has it who has torch and no other package."""

    def alone(name: str, *arguments: Any, **options: Any) -> Any:
        if name.partition(".")[0] not in {"torch", "math"}:
            raise ImportError(name)
        return imported(name, *arguments, **options)

    imported = builtins.__import__
    namespace: dict[str, Any] = {"__name__": path.stem, "__builtins__": {**vars(builtins), "__import__": alone}}
    exec(compile(path.read_text(encoding="utf-8"), path.name, "exec"), namespace)
    network: nn.Module = namespace["Network"]().eval()
    network.load_state_dict(torch.load(path.with_suffix(".pt"), weights_only=True))
    return network


def answers(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits, and the gradient that an attack follows."""
    images = images.clone().requires_grad_()
    logits = network(images)
    (gradient,) = torch.autograd.grad(
        nn.functional.cross_entropy(logits, torch.arange(len(images)) % 3), images, materialize_grads=True
    )
    return logits.detach(), gradient


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> nn.Module:
    name, text, options = NETWORKS[request.param]
    if name == "robust-resnet":
        norm = text.split()[4].removeprefix("norm=")
        options = {"depths": ((1,), (2,)), "widths": ((8,), (12,)), "stems": (4,), "norms": (norm,)}
    return network_of(spaces.load(name, **options), text)


def test_a_stranger_has_the_same_logits_and_gradients_by_code_that_reads_well(
    network: nn.Module, tmp_path: Path
) -> None:
    before = {key: value.clone() for key, value in network.state_dict().items()}
    written = export_python(network, tmp_path / "found.py")
    assert network.training and all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["found.pt", "found.py"]
    stranger, images = as_a_stranger(written.path), random_images(6)
    for found, expected in zip(answers(stranger, images), answers(network.eval(), images), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)
    assert sum(map(Tensor.numel, stranger.parameters())) == sum(map(Tensor.numel, network.parameters()))
    text = written.path.read_text(encoding="utf-8")
    assert str(network.built_from.architecture) in " ".join(text.split())
    ruff = [sys.executable, "-m", "ruff", "check", "--isolated", "--line-length=120", "--select=E,F,I,W", written.path]
    linted = subprocess.run(ruff, capture_output=True, text=True)
    assert linted.returncode == 0, linted.stdout + linted.stderr


def test_a_stem_for_large_images_and_bottlenecks_are_written_too(tmp_path: Path) -> None:
    space = spaces.alone("resnet-14 block=bottleneck width=0.125 norm=group:4 denoise=dot")
    assert space is not None
    (text,), shape = {str(space.decided([values[0] for values in space.decisions.values()]))}, (3, 37, 32)
    network = network_of(space, text, shape).eval()
    stranger = as_a_stranger(export_python(network, tmp_path / "found.py").path)
    torch.testing.assert_close(stranger(random_images(2, shape)), network(random_images(2, shape)))


def classes_of(path: Path) -> dict[str, str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name: ast.unparse(node) for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}


def test_dead_branches_are_left_out_and_equal_cells_share_a_line(tmp_path: Path) -> None:
    space = spaces.load("nasbench201", channels=4, stages=2)
    # Node 1 is dead, and so is all that begins at it; node 2 leads nowhere.
    text = "|none~0|+|nor_conv_1x1~0|nor_conv_3x3~1|+|avg_pool_3x3~0|nor_conv_3x3~1|none~2|"
    export_python(network_of(space, text), tmp_path / "found.py")
    found = classes_of(tmp_path / "found.py")
    assert set(re.findall(r"edge_\d_\d", found["Cell"])) == {"edge_0_3"} and "node_" not in found["Cell"]
    assert "*[Cell(4) for _ in range(5)], Reduction(4, 8), *[Cell(8) for _ in range(5)]" in found["Network"]
    # Without the reduction that uses it, nothing uses this class.
    alone = spaces.load("nasbench201", channels=4, stages=1)
    export_python(network_of(alone, text), tmp_path / "alone.py")
    assert list(classes_of(tmp_path / "alone.py")) == ["Cell", "Network"]


HOSTILE = (
    '"""\nimport os\n"""',
    "\\",
    'cat"]; raise SystemExit; ["',
    "\u202eowl\x1b[2J",
    "{classes}",
    "it's",
    'a "b" it\'s',
    "\udcff",
)


def test_the_default_type_of_the_process_makes_no_difference(tmp_path: Path) -> None:
    network = network_of(spaces.load("nasbench201", channels=2, cells_per_stage=1, stages=1), "323133")
    expected = export_python(network, tmp_path / "model_0.py").path.read_bytes()
    torch.set_default_dtype(torch.float64)
    try:
        again = export_python(network, tmp_path / "there" / "model_0.py")
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert again.path.read_bytes() == expected


def test_names_that_others_chose_are_text_in_the_file_and_no_code(tmp_path: Path) -> None:
    space = spaces.load("nasbench201", **SMALL)
    network, plain = (network_of(space, "310310", classes=names) for names in (HOSTILE, tuple("abcdefgh")))
    network.built_from = BuiltFrom(space, space.parse("310310"), DataForm(HOSTILE[0], HOSTILE, SHAPE))
    export_python(plain, tmp_path / "plain.py")
    export_python(network, tmp_path / "found.py", about=dict(zip(HOSTILE, reversed(HOSTILE), strict=True)))
    text = (tmp_path / "found.py").read_text(encoding="utf-8")
    assert "\u202e" not in text and "\x1b" not in text
    tree, expected = (ast.parse((tmp_path / name).read_text(encoding="utf-8")) for name in ("found.py", "plain.py"))
    assert ast.literal_eval(next(node.value for node in tree.body if isinstance(node, ast.Assign))) == list(HOSTILE)
    # But for the docstring and the classes' names, it is the same code.
    for each in (tree, expected):
        each.body[0] = ast.Pass()
        next(node for node in each.body if isinstance(node, ast.Assign)).value = ast.List([])
    assert ast.dump(tree) == ast.dump(expected)


def test_files_that_are_there_stay(tmp_path: Path) -> None:
    network = network_of(spaces.load("nasbench201", **SMALL), "310310")
    export_python(network, tmp_path / "found.py")
    export_python(network, tmp_path / "found.py")
    edited = (tmp_path / "found.py").read_text(encoding="utf-8") + "# mine\n"
    (tmp_path / "found.py").write_text(edited, encoding="utf-8")
    with pytest.raises(InputError, match=r"found\.py is there and differs"):
        export_python(network, tmp_path / "found.py")
    assert (tmp_path / "found.py").read_text(encoding="utf-8") == edited


@dataclass(frozen=True, kw_only=True)
class OwnSpace(CellSpace):
    """A space whose code says something else than its network does."""

    code: ClassVar[dict[str, Any]] = {}

    def source(self, architecture: AnyArchitecture, data: DataForm) -> NetworkSource:
        return replace(super().source(architecture, data), **self.code)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (
            {"forward": ("return self.classifier(self.last(self.stem(x)).mean(dim=(2, 3)))",)},
            "running_mean should contain",
        ),
        ({"forward": ("return y",)}, "NameError"),
        ({"forward": ("return self.classifier(self.last(self.layers(self.stem(x))).amax(dim=(2, 3)))",)}, "differ by"),
        ({"classes": "import robust_nas"}, "it would import robust_nas"),
        ({"classes": "class Cell(nn.Module)"}, "SyntaxError"),
        ({"names": {}}, "its weights are others"),
    ],
)
def test_code_that_is_not_the_network_is_refused_and_nothing_is_left(
    code: dict[str, Any], said: str, tmp_path: Path
) -> None:
    space = OwnSpace(name="own", num_nodes=4, operations=("none", "nor_conv_3x3"), **SMALL)
    network = network_of(space, "101100")
    with mock.patch.object(OwnSpace, "code", code), pytest.raises(InputError, match=said):
        export_python(network, tmp_path / "out" / "found.py")
    assert not list(tmp_path.iterdir())
    export_python(network, tmp_path / "out" / "found.py")


def test_what_cannot_be_written_is_refused_in_a_sentence(tmp_path: Path) -> None:
    space = spaces.load("nasbench201", **SMALL)
    network = network_of(space, "310310")
    with pytest.raises(InputError, match=r"imported by its name, such as model_0\.py, but got 'model-0\.py'"):
        export_python(network, tmp_path / "model-0.py")
    with pytest.raises(InputError, match=r"Only a network of a search space .* a Linear"):
        export_python(nn.Linear(2, 2), tmp_path / "found.py")
    with pytest.raises(InputError, match=r"points must be images \[N, 2, 9, 11\]"):
        export_python(network, tmp_path / "found.py", points=torch.rand(2, 1, 9, 11))
    with mock.patch.object(CellSpace, "source", None), mock.patch.object(Space, "name", None):
        del CellSpace.source
        with pytest.raises(
            InputError, match="nasbench201 cannot write its networks as Python: CellSpace has no method"
        ):
            export_python(network, tmp_path / "found.py")
    assert not list(tmp_path.iterdir())
