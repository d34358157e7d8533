"""Interval bounds: every value of the network between a lower and an upper bound, from the pixels to the margins."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from robust_nas.bounds import LinearMargins
from robust_nas.bounds._box import Box
from robust_nas.errors import InputError
from robust_nas.threat import ThreatModel, check_images

Precision = Literal["float64", "float32"]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Interval bound propagation (Gowal et al. 2018, arXiv:1810.12715, section 3).

    The images' box goes through the network operation by operation; the last linear layer is merged with the margins,
    and so are the last layers of networks whose logits are added with fixed weights. The network itself is not
    rewritten: an operation without a sound rule is refused by name.

    The bounds hold in exact arithmetic up to the rounding of `dtype`, so compare them with a small positive number,
    not with 0. Batch norm uses its running statistics. Bounds on adversarially trained networks are loose beyond
    small radii. For the l2 ball, the box around it is used: sound, and looser still.

    Args:
        dtype: arithmetic; "float32" is quicker and off by up to about 1e-5 on small networks, so do not call what
            it gives a certificate.
        batch_size: images that are bounded at once; only memory depends on it.

    Raises:
        InputError: for another `dtype`, or a `batch_size` below 1.
    """

    dtype: Precision = "float64"
    batch_size: int = 256

    def __post_init__(self) -> None:
        if self.dtype not in get_args(Precision):
            raise InputError(f"Interval.dtype must be one of {', '.join(get_args(Precision))}, but got '{self.dtype}'.")
        if self.batch_size < 1:
            raise InputError(f"Interval.batch_size must be at least 1, but got {self.batch_size}.")

    def margins(self, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel) -> LinearMargins:
        """Return constant lower bounds of the margins over the ball around each of `images` [N, C, H, W].

        `model` is copied, in evaluation mode, and left as it was; `labels` is [N]. The bounds have no slopes.

        Raises:
            InputError: for images outside [0, 1], labels that are not classes, or an operation without a sound rule.
        """
        check_images(images)
        if len(images) == 0 or labels.shape != images.shape[:1]:
            raise InputError(
                f"Bounds need one label for each of at least one image, but got {len(labels)} for {len(images)}."
            )
        dtype = getattr(torch, self.dtype)
        network = copy.deepcopy(model).to(dtype).eval()
        with torch.no_grad():
            chunks = zip(images.detach().split(self.batch_size), labels.split(self.batch_size), strict=True)
            parts = [
                (_margins(network(_box_around(exact, threat)), own), _margins(network(exact), own))
                for exact, own in ((chunk.to(dtype), own) for chunk, own in chunks)
            ]
        offsets, clean = (torch.cat(part) for part in zip(*parts, strict=True))
        return LinearMargins(offsets, clean=clean)


def _box_around(images: Tensor, threat: ThreatModel) -> Box:
    """Return the smallest box that holds the ball (of any norm), cut with the valid images [0, 1]."""
    return Box((images - threat.epsilon).clamp(0, 1), (images + threat.epsilon).clamp(0, 1))


def _margins(logits: Tensor, labels: Tensor) -> Tensor:
    """Return lower bounds [B, K] of f_y - f_j, and +inf for j = y.

    Args:
        logits: [B, K], a box, or a plain tensor where the network does not look at its input.
        labels: y, [B].
    """
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(labels):
        raise InputError(
            "Bounds need a model that maps images to one tensor of logits [B, K]; wrap the model so that it does."
        )
    num_classes = logits.shape[1]
    if not ((labels >= 0) & (labels < num_classes)).all():
        raise InputError(f"Labels must be from 0 to {num_classes - 1}, the model's classes, but got others.")
    own = labels[:, None]
    if isinstance(logits, Box) and logits.terms:
        result = torch.zeros_like(logits.lower)
        for term in logits.terms:
            bias = torch.as_tensor(term.bias, dtype=result.dtype, device=result.device).expand_as(result)
            result += bias.gather(1, own) - bias
            centre, radius = (term.lower + term.upper) / 2, (term.upper - term.lower) / 2
            # One class at a time, so that no [B, K, F] tensor of margin rows is held.
            for label in labels.unique():
                rows, here = term.weight[label] - term.weight, labels == label
                result[here] += centre[here] @ rows.T - radius[here] @ rows.abs().T
    elif isinstance(logits, Box):
        result = logits.lower.gather(1, own) - logits.upper
    else:
        result = logits.gather(1, own) - logits
    return result.scatter(1, own, torch.inf)
