"""A model's answers on images: logits, predictions, the input gradient of a loss."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from robust_nas.core.errors import InputError, reason_of
from robust_nas.models.losses import Loss


class NoGradient(InputError):
    """A model whose input gradients are none, or cannot be computed; attacks that follow none can do without them."""


def input_gradient(model: nn.Module, points: Tensor, against: Tensor, loss: Loss) -> tuple[Tensor, Tensor, Tensor]:
    """Return the logits [B, K], the losses [B] and the gradient of their sum with respect to `points` [B, C, H, W].

    `against` is the loss's second argument. One forward and one backward pass, nothing that waits for the device; all
    three are detached.
    """
    points = points.detach().requires_grad_()
    with torch.enable_grad():
        logits = _logits(model, points)
        losses = loss(logits, against)
        if not losses.requires_grad:
            raise NoGradient(_without_gradient())
        gradient = gradient_at(points, losses.sum())
        if gradient is None:
            raise NoGradient(_without_gradient())
    return logits.detach(), losses.detach(), gradient


def gradient_at(points: Tensor, value: Tensor) -> Tensor | None:
    """Return the gradient of `value` with respect to `points`; None, if it does not depend on them.

    Raises:
        NoGradient: if torch cannot differentiate the model, such as one that writes into what its derivative needs.
    """
    try:
        (gradient,) = torch.autograd.grad(value, points, allow_unused=True)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = reason_of(error).partition(" Hint:")[0].rstrip(".")
        raise NoGradient(
            f"The model's input gradients cannot be computed ({reason}); attack it with square, which follows none."
        ) from error
    return gradient


def logits_of(model: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """The logits [B, K] of `images` [B, C, H, W], of which the model gets a copy, in the type of its weights.

    Some models write into what they are given (`images.sub_(mean)`, a first ReLU in place): what an attack starts from,
    or is measured from, would be another image afterwards, and a leaf that requires a gradient cannot be written to.
    The first layer alone costs many times the copy.
    """
    dtype = input_dtype(model, images)
    return model(images.clone() if images.dtype == dtype else images.to(dtype))


def input_dtype(model: object, images: Tensor) -> torch.dtype:
    """The type of the images that a model takes: of its first weights; that of `images`, if it has none."""
    parameters = model.parameters() if isinstance(model, nn.Module) else iter(())
    return next((tensor.dtype for tensor in parameters if tensor.is_floating_point()), images.dtype)


def scores(model: nn.Module, points: Tensor) -> Tensor:
    """Return the logits [B, K] of `points`, without a graph."""
    with torch.no_grad():
        return _logits(model, points)


@contextlib.contextmanager
def taking(images: Tensor) -> Iterator[None]:
    """Say in one sentence that a model cannot take images [B, C, H, W], where a pass through it fails."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        if isinstance(error, InputError):
            raise
        size = " x ".join(str(number) for number in images.shape[1:])
        raise InputError(
            f"The model cannot take images of {size} pixels ({reason_of(error)}); is it one for this data set?"
        ) from error


def misclassified(logits: Tensor, labels: Tensor) -> Tensor:
    """Return whether each prediction is wrong, [B]."""
    return logits.argmax(1) != labels


def _logits(model: nn.Module, points: Tensor) -> Tensor:
    """Return the model's logits [B, K] of `points`, in full precision.

    Raises:
        InputError: if it returns something else, as a model may that squeezes a batch of one image.
    """
    logits: Any = logits_of(model, points)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(points):
        found = list(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise InputError(
            f"The model must return logits [B, K] of a batch of any size, but for a batch of {len(points)} it returned "
            f"{found}; wrap it so that it does."
        )
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _without_gradient() -> str:
    """Say why there may be none."""
    if torch.is_inference_mode_enabled():
        return "Within torch.inference_mode nothing has a gradient; call this outside of it, or within torch.no_grad."
    return (
        "The model's logits depend on the images by nothing that has a gradient (detach, argmax or no_grad in it?), so "
        "that attacks which follow gradients say nothing; attack it with square."
    )


def check_finite(attack: object, *values: Tensor) -> None:
    """Raise InputError if any of `values` holds a NaN. Waits for the device: once per attack, not per step."""
    if any(bool(value.isnan().any()) for value in values):
        raise InputError(
            f"{type(attack).__name__} got NaN in the model's logits or gradients; "
            "if it is being trained, a lower learning rate helps."
        )
