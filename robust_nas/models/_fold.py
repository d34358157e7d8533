"""Batch norm folded into convolutions while a model is attacked in evaluation mode: less work, the same function."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights

from robust_nas.models.checkpointing import Recomputed
from robust_nas.models.mixture_norm import MixtureBatchNorm2d


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

    The model is in evaluation mode. Only the `Sequential`'s own pass from its first module to its last is another one:
    a model that takes its modules one by one, with something between them, finds them as they are. Of a mixture, the
    batch norm in use is folded. Compiled models (folding would compile them anew), modules with hooks, other classes'
    convolutions and batch norms without running statistics are left alone. Outputs agree with the unfolded model's up
    to rounding.
    """
    if _is_compiled(model):
        yield
        return
    replaced: list[tuple[nn.Sequential, Recomputed | None]] = []
    try:
        with torch.no_grad():
            for parent in list(model.modules()):
                if not isinstance(parent, nn.Sequential) or type(parent).forward is not nn.Sequential.forward:
                    continue
                children = _fold_children(list(parent))
                own = vars(parent).get("forward")
                if len(children) < len(parent) and (own is None or (isinstance(own, Recomputed) and own.is_plain)):
                    forward = functools.partial(_pass_through, children)
                    parent.forward = own.around(forward) if own else forward  # type: ignore[method-assign]
                    replaced.append((parent, own))
        yield
    finally:
        for parent, own in replaced:
            if own is None:
                del parent.forward
            else:
                parent.forward = own  # type: ignore[method-assign]


def _fold_children(children: Sequence[nn.Module]) -> list[nn.Module]:
    """Return the modules with one in place of each convolution and the batch norm after it."""
    found: list[nn.Module] = []
    for child in children:
        before = found[-1] if found else None
        if isinstance(child, MixtureBatchNorm2d):
            child = child.in_use
        if before is not None and _can_fold(before, child):
            assert isinstance(before, nn.Conv2d) and isinstance(child, nn.BatchNorm2d)
            found[-1] = _FoldedConv2d(before, child)
        else:
            found.append(child)
    return found


def _pass_through(children: Sequence[nn.Module], x: Tensor) -> Tensor:
    for child in children:
        x = child(x)
    return x


def _can_fold(convolution: nn.Module, norm: nn.Module) -> bool:
    return (
        type(convolution) is nn.Conv2d
        and type(norm) is nn.BatchNorm2d
        and convolution.padding_mode == "zeros"
        and norm.running_var is not None
        and convolution.weight.dtype == norm.running_var.dtype
        and not any(module._forward_hooks or module._forward_pre_hooks for module in (convolution, norm))
    )


def _is_compiled(model: nn.Module) -> bool:
    """Whether a model is one that `torch.compile` gave; importing what compiles takes seconds."""
    compiler = sys.modules.get("torch._dynamo")
    return compiler is not None and isinstance(model, compiler.OptimizedModule)
