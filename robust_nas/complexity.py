"""What a network costs: parameters and multiply-adds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from robust_nas.attacks._model_state import copied, evaluating, own_dtype


def count_parameters(model: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def count_multiply_adds(model: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Return the multiply-adds of convolutions and linear layers for one image [C, H, W]."""
    total = 0

    def add(module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        assert isinstance(module, nn.Conv2d | nn.Linear)
        # Each output value is a sum over one filter's weights.
        total += output[0].numel() * module.weight[0].numel()

    counted = evaluating(copied(model).cpu())
    for module in counted.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(add)
    with torch.no_grad():
        counted(torch.zeros(1, *image_shape, dtype=own_dtype(counted)))
    return total


@torch.no_grad()
def output_shapes(
    model: nn.Module, modules: Sequence[nn.Module], image_shape: tuple[int, int, int]
) -> list[tuple[int, int, int]]:
    """Return the shapes [C, H, W] of what modules of a model give for one image, in the order of their use."""
    shapes: list[tuple[int, int, int]] = []

    def note(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        shapes.append(cast(tuple[int, int, int], tuple(output.shape[1:])))

    handles = [module.register_forward_hook(note) for module in modules]
    try:
        evaluating(model)(torch.zeros(1, *image_shape, device=next(model.parameters()).device))
    finally:
        for handle in handles:
            handle.remove()
    return shapes
