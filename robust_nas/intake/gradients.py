"""The check that a model's input gradients are those of its function: attacks that follow others find too little.

The check compares the change of the logits along a direction with the gradient's promise. Rounding whose gradient is
passed straight through, `detach` and functions with a backward pass of their own promise another one; plain rounding
promises none, though the logits change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from robust_nas.core.errors import InputError
from robust_nas.core.seeds import generator_at
from robust_nas.models.frozen import copied
from robust_nas.models.scores import gradient_at, logits_of

_NUM_POINTS, _NUM_PRECISE = 8, 4
"""Points that are looked at, near the first images, and those in double precision, which takes longer."""

_STEPS = {torch.float32: 1e-4, torch.float64: 1e-7}
"""The length of the step: as far as rounding asks for, and not so far that kinks of ReLUs count."""

_AGREEING, _CONTRADICTING = 0.1, 0.2
"""The differences, as shares of both, at which the change and the promised one agree, and contradict."""

_FAR = 0.1
"""A step at which logits change, if they depend on the image, except for steps between far values."""

_CHANGED = 1e-4
"""The share of the largest logit by which logits change that are not the same."""


def gradient_note(model: nn.Module, images: Tensor) -> str | None:
    """A sentence on the fault in the input gradients of a model, which is held still; None, if there is none.

    Args:
        model: maps [0, 1] images to logits, which are nothing but functions of the image.
        images: [B, C, H, W], of which the first 8 are looked at, or all of them several times.
    """
    # Away from ties: of equal pixels, or at the ends of [0, 1], gradients may be those of one side.
    images = images[torch.arange(_NUM_POINTS, device=images.device) % len(images)]
    noise = torch.rand(images.shape, generator=generator_at("cpu", 0, "gradients", "points"))
    points = 0.1 + 0.7 * images + 0.1 * noise.to(images)
    try:
        found = _compare(model, points)
    except InputError as error:
        return str(error)
    if found is None:
        return (
            "The model's logits depend on the images by nothing that has a gradient (detach, argmax or no_grad in "
            f"it?), {_CONSEQUENCE}"
        )
    if not _most(found.agreeing):
        # Rounding may be larger than the change.
        found = _compare_precisely(model, points[:_NUM_PRECISE]) or found
    if _most(found.contradicting):
        return (
            "The model's input gradients are not those of what it computes: its logits change otherwise than they "
            f"promise at {int(found.contradicting.sum())} of {len(found.contradicting)} points near images (detach, "
            f"or rounding whose gradient is passed straight through?), {_CONSEQUENCE}"
        )
    if _most(found.zero) and _is_a_step(model, images, points, found.zero):
        return (
            f"The model's input gradients are zero at {int(found.zero.sum())} of {len(found.zero)} points near images, "
            f"though its logits change with the images (rounding, or a step?), {_CONSEQUENCE}"
        )
    return None


_CONSEQUENCE = (
    "so that attacks that follow gradients say little about it; attack it with square as well, which follows none."
)


@dataclass(frozen=True)
class _Comparison:
    """At which points the gradient agrees with the change of the logits, contradicts it, and is zero.

    All are [B] booleans.
    """

    agreeing: Tensor
    contradicting: Tensor
    zero: Tensor


def _most(true: Tensor) -> bool:
    """Whether more than half are true: at a few points, a kink may be in the way."""
    return 2 * int(true.sum()) > len(true)


def _compare(model: nn.Module, points: Tensor, precision: float | None = None) -> _Comparison | None:
    """Compare gradients with the change that they promise; None, if there are none.

    Args:
        precision: the rounding, as a share of a number, of what is computed; that of `points`, if not given.
    """
    step, precision = _STEPS.get(points.dtype, 1e-4), precision or torch.finfo(points.dtype).eps
    with torch.enable_grad():
        leaf = points.detach().requires_grad_()
        logits = logits_of(model, leaf)
        if not logits.requires_grad:
            return None
        weights = _weights(logits)
        gradient = gradient_at(leaf, (logits @ weights).sum())
    if gradient is None:
        return None
    # Half of the pixels along the gradient, so that it promises much, and half by chance.
    signs, along = torch.randint(0, 2, (2, *points.shape), generator=generator_at("cpu", 0, "gradients", "signs"))
    by_chance = (2 * signs - 1).to(points)
    direction = torch.where((along == 1).to(points.device) & (gradient != 0), gradient.sign(), by_chance)

    def at(moved: float) -> Tensor:
        with torch.no_grad():
            return logits_of(model, points + moved * direction).double()

    change = (at(step) - at(-step)) @ weights.double() / (2 * step)
    promised = (gradient.double() * direction.double()).flatten(1).sum(1)
    error, size = (change - promised).abs(), change.abs() + promised.abs()
    rounding = 16 * precision * logits.detach().double().abs() @ weights.double().abs() / step
    return _Comparison(
        agreeing=error <= _AGREEING * size,
        # NaN is neither.
        contradicting=error > _CONTRADICTING * size + rounding,
        zero=_is_zero(gradient),
    )


def _weights(logits: Tensor) -> Tensor:
    """Return the weights of the logits [B, K] in what is differentiated, [K]."""
    return torch.randn(logits.shape[1], generator=generator_at("cpu", 0, "gradients", "logits")).to(logits)


def _is_zero(gradient: Tensor) -> Tensor:
    return (gradient == 0).flatten(1).all(1)


def _is_a_step(model: nn.Module, images: Tensor, points: Tensor, zero: Tensor) -> bool:
    """Whether logits, whose gradient is zero at points near images, have none at the images either, and yet change.

    They change from image to image, or from an image to its point: `sign` has one value at all points, inside (0, 1).

    Args:
        images: [B, C, H, W].
        points: beside them.
        zero: the first of the points at which the gradient is zero, booleans.
    """
    images, points = images[: len(zero)][zero], points[: len(zero)][zero]
    with torch.enable_grad():
        leaf = images.detach().requires_grad_()
        logits = logits_of(model, leaf)
        gradient = gradient_at(leaf, (logits @ _weights(logits)).sum()) if logits.requires_grad else None
    if gradient is not None and not _most(_is_zero(gradient)):
        return False
    with torch.no_grad():
        further = [logits_of(model, each) for each in (points, points + _FAR, points - _FAR)]
    logits = torch.cat([logits.detach(), *further]).double()
    return bool((logits - logits[0]).abs().max() > _CHANGED * logits.abs().max())


def _compare_precisely(model: nn.Module, points: Tensor) -> _Comparison | None:
    """Return the same in double precision, or at least with the rounding of the computation; None, if neither goes."""
    for prepare, at in ((lambda: copied(model).double(), points.double()), (lambda: model, points)):
        try:
            prepared = prepare()  # type: ignore[no-untyped-call]
            with _Coarsest() as coarsest, torch.no_grad():
                logits_of(prepared, at)
            return _compare(prepared, at, coarsest.precision)
        except Exception:  # whatever a model's own code raises about a type that it was not made for
            continue
    return None


class _Coarsest(TorchDispatchMode):
    """Notes the rounding of the coarsest type that is computed with: casts inside a network stay what they are."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.precision = torch.finfo(torch.float64).eps

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple | list) else [result]:
            if isinstance(each, Tensor) and each.is_floating_point() and each.ndim:
                self.precision = max(self.precision, torch.finfo(each.dtype).eps)
        return result
