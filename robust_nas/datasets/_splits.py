"""Cutting image sets along fixed permutations: a data set's splits are the same in every run, on every machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from robust_nas.core.errors import InputError
from robust_nas.datasets import ImageSet

if TYPE_CHECKING:
    import torch

    from robust_nas.datasets._files import ImageFiles

_SPLIT_SEED = 20240229
"""Fixed for ever: another value would make other splits, and results on them would not be comparable."""


def permutation(count: int) -> torch.Tensor:
    """Return the fixed random order of `count` images (numpy's Philox, the same on every platform)."""
    import numpy as np
    import torch

    return torch.from_numpy(np.random.Generator(np.random.Philox(_SPLIT_SEED)).permutation(count))


def places(count: int) -> ImageSet:
    """An image set of empty images whose labels are their places: a list of `count` files to cut parts from."""
    import torch

    return ImageSet(torch.empty((count, 0, 0, 0), dtype=torch.uint8), torch.arange(count))


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


def chosen_places(
    counts: Mapping[str, int],
    name: str,
    train_size: int | None,
    validation_size: int | None,
    test_size: int | None,
) -> dict[str, ImageSet]:
    """The places of each split's images in the lists of files that there are, as labels of empty images.

    Args:
        counts: files by split: "train", and where they are apart "test" and "validation". Without those a fifth of the
            training files tests, and a fifth validates; without validation files alone a tenth does.
        name: the data set's, for errors.
        train_size: images to use; all that are left, if not given.
        validation_size: the same.
        test_size: the same.
    """
    count, own = counts["train"], places(counts["train"])
    if "test" not in counts:
        fifth = max(1, count // 5)
        validation = fifth if validation_size is None else validation_size
        tested = fifth if test_size is None else test_size
        trained = count - tested - validation if train_size is None else train_size
        test, validated, train = cut(own, (tested, validation, trained), name)
        return {"train": train, "validation": validated, "test": test}
    if "validation" not in counts:
        validation = max(1, count // 10) if validation_size is None else validation_size
        train, validated, test = train_validation_test(
            own, places(counts["test"]), name, train_size, validation, test_size
        )
        return {"train": train, "validation": validated, "test": test}
    sizes = {"train": train_size, "validation": validation_size, "test": test_size}
    return {
        split: cut(places(counts[split]), (counts[split] if size is None else size,), f"{name}'s {split} part")[0]
        for split, size in sizes.items()
    }


def files_cut(
    files: Mapping[str, ImageFiles], chosen: Mapping[str, ImageSet], memory: int
) -> tuple[ImageFiles, ImageSet, ImageSet]:
    """The splits of images in files: training images stay there, those that validate and test are read.

    Args:
        files: by split, as for `chosen_places`.
        chosen: what this has returned.
        memory: the largest size that validation and test images together may take in memory, in bytes.

    Raises:
        InputError: if they take more, or one cannot be read.
    """
    from robust_nas.datasets._files import check_memory

    check_memory(
        len(chosen["validation"]) + len(chosen["test"]),
        files["train"].image_shape,
        memory,
        "set data.size, data.validation_size or data.test_size lower",
    )
    train, validation, test = (
        files.get(split, files["train"]).part(chosen[split].labels) for split in ("train", "validation", "test")
    )
    return train, validation.in_memory(), test.in_memory()
