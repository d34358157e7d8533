"""Models from run folders, modules, files and torchvision; what is refused, and what is said of them."""

from __future__ import annotations

import os
import pickle
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.neighbors import NearestCentroid
from torch import Tensor, nn
from torch.nn import functional as F

from robust_nas import datasets, spaces
from robust_nas.attacks import _surrogates
from robust_nas.core import config
from robust_nas.core.errors import InputError
from robust_nas.core.writing import write_json
from robust_nas.datasets import Dataset
from robust_nas.intake import (
    NORMALISATIONS,
    LogProbabilities,
    Normalised,
    check_model,
    diagnose,
    files_of,
    load_models,
    load_weights,
    prepared,
)
from robust_nas.models.losses import cross_entropy, dlr, margin
from robust_nas.runtime.states import save_state

ARCHITECTURES = [
    "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|none~0|none~1|nor_conv_1x1~2|",
    "|skip_connect~0|+|none~0|nor_conv_1x1~1|+|none~0|none~1|skip_connect~2|",
]


def same(one: nn.Module, other: nn.Module) -> bool:
    mine, yours = one.state_dict(), other.state_dict()
    return mine.keys() == yours.keys() and all(torch.equal(mine[key], yours[key]) for key in mine)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return datasets.load("digits")


# Run folders


@pytest.fixture
def run(tmp_path: Path, digits: Dataset) -> tuple[Path, dict[str, nn.Module]]:
    """A run folder with 11 trained models, and the networks that were saved in it."""
    space = spaces.load("nasbench201", channels=2, cells_per_stage=1, stages=1)
    table = {"data": {"name": "digits"}, "space": config.to_dict(space), "train": {"epochs": 3}}
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.toml").write_text(config.to_toml(table), encoding="utf-8")
    texts = [ARCHITECTURES[index % 2] for index in range(11)]
    write_json(folder / "derive.json", {"chosen": texts, "candidates": [], "num_validation": 1, "seconds": 0.0})
    networks: dict[str, nn.Module] = {}
    for index, text in enumerate(texts):
        name = f"model-{index}"
        for each in (name, f"{name}-last"):
            networks[each] = space.network(space.parse(text), digits)
            weights = {"weights": networks[each].state_dict()}
            save_state(folder / "checkpoints" / f"{each}.safetensors", weights)
    return folder, networks


def test_a_run_folder_gives_its_models_by_name_and_not_those_of_the_last_epoch(
    run: tuple[Path, dict[str, nn.Module]],
) -> None:
    folder, networks = run
    before = torch.get_rng_state()
    models = load_models(str(folder), device="cpu")
    assert list(models) == [f"model-{index}" for index in range(11)]
    assert all(same(models[name], networks[name]) and not models[name].training for name in models)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["model-1", "model-1-last"])
def test_one_weights_file_of_a_run_is_one_model(run: tuple[Path, dict[str, nn.Module]], name: str) -> None:
    folder, networks = run
    ((found, model),) = load_models(str(folder / "checkpoints" / f"{name}.safetensors"), device="cpu").items()
    assert found == name and same(model, networks[name])


def test_a_run_folder_is_refused_for_what_it_lacks(run: tuple[Path, dict[str, nn.Module]], tmp_path: Path) -> None:
    folder, _ = run
    checkpoints = folder / "checkpoints"

    def refused(place: Path, message: str) -> None:
        with pytest.raises(InputError, match=message):
            load_models(str(place), device="cpu")

    refused(checkpoints / "model-77.safetensors", "There are no weights .*model-77.safetensors")
    (checkpoints / "model-10.safetensors").rename(checkpoints / "model-11.safetensors")
    refused(folder, "model-11.safetensors is none of the models that .*derive.json lists")
    (checkpoints / "model-11.safetensors").unlink()
    whole = (checkpoints / "model-0.safetensors").read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], whole[:-4] + b"\x01\x02\x03\x04"):
        (checkpoints / "model-0.safetensors").write_bytes(damaged)
        refused(folder, "model-0.safetensors is damaged")
    save_state(checkpoints / "model-0.safetensors", {"weights": {"x": torch.ones(1)}})
    refused(folder, "model-0.safetensors do not fit the model .'.*' is missing, and .* more.; delete the file")
    for path in checkpoints.glob("model-*.safetensors"):
        path.unlink() if "last" not in path.stem else None
    refused(folder, "has no trained models; 'robust-nas train ")
    (folder / "derive.json").unlink()
    refused(checkpoints / "model-0-last.safetensors", "no derive.json")
    refused(tmp_path, "is not a run folder: it has no config.toml")


def test_a_surrogate_whose_file_changed_is_read_again(run: tuple[Path, dict[str, nn.Module]]) -> None:
    folder, networks = run
    cpu, weights = torch.device("cpu"), folder / "checkpoints" / "model-0.safetensors"
    first, again = (_surrogates.load_surrogates([str(folder)], cpu) for _ in range(2))
    assert len(first) == 11 and all(one is other for one, other in zip(first, again, strict=True))
    save_state(weights, {"weights": networks["model-0-last"].state_dict()})
    os.utime(weights, ns=(0, 1))
    assert same(_surrogates.load_surrogates([str(folder)], cpu)[0], networks["model-0-last"])
    assert weights in files_of(str(folder))


# Modules of one's own

NETS = """
import torch
from torch import nn

from neighbour_of_nets import SIZE

ready = nn.Sequential(nn.Flatten(), nn.Linear(SIZE, 3))
numbers = [1, 2]


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(SIZE, 3)

    def forward(self, images):
        return self.linear(images.flatten(1))


class Zoo:
    small = Small


def make():
    from late_neighbour import make_late

    return make_late()


def make_sized(size):
    return nn.Linear(size, 3)


def make_wrong():
    raise KeyError("width")


def make_number():
    return 7
"""


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file with models, its neighbours, and the current folder somewhere else."""
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "nets.py").write_text(NETS)
    (folder / "neighbour_of_nets.py").write_text("SIZE = 4\n")
    (folder / "late_neighbour.py").write_text("from torch import nn\ndef make_late(): return nn.Linear(4, 5)\n")
    (folder / "broken.py").write_text("import torch\nimport a_module_that_nobody_has\n")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    yield folder / "nets.py"
    assert sys.path == before
    for name in ("neighbour_of_nets", "late_neighbour", "nets", "code.nets", "broken"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("attribute", "kind"), [("ready", nn.Sequential), ("Small", None), ("Zoo.small", None), ("make", nn.Linear)]
)
def test_an_attribute_of_a_file_is_a_model_or_makes_one(nets: Path, attribute: str, kind: type | None) -> None:
    for spec in (f"{nets}:{attribute}", f"code/nets.py:{attribute}"):
        ((name, model),) = load_models(spec, device="cpu").items()
        assert name == attribute and not model.training
        assert type(model) is kind if kind else type(model).__name__ == "Small"


def test_modules_in_the_current_folder_are_importable(nets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(nets.parent)
    assert isinstance(load_models("nets:ready", device="cpu")["ready"], nn.Sequential)


def test_a_model_without_weights_is_the_same_every_time(nets: Path) -> None:
    before = torch.get_rng_state()
    one, other = (load_models(f"{nets}:Small", device="cpu")["Small"] for _ in range(2))
    assert same(one, other) and torch.equal(torch.get_rng_state(), before)


def test_weights_are_loaded_from_a_plain_state_dict_and_from_ours(nets: Path, tmp_path: Path) -> None:
    state = {"linear.weight": torch.full((3, 4), 2.0), "linear.bias": torch.arange(3.0)}
    save_file(state, tmp_path / "plain.safetensors")
    save_state(tmp_path / "ours.safetensors", {"weights": state, "record": {"name": "x"}})
    for name in ("plain", "ours"):
        ((found, model),) = load_models(f"{nets}:Small@{name}.safetensors", device="cpu").items()
        assert found == f"Small@{name}"
        assert torch.equal(model(torch.ones(1, 1, 2, 2)), torch.tensor([[8.0, 9.0, 10.0]]))


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.bool, torch.float8_e4m3fn, torch.complex64])
def test_weights_that_would_become_other_numbers_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    save_file({**model.state_dict(), "0.weight": torch.ones(2, 2).to(dtype)}, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=rf"'0\.weight' in .* is {dtype}, but the model's is torch.float32"):
        load_weights(model, tmp_path / "w.safetensors")
    counts = {**model.state_dict(), "1.num_batches_tracked": torch.tensor(2.5)}
    save_file(counts, tmp_path / "counts.safetensors")
    with pytest.raises(InputError, match=r"'1\.num_batches_tracked' in .* is torch.float32"):
        load_weights(model, tmp_path / "counts.safetensors")


def test_weights_of_more_or_fewer_digits_are_taken(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    for dtype in (torch.float16, torch.float64):
        state = {
            key: value.to(dtype) if value.is_floating_point() else value.int()
            for key, value in model.state_dict().items()
        }
        save_file(state, tmp_path / "w.safetensors")
        load_weights(model, tmp_path / "w.safetensors")
        assert torch.equal(model[0].weight, state["0.weight"].float()) and model[0].weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ({"linear.weight": torch.ones(3, 4)}, r"\('linear.bias' is missing\)"),
        (
            {"linear.weight": torch.ones(3, 4), "linear.bias": torch.ones(3), "extra": torch.ones(1)},
            r"\(it has no 'extra'\)",
        ),
        ({"net.linear.weight": torch.ones(3, 4)}, r"\('linear.weight' is missing, and 1 more\)"),
        (
            {"linear.weight": torch.ones(9, 4), "linear.bias": torch.ones(3)},
            r"\(size mismatch for linear.weight.*\[9, 4\].*\[3, 4\]\)\)",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused_with_the_first_key(
    nets: Path, tmp_path: Path, state: dict[str, Tensor], reason: str
) -> None:
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=f"w.safetensors do not fit the model {reason}; give weights"):
        load_models(f"{nets}:Small@w.safetensors", device="cpu")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nowhere", "nowhere is neither a run folder"),
        ("code/nets.py", "path/to/file.py:attribute"),
        ("code/nest.py:ready", "There is no file code/nest.py"),
        ("a_module_that_nobody_has:net", "ModuleNotFoundError.*check its name, PYTHONPATH"),
        ("code/broken.py:net", "code/broken.py cannot be imported .ModuleNotFoundError"),
        ("code/nets.py:redy", "has no 'redy'. Did you mean 'ready'. Available: Small, Zoo, make, make_number"),
        ("code/nets.py:Zoo.smal", "has no 'Zoo.smal'"),
        ("code/nets.py:numbers", "must be an nn.Module or return one, but it is a list"),
        ("code/nets.py:make_number", "but it returns a int"),
        ("code/nets.py:make_sized", "cannot be called without arguments .missing a required argument: 'size'"),
        ("code/nets.py:make_wrong", "make_wrong failed to make a model .KeyError: 'width'"),
        ("code/nets.py:Small@there.safetensors", "There are no weights there.safetensors"),
        ("there.safetensors", "There are no weights there.safetensors"),
        ("torchvision:resnet81", "torchvision has no classifier 'resnet81'. Did you mean 'resnet18'"),
        ("torchvision:fasterrcnn_resnet50_fpn", "has no classifier"),
        ("torchvision:resnet18?classes=3", "torchvision:NAME.num_classes=K"),
        ("torchvision:resnet18@IMAGENET1K_V9", "Did you mean 'IMAGENET1K_V1'. Available: DEFAULT, IMAGENET1K_V1"),
    ],
)
def test_what_is_no_model_is_refused_with_what_to_do(nets: Path, spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_models(spec, device="cpu")
    assert "\n" not in str(caught.value)


def test_weights_outside_a_run_folder_ask_for_the_network(nets: Path, tmp_path: Path) -> None:
    save_file({"x": torch.ones(1)}, tmp_path / "alone.safetensors")
    with pytest.raises(InputError, match=r"package.module:attribute@"):
        load_models("alone.safetensors", device="cpu")


# TorchScript and pickles


def scripted() -> nn.Module:
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch wants another format to be used
        return torch.jit.trace(net, torch.ones(1, 1, 2, 2))


def test_torchscript_is_refused_as_a_file_an_object_and_a_part_of_one(tmp_path: Path, nets: Path) -> None:
    net = scripted()
    for name in ("net.pt", "net.pth", "net.bin", "net.safetensors"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.save(net, tmp_path / name)
        for spec in (name, f"{nets}:Small@{name}"):
            with pytest.raises(InputError, match=f"{name} is TorchScript.*give the nn.Module"):
                load_models(spec, device="cpu")
    with pytest.raises(InputError, match="The model is TorchScript"):
        check_model(net)
    with pytest.raises(InputError, match="The model's part '1' is TorchScript"):
        check_model(nn.Sequential(nn.Identity(), net))
    with pytest.raises(InputError, match=r"must be an nn.Module, but got str"):
        check_model("resnet18")
    with pytest.raises(InputError, match="TorchScript"):
        _surrogates.load_surrogates([net], torch.device("cpu"))


class Bomb:
    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return os.mkdir, ("unpickled",)


@pytest.mark.parametrize("name", ["net.pt", "net.pth", "net.ckpt", "net.bin", "net.pkl"])
def test_pickles_of_more_than_tensors_are_refused_and_run_nothing(tmp_path: Path, nets: Path, name: str) -> None:
    for content in ({"x": Bomb()}, nn.Linear(4, 3), {"state_dict": Bomb()}):
        torch.save(content, tmp_path / name)
        with pytest.raises(InputError, match=r"more than tensors .*run code; .*torch.save\(model.state_dict\(\)"):
            load_models(f"{nets}:Small@{name}", device="cpu")
    (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(InputError, match="more than tensors"):
        load_models(f"{nets}:Small@{name}", device="cpu")
    with pytest.raises(InputError, match=r"package.module:attribute@"):
        load_models(name, device="cpu")
    assert not (tmp_path / "unpickled").exists()


STATE = {"linear.weight": torch.full((3, 4), 2.0), "linear.bias": torch.arange(3.0)}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (STATE, []),
        ({"state_dict": STATE, "optimizer": {"lr": 0.1}, "epoch": 3}, ["under 'state_dict'"]),
        ({"model": {f"module.{key}": value for key, value in STATE.items()}}, ["under 'model'", "without 'module.'"]),
        (
            {f"_orig_mod.module.{key}": value for key, value in STATE.items()},
            ["without '_orig_mod.'", "without 'module.'"],
        ),
    ],
)
def test_what_torch_saves_is_loaded_and_what_is_taken_off_is_said(
    tmp_path: Path, nets: Path, content: Any, said: list[str]
) -> None:
    torch.save(content, tmp_path / "net.pt")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ((name, model),) = load_models(f"{nets}:Small@net.pt", device="cpu").items()
    assert name == "Small@net" and torch.equal(model(torch.ones(1, 1, 2, 2)), torch.tensor([[8.0, 9.0, 10.0]]))
    assert len(caught) == len(said) and all(text in str(each.message) for text, each in zip(said, caught, strict=True))


def test_names_of_a_wrapped_network_are_its_own_in_safetensors_too(tmp_path: Path, nets: Path) -> None:
    save_file({f"module.{key}": value for key, value in STATE.items()}, tmp_path / "net.safetensors")
    with pytest.warns(UserWarning, match=r"without 'module\.'"):
        ((_, model),) = load_models(f"{nets}:Small@net.safetensors", device="cpu").items()
    assert torch.equal(model.linear.bias, torch.arange(3.0))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3}, "'epoch' is no tensor"),
        ({}, "no state dict"),
        ([torch.ones(1)], "no state dict"),
        (b"not a file of torch", "damaged or none that torch.save wrote|more than tensors"),
        (b"", "damaged or none that torch.save wrote"),
    ],
)
def test_other_files_by_these_names_are_refused_in_a_sentence(
    tmp_path: Path, nets: Path, content: Any, message: str
) -> None:
    if isinstance(content, bytes):
        (tmp_path / "net.pt").write_bytes(content)
    else:
        torch.save(content, tmp_path / "net.pt")
    with pytest.raises(InputError, match=message):
        load_models(f"{nets}:Small@net.pt", device="cpu")


# torchvision


def test_a_torchvision_model_has_as_many_classes_as_asked_for_and_takes_weights_of_a_file(tmp_path: Path) -> None:
    from torchvision import models

    reference = models.resnet18(num_classes=10)
    save_file(reference.state_dict(), tmp_path / "w.safetensors")
    spec = f"torchvision:resnet18?num_classes=10@{tmp_path / 'w.safetensors'}"
    ((name, model),) = load_models(spec, device="cpu").items()
    assert name == "resnet18@w" and same(model, reference)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model(images), reference.eval()(images))


def test_pretrained_weights_come_with_their_normalisation_and_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision import models, transforms

    # As if downloaded before: torchvision then looks no further.
    weights = models.SqueezeNet1_1_Weights.IMAGENET1K_V1
    place = tmp_path / "hub" / "checkpoints" / weights.url.rpartition("/")[2]
    place.parent.mkdir(parents=True)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    reference = models.squeezenet1_1().eval()
    torch.save(reference.state_dict(), place)
    ((name, model),) = load_models("torchvision:squeezenet1_1@IMAGENET1K_V1", device="cpu").items()
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    preset = weights.transforms()
    expected = reference(transforms.Normalize(preset.mean, preset.std)(images))
    assert name == "squeezenet1_1@IMAGENET1K_V1" and torch.allclose(model(images), expected, atol=1e-6)
    assert diagnose(model, images, torch.tensor([0, 0])) == [
        "The model's pixels are normalised by mean 0.485, 0.456, 0.406 and standard deviation 0.229, 0.224, 0.225, as "
        "SqueezeNet1_1_Weights.IMAGENET1K_V1 asks for."
    ]
    with pytest.raises(InputError, match="another number of classes"):
        load_models("torchvision:squeezenet1_1?num_classes=3@IMAGENET1K_V1", device="cpu")
    torch.save({"x": Bomb()}, place)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"cannot be had .*squeezenet1_1-.*give a file"):
        load_models("torchvision:squeezenet1_1@IMAGENET1K_V1", device="cpu")
    assert not (tmp_path / "unpickled").exists() and "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


# Wrappers


def test_the_named_normalisations_are_those_of_the_data_sets(shared_data: Path) -> None:
    from torchvision import models
    from torchvision.datasets import MNIST

    preset = models.ResNet18_Weights.IMAGENET1K_V1.transforms()
    assert NORMALISATIONS["imagenet"] == (tuple(preset.mean), tuple(preset.std))
    share = np.bincount(MNIST(root=shared_data, train=True).data.numpy().ravel()) / (60_000 * 28 * 28)
    levels = np.arange(256) / 255
    mean = float(share @ levels)
    std = float(share @ (levels - mean) ** 2) ** 0.5
    assert NORMALISATIONS["mnist"] == ((round(mean, 4),), (round(std, 4),))


@pytest.mark.parametrize(
    ("text", "mean", "std"),
    [
        ("half", [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]),
        ("bytes", [0.0, 0.0, 0.0], [1 / 255, 1 / 255, 1 / 255]),
        ("cifar10", [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]),
        ("0.1,0.2", [0.1, 0.1, 0.1], [0.2, 0.2, 0.2]),
        ("0.1/0.2", [0.1, 0.1, 0.1], [0.2, 0.2, 0.2]),
        ("0.1, 0.2,0.3/1,2,4", [0.1, 0.2, 0.3], [1.0, 2.0, 4.0]),
    ],
)
def test_pixels_are_normalised_as_torchvision_does(text: str, mean: list[float], std: list[float]) -> None:
    from torchvision.transforms import Normalize

    images = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    model = prepared(nn.Flatten().eval(), normalise=text)
    assert torch.allclose(model(images), Normalize(mean, std)(images).flatten(1), rtol=1e-5, atol=1e-6)
    assert not model.training and not model.state_dict()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("imagenett", "Did you mean 'imagenet'"),
        ("0.5", "MEAN,STD"),
        ("1,2,3", "MEAN,STD"),
        ("1,2/3/4", "MEAN,STD"),
        ("1,2,3/1,2", "as many means as standard deviations"),
        ("0.5,0", "positive"),
        ("nan,1", "positive"),
        ("0.5,inf", "positive"),
    ],
)
def test_a_normalisation_that_is_none_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        prepared(nn.Flatten(), normalise=text)


def test_a_normalisation_of_three_channels_does_not_make_three_of_one() -> None:
    with pytest.raises(InputError, match="for 3 channels, but the images have 1"):
        prepared(nn.Flatten(), normalise="imagenet")(torch.rand(2, 1, 4, 4))
    with pytest.raises(InputError, match="outputs must be one of logits, probabilities"):
        prepared(nn.Flatten(), outputs="scores")  # type: ignore[arg-type]


@pytest.mark.parametrize("loss", [cross_entropy, margin, dlr], ids=lambda loss: loss.__name__)
def test_a_loss_of_log_probabilities_is_that_of_the_logits(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    logits = 5 * torch.randn(50, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.arange(50) % 6
    model = prepared(nn.Softmax(dim=1), outputs="probabilities")
    for values in (model(logits), logits.log_softmax(1)):
        assert torch.allclose(loss(values, labels), loss(logits, labels), rtol=1e-9, atol=1e-12)


def test_log_probabilities_are_finite_where_a_probability_is_zero() -> None:
    logs = LogProbabilities(nn.Identity())(torch.tensor([[0.0, 1.0]], dtype=torch.bfloat16))
    assert logs.dtype == torch.float32 and logs[0, 1] == 0
    assert logs[0, 0].item() == pytest.approx(np.log(np.finfo(np.float32).tiny))


# What is suspicious


class Centroids(nn.Module):
    """scikit-learn's nearest-centroid classifier of the digits, of which it expects the pixels to be (x - mean) / std.

    The logit of a class with the centroid c is 2 x c - |c|^2, which is |x|^2 less the squared distance.
    """

    def __init__(self, digits: Dataset, mean: float, std: float) -> None:
        super().__init__()
        pixels = (digits.train.images.flatten(1).numpy() - mean) / std
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some pixels are always black
            self.fitted = NearestCentroid().fit(pixels, digits.train.labels.numpy())
        self.linear = nn.Linear(64, 10)
        with torch.no_grad():
            self.linear.weight[:] = torch.from_numpy(2 * self.fitted.centroids_)
            self.linear.bias[:] = torch.from_numpy(-(self.fitted.centroids_**2).sum(1))
        self.norm = nn.BatchNorm1d(10)  # at its initial statistics, next to the identity

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.linear(images.flatten(1)))


@pytest.fixture(scope="module")
def batch(digits: Dataset) -> tuple[Tensor, Tensor]:
    return digits.test.images[:256], digits.test.labels[:256]


@pytest.fixture(scope="module")
def raw(digits: Dataset) -> Centroids:
    return Centroids(digits, 0.0, 1.0)


def test_nothing_is_said_of_a_model_of_pixels_to_logits(raw: Centroids, batch: tuple[Tensor, Tensor]) -> None:
    assert diagnose(raw, *batch) == []
    # Log-probabilities are logits, up to a shift.
    assert diagnose(nn.Sequential(raw, nn.LogSoftmax(dim=1)), *batch) == []


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_probabilities_are_named_and_taken_as_logarithms_they_are_not(
    raw: Centroids, batch: tuple[Tensor, Tensor], dtype: torch.dtype
) -> None:
    class Rounded(nn.Module):
        def forward(self, logits: Tensor) -> Tensor:
            return (5 * logits).softmax(1).to(dtype)

    model = nn.Sequential(raw, Rounded())
    (note,) = diagnose(model, *batch)
    assert note.startswith("The model's outputs are probabilities: their gradients vanish where it is sure")
    assert diagnose(prepared(model, outputs="probabilities"), *batch) == []


def test_outputs_that_are_no_probabilities_are_not_taken_for_them(raw: Centroids, batch: tuple[Tensor, Tensor]) -> None:
    for outputs in (nn.Sigmoid(), nn.Sequential(nn.Softmax(dim=1), nn.ReLU6()), nn.ReLU()):
        notes = diagnose(nn.Sequential(raw, outputs), *batch)
        assert bool(notes) == isinstance(outputs, nn.Sequential)
    (note,) = diagnose(prepared(raw, outputs="probabilities"), *batch)
    assert "no probabilities: they do not sum to 1; leave --outputs out" in note


@pytest.mark.parametrize("name", ["mnist", "half", "bytes"])
def test_a_model_of_normalised_pixels_is_named_with_both_accuracies(
    digits: Dataset, batch: tuple[Tensor, Tensor], name: str
) -> None:
    (mean,), (std,) = NORMALISATIONS[name]
    model, (images, labels) = Centroids(digits, mean, std), batch
    pixels, wanted = images.flatten(1).numpy(), labels.numpy()
    with_it = model.fitted.score((pixels - mean) / std, wanted)
    without = model.fitted.score(pixels, wanted)
    assert with_it > without + 0.05
    (note,) = diagnose(model, images, labels)
    assert f"(--normalise {name})" in note
    assert f"{100 * with_it:.1f} % of 256 images are classified correctly with these and {100 * without:.1f} %" in note
    assert diagnose(prepared(model, normalise=name), images, labels) == []


def test_a_normalisation_that_the_model_does_not_want_is_named(raw: Centroids, batch: tuple[Tensor, Tensor]) -> None:
    images, labels = batch
    pixels, wanted = images.flatten(1).numpy(), labels.numpy()
    good, bad = raw.fitted.score(pixels, wanted), raw.fitted.score(pixels * 4 - 3.2, wanted)
    (note,) = diagnose(prepared(raw, normalise="0.8,0.25"), images, labels)
    assert note == (
        f"The model seems to expect pixels as they are, in [0, 1]: {100 * good:.1f} % of 256 images are classified "
        f"correctly with these and {100 * bad:.1f} % as given (leave --normalise out)."
    )


def colourful(count: int) -> tuple[Tensor, Tensor, nn.Module]:
    """Images whose label is the channel that is brightest once normalised by CIFAR-10's numbers, and that rule."""
    images = torch.rand(count, 3, 1, 1, generator=torch.Generator().manual_seed(1))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in NORMALISATIONS["cifar10"])
    return images, ((images - mean) / std).flatten(1).argmax(1), nn.Flatten()


def test_a_difference_of_a_few_images_is_no_evidence() -> None:
    images, labels, rule = colourful(4000)
    # With CIFAR-10's numbers all are right; without, those between the two rules are not.
    raw = rule(images).argmax(1)
    wrong, right = (raw != labels).nonzero().squeeze(1), (raw == labels).nonzero().squeeze(1)
    for count, is_named in ((9, False), (10, True)):
        # A one-sided sign test of n of n has p = 2^-n: .00195 for 9 and .00098 for 10.
        chosen = torch.cat([wrong[:count], right[:200]])
        notes = diagnose(rule, images[chosen], labels[chosen])
        assert ["--normalise cifar10" in note for note in notes] == [True] * is_named


def test_a_model_at_chance_is_said_to_be(raw: Centroids, digits: Dataset, batch: tuple[Tensor, Tensor]) -> None:
    images, labels = batch

    class Shuffled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.raw = raw

        def forward(self, images: Tensor) -> Tensor:
            return self.raw(images).roll(3, dims=1)

    (note,) = diagnose(Shuffled(), images, labels)
    correct = float(((raw(images).argmax(1) + 3) % 10 == labels).float().mean())
    assert note.startswith(f"The model classifies {100 * correct:.1f} % of 256 images correctly, no more than chance")


def test_one_class_for_all_images_is_chance_however_many_have_it_and_no_normalisation_mends_it() -> None:
    class Constant(nn.Module):
        """Class 1 for bright pixels, class 0 otherwise: of [0, 1] images, always class 0."""

        def forward(self, images: Tensor) -> Tensor:
            brightness = images.abs().flatten(1).amax(1)
            return torch.stack([torch.full_like(brightness, 3.0), brightness], 1)

    images = 0.5 + 0.5 * torch.rand(100, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    labels = (torch.arange(100) % 10 > 0).long()
    (note,) = diagnose(Constant(), images, labels)
    assert note.startswith("The model classifies 10.0 % of 100 images correctly, no more than chance")
    (note,) = diagnose(Constant(), images, 1 - labels)
    assert note.startswith("The model classifies 90.0 % of 100 images correctly, no more than chance")
    assert diagnose(Constant(), images, torch.zeros(100, dtype=torch.int64)) == []
    # 36 of 40 images are many, and yet chance: nine of ten have the class that all are given.
    assert "no more than chance can in so few:" in diagnose(Constant(), images[:40], 1 - labels[:40])[0]
    # Images of one class, or a few, can tell nothing of this kind.
    assert diagnose(Constant(), images, torch.ones(100, dtype=torch.int64)) == []
    assert diagnose(Constant(), images[:2], torch.tensor([0, 1])) == []
    assert diagnose(Constant(), images[:0], labels[:0]) == []


def test_images_that_come_class_by_class_are_all_looked_at(digits: Dataset) -> None:
    model = Centroids(digits, 0.5, 0.5).eval()
    order = digits.train.labels.argsort(stable=True)
    images, labels = digits.train.images[order], digits.train.labels[order]
    assert len(labels) > 4 * 256
    chosen = [index * len(labels) // 256 for index in range(256)]
    share = float((model(images[chosen]).argmax(1) == labels[chosen]).float().mean())
    assert (
        f"and {100 * share:.1f} % as given (--normalise half)"
        in diagnose(prepared(model, normalise="0,1"), images, labels)[0]
    )


def test_a_diagnosis_leaves_the_model_as_it_was(digits: Dataset, batch: tuple[Tensor, Tensor]) -> None:
    model = Centroids(digits, 0.5, 0.5).eval()
    F.cross_entropy(model(batch[0]), batch[1]).backward()
    model.train()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    gradients = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    first, second = (diagnose(model, *batch) for _ in range(2))
    assert first == second and first
    assert model.training and model.norm.training
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    kept = [parameter.grad for parameter in model.parameters()]
    assert all(torch.equal(one, other) for one, other in zip(gradients, kept, strict=True) if other is not None)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Conv2d(3, 4, 1), "cannot take images of 1 x 8 x 8 pixels"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 1)), r"returned \[256, 1\]"),
        (nn.Conv2d(1, 4, 1), r"returned \[256, 4, 8, 8\]"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 5)), "The labels are 0 to 9, but the model has 5 classes"),
        (Normalised(nn.Flatten(), (0.5, 0.5, 0.5), (1, 1, 1)), "for 3 channels, but the images have 1"),
    ],
)
def test_a_model_of_other_images_or_classes_is_refused(
    batch: tuple[Tensor, Tensor], model: nn.Module, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        diagnose(model, *batch)


def test_a_model_without_values_is_refused() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    with pytest.raises(InputError, match=r"'1\.weight' is on torch's meta device"):
        check_model(model)
    with pytest.raises(InputError, match=r"'1\.weight' has no size yet"):
        check_model(nn.Sequential(nn.Flatten(), nn.LazyLinear(3)))
