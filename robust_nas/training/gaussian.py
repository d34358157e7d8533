"""Gaussian noise on the images: training for smoothing (Cohen et al. 2019, arXiv:1902.02918, section 3.3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robust_nas.core.seeds import generator_at
from robust_nas.threat import Pixels, check_pixels
from robust_nas.training import Batch, TrainingMethod


@dataclass(frozen=True, kw_only=True)
class Gaussian(TrainingMethod):
    """Cross-entropy on images with Gaussian noise, such as smoothing with the same `sigma` shows the network.

    The noise is not clipped to [0, 1], as it is not there. The threat model is not looked at. Validation attacks the
    network itself, not the smoothed classifier that it is for, so let the last epoch be kept: `train.keep=last`.

    Args:
        sigma: standard deviation of the noise, in pixel units of [0, 1].

    Raises:
        InputError: if `sigma` is outside (0, 10].
    """

    stays_in_ball: ClassVar[bool] = False
    stays_in_pixels: ClassVar[bool] = False

    sigma: Pixels = 0.25

    def __post_init__(self) -> None:
        object.__setattr__(self, "sigma", check_pixels("Gaussian.sigma", self.sigma, high=10))

    def craft(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the images with noise."""
        device, shape = batch.images.device, batch.images.shape[1:]
        generator = generator_at(device, batch.seed, "noise")
        noise = batch.drawn(lambda count: torch.randn((count, *shape), device=device, generator=generator))
        return batch.images + self.sigma * noise

    def loss(self, forward: Callable[[Tensor], Tensor], crafted: Tensor, batch: Batch) -> Tensor:
        """Return the mean cross-entropy at the noisy images."""
        return F.cross_entropy(forward(crafted), batch.targets)
