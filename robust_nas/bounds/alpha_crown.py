"""Alpha-CROWN: linear bounds whose lower lines are chosen for every image and margin by gradient ascent."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robust_nas.bounds import LinearMargins
from robust_nas.bounds._graph import Leaf, Node, lower_bound
from robust_nas.bounds._linear import LinearBound, Region
from robust_nas.bounds._margins import Network, margin_bounds
from robust_nas.bounds._memory import memory
from robust_nas.bounds.crown import refined_logits
from robust_nas.core.checks import check_at_least
from robust_nas.core.errors import InputError
from robust_nas.threat import ThreatModel


@dataclass(frozen=True, kw_only=True)
class AlphaCROWN(LinearBound):
    """CROWN with optimised lower lines (Xu et al. 2021, "Fast and Complete", arXiv:2011.13824, section 3.2).

    Every line through 0 with a slope in [0, 1] is below an undecided ReLU. From CROWN's choice on, the slopes follow
    the gradient of the margin's bound (Adam), for every image, wrong class and neuron by itself; the best bound that
    was met is returned, so that it is never below CROWN's. The inputs of ReLUs have CROWN's bounds.

    Args:
        steps: of the ascent.
        step_size: Adam's first; it falls by 2 % a step.
        clip: perturbed images stay in [0, 1], which every image does; without it, the whole ball is bounded.
        dtype: arithmetic; "float32" is quicker and off by up to about 1e-5 on small networks, so do not call what
            it gives a certificate.
        batch_size: images that are bounded at once, at most.
        memory: GiB that intermediate values may take; fewer images are bounded at once where they need more.

    Raises:
        InputError: for another `dtype`, or `steps`, `step_size`, `batch_size` or `memory` that is not above 0.
    """

    steps: int = 20
    step_size: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("AlphaCROWN.steps", self.steps, 1)
        if not self.step_size > 0:
            raise InputError(f"AlphaCROWN.step_size must be above 0, but got {self.step_size}.")

    def bound(self, network: Network, images: Tensor, labels: Tensor, threat: ThreatModel) -> LinearMargins:
        """Return the bounds of a chunk of images, in its arithmetic."""
        region, logits = refined_logits(network, images, threat, clip=self.clip)

        def best(node: Node, coefficients: Tensor, source: Leaf | None) -> tuple[Tensor, Tensor | None]:
            return self._ascend(region, node, coefficients)

        return region.margins(*margin_bounds(logits, labels, region.source, best))

    def _ascend(self, region: Region, node: Node, coefficients: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the best bound [B, S] of linear functions of a value that slopes of the lower lines give."""
        offset, slopes = lower_bound(node, coefficients, region.source)
        relus = [relu for relu in region.relus if relu.undecided.any()]
        if slopes is None or not relus:
            return offset, slopes
        functions = len(coefficients)
        # Slopes, their gradients and Adam's two averages, and the graph that they are differentiated through.
        memory().hold(12 * functions * sum(relu.lower.numel() for relu in relus), coefficients.shape[1])
        with torch.enable_grad():
            for relu in relus:
                chosen = relu.lines[0].expand(functions, *relu.shape)
                relu.chosen = chosen.clone().requires_grad_()
            alphas = [relu.chosen for relu in relus if relu.chosen is not None]
            adam = torch.optim.Adam(alphas, lr=self.step_size)
            decay = torch.optim.lr_scheduler.ExponentialLR(adam, 0.98)
            best = region.margins(offset, slopes).lower(region.threat)
            for _ in range(self.steps):
                # The first pass, at CROWN's own slopes, is for its gradient.
                found_offset, found_slopes = lower_bound(node, coefficients, region.source)
                assert found_slopes is not None
                found = region.margins(found_offset, found_slopes).lower(region.threat)
                if not found.requires_grad:  # none of these ReLUs is behind the margins
                    break
                better = found.detach() > best
                best = torch.where(better, found.detach(), best)
                offset = torch.where(better, found_offset.detach(), offset)
                slopes = torch.where(better.unsqueeze(2), found_slopes.detach(), slopes)
                for alpha, gradient in zip(
                    alphas, torch.autograd.grad(-found.sum(), alphas, allow_unused=True), strict=True
                ):
                    alpha.grad = gradient
                adam.step()
                decay.step()
                with torch.no_grad():
                    for relu, alpha in zip(relus, alphas, strict=True):
                        # Not clamped in the graph: the gradient of what sits on a bound would be 0.
                        alpha.clamp_(relu.slope, 1.0)
        for relu in relus:
            relu.chosen = None
        return offset, slopes
