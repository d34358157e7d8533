"""A folder of class folders: one's own images, read into memory at one size."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from robust_nas.datasets import Dataset, ImageSet
from robust_nas.datasets._splits import cut, train_validation_test
from robust_nas.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Folder:
    """Images in `root/<class>/*`, or in `root/train/<class>/*` and `root/test/<class>/*`.

    Without `train` and `test` folders, the images are split by a fixed permutation: `validation_size` and `test_size`
    images (a fifth each, if not given) are set aside.

    Args:
        root: the folder.
        size: pixels a side: images are resized (shorter side) and centre-cropped to it. If not given, all images must
            have one size.
        grey: whether to read one channel instead of three.
        train_size: training images to use; all that are left, if not given.
        validation_size: validation images; a tenth of the training folder or a fifth of a plain one, if not given.
        test_size: test images; all of the test folder or a fifth of a plain one, if not given.
        memory: the largest size that the images may take in memory, in bytes.
    """

    root: Path
    size: int | None = None
    grey: bool = False
    train_size: int | None = None
    validation_size: int | None = None
    test_size: int | None = None
    memory: int = 8 * 2**30

    def load_splits(self) -> Dataset:
        """Read and split the images."""
        root = self.root.expanduser().resolve()
        if self.size is not None and self.size < 1:
            raise InputError(f"data.size must be at least 1, but got {self.size}.")
        if not root.is_dir():
            raise InputError(
                f"There is no folder {root}; give a folder of class folders, or one with train and test in it."
            )
        if (root / "train").is_dir() != (root / "test").is_dir():
            raise InputError(
                f"{root} must have both 'train' and 'test' folders, or neither, but it has only one of them."
            )
        if (root / "train").is_dir():
            classes, paths, labels = _list(root / "train")
            test_classes, test_paths, test_labels = _list(root / "test")
            if classes != test_classes:
                odd = sorted({*classes} ^ {*test_classes})
                raise InputError(
                    f"{root}/train and {root}/test must have the same classes, but differ in {', '.join(odd)}."
                )
            name = f"{root.name}'s images"
            validation = max(1, len(paths) // 10) if self.validation_size is None else self.validation_size
            # Only what is used is read: the parts are cut from the lists of files.
            train, validated, test = train_validation_test(
                _indices(len(paths)), _indices(len(test_paths)), name, self.train_size, validation, self.test_size
            )
            parts = [(train, paths, labels), (validated, paths, labels), (test, test_paths, test_labels)]
        else:
            classes, paths, labels = _list(root)
            fifth = max(1, len(paths) // 5)
            validation = fifth if self.validation_size is None else self.validation_size
            tested = fifth if self.test_size is None else self.test_size
            left = len(paths) - tested - validation
            sizes = (tested, validation, left if self.train_size is None else self.train_size)
            test, validated, train = cut(_indices(len(paths)), sizes, root.name)
            parts = [(train, paths, labels), (validated, paths, labels), (test, paths, labels)]
        splits = [self._read(part.labels.tolist(), files, targets) for part, files, targets in parts]
        if len({tuple(split.pixels.shape[1:]) for split in splits}) > 1:
            raise InputError(f"The images in {root} have several sizes; set data.size to bring them to one.")
        return Dataset(root.name, classes, *splits)

    def _read(self, chosen: list[int], paths: list[Path], labels: list[int]) -> ImageSet:
        import torch

        first = self._decode(paths[chosen[0]])
        if first.numel() * len(chosen) > self.memory:
            raise InputError(
                f"{len(chosen)} images of {list(first.shape)} need {first.numel() * len(chosen) / 2**30:.1f} GiB, but "
                f"data.memory allows {self.memory / 2**30:.1f}; set data.size or data.train_size lower, or allow more."
            )
        pixels = torch.empty((len(chosen), *first.shape), dtype=torch.uint8)
        for row, index in enumerate(chosen):
            image = self._decode(paths[index])
            if image.shape != first.shape:
                raise InputError(
                    f"The images must have one size, but {paths[index]} has {list(image.shape[1:])} and "
                    f"{paths[chosen[0]]} has {list(first.shape[1:])}; set data.size to bring them to one."
                )
            pixels[row] = image
        return ImageSet(pixels, torch.tensor([labels[index] for index in chosen]))

    def _decode(self, path: Path) -> Tensor:
        import numpy as np
        import torch
        from PIL import Image, ImageOps, UnidentifiedImageError

        try:
            with Image.open(path) as file:
                image = file.convert("L" if self.grey else "RGB")
        except (UnidentifiedImageError, OSError) as error:
            raise InputError(f"{path} cannot be read as an image ({error}); remove or replace it.") from None
        if self.size is not None:
            image = ImageOps.fit(image, (self.size, self.size), Image.Resampling.BILINEAR)
        array = torch.from_numpy(np.asarray(image).copy())
        return array.unsqueeze(0) if self.grey else array.permute(2, 0, 1)


def _list(folder: Path) -> tuple[tuple[str, ...], list[Path], list[int]]:
    """Return the classes, the image files and their labels, all in sorted order."""
    from torchvision.datasets.folder import IMG_EXTENSIONS

    files: dict[str, list[Path]] = {}
    for child in sorted(folder.iterdir()):
        if child.is_dir() and not child.name.startswith("."):
            files[child.name] = sorted(_images(child.rglob("*"), IMG_EXTENSIONS))
    empty = [name for name, found in files.items() if not found]
    if len(files) < 2 or empty:
        what = f"the class folder '{empty[0]}' has no images" if empty else f"it has {len(files)} class folders"
        raise InputError(f"{folder} must have two or more class folders with images in them, but {what}.")
    labels = [label for label, found in enumerate(files.values()) for _ in found]
    return tuple(files), [path for found in files.values() for path in found], labels


def _images(paths: Iterable[Path], extensions: tuple[str, ...]) -> Iterable[Path]:
    return (path for path in paths if path.suffix.lower() in extensions)


def _indices(count: int) -> ImageSet:
    """Return an image set of `count` empty images whose labels are their indices: a list to cut parts from."""
    import torch

    return ImageSet(torch.empty((count, 0), dtype=torch.uint8), torch.arange(count))
