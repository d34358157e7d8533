"""The Zen score (Lin et al. 2021, arXiv:2102.01063, algorithm 1)."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from robust_nas.core.errors import InputError
from robust_nas.core.seeds import generator_at
from robust_nas.models.scores import logits_of
from robust_nas.proxies._networks import held_still, layers
from robust_nas.threat import ThreatModel

TINY = 1e-30
"""The least argument of a logarithm: a constant network has a finite score."""


@dataclass(frozen=True, kw_only=True)
class Zen:
    """log E |F(x) - F(x + alpha e)| plus the log of every batch norm's scale; x, e and all weights standard Gaussian.

    F is the last feature map before the global pooling. Batch norm's scale, by which it divides and which the sum puts
    back, is the root mean variance of its channels. Deviations: residual links stay, because in a cell a skip is an
    operation; x + alpha e is normalised by the statistics of x.

    Args:
        alpha: the size of the change.

    Raises:
        InputError: if `alpha` is not positive.
    """

    alpha: float = 0.01

    def __post_init__(self) -> None:
        if not self.alpha > 0:
            raise InputError(f"Zen.alpha must be positive, but got {self.alpha}.")

    def score(self, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, *, seed: int = 0) -> float:
        """Return the score of the network of `model`; its weights and images are drawn from `seed`."""
        generator = generator_at(images.device, seed, "zen")

        def normal(like: Tensor) -> Tensor:
            return torch.randn(like.shape, generator=generator, device=like.device).to(like.dtype)

        model = copy.deepcopy(model)
        with torch.no_grad():
            for layer in layers(model).values():
                layer.weight.copy_(normal(layer.weight))
        x, e = normal(images), normal(images)
        with held_still(model, x, "running"), torch.no_grad():
            scales = [
                (norm.running_var.double().mean() + TINY).log() / 2
                for norm in model.modules()
                if isinstance(norm, _BatchNorm) and norm.running_var is not None
            ]
            change = feature_map(model, x) - feature_map(model, x + self.alpha * e)
        length = change.double().flatten(1).norm(dim=1).mean()
        return float((length + TINY).log() + sum(scales))


def feature_map(model: nn.Module, images: Tensor) -> Tensor:
    """Return the last output of a module that has rows and columns, [B, C, H, W]; the logits, if there is none."""
    maps: list[Tensor] = []

    def note(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and output.shape[2:].numel() > 1:
            maps[:] = [output.clone()]  # the next layer may write into it

    hooks = [module.register_forward_hook(note) for module in model.modules()]
    try:
        logits = logits_of(model, images)
    finally:
        for hook in hooks:
            hook.remove()
    return maps[0] if maps else logits
