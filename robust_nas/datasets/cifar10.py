"""CIFAR-10: colour images of 32 x 32 pixels in ten classes (Krizhevsky 2009)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from robust_nas.datasets import Dataset, ImageSet
from robust_nas.datasets._splits import train_validation_test
from robust_nas.datasets._torchvision import DEFAULT_ROOT, read


@dataclass(frozen=True, kw_only=True)
class CIFAR10:
    """50,000 training images, of which `validation_size` validate, and 10,000 test images.

    Args:
        root: the folder that has (or gets) torchvision's `cifar-10-batches-py`.
        download: whether missing files may be downloaded.
        train_size: training images to use; all that validation leaves, if not given.
        validation_size: validation images.
        test_size: test images to use; all, if not given.
    """

    root: Path = DEFAULT_ROOT
    download: bool = True
    train_size: int | None = None
    validation_size: int = 5000
    test_size: int | None = None

    def load_splits(self) -> Dataset:
        """Read, download if needed, and split the images."""
        import torch
        from torchvision import datasets

        train, test = read(datasets.CIFAR10, self.root, "CIFAR-10", self.download)
        images, tested = (
            ImageSet(torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets))
            for part in (train, test)
        )
        splits = train_validation_test(
            images, tested, "CIFAR-10", self.train_size, self.validation_size, self.test_size
        )
        return Dataset("cifar10", tuple(train.classes), *splits)
