"""Cutting image sets along fixed permutations: a data set's splits are the same in every run, on every machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from robust_nas.core.errors import InputError
from robust_nas.datasets import ImageSet

if TYPE_CHECKING:
    import torch

_SPLIT_SEED = 20240229
"""Fixed for ever: another value would make other splits, and results on them would not be comparable."""


def permutation(count: int) -> torch.Tensor:
    """Return the fixed random order of `count` images (numpy's Philox, the same on every platform)."""
    import numpy as np
    import torch

    return torch.from_numpy(np.random.Generator(np.random.Philox(_SPLIT_SEED)).permutation(count))


def cut(images: ImageSet, sizes: Sequence[int], name: str) -> list[ImageSet]:
    """Return disjoint parts of the given sizes, taken from the fixed random order; the rest is not used.

    Raises:
        InputError: if there are too few images.
    """
    if sum(sizes) > len(images) or min(sizes) < 1:
        raise InputError(
            f"{name} has {len(images)} images here and cannot give parts of {', '.join(map(str, sizes))}; "
            "ask for sizes of at least 1 that fit together."
        )
    order, parts, start = permutation(len(images)), [], 0
    for size in sizes:
        parts.append(images[order[start : start + size]])
        start += size
    return parts


def train_validation_test(
    train: ImageSet,
    test: ImageSet,
    name: str,
    train_size: int | None,
    validation_size: int,
    test_size: int | None,
) -> tuple[ImageSet, ImageSet, ImageSet]:
    """Cut validation images out of the official training images, and take a part of the official test images."""
    train_size = len(train) - validation_size if train_size is None else train_size
    # Validation comes first, so that it is the same for every size of the training part.
    validation, train = cut(train, (validation_size, train_size), f"{name}'s training split")
    (test,) = cut(test, (len(test) if test_size is None else test_size,), f"{name}'s test split")
    return train, validation, test
