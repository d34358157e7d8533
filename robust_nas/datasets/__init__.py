"""Image data sets, each split once and for all into train, validation and test.

One file is one data set: a frozen, keyword-only dataclass with `load_splits`. `datasets.load("digits")`.
Validation data selects; test data only measures.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from robust_nas.registry import Group

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class ImageSet:
    """Labelled images, stored as bytes and given out as float32 in [0, 1].

    Args:
        pixels: [N, C, H, W], uint8, from 0 to `max_value`.
        labels: [N], int64.
        max_value: the byte that stands for 1.0.
    """

    pixels: Tensor
    labels: Tensor
    max_value: int = 255

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def images(self) -> Tensor:
        """All images, float32 [N, C, H, W] in [0, 1], on the device of `pixels`."""
        return self.pixels.float() / self.max_value

    def __getitem__(self, index: slice | Tensor) -> ImageSet:
        return replace(self, pixels=self.pixels[index], labels=self.labels[index])

    def to(self, device: torch.device | str) -> ImageSet:
        """Return the set on another device."""
        return replace(self, pixels=self.pixels.to(device), labels=self.labels.to(device))


@dataclass(frozen=True)
class Dataset:
    """A data set's three splits.

    Args:
        name: what results on it are called.
        classes: the classes' names, in the order of the labels.
    """

    name: str
    classes: tuple[str, ...]
    train: ImageSet
    validation: ImageSet
    test: ImageSet

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        channels, height, width = self.train.pixels.shape[1:]
        return channels, height, width

    @property
    def channel_statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel over the training images, [C] each, in [0, 1] units."""
        import torch

        levels = torch.arange(256, dtype=torch.float64) / self.train.max_value
        means, deviations = [], []
        for channel in self.train.pixels.unbind(dim=1):
            share = torch.bincount(channel.reshape(-1).int().cpu(), minlength=256) / channel.numel()
            mean = (share * levels).sum()
            means.append(mean)
            # A channel that never varies is left almost unscaled.
            deviations.append((share * (levels - mean) ** 2).sum().sqrt().clamp_min(1e-3))
        return torch.stack(means).float(), torch.stack(deviations).float()

    def to(self, device: torch.device | str) -> Dataset:
        """Return the data set on another device."""
        splits = {name: getattr(self, name).to(device) for name in ("train", "validation", "test")}
        return replace(self, **splits)


@runtime_checkable
class DataSource(Protocol):
    """What every data set's configuration does."""

    def load_splits(self) -> Dataset:
        """Read the images and split them; the same call gives the same splits on every machine.

        Raises:
            InputError: if the files are not there and cannot be downloaded, or are damaged.
        """


_GROUP = Group(__name__, "DataSource", "load_splits")
get, names = _GROUP.get, _GROUP.names


def load(name: str, **options: Any) -> Dataset:
    """Load a data set by name: `datasets.load("cifar10", root="data", train_size=5000)`."""
    source: DataSource = get(name)(**options)
    return source.load_splits()
