"""Handwritten digits of 8 x 8 pixels (UCI, bundled with scikit-learn): the embedded default, no download."""

from __future__ import annotations

from dataclasses import dataclass

from robust_nas.datasets import Dataset, ImageSet
from robust_nas.datasets._splits import cut


@dataclass(frozen=True, kw_only=True)
class Digits:
    """1,797 grey images with 17 levels: 1,077 to train on, 360 to validate, 360 to test."""

    def load_splits(self) -> Dataset:
        """Read and split the images."""
        import torch
        from sklearn.datasets import load_digits

        bunch = load_digits()
        pixels = torch.from_numpy(bunch.images).to(torch.uint8).unsqueeze(1)
        images = ImageSet(pixels, torch.from_numpy(bunch.target).long(), max_value=16)
        train, validation, test = cut(images, (1077, 360, 360), "digits")
        return Dataset("digits", tuple(str(digit) for digit in range(10)), train, validation, test)
