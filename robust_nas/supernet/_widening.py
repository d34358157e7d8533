"""Widening without a change of function: a wide operation, of whose channels some compute what a narrow one's did."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robust_nas.models.darts import FactorisedReduction

Place = tuple[Tensor, tuple[int, ...]]
"""A parameter, and where it begins in a larger one: along the dimensions of outputs and of inputs."""


@torch.no_grad()
def embed(wide: nn.Module, narrow: nn.Module, offset: int) -> dict[Tensor, Place]:
    """Make the channels of `wide` from `offset` on compute what those of `narrow` do.

    These see none of the other channels until they learn to. The others are as they were initialised.

    Returns:
        For every parameter of `wide`, the one of `narrow` that is in it.
    """
    if isinstance(wide, FactorisedReduction) and isinstance(narrow, FactorisedReduction):
        return _embed_reduction(wide, narrow, offset)
    if isinstance(wide, nn.Conv2d) and isinstance(narrow, nn.Conv2d):
        return _embed_convolution(wide, narrow, (offset, offset if narrow.groups == 1 else 0))
    if isinstance(wide, nn.BatchNorm2d) and isinstance(narrow, nn.BatchNorm2d):
        for name, statistic in narrow.named_buffers():
            place = slice(offset, offset + len(statistic)) if statistic.dim() else ...
            wide.get_buffer(name)[place] = statistic
    places: dict[Tensor, Place] = {}
    for (_, part), (_, old) in zip(wide.named_children(), narrow.named_children(), strict=True):
        places |= embed(part, old, offset)
    return places


def _embed_convolution(wide: nn.Conv2d, narrow: nn.Conv2d, offsets: tuple[int, int]) -> dict[Tensor, Place]:
    (row, column), (rows, columns) = offsets, narrow.weight.shape[:2]
    wide.weight[row : row + rows] = 0
    wide.weight[row : row + rows, column : column + columns] = narrow.weight
    return {wide.weight: (narrow.weight, offsets)}


def _embed_reduction(wide: FactorisedReduction, narrow: FactorisedReduction, offset: int) -> dict[Tensor, Place]:
    """Of either convolution's outputs the first ones are the old; `order` puts them where they belong."""
    width, old_width = wide.norm.num_features, narrow.norm.num_features
    half, old_half = wide.first.out_channels, narrow.first.out_channels
    old_order = range(old_width) if narrow.order is None else narrow.order.tolist()
    old = [place if place < old_half else place - old_half + half for place in old_order]
    new = [place for place in range(width) if place not in old]
    wide.order = torch.tensor([*new[:offset], *old, *new[offset:]], device=wide.first.weight.device)
    return {
        **_embed_convolution(wide.first, narrow.first, (0, offset)),
        **_embed_convolution(wide.second, narrow.second, (0, offset)),
        **embed(wide.norm, narrow.norm, offset),
    }
