"""The contract of training methods."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robust_nas import training
from robust_nas.core.config import build
from robust_nas.datasets import load
from robust_nas.runtime.distributed import World
from robust_nas.runtime.progress import Progress
from robust_nas.runtime.stages import Stage
from robust_nas.threat import ThreatModel
from robust_nas.training import Batch, Memory, Training, fit

THREAT = ThreatModel(epsilon=0.1)


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))


def _batch() -> Batch:
    part, places = load("digits").train[:8], torch.arange(8)
    return Batch(part.images, part.labels, part.labels, THREAT, 3, places, places, 8, 8, Memory())


@pytest.mark.parametrize("name", training.names())
def test_crafting_stays_inside_the_threat_model_and_leaves_the_model_as_it_was(name: str) -> None:
    method, model, batch = training.get(name)(), _model().train(), _batch()
    before = copy.deepcopy(model.state_dict())
    crafted = method.craft(model, batch)
    if method.stays_in_ball:
        assert bool(THREAT.around(batch.images).contains(crafted).all())
    if method.stays_in_pixels:
        assert bool(((crafted >= 0) & (crafted <= 1)).all())
    assert model.training and all(
        parameter.requires_grad and parameter.grad is None for parameter in model.parameters()
    )
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert torch.equal(crafted, method.craft(model, _batch()))


@pytest.mark.parametrize("name", training.names())
def test_the_loss_is_a_finite_scalar_and_reaches_every_parameter(name: str) -> None:
    method, model, batch = training.get(name)(), _model().train(), _batch()
    loss = method.loss(model, method.craft(model, batch), batch)
    assert loss.ndim == 0
    loss.backward()
    assert all(parameter.grad is not None and bool(parameter.grad.isfinite().all()) for parameter in model.parameters())


class Shift(nn.Module):
    """x - 0.1, in place or not."""

    def __init__(self, *, in_place: bool) -> None:
        super().__init__()
        self.in_place = in_place

    def forward(self, images: Tensor) -> Tensor:
        return images.sub_(0.1) if self.in_place else images - 0.1


@pytest.mark.parametrize("name", training.names())
def test_a_model_that_writes_into_its_input_is_trained_as_one_that_does_not(name: str) -> None:
    digits, found = load("digits"), []
    data = dataclasses.replace(digits, train=digits.train[:16], validation=digits.validation[:8])
    table = {"method": name, "epochs": 1, "batch_size": 8, "selection_attack": "fgsm", "awp": 0.01, "pairing": 0.5}
    for in_place in (False, True):
        model = nn.Sequential(Shift(in_place=in_place), *_model())
        stage = Stage("train", 0, World(), Progress(quiet=True))
        found.append(fit(model, data, THREAT, build(Training, table, "train"), stage).last)
    assert all(torch.equal(value, found[1][key]) for key, value in found[0].items())


@pytest.mark.parametrize("name", training.names())
def test_what_a_method_remembers_can_be_saved(name: str, tmp_path) -> None:
    from robust_nas.runtime.states import load_state, save_state

    method, model, batch = training.get(name)(), _model().train(), _batch()
    method.loss(model, method.craft(model, batch), batch).backward()
    save_state(tmp_path / "state.safetensors", {"shared": batch.memory.shared, "tables": batch.memory.tables})
    saved = load_state(tmp_path / "state.safetensors")
    torch.testing.assert_close(saved["shared"], batch.memory.shared, rtol=0, atol=0)
    torch.testing.assert_close(saved["tables"], batch.memory.tables, rtol=0, atol=0)


OPTIONS = {
    "mixed targets": {"mix_up": 0.4, "label_smoothing": 0.1, "cutout": 3, "padding": 1, "flip": True},
    "moved and averaged weights": {"awp": 0.01, "ema": 0.9, "pairing": 0.5, "optimiser": "lamb"},
    "mixture": {"norm": "mixture", "clean_weight": 1.0, "optimiser": "adamw", "learning_rate": 0.001},
    "bfloat16": {"precision": "bfloat16", "channels_last": True, "clean_weight": 0.5, "epsilon_ramp": 0.5},
    "float16": {"precision": "float16", "awp": 0.005},
    "parts": {"accumulate": 3, "craft_precision": "float32", "clean_weight": 0.5},
}


@pytest.mark.parametrize("name", training.names())
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_every_option_composes_with_every_method(name: str, options: dict[str, Any]) -> None:
    if name == "standard" and "norm" in options:
        pytest.skip("nothing adversarial is trained on, which a mixture refuses")
    if training.get(name).bounds_network and "norm" in options:
        pytest.skip("bounds are of the function that clean images see, which a plan refuses to mix")
    if not training.get(name)().accumulates and "accumulate" in options:
        pytest.skip("its loss couples the images of a batch, which a plan refuses to take in parts")
    digits = load("digits")
    data = dataclasses.replace(digits, train=digits.train[:64], validation=digits.validation[:32])
    plan = build(
        Training, {"method": name, "epochs": 2, "batch_size": 16, "selection_attack": "fgsm", **options}, "train"
    )
    fitted = [
        fit(_model(), data, THREAT, plan, Stage("train", 0, World(), Progress(quiet=True))).last for _ in range(2)
    ]
    assert fitted[0].keys() == _model().state_dict().keys()
    for key, value in fitted[0].items():
        assert bool(value.isfinite().all()), key
        assert torch.equal(value, fitted[1][key]), key
    assert not torch.equal(fitted[0]["0.weight"], _model().state_dict()["0.weight"])
