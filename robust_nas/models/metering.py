"""The operations and the memory of a call, counted as torch performs it; on the meta device without performing it."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
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
        self._kept = [*known]
        self._seen = {tensor.untyped_storage()._cdata for tensor in self._kept}
        self._memory: dict[Any, Any] = {} if memory is None else memory

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = self._result(func, args, kwargs)
        if (formula := flop_registry.get(func.overloadpacket)) is not None:
            self.flops += formula(*args, **kwargs, out_val=result)
        outputs = [value for value in _several(result) if isinstance(value, Tensor)]
        for tensor in outputs:
            self._hold(tensor.untyped_storage())
        if not _is_view(func):
            self.kernels += 1
            read = (value for value in args for value in _several(value) if isinstance(value, Tensor))
            self.traffic += sum(tensor.numel() * tensor.element_size() for tensor in (*outputs, *read))
        return result

    def _hold(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._seen:
            self._seen.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._let_go, key, size)

    def _let_go(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size

    def _result(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Call an operation; or, on the meta device, give what an equal call gave."""
        first = next((value for value in args if isinstance(value, Tensor)), None)
        if first is None or first.device.type != "meta":
            return func(*args, **kwargs)
        returned = func._schema.returns
        if len(returned) == 1 and (alias := returned[0].alias_info) is not None and alias.is_write:
            return args[0] if isinstance(args[0], Tensor) else func(*args, **kwargs)
        if any(each.alias_info is not None for each in returned):
            return func(*args, **kwargs)
        key = (func, _form(args), _form(tuple(kwargs.items())))
        if (form := self._memory.get(key)) is None:
            result = func(*args, **kwargs)
            if all(value is None or isinstance(value, Tensor) for value in _several(result)):
                self._memory[key] = (isinstance(result, Tensor), [_form(value) for value in _several(result)])
            return result
        alone, forms = form
        made = [each and torch.empty_strided(each[0], each[1], dtype=each[2], device="meta") for each in forms]
        return made[0] if alone else tuple(made)


def _several(value: Any) -> Any:
    return value if isinstance(value, tuple | list) else (value,)


def _form(value: Any) -> Any:
    """Return what an operation's result on the meta device depends on: of tensors, shape, strides and type."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype
    return tuple(map(_form, value)) if isinstance(value, tuple | list) else value


def _is_view(func: Any) -> bool:
    """Whether an operation returns its input in another form, and computes nothing."""
    aliases = [each.alias_info for each in func._schema.returns]
    return bool(aliases) and all(alias is not None and not alias.is_write for alias in aliases)


def size_of(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of tensors, those that share a storage counted once."""
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


@dataclass(frozen=True)
class Pass:
    """A forward and a backward pass of a batch, as a `Meter` saw it.

    Args:
        images: of the batch.
        forward_flops: multiplications and additions of the forward pass.
        flops: of both.
        kernels: operations that compute something.
        traffic: bytes that these read and write.
        kept: bytes that autograd keeps for the backward pass when the forward pass is done.
        forward_peak: the most bytes of the forward pass beside the weights.
        peak: of both, with the gradients that the backward pass leaves.
        blocks: of each call of a block that was asked about, the bytes that it adds to what is kept.
    """

    images: int
    forward_flops: int
    flops: int
    kernels: int
    traffic: int
    kept: int
    forward_peak: int
    peak: int
    blocks: tuple[int, ...] = ()


def measure_pass(
    model: nn.Module,
    images: Tensor,
    *,
    blocks: Sequence[nn.Module] = (),
    memory: dict[Any, Any] | None = None,
) -> Pass:
    """Count a forward pass of images [B, C, H, W] and the backward pass of their cross-entropy.

    Gradients are of the weights that require some, and of the images, if they do; those of the weights are there
    afterwards. A model and images on the meta device cost no memory.

    Args:
        blocks: modules of the model whose own memory is wanted.
        memory: as a `Meter` has it.
    """
    labels = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    meter = Meter(chain(model.parameters(), model.buffers(), (images, labels)), memory)
    with torch.enable_grad(), _growth(blocks, meter) as grown, meter:
        loss = F.cross_entropy(logits_of(model, images).float(), labels)
        forward_flops, forward_peak, kept = meter.flops, meter.peak, meter.live - loss.element_size()
        loss.backward()  # type: ignore[no-untyped-call]
    return Pass(
        len(images),
        forward_flops,
        meter.flops,
        meter.kernels,
        meter.traffic,
        kept,
        forward_peak,
        meter.peak,
        tuple(grown),
    )


@contextlib.contextmanager
def _growth(blocks: Sequence[nn.Module], meter: Meter) -> Iterator[list[int]]:
    """Give a list of the bytes by which each call of a block adds to what is held."""
    found: list[int] = []
    begun: list[int] = []

    def begin(_module: nn.Module, _inputs: Any) -> None:
        begun.append(meter.live)

    def end(_module: nn.Module, _inputs: Any, _output: Any) -> None:
        found.append(meter.live - begun.pop())

    handles = [block.register_forward_pre_hook(begin) for block in blocks]
    handles += [block.register_forward_hook(end) for block in blocks]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
