"""Interval bounds: every value of the network between a lower and an upper bound, from the pixels to the margins."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from robust_nas.bounds import LinearMargins
from robust_nas.bounds._margins import Network, Precision, box_around, check_settings, in_chunks, margin_bounds
from robust_nas.threat import ThreatModel


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Interval bound propagation (Gowal et al. 2018, arXiv:1810.12715, section 3).

    The images' box goes through the network operation by operation; what follows the last ReLU is merged with the
    margins, also in networks whose logits are added with fixed weights. The network itself is not rewritten: an
    operation without a sound rule is refused by name.

    The bounds hold in exact arithmetic up to the rounding of `dtype`, so compare them with a small positive number,
    not with 0. Batch norm uses its running statistics. Bounds on adversarially trained networks are loose beyond
    small radii. For the l2 and l1 balls, the box around them is used: sound, and looser still.

    Args:
        dtype: arithmetic; "float32" is quicker and off by up to about 1e-5 on small networks, so do not call what
            it gives a certificate.
        batch_size: images that are bounded at once, at most.
        memory: GiB that intermediate values may take; fewer images are bounded at once where they need more.

    Raises:
        InputError: for another `dtype`, a `batch_size` below 1, or no `memory`.
    """

    dtype: Precision = "float64"
    batch_size: int = 256
    memory: float = 2.0

    def __post_init__(self) -> None:
        check_settings(self)

    def margins(self, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel) -> LinearMargins:
        """Return constant lower bounds of the margins over the ball around each of `images` [N, C, H, W].

        `model` is used in evaluation mode and left as it was; `labels` is [N]. The bounds have no slopes.

        Raises:
            InputError: for images outside [0, 1], labels that are not classes, or an operation without a sound rule.
        """

        def bound(network: Network, some: Tensor, own: Tensor) -> LinearMargins:
            return LinearMargins(interval_margins(network, some, own, threat))

        return in_chunks(model, images, labels, self, bound)


def interval_margins(network: Network, images: Tensor, labels: Tensor, threat: ThreatModel) -> Tensor:
    """Return the margins' lower bounds [B, K] over the ball, +inf for the label's own class, with their gradient."""
    offsets, _ = margin_bounds(network(box_around(images, threat)), labels)
    return offsets
