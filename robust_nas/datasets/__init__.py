"""Image data sets, each split once and for all into train, validation and test.

One file is one data set: a frozen, keyword-only dataclass with `load_splits`. `datasets.load("digits")`.
Validation data selects; test data only measures.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from robust_nas.errors import InputError
from robust_nas.registry import Group

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class ImageSet:
    """Labelled images, stored as bytes and given out as float32 in [0, 1].

    Args:
        pixels: [N, C, H, W], uint8, from 0 to `max_value`; or what `of` makes of floats.
        labels: [N], int64.
        max_value: the byte that stands for 1.0.
    """

    pixels: Tensor
    labels: Tensor
    max_value: int = 255

    @classmethod
    def of(cls, images: Tensor, labels: Tensor) -> ImageSet:
        """Return the set of given images [N, C, H, W], floats in [0, 1] or bytes, with their labels [N].

        Raises:
            InputError: if they are no tensors or have another shape, or values outside [0, 1].
        """
        import torch

        if not (isinstance(images, torch.Tensor) and isinstance(labels, torch.Tensor)):
            raise InputError(
                f"Images and labels must be tensors (torch.as_tensor makes them of arrays), but got "
                f"{type(images).__name__} and {type(labels).__name__}."
            )
        if images.dim() != 4 or labels.shape != images.shape[:1] or labels.is_floating_point():
            raise InputError(
                "Images must be [N, C, H, W] and labels [N] whole numbers, but got "
                f"{list(images.shape)} and {list(labels.shape)} of {labels.dtype}."
            )
        if not images.is_floating_point():
            return cls(images, labels.long())
        if not bool(((images >= 0) & (images <= 1)).all()):
            raise InputError(
                f"Images must be in [0, 1] (a model normalises its own input), but got values from "
                f"{float(images.min()):g} to {float(images.max()):g}."
            )
        return cls(images.float(), labels.long(), max_value=1)

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
