"""The operations and the memory of a call, counted as torch performs it; on the meta device without performing it."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from robust_nas.models.scores import logits_of


class Meter(TorchDispatchMode):
    """Counts what is computed and what is kept, within a `with` block.

    Multiplications are counted by torch's own formulas. Not by its `FlopCounterMode`: what that does to assign
    operations to modules fails in `autograd.grad` to the images. Memory is that of all tensors made inside the block,
    storage by storage, until torch lets go of them; what a kernel takes while it runs is not seen.

    On the meta device, of which only shapes come, equal calls are answered from memory, and nothing is written: some of
    its kernels are thousands of lines of Python.

    Args:
        known: tensors that are there already, and are not counted.
        memory: answers of the meta device, to be shared by several meters.
    """

    def __init__(self, known: Iterable[Tensor] = (), memory: dict[Any, Any] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0
        """Multiplications and additions of convolutions and matrix products."""
        self.kernels = 0
        """Operations that compute something."""
        self.traffic = 0
        """Bytes that these read and write."""
        self.live = 0
        """Bytes held now."""
        self.peak = 0
        """The most bytes that were held at once."""
        self._known = [*known]  # so that no other tensor takes their place
        self._seen = {tensor.untyped_storage()._cdata for tensor in self._known}
        self._held: dict[int, Any] = {}
        self._memory: dict[Any, Any] = {} if memory is None else memory

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kind = _kind(func)
        result = self._result(func, kind, args, kwargs or {})
        if kind.formula is not None:
            self.flops += kind.formula(*args, **(kwargs or {}), out_val=result)
        outputs = [result] if isinstance(result, Tensor) else [each for each in _several(result) if _is_tensor(each)]
        for tensor in outputs:
            self._hold(tensor.untyped_storage())
        if not kind.views:
            self.kernels += 1
            for value in (*outputs, *args):
                for each in _several(value):
                    if isinstance(each, Tensor):
                        self.traffic += each.numel() * each.element_size()
        return result

    def _hold(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._seen:
            return
        size = storage.nbytes()
        self._seen.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)

        def let_go(_: Any) -> None:
            self._seen.discard(key)
            self._held.pop(key, None)
            self.live -= size

        self._held[key] = weakref.ref(storage, let_go)

    def _result(self, func: Any, kind: _Kind, args: Any, kwargs: Any) -> Any:
        """Call an operation; or, on the meta device, give what an equal call gave."""
        if not args or not isinstance(args[0], Tensor) or not args[0].is_meta or kind.views:
            return func(*args, **kwargs)
        if kind.writes:
            return args[0]
        key = (func, _form(args), _form(tuple(kwargs.items())) if kwargs else ())
        if (form := self._memory.get(key)) is None:
            result = func(*args, **kwargs)
            if all(value is None or isinstance(value, Tensor) for value in _several(result)):
                self._memory[key] = (isinstance(result, Tensor), [_form(value) for value in _several(result)])
            return result
        alone, forms = form
        made = [each and torch.empty_strided(each[0], each[1], dtype=each[2], device="meta") for each in forms]
        return made[0] if alone else tuple(made)


@dataclass(frozen=True)
class _Kind:
    """An operation's ways.

    Args:
        formula: of its multiplications and additions.
        views: whether it returns its input in another form, and computes nothing.
        writes: whether it returns its first input, into which it has written.
    """

    formula: Callable[..., int] | None
    views: bool
    writes: bool


@cache
def _kind(func: Any) -> _Kind:
    aliases = [each.alias_info for each in func._schema.returns]
    return _Kind(
        formula=flop_registry.get(func.overloadpacket),
        views=bool(aliases) and all(alias is not None and not alias.is_write for alias in aliases),
        writes=len(aliases) == 1 and aliases[0] is not None and aliases[0].is_write,
    )


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _several(value: Any) -> Any:
    return value if isinstance(value, tuple | list) else (value,)


def _form(value: Any) -> Any:
    """Return what an operation's result on the meta device depends on: of tensors, shape, strides and type."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype
    return tuple([_form(each) for each in value]) if isinstance(value, tuple | list) else value


def size_of(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of tensors, those that share a storage counted once."""
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


@dataclass(frozen=True)
class Pass:
    """A forward pass of a batch, and the backward pass of its cross-entropy, as a `Meter` saw them.

    Args:
        images: of the batch.
        forward_flops: multiplications and additions of the forward pass.
        flops: of both.
        kernels: operations that compute something.
        traffic: bytes that these read and write.
        kept: bytes that autograd keeps for the backward pass when the forward pass is done.
        forward_peak: the most bytes of the forward pass beside the weights.
        peak: of both, with the gradients that the backward pass leaves.
        blocks: of the blocks that were asked about.
    """

    images: int
    forward_flops: int
    flops: int
    kernels: int
    traffic: int
    kept: int
    forward_peak: int
    peak: int
    blocks: Blocks | None


@dataclass
class Blocks:
    """The memory of the blocks of a model in a forward pass, in bytes.

    Args:
        kept: what they keep for the backward pass, with their outputs.
        largest: what the largest one keeps.
        between: outputs of blocks that are inputs of others.
        checkpointed: the most that is held when one block after the other is computed again and differentiated, from
            the last one on: what was kept before it, outside of blocks, its own, and the gradients of two layers.
    """

    kept: int = 0
    largest: int = 0
    between: int = 0
    checkpointed: int = 0


def measure_pass(
    model: nn.Module,
    images: Tensor,
    *,
    blocks: Sequence[nn.Module] = (),
    backward: bool = True,
    memory: dict[Any, Any] | None = None,
) -> Pass:
    """Count a forward pass of images [B, C, H, W] and the backward pass of their cross-entropy.

    Gradients are of the weights that require some, and of the images, if they do; those of the weights are there
    afterwards. A model and images on the meta device cost no memory.

    Args:
        blocks: modules of the model whose own memory is wanted.
        backward: whether there is a backward pass.
        memory: as a `Meter` has it.
    """
    labels = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    meter = Meter(chain(model.parameters(), model.buffers(), (images, labels)), memory)
    with torch.enable_grad(), _watched(blocks, meter) as found, meter:
        loss = F.cross_entropy(logits_of(model, images).float(), labels)
        forward_flops, forward_peak, kept = meter.flops, meter.peak, meter.live - loss.element_size()
        if backward:
            loss.backward()
    return Pass(
        len(images),
        forward_flops,
        meter.flops,
        meter.kernels,
        meter.traffic,
        kept,
        forward_peak,
        meter.peak,
        found if blocks else None,
    )


@contextlib.contextmanager
def _watched(blocks: Sequence[nn.Module], meter: Meter) -> Iterator[Blocks]:
    """Give the memory of blocks, filled in as they are called."""
    found = Blocks()
    begun: list[int] = []
    outputs: dict[int, int] = {}

    def begin(_module: nn.Module, inputs: Any) -> None:
        begun.append(meter.live)
        for value in inputs:
            if isinstance(value, Tensor):
                found.between += outputs.pop(value.untyped_storage()._cdata, 0)

    def end(_module: nn.Module, _inputs: Any, output: Any) -> None:
        before = begun.pop()
        grown, size = meter.live - before, 0
        if isinstance(output, Tensor):
            storage = output.untyped_storage()
            size = outputs[storage._cdata] = storage.nbytes()
        outside = before - found.kept + found.between
        found.kept += grown
        found.largest = max(found.largest, grown)
        found.checkpointed = max(found.checkpointed, outside + grown + 2 * size)

    handles = [block.register_forward_pre_hook(begin) for block in blocks]
    handles += [block.register_forward_hook(end) for block in blocks]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
