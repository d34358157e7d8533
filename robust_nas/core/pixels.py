"""Pixels in [0, 1]: lengths as people write them, 0.2 or "8/255", and images and labels as people hold them.

Imports nothing slow.
"""

from __future__ import annotations

import contextlib
import math
import numbers
import warnings
from typing import TYPE_CHECKING

from robust_nas.core.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

WHITE = 255
"""The byte that stands for 1.0."""

_DARK = 16
"""Bytes of which none is larger are nearly black, or have another white."""


def parse_pixels(value: float | str) -> float:
    """Return a length in pixel units of [0, 1], from a number or a fraction as people write it: "8/255".

    Raises:
        InputError: if `value` is neither.
    """
    length = math.nan
    with contextlib.suppress(ValueError, ZeroDivisionError, OverflowError):
        # Other scripts have digits too, which float would read.
        if isinstance(value, str) and value.isascii():
            numerator, _, denominator = value.partition("/")
            length = float(numerator) / float(denominator or 1)
        # numpy's numbers are none of Python's own classes.
        elif isinstance(value, numbers.Real) and not isinstance(value, bool):
            length = float(value)
    if not math.isfinite(length):
        got = "one of too many digits" if isinstance(value, int) and abs(value) > 2**63 else repr(value)[:100]
        raise InputError(f"A length in pixels must be a number or a fraction such as '8/255', but got {got}.")
    return length


def format_pixels(length: float) -> str:
    """Return a length in pixel units as people write it: 0.2, 8/255."""
    # Three quarters of 0.2 are 0.15000000000000002.
    if math.isclose(round(length, 4), length, rel_tol=1e-9):
        return f"{round(length, 4):g}"
    in_bytes = length * 255
    for denominator in (1, 2, 4):
        numerator = in_bytes * denominator
        if abs(numerator - round(numerator)) < 1e-6:
            return f"{round(numerator) / denominator:g}/255"
    return f"{length:.3g}"


def unit_images(images: Tensor) -> Tensor:
    """Images [N, C, H, W] as floats in [0, 1]; see `stored_images` for what is taken.

    Raises:
        InputError: for any other tensor.
    """
    stored, white = stored_images(images)
    return stored if stored.is_floating_point() else stored.float() / white


def unit_images_and_labels(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Images [N, C, H, W] as floats in [0, 1], without a graph, and their labels [N] as int64.

    Raises:
        InputError: for what is neither.
    """
    found = unit_images(images).detach()
    return found, class_labels(labels, len(found))


def stored_images(images: Tensor, white: int = WHITE) -> tuple[Tensor, int]:
    """Images [N, C, H, W] as floats in [0, 1] or whole numbers, and what stands for 1.0 in them.

    Floats in [0, 1] are taken as they are, bool is 0 and 1, and bytes are from 0 to `white`. Other whole numbers in
    this range are taken for bytes, which a warning says; everything else is refused.

    Raises:
        InputError: for another shape, type or range.
    """
    import torch

    if not isinstance(images, torch.Tensor):
        raise InputError(
            f"Images must be a tensor (torch.as_tensor makes one of an array), but got {type(images).__name__}."
        )
    if images.ndim != 4 or images.is_complex() or images.is_quantized or images.layout != torch.strided:
        kind = str(images.dtype) if images.layout == torch.strided else f"{images.dtype} ({images.layout})"
        raise InputError(f"Images must be real numbers [N, C, H, W], but got {kind} of shape {list(images.shape)}.")
    if images.dtype == torch.bool:
        return images.byte(), 1
    if images.is_floating_point():
        _check_range(images, 1, "divide by 255, and leave normalisation to the model")
        # Changes of images of fewer digits would be rounded out of the ball.
        return images if images.itemsize >= 4 else images.float(), 1
    if images.dtype == torch.uint8 and white == WHITE:
        _warn_of_darkness(images)
        return images, white
    # The unsigned types that are not bytes have no arithmetic in torch.
    whole = images if images.dtype == torch.uint8 else images.long()
    _check_range(whole, white, "give other pixels as floats in [0, 1]")
    if white != WHITE:
        return whole, white
    warnings.warn(
        f"Images of {images.dtype} are taken for bytes and divided by 255; give floats in [0, 1] if they are not.",
        stacklevel=_caller(),
    )
    return whole.byte(), white


def class_labels(labels: Tensor, count: int) -> Tensor:
    """The labels [N] of `count` images as int64.

    Raises:
        InputError: if they are no classes, or not one for each image.
    """
    import torch

    if not isinstance(labels, torch.Tensor):
        raise InputError(
            f"Labels must be a tensor (torch.as_tensor makes one of an array), but got {type(labels).__name__}."
        )
    is_whole = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    if not is_whole or labels.shape != (count,):
        raise InputError(
            f"Labels must be whole numbers, one for each of {count} images, but got {labels.dtype} of shape "
            f"{list(labels.shape)}."
        )
    whole = labels.long()
    if count and (least := int(whole.min())) < 0:
        raise InputError(f"Labels must be classes, counted from 0, but got {least}; leave out images without a class.")
    return whole


def _check_range(images: Tensor, high: int, advice: str) -> None:
    if images.numel() == 0:
        return
    numbers = images.detach()
    # Types of 8 bits have no order in torch.
    least, most = (float(value) for value in (numbers.float() if numbers.itemsize == 1 else numbers).aminmax())
    if not (least >= 0 and most <= high):
        kind = "" if numbers.is_floating_point() else " of whole numbers"
        raise InputError(f"Images{kind} must be in [0, {high}], but got values from {least:g} to {most:g}; {advice}.")


def _warn_of_darkness(images: Tensor) -> None:
    """Say that bytes are nearly black: where 1 or 16 stands for white, they would be other images."""
    brightest = int(images.max()) if images.numel() else 0
    if 0 < brightest <= _DARK:
        warnings.warn(
            f"Images of bytes are divided by 255, but the largest is {brightest}: they are nearly black. If it stands "
            f"for white, give ImageSet(images, labels, max_value={brightest}) or floats in [0, 1].",
            stacklevel=_caller(),
        )


def _caller() -> int:
    """The number of frames, as `warnings.warn` counts them, up to the first that is not ours."""
    import sys

    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "robust_nas":
        level, frame = level + 1, frame.f_back
    return level
