"""A box of tensors that runs through an unmodified `nn.Module` and comes out as bounds on its outputs.

A `Box` is a tensor to the module, and stands for every tensor between `lower` and `upper`. Each operation on it is
answered by a rule of `_rules.py`, or refused by name: an operation without a rule never returns a number, whichever
way the module calls it. (A library that fell back to a plausible rule gave bounds that did not hold for average pooling
with `count_include_pad=False`.)

The tensors of a box are never written to. Operations in place give the box object new ones, so that every name the
module has for it sees the change; a box that shares memory with another (a view) refuses them.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.overrides import resolve_name

from robust_nas.bounds._graph import Leaf, Node, Relu
from robust_nas.bounds._memory import memory
from robust_nas.core.errors import InputError

Rule = Callable[..., Any]
"""The rule of an operation on boxes, with the signature that torch gives the operation."""

Refine = Callable[[Node, Tensor, Tensor], tuple[Tensor, Tensor]]
"""A ReLU's input and its lower and upper bounds [B, *shape] to bounds that are at least as tight."""


class Trace:
    """The conversion of ReLUs to nodes of the graph; without it, a ReLU's result is known by its bounds alone.

    ReLUs of the same value are one node: apart, their lines would be chosen apart.

    Args:
        refine: gives the bounds of a ReLU's input; its interval bounds, if None.
    """

    def __init__(self, refine: Refine | None = None) -> None:
        self._refine = refine
        self.relus: dict[tuple[Node, float], Relu] = {}

    def relu(self, box: Box, slope: float) -> Relu:
        """Return the node of max(z, slope z)."""
        if (box.node, slope) not in self.relus:
            lower, upper = box.lower, box.upper
            if self._refine is not None:
                lower, upper = self._refine(box.node, lower, upper)
            memory().hold(_RELU * lower.numel(), len(lower))
            self.relus[box.node, slope] = Relu(box.lower.shape, box.node, lower, upper, slope)
        return self.relus[box.node, slope]


_RELU = 12
"""Numbers that are held for every one that goes through a ReLU: bounds, lines, what is made of them, boxes around."""


TRACE: ContextVar[Trace | None] = ContextVar("trace", default=None)


@contextlib.contextmanager
def tracing(trace: Trace) -> Iterator[None]:
    """Let ReLUs of boxes be nodes of the graph."""
    token = TRACE.set(trace)
    try:
        yield
    finally:
        TRACE.reset(token)


class Box(Tensor):
    """All tensors x with lower <= x <= upper, element by element.

    Args:
        lower: the lower bounds, of any shape.
        upper: the upper bounds, of the same shape and type.
        node: what the values were computed from: margins between logits are tighter on that than on the logits' own
            box. If not given, the values are known by their bounds alone.
    """

    node: Node
    shares_memory: bool

    @staticmethod
    def __new__(cls, lower: Tensor, upper: Tensor, node: Node | None = None) -> Box:
        box: Box = torch.Tensor._make_wrapper_subclass(cls, lower.shape, dtype=lower.dtype, device=lower.device)
        return box

    def __init__(self, lower: Tensor, upper: Tensor, node: Node | None = None) -> None:
        assert lower.shape == upper.shape and lower.dtype == upper.dtype
        self._ends, self._centred, self.shares_memory = (lower, upper), False, False
        self.node = Leaf(lower.shape, lower, upper) if node is None else node

    @classmethod
    def around(cls, centre: Tensor, radius: Tensor, node: Node) -> Box:
        """Return the box of the points no further than `radius` from `centre`, element by element.

        It keeps these two until it is asked for its bounds: linear operations one after the other need none.
        """
        box = cls(centre, radius, node)
        box._centred = True
        return box

    @property
    def lower(self) -> Tensor:
        """The lower bounds."""
        return self._bounds()[0]

    @property
    def upper(self) -> Tensor:
        """The upper bounds."""
        return self._bounds()[1]

    def _bounds(self) -> tuple[Tensor, Tensor]:
        if self._centred:
            centre, radius = self._ends
            self._ends, self._centred = (centre - radius, centre + radius), False
        return self._ends

    def centre_and_radius(self) -> tuple[Tensor, Tensor]:
        """Return (lower + upper) / 2 and (upper - lower) / 2."""
        if self._centred:
            return self._ends
        lower, upper = self._ends
        return (lower + upper) / 2, (upper - lower) / 2

    def copy(self) -> Box:
        """Return another box of the same value: one stays as it is when the other becomes something else."""
        copied = Box(*self._ends, self.node)
        copied._centred = self._centred
        return copied

    def become(self, other: Box) -> None:
        """Be another box, for every name that this one has."""
        self._ends, self._centred, self.node = other._ends, other._centred, other.node

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"Box(lower={self.lower}, upper={self.upper})"

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        from robust_nas.bounds._rules import OF_TWO, RULES  # they are made of boxes

        kwargs = kwargs or {}
        name = _name(func)
        if name in _METADATA:
            return func(args[0]._ends[0], *args[1:], **kwargs)
        operation, in_place = operation_of(func)
        rule = RULES.get(operation)
        if rule is None:
            raise NoRule(name)
        if not _accepts(rule, len(args), tuple(kwargs)):
            raise NoRule(f"{name} with these arguments ({', '.join(kwargs) or 'by position'})")
        if in_autocast():
            raise NoRule(f"{name} under autocast, which rounds to fewer digits")
        operands = _arguments(rule)[: 2 if rule in OF_TWO else 1]
        others = [value for key, value in kwargs.items() if key not in operands]
        if _any_box([*args[len(operands) :], *others]):
            raise NoRule(f"{name} with a perturbed parameter")
        result = rule(*args, **kwargs)
        return assign(args[0] if args else kwargs[operands[0]], result, name) if in_place else result

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        # Reached only by code that goes round __torch_function__, such as compiled operations.
        raise NoRule(str(func))


@functools.lru_cache(maxsize=1024)
def _name(func: Any) -> str:
    """Return the name of an operation as torch spells it."""
    return resolve_name(func) or getattr(func, "__name__", repr(func))


@functools.lru_cache(maxsize=1024)
def operation_of(func: Any) -> tuple[str, bool]:
    """Return the name that an operation's rule has, if it has one, and whether the operation is done in place."""
    namespace, _, operation = _name(func).rpartition(".")
    in_place = operation in _IN_PLACE
    return (operation.removesuffix("_") if in_place else operation) if namespace in _NAMESPACES else "", in_place


@functools.cache
def _arguments(rule: Rule) -> tuple[str, ...]:
    """Return the names of a rule's arguments."""
    return tuple(inspect.signature(rule).parameters)


@functools.lru_cache(maxsize=1024)
def _accepts(rule: Rule, num_positional: int, keywords: tuple[str, ...]) -> bool:
    """Whether a rule can be called with so many arguments by position, and these by name."""
    try:
        inspect.signature(rule).bind(*[None] * num_positional, **dict.fromkeys(keywords))
    except TypeError:
        return False
    return True


class NoRule(InputError):
    """A network has an operation that nothing is proved about."""

    def __init__(self, operation: str) -> None:
        super().__init__(
            f"Bounds have no sound rule for {operation}; what is to be certified must be made of other operations."
        )


def in_autocast() -> bool:
    """Whether operations are computed in lower precision than their arguments, on any device."""
    return torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")


def _any_box(values: Sequence[Any]) -> bool:
    return any(isinstance(v, Box) or (isinstance(v, list | tuple) and _any_box(v)) for v in values)


def assign(box: Any, result: Box, name: str) -> Box:
    """Let `box` become `result`, as an operation in place does."""
    if not isinstance(box, Box) or box.shares_memory or box.shape != result.shape or box.dtype != result.dtype:
        raise NoRule(f"{name}, in place on a constant or on a tensor that has views")
    box.become(result)
    return box


_NAMESPACES = {"torch", "torch.Tensor", "torch.nn.functional"}
_METADATA = {
    f"torch.Tensor.{name}.__get__" for name in ("shape", "ndim", "dtype", "device", "requires_grad", "is_cuda")
}
_METADATA |= {f"torch.Tensor.{name}" for name in ("dim", "size", "numel", "__len__", "is_floating_point")}
_METADATA |= {"torch.numel", "torch.is_floating_point", "torch.Tensor.new_zeros"}
_IN_PLACE = {"relu_", "add_", "sub_", "mul_", "div_", "clamp_"}
