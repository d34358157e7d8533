"""A folder of class folders: one's own images, read into memory at one size."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from robust_nas.catalogue import expanded
from robust_nas.datasets import Dataset, ImageSet
from robust_nas.datasets._splits import cut, train_validation_test
from robust_nas.errors import InputError

if TYPE_CHECKING:
    from PIL import Image
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
        from robust_nas.datasets._files import ClassFolders

        root = expanded(self.root).resolve()
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
            files, test_files = ClassFolders.of(root / "train"), ClassFolders.of(root / "test")
            files.check_same_classes(test_files)
            name = f"{root.name}'s images"
            validation = max(1, len(files.paths) // 10) if self.validation_size is None else self.validation_size
            # Only what is used is read: the parts are cut from the lists of files.
            train, validated, test = train_validation_test(
                files.indices(), test_files.indices(), name, self.train_size, validation, self.test_size
            )
        else:
            files = test_files = ClassFolders.of(root)
            fifth = max(1, len(files.paths) // 5)
            validation = fifth if self.validation_size is None else self.validation_size
            tested = fifth if self.test_size is None else self.test_size
            left = len(files.paths) - tested - validation
            sizes = (tested, validation, left if self.train_size is None else self.train_size)
            test, validated, train = cut(files.indices(), sizes, root.name)
        parts = [(train, files), (validated, files), (test, test_files)]
        splits = [self._read(part.labels.tolist(), listed.paths, listed.labels) for part, listed in parts]
        if len({tuple(split.pixels.shape[1:]) for split in splits}) > 1:
            raise InputError(f"The images in {root} have several sizes; set data.size to bring them to one.")
        return Dataset(root.name, files.classes, *splits)

    def _read(self, chosen: list[int], paths: list[str], labels: list[int]) -> ImageSet:
        import torch

        from robust_nas.datasets._files import check_memory

        first = self._decode(paths[chosen[0]])
        check_memory(len(chosen), first.shape, self.memory, "set data.size or data.train_size lower")
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

    def _decode(self, path: str) -> Tensor:
        from robust_nas.datasets._files import read_image

        return read_image(path, self._view)

    def _view(self, file: Image.Image) -> Image.Image:
        from PIL import Image, ImageOps

        from robust_nas.datasets._files import in_mode

        image = in_mode(file, "L" if self.grey else "RGB")
        if self.size is None:
            return image
        return ImageOps.fit(image, (self.size, self.size), Image.Resampling.BILINEAR)
