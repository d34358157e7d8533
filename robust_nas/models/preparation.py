"""A model of normalised pixels, or of probabilities, as one of [0, 1] images and logits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from robust_nas.core.checks import check_choice, check_type
from robust_nas.core.errors import InputError, suggest
from robust_nas.models.frozen import device_of

Outputs = Literal["logits", "probabilities"]
"""The kind of a model's outputs."""

NORMALISATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "mnist": ((0.1307,), (0.3081,)),
    "half": ((0.5,), (0.5,)),
    "bytes": ((0.0,), (1 / 255,)),
}
"""The usual means and standard deviations of pixels in [0, 1], by channel; a single number is for any channels."""


class Normalised(nn.Module):
    """A model of normalised pixels as one of [0, 1] images: (x - mean) / std, then the model.

    Args:
        mean: of each channel, or one number for all.
        std: likewise.
        source: the origin of this normalisation, for a note; nothing, if the user did.
    """

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float], source: str = "") -> None:
        super().__init__()
        self.model, self.source = model, source
        device = device_of(model, torch.empty(0))
        for name, values in {"mean": mean, "std": std}.items():
            self.register_buffer(name, torch.tensor(values, device=device).view(-1, 1, 1), persistent=False)
        self.training = model.training
        self.mean: Tensor
        self.std: Tensor

    def forward(self, images: Tensor) -> Tensor:
        # A mean of three channels and an image of one would broadcast to an image of three.
        if len(self.mean) not in (1, images.shape[1]):
            raise InputError(
                f"The normalisation is for {len(self.mean)} channels, but the images have {images.shape[1]}; "
                "give one for theirs."
            )
        return self.model((images - self.mean) / self.std)


class LogProbabilities(nn.Module):
    """A model of probabilities as one of logits: their logarithm, from the smallest positive normal number on.

    Cross-entropy and margins of log-probabilities are those of the logits, and no shift changes the DLR loss. A
    probability that the model has rounded to 0 has no gradient; its own logits are better.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = model.training

    def forward(self, images: Tensor) -> Tensor:
        probabilities = self.model(images)
        if probabilities.dtype in (torch.float16, torch.bfloat16):
            probabilities = probabilities.float()
        return probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log()


def prepared(model: nn.Module, *, normalise: str | None = None, outputs: Outputs = "logits") -> nn.Module:
    """Return the model as one from [0, 1] images to logits.

    Args:
        normalise: the normalisation of its pixels: a name in NORMALISATIONS, "MEAN,STD" or "M1,M2,M3/S1,S2,S3".
        outputs: the kind of its outputs.

    Raises:
        InputError: for an unknown normalisation or kind of outputs.
    """
    check_choice("outputs", outputs, Outputs)
    model = LogProbabilities(model) if outputs == "probabilities" else model
    return model if normalise is None else Normalised(model, *_mean_and_std(normalise))


def _mean_and_std(text: str) -> tuple[Sequence[float], Sequence[float]]:
    check_type("normalise", text, str, "a name, MEAN,STD or M1,M2,M3/S1,S2,S3")
    if text in NORMALISATIONS:
        return NORMALISATIONS[text]
    parts = text.split("/") if "/" in text else text.split(",")
    try:
        mean, std = ([float(number) for number in part.split(",")] for part in parts)
    except ValueError:
        raise InputError(
            f"A normalisation is a name, MEAN,STD or M1,M2,M3/S1,S2,S3, but got '{text}'. "
            f"{suggest(text, NORMALISATIONS)}"
        ) from None
    if len(mean) != len(std) or not all(map(math.isfinite, (*mean, *std))) or min(std) <= 0:
        raise InputError(
            f"A normalisation has as many means as standard deviations, and these are positive, but got '{text}'."
        )
    return mean, std
