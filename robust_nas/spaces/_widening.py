"""Widening without a change of function: the first channels of a wide operation compute the narrow one's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robust_nas.spaces.darts.network import FactorisedReduction


@torch.no_grad()
def embed(wide: nn.Module, narrow: nn.Module) -> dict[Tensor, Tensor]:
    """Make the first channels of `wide` compute what those of `narrow` do.

    These see none of the other channels until they learn to. The others are as they were initialised.

    Returns:
        For every parameter of `wide`, the one of `narrow` that is at its beginning.
    """
    if isinstance(wide, nn.Conv2d) and isinstance(narrow, nn.Conv2d):
        rows, columns = narrow.weight.shape[:2]
        wide.weight[:rows] = 0
        wide.weight[:rows, :columns] = narrow.weight
        return {wide.weight: narrow.weight}
    if isinstance(wide, nn.BatchNorm2d) and isinstance(narrow, nn.BatchNorm2d):
        for name, statistic in narrow.named_buffers():
            wide.get_buffer(name)[slice(len(statistic)) if statistic.dim() else ...] = statistic
    if isinstance(wide, FactorisedReduction) and isinstance(narrow, FactorisedReduction):
        _reorder(wide, narrow)
    places: dict[Tensor, Tensor] = {}
    for (_, part), (_, old) in zip(wide.named_children(), narrow.named_children(), strict=True):
        places |= embed(part, old)
    return places


def _reorder(wide: FactorisedReduction, narrow: FactorisedReduction) -> None:
    """Let the old outputs of either convolution come first, in the order that they had."""
    width, old_width = wide.norm.num_features, narrow.norm.num_features
    half, old_half = wide.first.out_channels, narrow.first.out_channels
    old_order = range(old_width) if narrow.order is None else narrow.order.tolist()
    old = [place if place < old_half else place - old_half + half for place in old_order]
    new = [place for place in range(width) if place not in old]
    wide.order = torch.tensor([*old, *new], device=wide.first.weight.device)
