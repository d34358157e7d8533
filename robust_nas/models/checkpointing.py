"""Activation checkpointing (Chen et al. 2016, arXiv:1604.06174) of any model, from outside.

Of a pass, only the inputs of blocks are kept, and what is between the blocks; a block's own activations are computed
again when the backward pass needs them: one forward pass more, and the same numbers.
"""

from __future__ import annotations

import torch
from torch import nn

from robust_nas.core.errors import InputError

LARGEST_SHARE = 0.8
"""The share of the layers that checkpointing may keep; where it is larger, it is not worth its time."""


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """Return the modules whose activations checkpointing computes again, none of which is inside another one.

    Blocks are the outermost modules of at most L layers (and at least two), for the L at which the least is kept: the
    input of every block, the layers outside of blocks, and the layers of the largest block, which are there while it is
    differentiated. A layer is a module without children, identities excepted; a module with a forward pass of its own
    counts as one more, for its sums and functions. In a deep residual network the blocks are the residual blocks, in a
    network of cells the cells, in a transformer its layers.

    Raises:
        InputError: if that would keep more than `LARGEST_SHARE` of the layers.
    """
    sizes: dict[nn.Module, int] = {}
    total = _measure(model, sizes)
    limits = {size for module, size in sizes.items() if module is not model and _can_be_block(module)}
    best: list[nn.Module] = []
    least = LARGEST_SHARE * total
    for limit in sorted(limits):
        blocks = _within(model, limit, sizes)
        inside = [sizes[block] for block in blocks]
        kept = total - sum(inside) + len(blocks) + max(inside, default=0)
        if kept <= least:
            best, least = blocks, kept
    if not best:
        raise InputError(
            f"{type(model).__name__} has no blocks that checkpointing could compute again: its {total} layers are not "
            "in several modules of several layers each; group them in modules, or set train.checkpointing to false."
        )
    return best


def _measure(module: nn.Module, sizes: dict[nn.Module, int]) -> int:
    """Return the layers in a module, those that were counted before left out; note those of every module."""
    if module in sizes:
        return 0
    sizes[module] = 0
    children = list(module.children())
    if children and not isinstance(module, torch.jit.ScriptModule):
        own = type(module).forward not in (nn.Module.forward, nn.Sequential.forward)
        sizes[module] = own + sum(_measure(child, sizes) for child in children)
    else:
        sizes[module] = 0 if isinstance(module, nn.Identity) else 1
    return sizes[module]


def _can_be_block(module: nn.Module) -> bool:
    """Whether a module is called, and has several layers; a list of modules is not called."""
    return (
        type(module).forward is not nn.Module.forward
        and any(True for _ in module.children())
        and not isinstance(module, torch.jit.ScriptModule)
    )


def _within(module: nn.Module, limit: int, sizes: dict[nn.Module, int]) -> list[nn.Module]:
    """Return the outermost modules below `module` that have at least two layers and at most `limit`, each once."""
    found: dict[nn.Module, None] = {}
    for child in module.children():
        if 2 <= sizes[child] <= limit and _can_be_block(child):
            found[child] = None
        else:
            found.update(dict.fromkeys(_within(child, limit, sizes)))
    return list(found)
