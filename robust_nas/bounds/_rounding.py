"""The error of a network's margins in its own arithmetic, in which every operation rounds.

A bound is proved for exact arithmetic; the network answers in float32. Every operation's result is within
`unit * share * magnitude` of the exact one on the same operands, where a sum of n products of total magnitude |W||x|
has the share n, whatever order it is summed in, and others a few (Higham 2002, "Accuracy and Stability of Numerical
Algorithms", sections 2.2 and 3.1). The effect of such an error on a margin follows, to first order, from the margin's
derivative with respect to the operation's result. All errors at their worst, all against the margin, are the tolerance,
twice: derivatives are others elsewhere in the ball. So this is an estimate with room to spare, and no proof. Weights
that a network computes in its forward pass count as exact.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import allow_mutation_on_saved_tensors
from torch.overrides import TorchFunctionMode

from robust_nas.bounds import TOLERANCE
from robust_nas.bounds._box import operation_of
from robust_nas.bounds._rules import RULES
from robust_nas.core.errors import InputError
from robust_nas.models.scores import input_dtype
from robust_nas.threat import ThreatModel

_FEW = 4
"""Roundings of an operation that is no sum: functions of the mathematical library are off by that many at most."""

_SUMS = {"mean", "sum", "avg_pool2d", "adaptive_avg_pool2d"}
"""Sums with weights that are not negative."""

_ROOM = 2
"""By how much more than at the points that are looked at margins may be off elsewhere."""

_CLEAR = 10
"""A margin that is so many times what rounding may take of a lesser one is beyond it, and is not differentiated."""

_COARSE = {"tf32": 2.0**-11, "bf16": 2.0**-8}
"""Units of what products of float32 matrices may be rounded to, where torch is told that it may."""

_AT_ONCE = 32
"""Images that are looked at in one pass, which keeps two numbers for each that the network computes."""


@dataclass(frozen=True, eq=False)
class Answers:
    """A network's own answers where N images are proved in exact arithmetic, and what rounding may take of the proofs.

    They are looked at at the images, and where the linearised margin is least in the ball. All is 0 for other images.

    Args:
        errors: [N, K], float64: the margins' largest rounding error.
        taken: [N], float64: the part of the least margin that rounding may take.
        on_image: the logits there, [N, K], float64, which holds them whatever their type is.
        in_ball: those at the other point, [N, K], float64.
    """

    errors: Tensor
    taken: Tensor
    on_image: Tensor
    in_ball: Tensor

    def replaced(self, places: Tensor, others: Answers) -> Answers:
        """Return these with other ones at some places."""
        return Answers(**{key: value.index_put((places,), getattr(others, key)) for key, value in vars(self).items()})


def check_gradients() -> None:
    """Raise InputError within torch.inference_mode, where all rounding would seem to be 0."""
    if torch.is_inference_mode_enabled():
        raise InputError(
            "Within torch.inference_mode nothing has a gradient, which says what rounding may take of a bound; call "
            "this outside of it, or within torch.no_grad."
        )


def own_answers(model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, lower: Tensor) -> Answers:
    """Return the network's own answers on images [N, C, H, W], and what rounding may take.

    Args:
        model: in evaluation mode, its parameters without gradients, in its own arithmetic.
        labels: [N].
        lower: the margins' lower bounds over the ball, [N, K], float64.

    Raises:
        InputError: within torch.inference_mode.
    """
    check_gradients()
    errors, taken = torch.zeros_like(lower), torch.zeros_like(lower[:, 0])
    on_image, in_ball = torch.zeros_like(lower), torch.zeros_like(lower)
    candidates = (lower.amin(1) > TOLERANCE).nonzero().squeeze(1)
    for places in candidates.split(_AT_ONCE) if len(candidates) else ():
        points, own, proved = images[places], labels[places], lower[places]
        error, logits, slopes = rounding(model, points, own, proved)
        ball = threat.around(points)
        corners = ball.project(points + ball.least_at(slopes.to(points.dtype).unsqueeze(1)).view_as(points))
        error_there, logits_there, _ = rounding(model, corners, own, proved)
        on_image[places], in_ball[places] = logits.double(), logits_there.double()
        errors[places] = torch.maximum(error, error_there)
        taken[places] = proved.amin(1) - (proved - errors[places]).amin(1)
    return Answers(errors, taken, on_image, in_ball)


@allow_mutation_on_saved_tensors()  # networks may write into what their derivatives need: nobody else takes them
def rounding(model: nn.Module, points: Tensor, labels: Tensor, margins: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return bounds of the margins' rounding error at points, [B, K], the logits there, [B, K], and slopes, [B, D].

    The slopes are those of each point's least proved margin. Classes are gone through from the least margin on; the
    error is 0 for those that are clear of it, and for the label's own.

    Args:
        model: in evaluation mode, its parameters without gradients, in its own arithmetic.
        points: [B, C, H, W].
        labels: [B].
        margins: those that are proved, [B, K], float64.
    """
    mode = _Perturbed()
    shift = torch.zeros_like(points, dtype=input_dtype(model, points)).requires_grad_()
    with torch.enable_grad():
        start = points.detach().to(shift) + shift
        with mode:
            logits: Tensor = model(start)
        exact = logits.double()
    if not logits.requires_grad:  # a constant network
        return torch.zeros_like(margins), logits.detach(), torch.zeros_like(shift).detach().flatten(1)
    own = labels[:, None]
    order = margins.scatter(1, own, torch.inf).argsort(1)[:, : logits.shape[1] - 1]
    sensitive, sizes = [shift, *(error for error, _ in mode.errors)], [size for _, size in mode.errors]
    slopes = torch.zeros_like(shift)
    errors, worst = torch.zeros_like(margins), margins.new_zeros(len(points), 1)
    for place, classes in enumerate(order.split(1, dim=1)):
        if place and bool((margins.gather(1, classes) > _CLEAR * worst).all()):
            break  # as are those of the classes after it
        with torch.enable_grad():  # also where the caller has none
            margin = (exact.gather(1, own) - exact.gather(1, classes)).sum()
        gradients = torch.autograd.grad(margin, sensitive, retain_graph=True, allow_unused=True)
        if place == 0 and gradients[0] is not None:
            slopes = gradients[0]
        error = margins.new_zeros(len(points))
        for gradient, size in zip(gradients[1:], sizes, strict=True):
            if gradient is not None:
                error = error + _ROOM * _per_image(gradient * size, len(points))
        errors = errors.scatter(1, classes, error[:, None])
        worst = torch.maximum(worst, error[:, None])
    return errors, logits.detach(), slopes.flatten(1)


def _per_image(effects: Tensor, count: int) -> Tensor:
    """Return the sums of the absolute effects on each of so many images; all of them, where there is no telling."""
    effects = effects.double().abs()
    return effects.reshape(count, -1).sum(1) if effects.shape[0] == count else effects.sum().expand(count)


class _Perturbed(TorchFunctionMode):
    """Adds an error of 0 to what every operation that rounds gives, to differentiate by, and keeps its largest size."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[tuple[Tensor, Tensor]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        operation, in_place = operation_of(func)
        if operation not in RULES:
            return func(*args, **kwargs)
        if operation == "detach":  # an error goes on through it
            return args[0]
        with torch.enable_grad():
            if operation in _EXACT:
                return func(*args, **kwargs)
            size = _size_before(operation, func, args, kwargs)
            result = func(*args, **kwargs)
            if not isinstance(result, Tensor) or not result.requires_grad:
                return result
            if size is None:
                size = _unit(result) * _ROUNDINGS.get(operation, _FEW) * result.detach().abs()
                size = size + _of_numbers(operation, result, args, kwargs)
            error = torch.zeros_like(result).requires_grad_()
            self.errors.append((error, size.to(result)))
            return result.add_(error) if in_place else result + error


_EXACT = {
    "relu",
    "hardtanh",
    "clamp",
    "max_pool2d",
    "dropout",
    "to",
    "cat",
    "stack",
    "zeros_like",
    "clone",
    "neg",
    "pad",
}
_EXACT |= {"view", "reshape", "flatten", "unflatten", "permute", "transpose", "squeeze", "unsqueeze", "expand"}
_EXACT |= {"contiguous", "detach", "__getitem__"}

_ROUNDINGS = {"add": 1, "sub": 1, "__rsub__": 1, "mul": 2, "div": 2}
"""Those of an operation and of a number that the network gives it."""


def _unit(values: Tensor) -> float:
    """Return the largest relative error of one rounding."""
    return torch.finfo(values.dtype).eps / 2


@torch.no_grad()
def _size_before(operation: str, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    """Return the largest error of an operation on these values; None for a share of its result."""
    if operation not in _SUMS | {"conv2d", "linear", "batch_norm"}:
        return None
    given = dict(_signature(operation).bind(*args, **kwargs).arguments)
    values = given["input"]
    if not isinstance(values, Tensor) or not values.is_floating_point():
        return None
    if operation in _SUMS:
        magnitude: Tensor = func(values.abs(), *args[1:], **{key: kwargs[key] for key in kwargs if key != "input"})
        return _unit(values) * (_terms(operation, given, magnitude) + 1) * magnitude
    if operation == "batch_norm":
        mean, weight, shift = given["running_mean"].abs(), given.get("weight"), given.get("bias")
        scale = (given["running_var"] + given.get("eps", 1e-5)).rsqrt() * (1 if weight is None else weight.abs())
        channels = (1, -1, *[1] * (values.ndim - 2))
        shift = mean * scale + (0 if shift is None else shift.abs())
        return _unit(values) * 2 * _FEW * (values.abs() * scale.view(channels) + shift.view(channels))
    factors, bias = given["weight"].abs(), given.get("bias")
    given |= {"input": values.abs(), "weight": factors, "bias": None if bias is None else bias.abs()}
    magnitude = F.conv2d(**given) if operation == "conv2d" else F.linear(**given)
    return (_unit(values) * (factors[0].numel() + 1 + _FEW) + 2 * _coarse(operation, values)) * magnitude


def _terms(operation: str, given: Mapping[str, Any], result: Tensor) -> int:
    """Return the number of terms of a sum in a result, at most."""
    if operation == "avg_pool2d":
        size = given["kernel_size"]
        return math.prod(size) if isinstance(size, list | tuple) else int(size) ** 2
    # Bins that overlap have a row and a column more.
    return (4 if operation == "adaptive_avg_pool2d" else 1) * -(-given["input"].numel() // result.numel())


def _of_numbers(operation: str, result: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]) -> float:
    """Return by how much numbers that a sum is made with are off, which the network rounds to its own precision."""
    if operation not in ("add", "sub", "__rsub__"):
        return 0.0
    numbers = [value for value in (*args, *kwargs.values()) if isinstance(value, float)]
    return sum(abs(value - result.new_tensor(value).item()) for value in numbers)


def _coarse(operation: str, values: Tensor) -> float:
    """Return the unit that the factors of a product are rounded to, where torch may compute in less than float32."""
    if values.dtype != torch.float32:
        return 0.0
    backend: Any = torch.backends
    on_gpu = {"conv2d": backend.cudnn.conv, "linear": backend.cuda.matmul}
    on_cpu = {"conv2d": backend.mkldnn.conv, "linear": backend.mkldnn.matmul}
    return _COARSE.get((on_gpu if values.is_cuda else on_cpu)[operation].fp32_precision, 0.0)


@functools.cache
def _signature(operation: str) -> inspect.Signature:
    return inspect.signature(RULES[operation])
