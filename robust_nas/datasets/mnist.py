"""MNIST: handwritten digits of 28 x 28 pixels (LeCun et al. 1998)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from robust_nas.datasets import Dataset, ImageSet
from robust_nas.datasets._splits import train_validation_test
from robust_nas.datasets._torchvision import DEFAULT_ROOT, read


@dataclass(frozen=True, kw_only=True)
class MNIST:
    """60,000 training images, of which `validation_size` validate, and 10,000 test images.

    Args:
        root: the folder that has (or gets) torchvision's `MNIST/raw`.
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
        from torchvision import datasets

        train, test = (
            ImageSet(part.data.unsqueeze(1), part.targets.long())
            for part in read(datasets.MNIST, self.root, "MNIST", self.download)
        )
        splits = train_validation_test(train, test, "MNIST", self.train_size, self.validation_size, self.test_size)
        return Dataset("mnist", tuple(str(digit) for digit in range(10)), *splits)
