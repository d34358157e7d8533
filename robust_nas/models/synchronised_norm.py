"""Batch norms whose statistics in training are those of all ranks' images together, from outside the model.

torch's `SyncBatchNorm` is for accelerators only, and takes other modules. Here a batch norm stays what it is, and gets
another forward pass for a while: one message per layer and pass, and one in the backward pass.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from robust_nas.core.errors import InputError

if TYPE_CHECKING:
    from robust_nas.runtime.distributed import World

_PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def check_synchronisable(model: nn.Module) -> None:
    """Raise InputError unless there are batch norms in a model, all of them torch's own."""
    found = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    others = [type(module).__name__ for module in found if type(module) not in _PLAIN]
    if others or not found:
        raise InputError(
            "train.norm_sync 'synchronised' is for torch's batch norms, but this network has "
            f"{f'a {others[0]} of its own' if others else 'none'}; set it to 'local'."
        )


@contextlib.contextmanager
def synchronised(model: nn.Module, world: World) -> Iterator[None]:
    """Within it, batch norms in training mode take the statistics of all ranks' images, each counted once.

    Every rank must make the same passes in the same order. Gradients are those of the ranks' mean loss once they are
    averaged over ranks. Running statistics move alike on all ranks, as those of one process with all images. In one
    process nothing is changed.
    """
    modules = list(model.modules()) if world.size > 1 else []
    norms = [module for module in modules if isinstance(module, _PLAIN) and type(module) in _PLAIN]
    try:
        for norm in norms:
            norm.forward = partial(_forward, norm, norm.forward, world)  # type: ignore[method-assign]
        yield
    finally:
        for norm in norms:
            vars(norm).pop("forward", None)


def _forward(norm: _BatchNorm, alone: Callable[[Tensor], Tensor], world: World, images: Tensor) -> Tensor:
    """Do what a batch norm does, [N, C, ...] to the same shape, with the statistics of all ranks."""
    if not norm.training and norm.running_mean is not None:
        return alone(images)
    norm._check_input_dim(images)
    values = images if images.dtype == torch.float64 else images.float()
    dims = [0, *range(2, values.dim())]
    if values.numel() // values.shape[1] * world.size < 2:
        return alone(images)  # which refuses a single value per channel
    variance, mean = torch.var_mean(values, dims, correction=0)
    count = values.new_full((1,), values.numel() / values.shape[1], dtype=torch.float64)
    # In double precision, the mean square less the squared mean loses nothing. One message carries all.
    first, second = mean.double(), variance.double() + mean.double() ** 2
    shared = world.mean_through(torch.cat([count, count * first, count * second]))
    share, (first, second) = shared[0], (shared[1:] / shared[0]).chunk(2)
    mean, variance = first, (second - first**2).clamp_min(0)
    _move(norm, mean.detach(), variance.detach(), share.detach() * world.size)
    shape = [1, -1, *[1] * (values.dim() - 2)]
    scale = (variance + norm.eps).rsqrt().to(values.dtype)
    if norm.weight is not None:
        scale = scale * norm.weight
    found = (values - mean.to(values.dtype).view(shape)) * scale.view(shape)
    if norm.bias is not None:
        found = found + norm.bias.view(shape)
    return found.to(images.dtype)


@torch.no_grad()
def _move(norm: _BatchNorm, mean: Tensor, variance: Tensor, count: Tensor) -> None:
    """Move running statistics as torch's batch norm does: by the unbiased variance of `count` values."""
    if not norm.training or norm.running_mean is None or norm.running_var is None:
        return
    momentum = norm.momentum
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if momentum is None:
            momentum = 1 / float(norm.num_batches_tracked)
    weight = momentum or 0.0
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), weight)
    unbiased = variance * (count / (count - 1))
    norm.running_var.lerp_(unbiased.to(norm.running_var.dtype), weight)
