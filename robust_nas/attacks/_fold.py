"""Batch norm folded into convolutions while a model is attacked in evaluation mode: less work, the same function."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights


class _FoldedConv2d(nn.Module):
    """A convolution with the affine map of the batch norm after it in its weights."""

    def __init__(self, convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        assert norm.running_mean is not None and norm.running_var is not None
        weight, bias = fuse_conv_bn_weights(
            convolution.weight,
            convolution.bias,
            norm.running_mean,
            norm.running_var,
            norm.eps,
            norm.weight,
            norm.bias,
        )
        # Plain tensors: nothing here is a parameter, so nothing of the model's own is listed twice.
        self.weight: Tensor
        self.bias: Tensor
        self.weight, self.bias = weight.detach(), bias.detach()
        # On a CPU, convolutions are faster in this layout, which activations pass on to what follows.
        self._layout = torch.channels_last if weight.device.type == "cpu" else torch.preserve_format
        self.weight = self.weight.clone(memory_format=self._layout)
        self._like = (convolution,)  # in a tuple, so that it is no submodule

    def forward(self, x: Tensor) -> Tensor:
        (like,) = self._like
        y = F.conv2d(x, self.weight, self.bias, like.stride, like.padding, like.dilation, like.groups)
        return y if self._layout is torch.preserve_format else y.contiguous(memory_format=self._layout)


@contextlib.contextmanager
def folded(model: nn.Module) -> Iterator[None]:
    """Fold every convolution that a batch norm follows in a `Sequential`, and unfold them afterwards.

    The model is in evaluation mode. Modules with hooks, other classes' convolutions and batch norms without running
    statistics are left alone. Outputs agree with the unfolded model's up to rounding.
    """
    replaced: list[tuple[nn.Sequential, str, nn.Module]] = []
    try:
        with torch.no_grad():
            for parent in list(model.modules()):
                if not isinstance(parent, nn.Sequential) or type(parent).forward is not nn.Sequential.forward:
                    continue
                children = list(parent.named_children())
                for (name, convolution), (next_name, norm) in pairwise(children):
                    if _can_fold(convolution, norm):
                        assert isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
                        replaced += [(parent, name, convolution), (parent, next_name, norm)]
                        parent._modules[name] = _FoldedConv2d(convolution, norm)
                        parent._modules[next_name] = nn.Identity()
        yield
    finally:
        for parent, name, module in replaced:
            parent._modules[name] = module


def _can_fold(convolution: nn.Module, norm: nn.Module) -> bool:
    return (
        type(convolution) is nn.Conv2d
        and type(norm) is nn.BatchNorm2d
        and convolution.padding_mode == "zeros"
        and norm.running_var is not None
        and convolution.weight.dtype == norm.running_var.dtype
        and not any(module._forward_hooks or module._forward_pre_hooks for module in (convolution, norm))
    )
