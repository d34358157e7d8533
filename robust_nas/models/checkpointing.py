"""Activation checkpointing (Chen et al. 2016, arXiv:1604.06174) of any model, from outside.

Of a pass, only the inputs of blocks are kept, and what is between the blocks; a block's own activations are computed
again when the backward pass needs them: one forward pass more, and the same numbers.
"""

from __future__ import annotations

import contextlib
import copy
import random
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.checkpoint import CheckpointError, checkpoint

from robust_nas.core.errors import InputError, reason_of

_OF_EVERY_MODULE = vars(nn.Module()).keys() - {"training"}
"""The attributes that torch keeps in every module: its parts, its hooks, and the like."""

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
        InputError: if that would keep more than `LARGEST_SHARE` of the layers, or the model is compiled.
    """
    if any(_is_compiled(module) for module in model.modules()):
        raise InputError(
            f"{type(model).__name__} is compiled, so that its blocks are no longer apart; give the model as it was "
            "before torch.compile, or set train.checkpointing to false."
        )
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
        # Of scripted modules, torch does not give out what a pass changes.
        and not any(isinstance(each, torch.jit.ScriptModule) for each in module.modules())
    )


def _is_compiled(module: nn.Module) -> bool:
    compiler = sys.modules.get("torch._dynamo")
    compiled = getattr(module, "_compiled_call_impl", None) is not None
    return compiled or (compiler is not None and isinstance(module, compiler.OptimizedModule))


def _within(module: nn.Module, limit: int, sizes: dict[nn.Module, int]) -> list[nn.Module]:
    """Return the outermost modules below `module` that have at least two layers and at most `limit`, each once."""
    found: dict[nn.Module, None] = {}
    for child in module.children():
        if 2 <= sizes[child] <= limit and _can_be_block(child):
            found[child] = None
        else:
            found.update(dict.fromkeys(_within(child, limit, sizes)))
    return list(found)


@contextlib.contextmanager
def checkpointed(blocks: Sequence[nn.Module]) -> Iterator[list[Recomputed]]:
    """Compute the activations of blocks again in the backward passes of what is called inside.

    Modules, parameters and state dictionaries are as without: the blocks get another `forward`, and their own back
    afterwards. A pass that is made again draws what it drew (from torch's, Python's and NumPy's generators, and those
    that modules hold), is in the modes and under the autocast that it was in, and leaves buffers and attributes as they
    are: running statistics are updated once. A block may write into its input. Hooks of modules inside of a block are
    called again. Blocks whose activations are computed again already are left alone.

    Args:
        blocks: see `blocks_of`.

    Raises:
        InputError: in a backward pass, if something has written into a block's input after the block's own pass.
    """
    others = [block for block in blocks if not isinstance(vars(block).get("forward"), Recomputed)]
    before = [vars(block).get("forward") for block in others]
    made = [Recomputed(block, block.forward) for block in others]
    try:
        for block, forward in zip(others, made, strict=True):
            block.forward = forward
        yield made
    finally:
        for block, own in zip(others, before, strict=True):
            if own is None:
                vars(block).pop("forward", None)
            else:
                block.forward = own


@contextlib.contextmanager
def failures_said() -> Iterator[None]:
    """Say in one sentence that a block's second pass was not its first one."""
    try:
        yield
    except CheckpointError as error:
        raise InputError(
            "A block of the network did something else when its activations were computed again "
            f"({reason_of(error)}): it depends on something that is not in its modules; set train.checkpointing to "
            "false."
        ) from error


class Recomputed:
    """The forward pass of a block whose activations are computed again.

    Args:
        block: the block.
        inner: its forward pass.

    Attributes:
        calls: how often it was called.
        is_plain: whether that pass is the one of the block's class.
    """

    def __init__(self, block: nn.Module, inner: Callable[..., Any]) -> None:
        self.calls = 0
        self._block, self._inner = block, inner
        self.is_plain = getattr(inner, "__func__", None) is type(block).forward
        # Whether it writes into its input, by its mode; not known before the first pass.
        self._writes: dict[bool, bool] = {}

    def around(self, inner: Callable[..., Any]) -> Recomputed:
        """Return the same for another forward pass of the block."""
        other = copy.copy(self)
        other._inner = inner
        return other

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        if not torch.is_grad_enabled():
            return self._inner(*args, **kwargs)
        mode = self._block.training
        once = _Pass(self._block, self._inner, (args, kwargs), may_write=self._writes.get(mode, True))
        # Torch looks for the device in its arguments; the real ones are the pass's own to keep.
        device = next((leaf.device for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)), None)
        anchor = torch.empty(0, device=device)
        found = checkpoint(once, anchor, use_reentrant=False, context_fn=once.contexts)
        self._writes[mode] = once.settle()
        return found


class _Pass:
    """One pass of a block, which can be made again.

    Args:
        given: positional and named arguments.
        may_write: whether the block may write into them, so that copies are needed.
    """

    def __init__(
        self, block: nn.Module, inner: Callable[..., Any], given: tuple[Any, dict[str, Any]], *, may_write: bool
    ) -> None:
        self._block, self._inner, self._given = block, inner, given
        self._state = _State(list(block.modules()))
        self._copies = _each(given, _copy) if may_write else None
        self._versions = _versions(given)
        self._is_first = True

    def contexts(self) -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
        """Return what the first pass and the later ones are made in."""
        return contextlib.nullcontext(), self._state

    def __call__(self, _: Tensor) -> Any:
        args, kwargs = self._given if self._is_first else self._anew()
        self._is_first = False
        return self._inner(*args, **kwargs)

    def settle(self) -> bool:
        """Keep what the later passes need and no more; return whether the first one wrote into its arguments."""
        wrote = _versions(self._given) != self._versions
        if wrote and self._copies is not None:
            self._given = self._copies
            self._versions = _versions(self._given)
        else:
            self._copies = None
        return wrote

    def _anew(self) -> tuple[Any, dict[str, Any]]:
        """Return the arguments as they were."""
        if _versions(self._given) != self._versions:
            raise InputError(
                f"The input of a block of the network ({type(self._block).__name__}) is written into after the block's "
                "pass, which can then not be made again (as in x += block(x)); write x = x + block(x) there, or set "
                "train.checkpointing to false."
            )
        if self._copies is None:
            return _each(self._given, lambda tensor: tensor.detach().requires_grad_(tensor.requires_grad))
        # A leaf that requires a gradient cannot be written to, and the copy itself is for a third pass.
        return _each(self._given, lambda tensor: tensor.clone())


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)


def _each(given: Any, function: Callable[[Tensor], Any]) -> Any:
    """Return nested values with `function` of every tensor; of a tensor that is there several times, one result."""
    known: dict[int, Any] = {}

    def once(tensor: Tensor) -> Any:
        if id(tensor) not in known:
            known[id(tensor)] = function(tensor)
        return known[id(tensor)]

    return tree_map_only(Tensor, once, given)


def _versions(given: Any) -> list[int]:
    """Return how often each tensor has been written to."""
    leaves = (leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor))
    return [0 if leaf.is_inference() else leaf._version for leaf in leaves]


class _State:
    """The state that a pass through modules begins in, parameters excepted; within it, modules are in that state again.

    Torch's own random state and autocast are not in it: `torch.utils.checkpoint` sees to them.
    """

    def __init__(self, modules: list[nn.Module]) -> None:
        self._modules = modules
        self._attributes = [_own(module) for module in modules]
        self._buffers = [_cloned(module._buffers) for module in modules]
        held = (value for own in self._attributes for value in own.values() if isinstance(value, torch.Generator))
        self._generators = {generator: generator.get_state() for generator in held}
        self._others = random.getstate(), np.random.get_state()
        self._present: list[Any] = []

    def __enter__(self) -> None:
        attributes = [{key: vars(module)[key] for key in _keys(module)} for module in self._modules]
        buffers = [dict(module._buffers) for module in self._modules]
        generators = {generator: generator.get_state() for generator in self._generators}
        self._present.append((attributes, buffers, generators, (random.getstate(), np.random.get_state())))
        # Copies of the copies: there may be a third pass.
        for module, own, values in zip(self._modules, self._attributes, self._buffers, strict=True):
            _put(module, {key: _shallow(value) for key, value in own.items()}, _cloned(values))
        self._set(self._generators, self._others)

    def __exit__(self, *_: object) -> None:
        attributes, buffers, generators, others = self._present.pop()
        for module, own, values in zip(self._modules, attributes, buffers, strict=True):
            _put(module, own, values)
        self._set(generators, others)

    def _set(self, generators: dict[torch.Generator, Tensor], others: tuple[Any, Any]) -> None:
        for generator, state in generators.items():
            generator.set_state(state)
        random.setstate(others[0])
        np.random.set_state(others[1])


def _keys(module: nn.Module) -> list[str]:
    return [key for key in vars(module) if key not in _OF_EVERY_MODULE]


def _own(module: nn.Module) -> dict[str, Any]:
    """Return the attributes of a module that are not torch's, as a pass cannot change them."""
    return {key: _shallow(vars(module)[key]) for key in _keys(module)}


def _shallow(value: Any) -> Any:
    return copy.copy(value) if isinstance(value, list | dict | set | deque) else value


def _cloned(buffers: dict[str, Tensor | None]) -> dict[str, Tensor | None]:
    return {name: None if buffer is None else buffer.detach().clone() for name, buffer in buffers.items()}


def _put(module: nn.Module, attributes: dict[str, Any], buffers: dict[str, Tensor | None]) -> None:
    for key in _keys(module):
        del vars(module)[key]
    vars(module).update(attributes)
    module._buffers.clear()
    module._buffers.update(buffers)
