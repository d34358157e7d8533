"""CROWN-IBP: linear bounds on the margins, with interval bounds on what is before each ReLU."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from robust_nas.bounds import LinearMargins
from robust_nas.bounds._graph import Node
from robust_nas.bounds._linear import LinearBound, Region, of_the_input_alone
from robust_nas.bounds._margins import Network, margin_bounds
from robust_nas.threat import ThreatModel


@dataclass(frozen=True, kw_only=True)
class CROWNIBP(LinearBound):
    """CROWN-IBP (Zhang et al. 2020, arXiv:1906.06316, section 3; Xu et al. 2020, arXiv:2002.12920).

    Interval bounds say between what every ReLU's input lies, and so the two lines that the ReLU is between. From the
    margins back to the pixels, the line that keeps the bound sound is put in place of each ReLU. Costs two forward
    passes, and one backward pass per wrong class.

    The bounds hold in exact arithmetic up to the rounding of `dtype`, so compare them with a small positive number,
    not with 0. They are not always above interval bounds.

    Args:
        clip: perturbed images stay in [0, 1], which every image does; without it, the whole ball is bounded.
        dtype: arithmetic; "float32" is quicker and off by up to about 1e-5 on small networks, so do not call what
            it gives a certificate.
        batch_size: images that are bounded at once, at most.
        memory: GiB that intermediate values may take; fewer images are bounded at once where they need more.

    Raises:
        InputError: for another `dtype`, a `batch_size` below 1, or no `memory`.
    """

    batch_size: int = 64

    def bound(self, network: Network, images: Tensor, labels: Tensor, threat: ThreatModel) -> LinearMargins:
        """Return the bounds of a chunk of images, in its arithmetic."""
        return crown_ibp_margins(network, images, labels, threat, clip=self.clip)


def crown_ibp_margins(
    network: Network, images: Tensor, labels: Tensor, threat: ThreatModel, *, clip: bool = True
) -> LinearMargins:
    """Return linear lower bounds of the margins over the ball around each image [B, C, H, W], with their gradient."""
    region, logits = linear_logits(network, images, threat, clip=clip)
    return region.margins(*margin_bounds(logits, labels, region.source))


def linear_logits(network: Network, images: Tensor, threat: ThreatModel, *, clip: bool = True) -> tuple[Region, Tensor]:
    """Return the network's logits, with interval bounds before every ReLU."""
    region = Region(images, threat, clip=clip)

    def refine(node: Node, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        # The box around an l2 or l1 ball is much larger than the ball; on an affine function, substitution is exact.
        if threat.norm != "linf" and of_the_input_alone(node, region.source):
            return region.refined(node, lower, upper)
        return lower, upper

    return region, region.logits(network, refine)
