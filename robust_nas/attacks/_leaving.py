"""Batches that samples leave once they are fooled, and the classes to aim at in them."""

from __future__ import annotations

import torch
from torch import Tensor

from robust_nas.core.errors import InputError
from robust_nas.models.frozen import BatchNorm

LOOK_EVERY = 10
"""Steps between two looks at who can leave the batch, where looking waits."""


def check_leaving(name: str, early_stop: bool, batch_norm: BatchNorm) -> None:
    """Raise InputError if samples are to leave a batch whose statistics the others need."""
    if early_stop and batch_norm == "batch":
        raise InputError(
            f"{name}.early_stop takes samples out of the batch, which changes what batch_norm='batch' makes of the "
            "others; set batch_norm='running'."
        )


def next_best(logits: Tensor, labels: Tensor, count: int) -> Tensor:
    """Return the classes of the largest logits except the label's, best first, [B, min(count, K - 1)]."""
    others = logits.scatter(1, labels.unsqueeze(1), -torch.inf)
    return others.topk(min(count, logits.shape[1] - 1), dim=1).indices


def cheap_batch(images: Tensor) -> int:
    """Return the number of images like these [B, C, H, W] that a pass can take before their number decides its cost.

    Below that, the calls themselves take most of the time.
    """
    numbers = 2**15 if images.device.type == "cpu" else 2**21
    return numbers // max(images[0].numel(), 1)


def next_targets(first: int, count: int, images: Tensor) -> range:
    """Return the targets, of `count`, to aim at in one batch of images [B, C, H, W], from the `first` on.

    As many as make a cheap batch; but the nearest target, which fools most images, goes alone.
    """
    size = max(cheap_batch(images) // len(images), 1) if first else 1
    return range(first, min(first + size, count))


def superseded(fooled: Tensor, copies: int) -> Tensor:
    """Return whether each of several copies of a batch [copies * B] is fooled, or an earlier copy of its image is."""
    return (fooled.view(copies, -1).cumsum(0) > 0).flatten()


def looking_is_free(points: Tensor) -> bool:
    """Return whether values can be looked at without waiting: an accelerator would first finish what it was given."""
    return points.device.type == "cpu"


def due(points: Tensor, step: int) -> bool:
    """Return whether to look for samples that can leave the batch."""
    return looking_is_free(points) or step % LOOK_EVERY == 0
