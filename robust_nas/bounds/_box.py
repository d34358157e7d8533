"""A box of tensors that runs through an unmodified `nn.Module` and comes out as bounds on its outputs.

A `Box` is a tensor to the module, and stands for every tensor between `lower` and `upper`. Each operation on it is
answered by a rule below, or refused by name: an operation without a rule never returns a number, whichever way the
module calls it. (A library that fell back to a plausible rule gave bounds that did not hold for average pooling with
`count_include_pad=False`.)

The tensors of a box are never written to. Operations in place give the box object new ones, so that every name the
module has for it sees the change; a box that shares memory with another (a view) refuses them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import resolve_name

from robust_nas.errors import InputError

_Rule = Callable[..., Any]


@dataclass(frozen=True)
class LinearTerm:
    """A summand `hidden @ weight.T + bias` of logits, with `hidden` anywhere in its own box.

    Args:
        lower: [B, F], the hidden features' lower bounds.
        upper: [B, F], their upper bounds.
        weight: [K, F].
        bias: [K] or [B, K], or a number.
    """

    lower: Tensor
    upper: Tensor
    weight: Tensor
    bias: Tensor | float


class Box(Tensor):
    """All tensors x with lower <= x <= upper, element by element.

    Args:
        lower: the lower bounds, of any shape.
        upper: the upper bounds, of the same shape and type.
        terms: where the values are known to be a sum of linear functions of boxes (a network's logits, or an
            ensemble's), those functions: margins between logits are tighter on them than on the logits' own box.
    """

    lower: Tensor
    upper: Tensor
    terms: tuple[LinearTerm, ...]
    shares_memory: bool

    @staticmethod
    def __new__(cls, lower: Tensor, upper: Tensor, terms: Sequence[LinearTerm] = ()) -> Box:
        box: Box = torch.Tensor._make_wrapper_subclass(cls, lower.shape, dtype=lower.dtype, device=lower.device)
        return box

    def __init__(self, lower: Tensor, upper: Tensor, terms: Sequence[LinearTerm] = ()) -> None:
        assert lower.shape == upper.shape and lower.dtype == upper.dtype
        self.lower, self.upper, self.terms, self.shares_memory = lower, upper, tuple(terms), False

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"Box(lower={self.lower}, upper={self.upper})"

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = resolve_name(func) or getattr(func, "__name__", repr(func))
        if name in _METADATA:
            return func(args[0].lower, *args[1:], **kwargs)
        namespace, _, operation = name.rpartition(".")
        in_place = operation in _IN_PLACE
        rule = _RULES.get(operation.removesuffix("_") if in_place else operation)
        if rule is None or namespace not in _NAMESPACES:
            raise _no_rule(name)
        try:
            call = inspect.signature(rule).bind(*args, **kwargs)
        except TypeError:
            raise _no_rule(f"{name} with these arguments ({', '.join(kwargs) or 'by position'})") from None
        num_operands = 2 if rule in _OF_TWO else 1
        if _any_box([*call.args[num_operands:], *call.kwargs.values()]):
            raise _no_rule(f"{name} with a perturbed parameter")
        result = rule(*call.args, **call.kwargs)
        return _assign(call.args[0], result, name) if in_place else result

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        # Reached only by code that goes round __torch_function__, such as compiled operations.
        raise _no_rule(str(func))


def _no_rule(operation: str) -> InputError:
    return InputError(
        f"Interval bounds have no sound rule for {operation}; write the model with other operations, "
        "or use another kind of bound."
    )


def _any_box(values: Sequence[Any]) -> bool:
    return any(isinstance(v, Box) or (isinstance(v, list | tuple) and _any_box(v)) for v in values)


def _assign(box: Any, result: Box, name: str) -> Box:
    """Let `box` become `result`, as an operation in place does."""
    if not isinstance(box, Box) or box.shares_memory or box.shape != result.shape or box.dtype != result.dtype:
        raise _no_rule(f"{name}, in place on a constant or on a tensor that has views")
    box.lower, box.upper, box.terms = result.lower, result.upper, result.terms
    return box


# --- linear operations: centre and radius ---------------------------------------------------------------------------


def _centre_and_radius(box: Box) -> tuple[Tensor, Tensor]:
    return (box.lower + box.upper) / 2, (box.upper - box.lower) / 2


def _around(centre: Tensor, radius: Tensor, terms: Sequence[LinearTerm] = ()) -> Box:
    return Box(centre - radius, centre + radius, terms)


def _conv2d(
    input: Box,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Box:
    centre, radius = _centre_and_radius(input)
    return _around(
        F.conv2d(centre, weight, bias, stride, padding, dilation, groups),
        F.conv2d(radius, weight.abs(), None, stride, padding, dilation, groups),
    )


def _linear(input: Box, weight: Tensor, bias: Tensor | None = None) -> Box:
    centre, radius = _centre_and_radius(input)
    term = LinearTerm(input.lower, input.upper, weight, 0.0 if bias is None else bias)
    terms = (term,) if input.lower.ndim == 2 else ()
    return _around(F.linear(centre, weight, bias), F.linear(radius, weight.abs()), terms)


def _batch_norm(
    input: Box,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Box:
    if training or running_mean is None or running_var is None:
        # The batch's own statistics move with the perturbation, and the images of a batch with each other.
        raise _no_rule("batch normalisation with batch statistics")
    centre, radius = _centre_and_radius(input)
    scale = (running_var + eps).rsqrt()
    scale = scale.abs() if weight is None else (scale * weight).abs()
    return _around(
        F.batch_norm(centre, running_mean, running_var, weight, bias, False, momentum, eps),
        radius * scale.view(-1, *[1] * (radius.ndim - 2)),
    )


# --- operations that never decrease: the bounds pass through --------------------------------------------------------


def _both(box: Box, function: Callable[[Tensor], Tensor]) -> Box:
    return Box(function(box.lower), function(box.upper))


def _relu(input: Box, inplace: bool = False) -> Box:
    result = _both(input, F.relu)
    return _assign(input, result, "relu") if inplace else result


def _leaky_relu(input: Box, negative_slope: float = 0.01, inplace: bool = False) -> Box:
    if not negative_slope >= 0:
        raise _no_rule("leaky_relu with a negative slope below 0")
    result = _both(input, lambda bound: F.leaky_relu(bound, negative_slope))
    return _assign(input, result, "leaky_relu") if inplace else result


def _hardtanh(input: Box, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Box:
    result = _both(input, lambda bound: bound.clamp(min_val, max_val))
    return _assign(input, result, "hardtanh") if inplace else result


def _clamp(input: Box, min: Any = None, max: Any = None) -> Box:
    return _both(input, lambda bound: torch.clamp(bound, min, max))


def _avg_pool2d(
    input: Box,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Box:
    if divisor_override is not None and divisor_override <= 0:
        raise _no_rule("avg_pool2d with a negative divisor")
    options = (kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
    return _both(input, lambda bound: F.avg_pool2d(bound, *options))


def _max_pool2d(
    input: Box, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False,
    return_indices: bool = False,
) -> Box:  # fmt: skip
    if return_indices:
        raise _no_rule("max_pool2d with return_indices")
    return _both(input, lambda bound: F.max_pool2d(bound, kernel_size, stride, padding, dilation, ceil_mode))


def _passes_through(function: Callable[..., Tensor]) -> _Rule:
    """Return the rule of a function that does not decrease in its first argument and gives new memory."""

    def rule(input: Box, *args: Any, **kwargs: Any) -> Box:
        # A narrower type would round the bounds; `out` would write to somebody's tensor.
        if {"dtype", "out"} & kwargs.keys() or any(isinstance(arg, torch.dtype) for arg in args):
            raise _no_rule(f"{function.__name__} with dtype or out")
        return _both(input, lambda bound: function(bound, *args, **kwargs))

    return rule


def _view(function: Callable[..., Tensor]) -> _Rule:
    """Return the rule of a function whose result may share its argument's memory."""

    def rule(input: Box, *args: Any, **kwargs: Any) -> Box:
        result: Box = _passes_through(function)(input, *args, **kwargs)
        input.shares_memory = result.shares_memory = True
        return result

    return rule


def _dropout(input: Box, p: float = 0.5, training: bool = True, inplace: bool = False) -> Box:
    if training:
        raise _no_rule("dropout in training mode")
    return input


def _to(input: Box, *args: Any, **kwargs: Any) -> Box:
    result = _both(input, lambda bound: bound.to(*args, **kwargs))
    if result.lower.dtype != input.lower.dtype:
        raise _no_rule(f"a conversion from {input.lower.dtype} to {result.lower.dtype}, which rounds the bounds")
    return input if result.lower is input.lower else result


def _join(function: Callable[..., Tensor]) -> _Rule:
    """Return the rule of `torch.cat` or `torch.stack`."""

    def rule(tensors: Sequence[Tensor], dim: int = 0) -> Box:
        lower = [tensor.lower if isinstance(tensor, Box) else tensor for tensor in tensors]
        upper = [tensor.upper if isinstance(tensor, Box) else tensor for tensor in tensors]
        return Box(function(lower, dim), function(upper, dim))

    return rule


def _zeros_like(input: Box) -> Box:
    return _both(input, torch.zeros_like)


# --- arithmetic -----------------------------------------------------------------------------------------------------


def _check_operand(value: Any) -> None:
    if not isinstance(value, Tensor | int | float):
        raise _no_rule(f"arithmetic with {type(value).__name__}")


def _neg(input: Box) -> Box:
    return Box(
        -input.upper, -input.lower, [replace(term, weight=-term.weight, bias=-term.bias) for term in input.terms]
    )


def _add(input: Any, other: Any, *, alpha: float = 1) -> Box:
    _check_operand(input)
    _check_operand(other)
    if alpha != 1:
        other = _mul(other, alpha) if isinstance(other, Box) else other * alpha
    if isinstance(input, Box) and isinstance(other, Box):
        lower, upper = input.lower + other.lower, input.upper + other.upper
        known = bool(input.terms and other.terms) and input.lower.shape == other.lower.shape
        return Box(lower, upper, input.terms + other.terms if known else ())
    box, constant = (input, other) if isinstance(input, Box) else (other, input)
    lower, upper = box.lower + constant, box.upper + constant
    terms: tuple[LinearTerm, ...] = ()
    if box.terms and lower.shape == box.lower.shape:
        terms = (replace(box.terms[0], bias=box.terms[0].bias + constant), *box.terms[1:])
    return Box(lower, upper, terms)


def _sub(input: Any, other: Any, *, alpha: float = 1) -> Box:
    _check_operand(input)
    _check_operand(other)
    return _add(input, _neg(other) if isinstance(other, Box) else -other, alpha=alpha)


def _rsub(input: Any, other: Any) -> Box:
    return _sub(other, input)


def _mul(input: Any, other: Any) -> Box:
    _check_operand(input)
    _check_operand(other)
    if isinstance(input, Box) and isinstance(other, Box):
        ends = [a * b for a in (input.lower, input.upper) for b in (other.lower, other.upper)]
        return Box(
            torch.minimum(torch.minimum(ends[0], ends[1]), torch.minimum(ends[2], ends[3])),
            torch.maximum(torch.maximum(ends[0], ends[1]), torch.maximum(ends[2], ends[3])),
        )
    box, constant = (input, other) if isinstance(input, Box) else (other, input)
    return _scaled(box, constant, lambda value: value * constant)


def _div(input: Any, other: Any, *, rounding_mode: str | None = None) -> Box:
    _check_operand(other)
    if rounding_mode is not None or not isinstance(input, Box) or isinstance(other, Box):
        raise _no_rule("a division that rounds or has a perturbed divisor")
    return _scaled(input, other, lambda value: value / other)


def _scaled(box: Box, constant: Tensor | float, scale: Callable[[Any], Any]) -> Box:
    ends = scale(box.lower), scale(box.upper)
    terms: Sequence[LinearTerm] = ()
    if not isinstance(constant, Tensor) or (constant.numel() == 1 and constant.ndim <= 2):
        terms = [replace(term, weight=scale(term.weight), bias=scale(term.bias)) for term in box.terms]
    return Box(torch.minimum(*ends), torch.maximum(*ends), terms)


# --- the rules, by the operation's name in torch, torch.Tensor and torch.nn.functional ------------------------------

_NAMESPACES = {"torch", "torch.Tensor", "torch.nn.functional"}
_METADATA = {
    f"torch.Tensor.{name}.__get__" for name in ("shape", "ndim", "dtype", "device", "requires_grad", "is_cuda")
}
_METADATA |= {f"torch.Tensor.{name}" for name in ("dim", "size", "numel", "__len__", "is_floating_point")}
_METADATA |= {"torch.numel", "torch.is_floating_point", "torch.Tensor.new_zeros"}
_RULES: dict[str, _Rule] = {
    "conv2d": _conv2d,
    "linear": _linear,
    "batch_norm": _batch_norm,
    "relu": _relu,
    "leaky_relu": _leaky_relu,
    "hardtanh": _hardtanh,
    "clamp": _clamp,
    "avg_pool2d": _avg_pool2d,
    "max_pool2d": _max_pool2d,
    "dropout": _dropout,
    "to": _to,
    "cat": _join(torch.cat),
    "stack": _join(torch.stack),
    "zeros_like": _zeros_like,
    "neg": _neg,
    "add": _add,
    "sub": _sub,
    "__rsub__": _rsub,
    "mul": _mul,
    "div": _div,
    "pad": _passes_through(F.pad),
    "adaptive_avg_pool2d": _passes_through(F.adaptive_avg_pool2d),
    "sigmoid": _passes_through(torch.sigmoid),
    "tanh": _passes_through(torch.tanh),
    "mean": _passes_through(torch.mean),
    "sum": _passes_through(torch.sum),
    **{
        name: _view(getattr(Tensor, name))
        for name in ("view", "reshape", "flatten", "permute", "transpose", "squeeze", "unsqueeze", "expand")
    },
    **{name: _view(getattr(Tensor, name)) for name in ("contiguous", "detach", "__getitem__")},
}
_IN_PLACE = {"relu_", "add_", "sub_", "mul_", "div_", "clamp_"}
_OF_TWO = {_add, _sub, _rsub, _mul, _div}
"""The rules whose second argument may be a box too; for the others, the first alone."""
