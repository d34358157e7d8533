"""Models of every kind: each call takes them, or says in one sentence what they must return."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import robust_nas as rn
from robust_nas.core.errors import InputError
from robust_nas.datasets import Dataset


class Returning(nn.Module):
    """A network whose logits become something else."""

    def __init__(self, change: Callable[[Tensor], Any], in_features: int = 64) -> None:
        super().__init__()
        self.linear, self.change = nn.Linear(in_features, 10), change

    def forward(self, images: Tensor) -> Any:
        return self.change(self.linear(images.flatten(1)))


def fail(logits: Tensor) -> Tensor:
    raise AssertionError("the input must be 224 pixels wide")


def lazy() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(10))


def wide() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 10))


@pytest.fixture(scope="module")
def data() -> Dataset:
    digits = rn.datasets.load("digits")
    return rn.Dataset.from_arrays(digits.train[:32], validation=digits.validation[:8], test=digits.test[:4])


CALLS: dict[str, Callable[[nn.Module, Dataset, Path], Any]] = {
    "evaluate": lambda model, data, _: rn.evaluate(model, data.test, "linf:0.1", attacks=["fgsm"]),
    "certify": lambda model, data, _: rn.certify(model, data.test, "linf:0.001"),
    "smooth": lambda model, data, _: rn.smooth(model, sigma=0.1, num_samples=10).certify(data.test[:1]),
    "train": lambda model, data, _: rn.train(model, data, "linf:0.1", method="standard", epochs=1, batch_size=16),
    "build": lambda model, data, _: rn.build_ensemble([model], data.validation, "linf:0.001"),
    "export": lambda model, data, folder: rn.export_onnx(model, folder / "model.onnx", data.image_shape),
}

MISFITS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "squeezed": (lambda: Returning(lambda logits: logits.squeeze()), "for 1 image it returned .10.; do not squeeze"),
    "tuple": (lambda: Returning(lambda logits: (logits, logits)), r"a tuple; .* its first part, \[0\]"),
    "dictionary": (lambda: Returning(lambda logits: {"logits": logits}), r"a dict; .* its \['logits'\]"),
    "classes": (lambda: Returning(lambda logits: logits.long()), r"whole numbers \(torch.int64\)"),
    "one class": (lambda: Returning(lambda logits: logits[:, :1]), "at least 2 classes"),
    "nothing": (lambda: Returning(lambda _: None), "returned a NoneType"),
    "failing": (lambda: Returning(fail), "AssertionError: the input must be 224 pixels wide"),
    "channels": (wide, "a convolution of it takes 3 channels, but got 1"),
    "size": (lambda: Returning(lambda logits: logits, 100), "takes 100 numbers, but got 64"),
    "lazy": (lazy, r"lazy module's; call the model once with images where it is made: model\(images\)"),
    "meta": (lambda: Returning(lambda logits: logits).to("meta"), "meta device"),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", MISFITS)
def test_every_call_refuses_a_misfit_in_one_sentence(kind: str, call: str, data: Dataset, tmp_path: Path) -> None:
    make, message = MISFITS[kind]
    with pytest.raises(InputError, match=message) as refusal:
        CALLS[call](make(), data, tmp_path)
    assert "\n" not in str(refusal.value)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def double_by_default() -> Any:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("double_by_default")
@pytest.mark.parametrize("call", CALLS)
def test_every_call_takes_a_network_in_double_precision(call: str, data: Dataset, tmp_path: Path) -> None:
    CALLS[call](nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), data, tmp_path)


def test_a_network_without_gradients_is_not_trained(data: Dataset) -> None:
    with pytest.raises(InputError, match="cannot be trained"):
        model = Returning(lambda logits: F.one_hot(logits.argmax(1), 10).float())
        rn.train(model, data, "linf:0.1", method="standard", epochs=1, batch_size=16)


def test_phases_of_a_size_that_the_network_cannot_take_are_refused_before_the_first(data: Dataset) -> None:
    with pytest.raises(InputError, match=r"cannot take images of 1 x 6 x 6 pixels .*takes 64 numbers, but got 36"):
        phases = [{"epochs": 1}, {"epochs": 1, "size": 6}]
        rn.train(Returning(lambda logits: logits), data, "linf:0.1", epochs=2, batch_size=16, phases=phases)


NORMED = """
import warnings

from torch import nn
from torch.nn.utils import spectral_norm, weight_norm


def make(norm):
    with warnings.catch_warnings(action="ignore"):
        return nn.Sequential(nn.Flatten(), norm(nn.Linear(64, 10)))


def weight():
    return make(weight_norm)


def spectral():
    return make(spectral_norm)
"""


@pytest.mark.parametrize("norm", ["weight", "spectral"])
def test_weights_that_hooks_of_torch_compute_are_saved_in_an_ensemble(norm: str, data: Dataset, tmp_path: Path) -> None:
    (tmp_path / "normed.py").write_text(NORMED, encoding="utf-8")
    (model,) = rn.load_models(f"{tmp_path / 'normed.py'}:{norm}").values()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    ensemble = rn.build_ensemble([model], data.validation, "linf:0.001")
    loaded = rn.Ensemble.load(ensemble.save(tmp_path / "saved"), allow_code=True)
    torch.testing.assert_close(loaded(data.test.images), ensemble(data.test.images))


def test_an_ensemble_without_values_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="lazy module"), warnings.catch_warnings(action="ignore"):
        rn.Ensemble([lazy()]).save(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
