"""The common parts of linear bounds: the pass through the network, and bounds of its values by substitution."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robust_nas.bounds import LinearMargins
from robust_nas.bounds._box import Box, Refine, Trace, tracing
from robust_nas.bounds._graph import Affine, Leaf, Node, Relu, lower_bound
from robust_nas.bounds._margins import Network, Precision, box_around, check_settings, in_chunks, rows_at_once
from robust_nas.threat import ThreatModel


@dataclass(frozen=True, kw_only=True)
class LinearBound:
    """The base class of linear bounds.

    Args:
        clip: perturbed images stay in [0, 1], which every image does; without it, the whole ball is bounded.
        dtype: arithmetic.
        batch_size: images that are bounded at once, at most.
        memory: GiB that intermediate values may take; fewer images are bounded at once where they need more.

    Raises:
        InputError: for another `dtype`, a `batch_size` below 1, or no `memory`.
    """

    clip: bool = True
    dtype: Precision = "float64"
    batch_size: int = 16
    memory: float = 2.0

    def __post_init__(self) -> None:
        check_settings(self)

    def margins(self, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel) -> LinearMargins:
        """Return linear lower bounds of the margins over the ball around each of `images` [N, C, H, W].

        `model` is used in evaluation mode and left as it was; `labels` is [N].

        Raises:
            InputError: for images outside [0, 1], labels that are not classes, an operation without a sound rule, or a
                model that mixes the images of a batch.
        """
        return in_chunks(model, images, labels, self, lambda network, some, own: self.bound(network, some, own, threat))

    def bound(self, network: Network, images: Tensor, labels: Tensor, threat: ThreatModel) -> LinearMargins:
        """Return the bounds of a chunk of images, in its arithmetic."""
        raise NotImplementedError


class Region:
    """The images [B, C, H, W] that are bounded: the ball around each, cut with [0, 1] or not.

    Args:
        clip: whether it is.
    """

    def __init__(self, images: Tensor, threat: ThreatModel, *, clip: bool) -> None:
        self.images, self.threat, self.clip = images, threat, clip
        self.relus: list[Relu] = []
        self.box = box_around(images, threat) if clip else Box(images - threat.epsilon, images + threat.epsilon)
        assert isinstance(self.box.node, Leaf)
        # The network may change its input in place, and the box with it.
        self.source = self.box.node

    def logits(self, network: Network, refine: Refine | None) -> Tensor:
        """Return the network's logits as a box, with ReLUs as nodes of its graph."""
        trace = Trace(refine)
        with tracing(trace):
            logits: Tensor = network(self.box)
        self.relus = list(trace.relus.values())
        return logits

    def margins(self, offsets: Tensor, slopes: Tensor | None) -> LinearMargins:
        """Return bounds that are linear in the image as bounds that are linear in the perturbation."""
        if slopes is None:
            return LinearMargins(offsets)
        at_images = torch.linalg.vecdot(slopes, self.images.flatten(1).unsqueeze(1))
        return LinearMargins(offsets + at_images, slopes, images=self.images if self.clip else None)

    def refined(self, node: Node, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Return bounds of a value [B, *shape] that are at least as tight as `lower` and `upper`, by substitution.

        Only elements that may have either sign are bounded again.
        """
        flat_lower, flat_upper = flat(lower), flat(upper)
        # Two functions of every place: itself and its negative.
        for places in undecided(flat_lower, flat_upper).split(max(1, rows_at_once(node) // 2), dim=1):
            one_hot = lower.new_zeros(places.shape[1], *flat_lower.shape).scatter_(2, places.T.unsqueeze(2), 1.0)
            coefficients = torch.cat([one_hot, -one_hot]).view(-1, *lower.shape)
            bound = lower_bound(node, coefficients, self.source)
            least, most = self.margins(*bound).lower(self.threat).chunk(2, dim=1)
            flat_lower = flat_lower.scatter_reduce(1, places, least, "amax")
            flat_upper = flat_upper.scatter_reduce(1, places, -most, "amin")
        return flat_lower.view_as(lower), flat_upper.view_as(upper)


def flat(values: Tensor) -> Tensor:
    """Return values [B, *shape] as [B, D]; an image may have a single one, [B]."""
    return values.reshape(len(values), -1)


def undecided(lower: Tensor, upper: Tensor) -> Tensor:
    """Return the places [B, S] of the elements [B, D] that may have either sign; of others too where B differ in S."""
    either = ~((lower >= 0) | (upper <= 0))
    return either.to(torch.uint8).sort(dim=1, descending=True, stable=True).indices[:, : int(either.sum(1).max())]


def of_the_input_alone(node: Node, source: Leaf) -> bool:
    """Whether a value is an affine function of the input and of nothing else."""
    return node is source or (
        isinstance(node, Affine) and all(of_the_input_alone(parent, source) for parent in node.parents)
    )
