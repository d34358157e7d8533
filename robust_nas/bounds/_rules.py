"""The rules of torch's operations on a `Box`: linear ones, monotone ones, and those of two boxes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from robust_nas.bounds._box import TRACE, Box, NoRule, Rule, assign
from robust_nas.bounds._graph import Affine, Convolution, Node, convolution, linear_pull, linear_push
from robust_nas.models.average_pool import neighbourhood_sums, reciprocal_counts

# --- linear operations: centre and radius ---------------------------------------------------------------------------


def _conv2d(
    input: Box,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Box:
    centre, radius = input.centre_and_radius()
    weight, bias = _like(input, weight), _like(input, bias)
    centre = F.conv2d(centre, weight, bias, stride, padding, dilation, groups)
    radius = F.conv2d(radius, weight.abs(), None, stride, padding, dilation, groups)
    if isinstance(padding, str) or centre.ndim != 4:
        return Box(centre - radius, centre + radius)
    constant = None if bias is None else bias.view(1, -1, 1, 1)
    options = _pair(stride), _pair(padding), _pair(dilation), groups
    return Box.around(centre, radius, convolution(input.node, weight, constant, centre.shape, options))


def _like(box: Box, value: Any) -> Any:
    """Return a tensor of the network in the box's arithmetic, which one that is no parameter may not be in."""
    return value.to(box.dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _pair(value: Any) -> tuple[int, int]:
    first, *rest = value if isinstance(value, list | tuple) else (value,)
    return first, (rest[0] if rest else first)


def _linear(input: Box, weight: Tensor, bias: Tensor | None = None) -> Box:
    centre, radius = input.centre_and_radius()
    weight, bias = _like(input, weight), _like(input, bias)
    centre = F.linear(centre, weight, bias)
    node = Affine(
        centre.shape,
        (input.node,),
        lambda g: [g @ weight],
        lambda directions: F.linear(directions[0], weight),
        bias,
        (weight, bias),
    )
    return Box.around(centre, F.linear(radius, weight.abs()), node)


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
        raise NoRule("batch normalisation with batch statistics")
    centre, radius = input.centre_and_radius()
    # Not F.batch_norm, which has no gradient for the statistics: certified training shares those of a clean batch.
    scale = (running_var + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    shift = -running_mean * scale if bias is None else bias - running_mean * scale
    channels = (1, -1, *[1] * (centre.ndim - 2))
    scale, shift = scale.view(channels), shift.view(channels)
    node = _scaled_node(input.node, scale, shift, centre.shape)
    return Box.around(torch.addcmul(shift, centre, scale), radius * scale.abs(), node)


def _scaled_node(node: Node, scale: Tensor, shift: Tensor, shape: torch.Size) -> Node:
    """Return the node of scale * value + shift, both [1, C, 1, ...]; a convolution takes them in."""
    if isinstance(node, Convolution):
        constant = shift if node.constant is None else shift + scale * node.constant
        return convolution(node.parents[0], node.weight * scale.view(-1, 1, 1, 1), constant, shape, node.options)
    return Affine(shape, (node,), lambda g: [g * scale], lambda directions: directions[0] * scale, shift)


# --- operations that never decrease: the bounds pass through --------------------------------------------------------


def _both(box: Box, function: Callable[[Tensor], Tensor], *, linear: bool = False) -> Box:
    """Return the box between the function's values at both bounds.

    Args:
        linear: whether the function is linear, so that the result is a node of the graph.
    """
    lower, upper = function(box.lower), function(box.upper)
    if not linear:
        return Box(lower, upper)
    pull, push = linear_pull(function, box.shape), linear_push(function, box.shape)
    return Box(lower, upper, Affine(lower.shape, (box.node,), pull, push))


def _relu(input: Box, inplace: bool = False) -> Box:
    return _leaky_relu(input, 0.0, inplace)


def _leaky_relu(input: Box, negative_slope: float = 0.01, inplace: bool = False) -> Box:
    if not 0 <= negative_slope <= 1:
        raise NoRule("leaky_relu with a negative slope outside [0, 1]")
    trace = TRACE.get()
    node = trace.relu(input, negative_slope) if trace else None
    bounds = (input.lower, input.upper) if node is None else (node.lower, node.upper)
    lower, upper = (F.leaky_relu(bound, negative_slope) if negative_slope else F.relu(bound) for bound in bounds)
    result = Box(lower, upper, node)
    return assign(input, result, "leaky_relu" if negative_slope else "relu") if inplace else result


def _hardtanh(input: Box, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Box:
    result = _both(input, lambda bound: bound.clamp(min_val, max_val))
    return assign(input, result, "hardtanh") if inplace else result


_SILU_LEAST = (-1.278464542761074, -0.27846454276107385)
_GELU_LEAST = (-0.7517915246935645, -0.16997120747990369)
"""The minima of SiLU and GELU and their places: both fall as far as that place and grow from there on."""


def _silu(input: Box, inplace: bool = False) -> Box:
    if inplace:
        raise NoRule("silu in place")
    return _falls_and_grows(input, F.silu, *_SILU_LEAST)


def _gelu(input: Box, *, approximate: str = "none") -> Box:
    if approximate != "none":
        raise NoRule(f"gelu with approximate='{approximate}'")
    return _falls_and_grows(input, F.gelu, *_GELU_LEAST)


def _falls_and_grows(input: Box, function: Callable[[Tensor], Tensor], place: float, least: float) -> Box:
    lower, upper = function(input.lower), function(input.upper)
    inside = (input.lower <= place) & (place <= input.upper)
    smaller = torch.minimum(lower, upper)
    return Box(torch.where(inside, smaller.clamp(max=least), smaller), torch.maximum(lower, upper))


_LARGEST_THRESHOLD = 700.0
"""Of softplus; exponentials of more overflow."""


def _softplus(input: Box, beta: float = 1.0, threshold: float = 20.0) -> Box:
    if not (beta > 0 and 0 <= threshold <= _LARGEST_THRESHOLD):
        raise NoRule(f"softplus with beta={beta} and threshold={threshold}")
    # Beyond this place torch gives the input itself, which is less: the values grow on both sides of a step down.
    place = threshold / beta
    top = math.log1p(math.exp(threshold)) / beta
    lower, upper = (F.softplus(bound, beta, threshold) for bound in (input.lower, input.upper))
    steps = (input.lower * beta <= threshold) & (input.upper * beta > threshold)
    return Box(torch.where(steps, lower.clamp(max=place), lower), torch.where(steps, upper.clamp(min=top), upper))


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
        raise NoRule("avg_pool2d with a negative divisor")
    options = (kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)

    if options == (3, 1, 1, False, False, None) and input.ndim == 4:
        return _neighbourhood_mean(input)
    lower, upper = (F.avg_pool2d(bound, *options) for bound in (input.lower, input.upper))
    shape = input.shape
    sizes = _pair(kernel_size), _pair(kernel_size if stride is None else stride), _pair(padding)

    def pull(coefficients: Tensor) -> list[Tensor]:
        flat = coefficients.flatten(0, 1)
        # Of the images only the shape is looked at.
        images = flat.new_zeros(()).expand(len(flat), *shape[1:])
        pulled = torch.ops.aten.avg_pool2d_backward(flat, images, *sizes, *options[3:])
        return [pulled.unflatten(0, coefficients.shape[:2])]

    def push(directions: Sequence[Tensor]) -> Tensor:
        flat = F.avg_pool2d(directions[0].flatten(0, 1), *options)
        return flat.unflatten(0, directions[0].shape[:2])

    return Box(lower, upper, Affine(lower.shape, (input.node,), pull, push) if lower.ndim == 4 else None)


def _neighbourhood_mean(input: Box) -> Box:
    """The operation `avg_pool_3x3`: the sums of neighbourhoods, which are their own adjoint, times counts."""
    counts = reciprocal_counts(*input.shape[2:], input.dtype, input.device)
    lower, upper = (neighbourhood_sums(bound) * counts for bound in (input.lower, input.upper))

    def pull(coefficients: Tensor) -> list[Tensor]:
        return [neighbourhood_sums((coefficients * counts).flatten(0, 1)).unflatten(0, coefficients.shape[:2])]

    def push(directions: Sequence[Tensor]) -> Tensor:
        return neighbourhood_sums(directions[0].flatten(0, 1)).unflatten(0, directions[0].shape[:2]) * counts

    return Box(lower, upper, Affine(lower.shape, (input.node,), pull, push))


def _max_pool2d(
    input: Box, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False,
    return_indices: bool = False,
) -> Box:  # fmt: skip
    if return_indices:
        raise NoRule("max_pool2d with return_indices")
    return _both(input, lambda bound: F.max_pool2d(bound, kernel_size, stride, padding, dilation, ceil_mode))


def _passes_through(function: Callable[..., Tensor], *, linear: bool = False) -> Rule:
    """Return the rule of a function that does not decrease in its first argument and gives new memory."""

    def rule(input: Box, *args: Any, **kwargs: Any) -> Box:
        # A narrower type would round the bounds; `out` would write to somebody's tensor.
        if {"dtype", "out"} & kwargs.keys() or any(isinstance(arg, torch.dtype) for arg in args):
            raise NoRule(f"{function.__name__} with dtype or out")
        # The network may write to an index once it was used, and the function is computed again later.
        args, kwargs = copy.deepcopy((args, kwargs))
        return _both(input, lambda bound: function(bound, *args, **kwargs), linear=linear)

    return rule


def _pad(input: Box, pad: Any, mode: str = "constant", value: float | None = None) -> Box:
    pad = tuple(pad)
    if mode != "constant":
        return _copied_pad(input, pad, mode)
    return _both(input, lambda bound: F.pad(bound, pad, mode, value), linear=not value)


def _copied_pad(input: Box, pad: Sequence[int], mode: str) -> Box:
    """Padding with copies of the image's own values: a row of places to take them from, and to give coefficients to."""
    result = _both(input, lambda bound: F.pad(bound, pad, mode))
    dims = len(pad) // 2
    before, after = input.shape[-dims:], result.shape[-dims:]
    numbers = torch.arange(before.numel(), dtype=torch.float64, device=input.device)
    places = F.pad(numbers.view(1, 1, *before), pad, mode).flatten().long()

    def pull(coefficients: Tensor) -> list[Tensor]:
        flat = coefficients.flatten(-dims)
        pulled = flat.new_zeros(*flat.shape[:-1], len(numbers)).index_add(-1, places, flat)
        return [pulled.unflatten(-1, before)]

    def push(directions: Sequence[Tensor]) -> Tensor:
        return directions[0].flatten(-dims)[..., places].unflatten(-1, after)

    result.node = Affine(result.shape, (input.node,), pull, push)
    return result


def _view(function: Callable[..., Tensor]) -> Rule:
    """Return the rule of a function whose result may share its argument's memory."""

    def rule(input: Box, *args: Any, **kwargs: Any) -> Box:
        result: Box = _passes_through(function, linear=True)(input, *args, **kwargs)
        before, after = input.shape, result.shape
        if function in _KEEP_ORDER and after[:1] == before[:1] and isinstance(result.node, Affine):
            result.node.pull = lambda g: [g.reshape(g.shape[0], *before)]
            result.node.push = lambda directions: directions[0].reshape(-1, *after)
        if function is Tensor.transpose and len(args) == 2 and isinstance(result.node, Affine):
            first, second = (dim % len(before) for dim in args)
            if first and second:  # coefficients and directions have a dimension in front
                result.node.pull = lambda g: [g.transpose(first + 1, second + 1)]
                result.node.push = lambda directions: directions[0].transpose(first + 1, second + 1)
        input.shares_memory = result.shares_memory = True
        return result

    return rule


_KEEP_ORDER = (Tensor.view, Tensor.reshape, Tensor.flatten, Tensor.unflatten, Tensor.contiguous, Tensor.detach)
"""Views whose elements are in the order of their argument's."""


def _dropout(input: Box, p: float = 0.5, training: bool = True, inplace: bool = False) -> Box:
    if training:
        raise NoRule("dropout in training mode")
    return input


def _to(input: Box, *args: Any, **kwargs: Any) -> Box:
    result = _both(input, lambda bound: bound.to(*args, **kwargs))
    if result.lower.dtype != input.lower.dtype:
        raise NoRule(f"a conversion from {input.lower.dtype} to {result.lower.dtype}, which rounds the bounds")
    return input if result.lower is input.lower else result


def _join(function: Callable[..., Tensor]) -> Rule:
    """Return the rule of `torch.cat` or `torch.stack`."""

    def rule(tensors: Sequence[Tensor], dim: int = 0) -> Box:
        first = next(tensor for tensor in tensors if isinstance(tensor, Box))
        # A constant is copied: it may be written to before the bounds are there.
        copies = [tensor if isinstance(tensor, Box) else _like(first, tensor).clone() for tensor in tensors]
        boxes = [copy if isinstance(copy, Box) else Box(copy, copy) for copy in copies]
        lower, upper = (function([getattr(box, end) for box in boxes], dim) for end in ("lower", "upper"))
        along = dim % lower.ndim + 1
        sizes = [1] * len(boxes) if function is torch.stack else [box.shape[along - 1] for box in boxes]

        def pull(coefficients: Tensor) -> list[Tensor]:
            parts = coefficients.split(sizes, along)
            return [part.squeeze(along) if function is torch.stack else part for part in parts]

        def push(directions: Sequence[Tensor]) -> Tensor:
            return function(directions, along)

        nodes = tuple(box.node for box in boxes)
        return Box(lower, upper, Affine(lower.shape, nodes, pull, push) if along > 1 else None)

    return rule


def _clone(input: Box, *, memory_format: Any = None) -> Box:
    # The tensors of a box are never written to, so that the copy can have them; it is of the same value.
    return input.copy()


def _mean(input: Box, *args: Any, **kwargs: Any) -> Box:
    result: Box = _passes_through(torch.mean, linear=True)(input, *args, **kwargs)
    over = args[0] if args else kwargs.get("dim")
    shape = input.shape
    if over in ((2, 3), (-2, -1)) and input.ndim == 4 and result.ndim == 2 and isinstance(result.node, Affine):
        # Over an image's places, as networks end: the adjoint that `linear_pull` would look for.
        result.node.pull = lambda g: [(g / shape[2:].numel())[..., None, None].expand(-1, *shape)]
    return result


def _zeros_like(input: Box) -> Box:
    return _both(input, torch.zeros_like)


# --- arithmetic -----------------------------------------------------------------------------------------------------


def _check_operand(value: Any) -> None:
    if not isinstance(value, Tensor | int | float):
        raise NoRule(f"arithmetic with {type(value).__name__}")


def _neg(input: Box) -> Box:
    node = Affine(input.shape, (input.node,), lambda g: [-g], lambda directions: -directions[0])
    return Box(-input.upper, -input.lower, node)


def _add(input: Any, other: Any, *, alpha: float = 1) -> Box:
    _check_operand(input)
    _check_operand(other)
    if alpha != 1:
        other = _mul(other, alpha) if isinstance(other, Box) else other * alpha
    if isinstance(input, Box) and isinstance(other, Box):
        lower, upper = input.lower + other.lower, input.upper + other.upper
        return Box(lower, upper, _sum([input, other], lower.shape))
    box, constant = (input, other) if isinstance(input, Box) else (other, input)
    constant = _like(box, constant)
    lower, upper = box.lower + constant, box.upper + constant
    return Box(lower, upper, _sum([box], lower.shape, constant))


def _sum(boxes: Sequence[Box], shape: torch.Size, constant: Tensor | float | None = None) -> Affine:
    """Return the node of a sum of boxes and a constant, broadcast to a shape."""
    pulls = [
        (lambda g: [g]) if box.shape == shape else linear_pull(lambda values: values.expand(shape), box.shape)
        for box in boxes
    ]

    def pull(coefficients: Tensor) -> list[Tensor]:
        return [one(coefficients)[0] for one in pulls]

    def push(directions: Sequence[Tensor]) -> Tensor:
        return sum(one.expand(-1, *shape) for one in directions)  # type: ignore[return-value]

    return Affine(shape, tuple(box.node for box in boxes), pull, push, constant, (constant,))


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
    constant = _like(box, constant)
    return _scaled(box, lambda value: value * constant, constant)


def _div(input: Any, other: Any, *, rounding_mode: str | None = None) -> Box:
    _check_operand(other)
    if rounding_mode is not None or not isinstance(input, Box) or isinstance(other, Box):
        raise NoRule("a division that rounds or has a perturbed divisor")
    divisor = _like(input, other)
    return _scaled(input, lambda value: value / divisor, divisor)


def _scaled(box: Box, scale: Callable[[Any], Any], constant: Any) -> Box:
    ends = scale(box.lower), scale(box.upper)
    # Coefficients that keep the value's shape are scaled as it is.
    pull = (lambda g: [scale(g)]) if ends[0].shape == box.shape else linear_pull(scale, box.shape)
    node = Affine(ends[0].shape, (box.node,), pull, linear_push(scale, box.shape), None, (constant,))
    return Box(torch.minimum(*ends), torch.maximum(*ends), node)


# --- the rules, by the operation's name in torch, torch.Tensor and torch.nn.functional ------------------------------

RULES: dict[str, Rule] = {
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
    "clone": _clone,
    "neg": _neg,
    "add": _add,
    "sub": _sub,
    "__rsub__": _rsub,
    "mul": _mul,
    "div": _div,
    "pad": _pad,
    "adaptive_avg_pool2d": _passes_through(F.adaptive_avg_pool2d, linear=True),
    "silu": _silu,
    "gelu": _gelu,
    "softplus": _softplus,
    "sigmoid": _passes_through(torch.sigmoid),
    "tanh": _passes_through(torch.tanh),
    "mean": _mean,
    "sum": _passes_through(torch.sum, linear=True),
    **{
        name: _view(getattr(Tensor, name))
        for name in (
            "view",
            "reshape",
            "flatten",
            "unflatten",
            "permute",
            "transpose",
            "squeeze",
            "unsqueeze",
            "expand",
        )
    },
    **{name: _view(getattr(Tensor, name)) for name in ("contiguous", "detach", "__getitem__")},
}
OF_TWO = {_add, _sub, _rsub, _mul, _div}
"""The rules whose second argument may be a box too; for the others, the first alone."""
