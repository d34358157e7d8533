"""Consistency of a clean and a robust network (Ha et al. 2023, arXiv:2306.05031: CRoZe, section 3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from robust_nas.core.errors import InputError
from robust_nas.models.losses import cross_entropy
from robust_nas.models.scores import input_gradient
from robust_nas.proxies._networks import Weights, depends_on, held_still, layers, loss_gradients, weights
from robust_nas.threat import ThreatModel


@dataclass(frozen=True, kw_only=True)
class CRoZe:
    """The sum over layers of how alike features, stepped weights and gradients of two networks are.

    The robust network is the clean one with its weights moved up the loss; it sees the batch attacked by one FGSM step.
    Layers are convolutions and linear layers, where the authors' code counts cells.

    Args:
        shift: length of each layer's shift of weights, relative to their length (the authors' code: 0.1).
        learning_rate: of the one step of gradient descent after which weights are compared; the paper leaves it open.

    Raises:
        InputError: if one of them is not positive.
    """

    shift: float = 0.1
    learning_rate: float = 0.1

    def __post_init__(self) -> None:
        for name in ("shift", "learning_rate"):
            if not getattr(self, name) > 0:
                raise InputError(f"CRoZe.{name} must be positive, but got {getattr(self, name)}.")

    def score(self, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, *, seed: int = 0) -> float:
        """Return the score of `model` under `threat`; the seed is not used."""
        with held_still(model, images):
            clean = weights(model)
            gradient = loss_gradients(model, clean, images, labels)
            # The robust surrogate (equation 3) and its adversarial images (equation 4).
            robust = {name: self._shifted(weight, gradient[name]) for name, weight in clean.items()}
            attacked = _attacked(model, robust, images, labels, threat) if depends_on(model, images) else images
            robust_gradient = loss_gradients(model, robust, attacked, labels)
            features = _features(model, clean, images)
            robust_features = _features(model, robust, attacked)
        total = 0.0
        for name, weight in clean.items():
            if name not in features:
                continue
            z = 1 + _cosine(features[name], robust_features[name])  # equation 5
            step = weight - self.learning_rate * gradient[name]  # equation 7
            robust_step = robust[name] - self.learning_rate * robust_gradient[name]
            p = 1 + _cosine(step, robust_step)  # equation 8
            g = abs(_cosine(gradient[name], robust_gradient[name]))  # equation 9
            total += z * p * g  # equation 10
        return total

    def _shifted(self, weight: Tensor, gradient: Tensor) -> Tensor:
        length = gradient.norm()
        return weight + self.shift * weight.norm() * gradient / length if length > 0 else weight


def _attacked(model: nn.Module, at: Weights, images: Tensor, labels: Tensor, threat: ThreatModel) -> Tensor:
    """Return the images after one step of length epsilon up the loss of the network whose weights are `at`."""

    class _At(nn.Module):
        def forward(self, points: Tensor) -> Tensor:
            logits: Tensor = functional_call(model, at, (points,))
            return logits

    _, _, gradient = input_gradient(_At(), images, labels, cross_entropy)
    return threat.around(images.detach()).ascend(images.detach(), gradient, threat.epsilon)


def _features(model: nn.Module, at: Weights, images: Tensor) -> Weights:
    """Return each layer's output for `images` where the weights are `at`."""
    found: Weights = {}
    hooks = [
        # A copy: the next layer may write into it.
        module.register_forward_hook(lambda _module, _inputs, output, name=name: found.update({name: output.clone()}))
        for name, module in layers(model).items()
    ]
    try:
        with torch.no_grad():
            functional_call(model, at, (images.clone(),))
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _cosine(one: Tensor, other: Tensor) -> float:
    """Return the cosine of the angle between two tensors; 0 if one of them is zero."""
    one, other = one.double().flatten(), other.double().flatten()
    length = one.norm() * other.norm()
    return float(one @ other / length) if length > 0 else 0.0
