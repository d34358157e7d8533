"""CROWN: linear bounds on the margins, with linear bounds on what is before each ReLU too."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from robust_nas.bounds import LinearMargins
from robust_nas.bounds._graph import Node
from robust_nas.bounds._linear import LinearBound, Region
from robust_nas.bounds._margins import Network, margin_bounds
from robust_nas.bounds._zonotope import Zonotopes
from robust_nas.threat import ThreatModel


@dataclass(frozen=True, kw_only=True)
class CROWN(LinearBound):
    """CROWN (Zhang et al. 2018, arXiv:1811.00866), on general graphs (Xu et al. 2020, arXiv:2002.12920).

    As CROWN-IBP, but what is before each ReLU is bounded by substitution back to the pixels as well, where intervals
    and zonotopes leave its sign open; the tighter bounds go on through the network. Before a ReLU never looser than
    CROWN-IBP, but on a margin now and then, as CROWN's choice of the lower line changes with what is before.

    Args:
        clip: perturbed images stay in [0, 1], which every image does; without it, the whole ball is bounded.
        dtype: arithmetic; "float32" is quicker and off by up to about 1e-5 on small networks, so do not call what
            it gives a certificate.
        batch_size: images that are bounded at once, at most.
        memory: GiB that intermediate values may take; fewer images are bounded at once where they need more.

    Raises:
        InputError: for another `dtype`, a `batch_size` below 1, or no `memory`.
    """

    def bound(self, network: Network, images: Tensor, labels: Tensor, threat: ThreatModel) -> LinearMargins:
        """Return the bounds of a chunk of images, in its arithmetic."""
        region, logits = refined_logits(network, images, threat, clip=self.clip)
        return region.margins(*margin_bounds(logits, labels, region.source))


def refined_logits(network: Network, images: Tensor, threat: ThreatModel, *, clip: bool) -> tuple[Region, Tensor]:
    """Return the network's logits with CROWN's bounds before every ReLU.

    Zonotopes, of which all come from one pass, say first what can be said about the signs before a ReLU; what they
    leave open is bounded by substitution.
    """
    region = Region(images, threat, clip=clip)
    zonotopes = Zonotopes(region)

    def refine(node: Node, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        return region.refined(node, *zonotopes.bounds(node, lower, upper))

    return region, region.logits(network, refine)
