"""The check that a model is a function of one image: of nothing else, such as chance or the rest of a batch.

An attack, an accuracy and a certificate are about such functions. A batch norm without running statistics gives an
image other logits in another batch, so that its accuracy depends on the batches; noise or dropout that stays on gives
other logits each time, so that an image counts as robust if chance is on its side once.
"""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Iterator
from itertools import chain

import numpy as np
import torch
from torch import Tensor, nn

from robust_nas.core.errors import InputError, reason_of
from robust_nas.core.seeds import generator_at
from robust_nas.models.frozen import frozen
from robust_nas.models.scores import scores

_NUM_IMAGES = 2

_REPEATS = 2
"""Passes beside the first one; a state that changes with each shows in them."""

_DRAWS = 16
"""Passes beside the first one of a model that draws random numbers: chance may give the same twice."""

_SAME_SHAPE = 2**6
"""Roundings by which logits of batches of one shape may differ: devices do the same sums in the same order, but for a
few kernels."""

_OTHER_SHAPE = 0.01
"""The share of the logits by which those of an image alone and in a batch may differ: the sums are in another order,
which a network in half precision rounds coarsely."""


def dependence(model: nn.Module, images: Tensor) -> str | None:
    """A sentence that says on what else than the image a model's logits depend; None, if on nothing that shows.

        if reason := dependence(model, images):
            raise InputError(f"{reason} No single image can be certified.")

    That is chance, a state that each pass changes, such as a counter, or the other images of the batch. The model is
    used in evaluation mode and left as it was, as are the global random generators. A few passes of at most four
    images.

    Args:
        model: maps images [B, C, H, W] in [0, 1] to logits [B, K].
        images: [B, C, H, W], at least one, on the model's device; the first two are looked at.
    """
    images = images[:_NUM_IMAGES].detach()
    with frozen(model, fold=False), _generators_kept(images.device):
        batch, before = _beside(images, "first"), _drawn_so_far(images.device)
        first = scores(model, batch)
        draws = _drawn_so_far(images.device) != before
        return _on_passes(model, batch, first, draws=draws) or _on_batch(model, images, first[: len(images)])


def _on_passes(model: nn.Module, batch: Tensor, first: Tensor, *, draws: bool) -> str | None:
    """Say what differs between `first`, the logits of a pass that may have drawn random numbers, and further passes."""
    tolerance = _rounding(model, first)
    if all(_same(scores(model, batch), first, tolerance) for _ in range(_DRAWS if draws else _REPEATS)):
        return None
    if draws:
        return (
            "The model's logits depend on chance: it draws random numbers in evaluation mode (noise, or dropout that "
            "stays on), and gives the same images other logits each time."
        )
    return (
        "The model's logits depend on a state that each pass changes (such as a counter), or on chance of its own: it "
        "gives the same images other logits each time."
    )


def _on_batch(model: nn.Module, images: Tensor, first: Tensor) -> str | None:
    """Say whether the logits of images, in a batch `first`, differ with the others in it or with the number of them."""
    other = scores(model, _beside(images, "second"))[: len(images)]
    mixed = (
        "The model's logits of an image depend on the other images of its batch (batch norm without running "
        "statistics, for one, takes the batch's own), so that an accuracy depends on how the images are batched."
    )
    if not _same(other, first, _rounding(model, first)):
        return mixed
    try:
        alone = _alone(model, images)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        if isinstance(error, torch.OutOfMemoryError | InputError):
            raise
        return f"The model takes images in a batch, but no image alone ({reason_of(error)})."
    return None if _same(alone, first, _OTHER_SHAPE) or _only_rounding(model, images) else mixed


def _alone(model: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([scores(model, image.unsqueeze(0)) for image in images])


def _only_rounding(model: nn.Module, images: Tensor) -> bool:
    """Whether images alone and in a batch get the same logits in double precision; False, if the model has none.

    A network that takes differences of large numbers may round its logits by more than any tolerance.
    """
    try:
        precise, images = copy.deepcopy(model).double(), images.double()
        return _same(_alone(precise, images), scores(precise, _beside(images, "first"))[: len(images)], _OTHER_SHAPE)
    except Exception:  # whatever a model's own code raises about a type that it was not made for
        return False


def _beside(images: Tensor, name: str) -> Tensor:
    """Return the images and as many random ones after them, [2 B, C, H, W] in [0, 1]."""
    generator = generator_at(images.device, 0, "beside", name)
    random_images = torch.rand(images.shape, device=images.device, generator=generator)
    return torch.cat([images, random_images.to(images.dtype)])


def _rounding(model: nn.Module, logits: Tensor) -> float:
    """Return the share of the logits by which those of one image in two batches of one shape may differ."""
    kinds = {tensor.dtype for tensor in chain(model.parameters(), model.buffers()) if tensor.is_floating_point()}
    coarsest = max(torch.finfo(kind).eps for kind in {*kinds, logits.dtype})
    return min(_SAME_SHAPE * coarsest, _OTHER_SHAPE)


def _same(one: Tensor, other: Tensor, tolerance: float) -> bool:
    """Whether logits [B, K] are equal but for a share of the largest of them. NaN equals NaN."""
    if one.shape != other.shape:
        return False
    finite = other[other.isfinite()]
    largest = float(finite.abs().max()) if len(finite) else 0.0
    return torch.allclose(one, other, rtol=0, atol=tolerance * largest, equal_nan=True)


def _drawn_so_far(device: torch.device) -> list[object]:
    """Return the states of the global random generators that a network on `device` may draw from."""
    array = np.random.get_state(legacy=False)["state"]
    states = [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]
    return [random.getstate(), array["key"].tobytes(), array["pos"], *(state.numpy().tobytes() for state in states)]


@contextlib.contextmanager
def _generators_kept(device: torch.device) -> Iterator[None]:
    """Put the global random generators back as they were."""
    plain, array = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(plain)
        np.random.set_state(array)
