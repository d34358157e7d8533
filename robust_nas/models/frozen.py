"""A model held still while it is measured: mode, parameters, gradients and buffers are the same afterwards."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from itertools import chain
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from robust_nas.core.errors import InputError
from robust_nas.models._fold import folded

BatchNorm = Literal["running", "batch"]
"""Whether batch norm uses its running statistics (evaluation mode) or the attacked batch's own."""


def copied(model: nn.Module) -> nn.Module:
    """Return a copy of `model` that shares nothing with it.

    `copy.deepcopy` refuses tensors with a history, such as the weights that `weight_norm` computed in the last pass.
    """
    given = [value for module in model.modules() for value in vars(module).values()]
    computed = [value for value in given if isinstance(value, Tensor) and not value.is_leaf]
    return copy.deepcopy(model, {id(value): value.detach().clone() for value in computed})


def evaluating(model: nn.Module) -> nn.Module:
    """Put `model` into evaluation mode and return it, which a `train` of somebody's own may not do."""
    model.eval()
    return model


def device_of(model: nn.Module, otherwise: Tensor) -> torch.device:
    """The device of a model's first parameter or buffer; that of a tensor, if it has neither."""
    return next(chain(model.parameters(), model.buffers()), otherwise).device


def check_values(model: nn.Module) -> None:
    """Raise InputError if a parameter or buffer has no values: on the meta device, or of a lazy module."""
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if is_lazy(tensor):
            raise InputError(
                f"The model's '{name}' has no size yet, as it is a lazy module's; call the model once with "
                "images where it is made: model(images)."
            )
        if tensor.is_meta:
            raise InputError(
                f"The model's '{name}' is on torch's meta device, where it has no values; make the model on a real one "
                "and load its weights."
            )


@contextlib.contextmanager
def frozen(model: nn.Module, batch_norm: BatchNorm = "running", *, fold: bool = True) -> Iterator[None]:
    """Hold `model` still: inside, it is in evaluation mode and no parameter requires a gradient.

    Afterwards, also after an exception, the mode of every submodule and every parameter's `requires_grad` and `grad`
    are what they were, and every buffer holds the values that it held.

    Args:
        batch_norm: "running", or "batch": batch norm normalises by the batch at hand and updates no statistics.
        fold: whether "running" batch norms are folded into the convolutions before them (see `folded`): less work for
            an attack, but logits that differ by rounding, so not for a judgement.
    """
    check_values(model)
    modules = list(model.modules())
    modes = [module.training for module in modules]
    parameters = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    # The version tells whether a buffer was written to: writing it back needlessly would invalidate the graph of a
    # forward pass that the caller has not yet differentiated. Tensors of inference mode have neither.
    buffers = [
        (module, name, buffer, None if buffer.is_inference() else buffer._version, buffer.clone())
        for module in modules
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        model.eval()
        for parameter, _, _ in parameters:
            parameter.requires_grad_(False)
        if batch_norm == "batch":
            # Without running statistics, batch norm in evaluation mode takes the batch's and has nothing to update.
            for module in modules:
                if isinstance(module, _BatchNorm):
                    module.running_mean = module.running_var = None
        with folded(model) if fold and batch_norm == "running" else contextlib.nullcontext():
            yield
    finally:
        for module, name, buffer, version, values in buffers:
            module._buffers[name] = buffer
            if version is None or buffer._version != version:
                with torch.inference_mode(version is None), torch.no_grad():
                    buffer.copy_(values)
        for parameter, requires_grad, gradient in parameters:
            parameter.requires_grad_(requires_grad)
            parameter.grad = gradient
        for module, training in zip(modules, modes, strict=True):
            module.training = training
