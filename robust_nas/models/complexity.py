"""The cost of a network: parameters and multiply-adds."""

from __future__ import annotations

import contextlib
import os
import re
import resource
from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from robust_nas.core.errors import TooLarge
from robust_nas.models.frozen import copied, device_of, evaluating
from robust_nas.models.scores import logits_of


def count_parameters(model: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def machine_memory() -> int:
    """Return the bytes of memory that this process may take."""
    limits = [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([memory, *(limit for limit in limits if limit != resource.RLIM_INFINITY)])


@contextlib.contextmanager
def within_memory(what: str, *, copies: int = 4) -> Iterator[None]:
    """Build modules that fit into the machine's memory; what does not is refused before its memory is touched.

    Args:
        what: the thing to build, for the message.
        copies: number of copies of its values: in training, weights, gradients, momentum, and those of the best epoch.

    Raises:
        TooLarge: as soon as the parameters would take more than there is.
    """
    memory = machine_memory()
    taken, refusal = 0, f"{what} takes more than the {memory / 2**30:.3g} GiB of memory that there are; choose smaller "
    refusal += "sizes in [space], such as fewer channels."

    def count(_module: nn.Module, _name: str, parameter: nn.Parameter | None) -> None:
        # A parameter is registered before it is initialised: until then it has addresses, and no memory.
        nonlocal taken
        taken += 0 if parameter is None else copies * parameter.numel() * parameter.element_size()
        if taken > memory:
            raise TooLarge(refusal)

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    except (RuntimeError, TypeError, MemoryError) as error:
        if re.search("allocate memory|Storage size|overflow|out of memory", str(error)) or isinstance(
            error, MemoryError
        ):
            raise TooLarge(refusal) from None
        raise
    finally:
        handle.remove()


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
        logits_of(counted, torch.zeros(1, *image_shape))
    return total


@torch.no_grad()
def output_shapes(
    model: nn.Module, modules: Sequence[nn.Module], image_shape: tuple[int, int, int]
) -> list[tuple[int, int, int]]:
    """Return the shapes [C, H, W] of the outputs of a model's modules for one image, in the order of their use."""
    shapes: list[tuple[int, int, int]] = []

    def note(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        shapes.append(cast(tuple[int, int, int], tuple(output.shape[1:])))

    handles = [module.register_forward_hook(note) for module in modules]
    try:
        evaluating(model)(torch.zeros(1, *image_shape, device=device_of(model, torch.empty(0))))
    finally:
        for handle in handles:
            handle.remove()
    return shapes
