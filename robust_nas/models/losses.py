"""Losses of logits, image by image, that attacks make larger."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from robust_nas.core.errors import InputError

Loss = Callable[[Tensor, Tensor], Tensor]
"""Logits [B, K] and what they are compared with ([B, ...], mostly labels) to losses [B]; attacks make them larger."""


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return -log softmax(logits)_y, [B].

    As softplus(log sum_{i != y} exp z_i - z_y): a sure model's loss and gradient are small but not rounded to zero, as
    the usual form's are in float32 from a margin of about 17 on, where they would stop an attack.
    """
    own = labels.unsqueeze(1)
    others = logits.scatter(1, own, -torch.inf).logsumexp(1)
    return F.softplus(others - logits.gather(1, own).squeeze(1))


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Return max_{i != y} z_i - z_y, [B]: positive where the model is wrong."""
    own = labels.unsqueeze(1)
    others = logits.scatter(1, own, -torch.inf).amax(1)
    return others - logits.gather(1, own).squeeze(1)


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the difference of logits ratio, [B], which no scaling or shift of the logits changes.

    (max_{i != y} z_i - z_y) / (z_p1 - z_p3) with z_p1 >= z_p2 >= ... (arXiv:2003.01690, equation 6).

    Raises:
        InputError: for fewer than 3 classes.
    """
    top = _largest(logits, 3, "DLR")
    return margin(logits, labels) / (top[:, 0] - top[:, 2] + 1e-12)


def kl(logits: Tensor, clean: Tensor) -> Tensor:
    """Return KL(softmax(clean) || softmax(logits)), [B], with the logits of the clean images [B, K]."""
    wanted = clean.log_softmax(1)
    return (wanted.exp() * (wanted - logits.log_softmax(1))).sum(1)


def targeted_cross_entropy(logits: Tensor, pair: Tensor) -> Tensor:
    """Return log softmax(logits)_t, [B], for pairs [B, 2] of label and target t."""
    return -cross_entropy(logits, pair[:, 1])


def targeted_margin(logits: Tensor, pair: Tensor) -> Tensor:
    """Return z_t - z_y, [B], for pairs [B, 2] of label y and target t."""
    own, target = logits.gather(1, pair).unbind(1)
    return target - own


def targeted_dlr(logits: Tensor, pair: Tensor) -> Tensor:
    """Return the targeted difference of logits ratio, [B], for pairs [B, 2] of label y and target t.

    (z_t - z_y) / (z_p1 - (z_p3 + z_p4) / 2) with z_p1 >= z_p2 >= ... (arXiv:2003.01690, equation 7).

    Raises:
        InputError: for fewer than 4 classes.
    """
    top = _largest(logits, 4, "targeted DLR")
    return targeted_margin(logits, pair) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12)


def at_random_target(loss: Loss) -> Loss:
    """Return a targeted loss that aims at a class other than the label, each as likely, which a number chooses.

    The loss compares logits with pairs [B, 2] of label and number, of `TARGET_BITS` random bits. The number of classes
    is that of the logits: no pass is spent on learning it.
    """

    def aimed(logits: Tensor, pair: Tensor) -> Tensor:
        label, number = pair.unbind(1)
        place = (number * (logits.shape[1] - 1)) >> TARGET_BITS
        return loss(logits, torch.stack([label, place + (place >= label)], dim=1))

    return aimed


TARGET_BITS = 23
"""Bits of the numbers that choose targets: a thousand classes are equally likely to one part in 8,000."""


def _largest(logits: Tensor, count: int, name: str) -> Tensor:
    """The largest logits, [B, count], which a loss needs; where there are fewer, it is to be cross-entropy."""
    if logits.shape[1] < count:
        raise InputError(
            f"The {name} loss needs at least {count} classes, but the model has {logits.shape[1]}; use "
            "loss='cross_entropy'."
        )
    return logits.topk(count, dim=1).values


LOSSES: dict[str, Loss] = {"cross_entropy": cross_entropy, "margin": margin, "dlr": dlr, "kl": kl}


TARGETED_LOSSES: dict[str, Loss] = {
    "cross_entropy": targeted_cross_entropy,
    "margin": targeted_margin,
    "dlr": targeted_dlr,
}


def per_sample(values: Tensor) -> Tensor:
    """Return [B] values as [B, 1, 1, 1]."""
    return values.view(-1, 1, 1, 1)


def choose(condition: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """Return `one` [B, C, H, W] for the samples where `condition` [B] holds, and `other` for the rest."""
    return torch.where(per_sample(condition), one, other)
