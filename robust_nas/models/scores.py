"""A model's answers on images: logits, predictions, the input gradient of a loss."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointError

from robust_nas.core.errors import InputError, NotFinite, reason_of
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
    except (torch.OutOfMemoryError, CheckpointError):
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


def probed(model: nn.Module, images: Tensor) -> Tensor:
    """Return the logits [B, K] of `images`, as the model gives them; some are no batch of logits for one image alone.

    Raises:
        InputError: if the model fails on such images, or returns something else.
    """
    with torch.no_grad():
        with taking(images):
            found: Any = logits_of(model, images)
        logits = checked_logits(found, len(images))
        if len(images) == 1:
            return logits
        try:
            alone = logits_of(model, images[:1])
        except torch.OutOfMemoryError:
            raise
        except Exception:  # where single images count, `intake.dependence` says so
            return logits
        checked_logits(alone, 1)
    return logits


def checked_logits(found: Any, num_images: int) -> Tensor:
    """Return what a model gave for so many images, which must be logits [B, K].

    Raises:
        InputError: if it is something else, with what to do about it.
    """
    is_tensor = isinstance(found, Tensor)
    if is_tensor and found.ndim == 2 and found.shape[0] == num_images and found.shape[1] > 1:
        if found.is_floating_point():
            return found
        got, advice = f"whole numbers ({found.dtype})", "return them as floats"
    elif is_tensor:
        got, advice = f"{list(found.shape)}", "wrap it so that it does"
        if num_images == 1 and found.ndim == 1 and len(found) > 1:
            advice = "do not squeeze a batch of one: flatten(1) keeps it"
    else:
        got, advice = f"a {type(found).__name__}", "wrap it so that it does"
        if isinstance(found, Mapping) and "logits" in found:
            advice = "wrap it in a module that returns its ['logits']"
        elif isinstance(found, Sequence) and found and isinstance(found[0], Tensor) and found[0].ndim == 2:
            advice = "wrap it in a module that returns its first part, [0]"
    raise InputError(
        "The model must return logits [B, K] of a batch of B images, any number of them, and at least 2 classes, but "
        f"for {num_images} {'image' if num_images == 1 else 'images'} it returned {got}; {advice}."
    )


@contextlib.contextmanager
def taking(images: Tensor) -> Iterator[None]:
    """Say in one sentence that a model cannot take images [B, C, H, W], where a pass through it fails."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, InputError):
        raise
    except Exception as error:  # whatever a model's own code raises
        size = " x ".join(str(number) for number in images.shape[1:])
        reason = _misfit(error) or f"{type(error).__name__}: {reason_of(error)}"
        raise InputError(
            f"The model cannot take images of {size} pixels ({reason}); is it one for this data set?"
        ) from error


def _misfit(error: Exception) -> str | None:
    """Return what the layer that failed takes and what it was given, where their numbers differ."""
    for frame, _ in reversed([*traceback.walk_tb(error.__traceback__)]):
        layer, given = (frame.f_locals.get(name) for name in ("self", "input"))
        if not isinstance(given, Tensor) or given.ndim < 2:
            continue
        if isinstance(layer, nn.Linear) and given.shape[-1] != layer.in_features:
            return f"a linear layer of it takes {layer.in_features} numbers, but got {given.shape[-1]}"
        if isinstance(layer, nn.Conv2d) and given.ndim == 4 and given.shape[1] != layer.in_channels:
            return f"a convolution of it takes {layer.in_channels} channels, but got {given.shape[1]}"
    return None


def misclassified(logits: Tensor, labels: Tensor) -> Tensor:
    """Return whether each prediction is wrong, [B]."""
    return logits.argmax(1) != labels


def _logits(model: nn.Module, points: Tensor) -> Tensor:
    """Return the model's logits [B, K] of `points`, in full precision.

    Raises:
        InputError: if it returns something else, as a model may that squeezes a batch of one image.
    """
    logits = checked_logits(logits_of(model, points), len(points))
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
    """Raise NotFinite if any of `values` holds a NaN. Waits for the device: once per attack, not per step."""
    if any(bool(value.isnan().any()) for value in values):
        raise NotFinite(
            f"{type(attack).__name__} got NaN in the model's logits or gradients; "
            "if it is being trained, a lower learning rate helps."
        )
