"""Gradients that are not those of what a model computes are said to be none of it; right ones are not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import robust_nas as rn
from robust_nas.core.errors import InputError
from robust_nas.core.seeds import seeded
from robust_nas.datasets import ImageSet
from robust_nas.intake import diagnose
from robust_nas.intake.gradients import gradient_note
from robust_nas.models.frozen import frozen
from robust_nas.threat import ThreatModel

NONE = "The model's logits depend on the images by nothing that has a gradient"
OTHER = "The model's input gradients are not those of what it computes"
ZERO = "The model's input gradients are zero"


class Zeroed(torch.autograd.Function):
    """The images, with a gradient of zero."""

    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        return images.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return torch.zeros_like(gradient)


class Of(nn.Module):
    """A small network of what a function makes of the images, in another type perhaps."""

    def __init__(self, function: Callable[[Tensor], Tensor], dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        with seeded(0, "network"):
            self.layers = nn.Sequential(
                nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 5)
            ).to(dtype)
        self.function = function

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layers(self.function(images).to(self.layers[0].weight.dtype))
        return logits


def images(count: int = 8) -> Tensor:
    # With many equal pixels, and many at the ends of [0, 1].
    return (3 * torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(0)) - 1).clamp(0, 1)


def straight_through(levels: int) -> Callable[[Tensor], Tensor]:
    return lambda x: x + ((x * levels).round() / levels - x).detach()


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x.detach(), NONE),
        (straight_through(255), OTHER),
        (straight_through(7), OTHER),
        (Zeroed.apply, OTHER),
        (lambda x: (x + x.detach()) / 2, OTHER),
        (lambda x: x.clamp(0, 1) - 2 * x.detach(), OTHER),
        (lambda x: (x * 4).round() / 4, ZERO),
        (lambda x: (x * 255).floor() / 255, ZERO),
        (lambda x: (x > 0.5).float() + 0 * x, ZERO),
        # Constant at all points but the ends of [0, 1], where images are.
        (torch.sign, ZERO),
        (lambda x: (x >= 0.999).float() + 0 * x, ZERO),
    ],
)
@pytest.mark.parametrize("count", [1, 8])
def test_gradients_of_another_function_are_named(
    function: Callable[[Tensor], Tensor], message: str, count: int
) -> None:
    model = Of(function)
    with frozen(model, fold=False):
        assert (gradient_note(model, images(count)) or "").startswith(message)
    given = images(count)
    (note, *_) = diagnose(model, given, torch.arange(count) % 5)
    assert note.startswith(message) and torch.equal(given, images(count))


@pytest.mark.parametrize(
    "model",
    [
        Of(lambda x: x),
        Of(lambda x: x.clamp(0, 1).sub_(0.5)),
        Of(F.relu),
        Of(lambda x: F.layer_norm(F.gelu(x), (8, 8))),
        Of(lambda x: torch.sigmoid(50 * (x - 0.5))),
        # Whose float32 is too coarse to tell; in double precision it is not.
        Of(lambda x: (x + 1e4) - 1e4),
        Of(lambda x: x, torch.bfloat16),
        Of(lambda x: x, torch.float64),
        nn.Sequential(Of(lambda x: 100 * x), nn.Softmax(1)),
        nn.Sequential(Of(lambda x: x), nn.LogSoftmax(1)),
        # Whose gradients are zero except at the ends of [0, 1].
        Of(lambda x: F.relu(x - 0.98)),
        # Whose logits change with no image.
        Of(lambda x: 0 * x),
    ],
)
def test_nothing_is_said_of_the_gradients_of_what_is_computed(model: nn.Module) -> None:
    with frozen(model, fold=False):
        assert gradient_note(model, images()) is None


class Refusing(torch.autograd.Function):
    """A derivative that is refused without a word."""

    @staticmethod
    def forward(_: Any, images: Tensor) -> Tensor:
        return images.clone()

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> Tensor:
        raise RuntimeError


@pytest.mark.parametrize("function", [lambda x: torch.sigmoid(x).add_(1), Refusing.apply])
def test_a_model_that_torch_cannot_differentiate_is_named_and_attacked_by_square_alone(
    function: Callable[[Tensor], Tensor],
) -> None:
    model, threat = Of(function), ThreatModel(epsilon=0.1)
    data = ImageSet(images(2), torch.zeros(2, dtype=torch.long))
    with pytest.warns(UserWarning, match="input gradients cannot be computed .* attack it with square"):
        rn.evaluate(model, data, threat, attacks=[rn.attacks.get("square")(queries=2)])
    with pytest.raises(InputError, match="input gradients cannot be computed"):
        rn.attacks.get("fgsm")().perturb(model, data.images, data.labels, threat)


def test_an_evaluation_keeps_what_is_suspicious_and_says_and_saves_it(tmp_path: Path) -> None:
    threat, model = ThreatModel(epsilon=0.1), nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), Of(F.relu))
    with torch.no_grad():
        data = ImageSet(images(), model.eval()(images()).argmax(1))
    with pytest.warns(UserWarning, match="depend on the other images of its batch"):
        found = rn.evaluate(model, data, threat, attacks=["fgsm"], folder=tmp_path)
    (note,) = found.notes
    assert "beware: The model's logits of an image depend on the other images" in str(found)
    assert json.loads((tmp_path / "evaluation.json").read_text())["models"]["model"]["notes"] == [note]
