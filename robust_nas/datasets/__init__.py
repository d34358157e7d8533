"""Image data sets, each split once and for all into train, validation and test.

One file is one data set: a frozen, keyword-only dataclass with `load_splits`. `datasets.load("digits")`.
Validation data selects; test data only measures.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

from robust_nas.core.checks import check_type
from robust_nas.core.errors import InputError, suggest
from robust_nas.core.figures import picture_plot
from robust_nas.core.pixels import WHITE, class_labels, stored_images
from robust_nas.core.registry import Group, is_module_name, named, offered
from robust_nas.core.shown import Shown, Summary, frame

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from matplotlib.figure import Figure
    from torch import Tensor

    from robust_nas.datasets._batches import check_batch as check_batch
    from robust_nas.datasets._batches import epoch_batches as epoch_batches
    from robust_nas.datasets._batches import stream_batches as stream_batches
    from robust_nas.datasets._own import dataset as dataset
    from robust_nas.datasets._own import image_set as image_set
    from robust_nas.datasets._unlabelled import unlabelled as unlabelled

    Images: TypeAlias = "ImageSet | tuple[Any, Any] | torch.utils.data.Dataset[Any] | torch.utils.data.DataLoader[Any]"


class TrainingImages(Protocol):
    """A training split, with images in memory (`ImageSet`) or in files (`_files.ImageFiles`)."""

    @property
    def labels(self) -> Tensor:
        """[N], int64, on `device`."""

    @property
    def max_value(self) -> int:
        """The byte that stands for 1.0."""

    @property
    def device(self) -> torch.device:
        """The device that images are given out on."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""

    @property
    def channel_statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel, [C] each, in [0, 1] units."""

    @property
    def digest(self) -> str:
        """The digest of the images in their order; for images in files, it covers their names and sizes.

        Labels are not in it.
        """

    def __len__(self) -> int: ...

    def __getitem__(self, index: slice | Tensor) -> ImageSet: ...

    def to(self, device: torch.device | str) -> TrainingImages:
        """Return the same images, given out on another device."""

    def batches(self, indices: Sequence[Tensor], *, size: int | None = None, seed: int = 0) -> Iterator[ImageSet]:
        """Yield the images at each list of indices [B], one epoch's batches, as a network is to see them in training.

        Args:
            indices: places in this split, on any device.
            size: pixels of the shorter side, other than the images' own.
            seed: of what is drawn in reading an image; an image's draw depends on `seed` and its place in the split
                alone.

        Raises:
            InputError: if an image cannot be read; it is named.
        """


@dataclass(frozen=True, repr=False)
class ImageSet(Shown):
    """Labelled images, stored as bytes and given out as float32 in [0, 1].

    Args:
        pixels: [N, C, H, W], uint8, from 0 to `max_value`; or what else `pixels.stored_images` takes: floats in [0, 1]
            as they are, bool as 0 and 1.
        labels: [N], whole numbers.
        max_value: the whole number that stands for 1.0; 1 of floats and bool, whatever is given.

    Raises:
        InputError: for what are no images, or not their labels.
    """

    pixels: Tensor
    labels: Tensor
    max_value: int = WHITE

    def __post_init__(self) -> None:
        if isinstance(self.max_value, bool) or not isinstance(self.max_value, int) or self.max_value < 1:
            raise InputError(f"ImageSet.max_value must be a whole number of at least 1, but got {self.max_value!r}.")
        stored, white = stored_images(self.pixels, self.max_value)
        labels = class_labels(self.labels, len(stored))
        self._take(stored.float() if stored.is_floating_point() else stored, labels, white)

    def _take(self, pixels: Tensor, labels: Tensor, max_value: int) -> None:
        for name, value in (("pixels", pixels), ("labels", labels), ("max_value", max_value)):
            object.__setattr__(self, name, value)

    @classmethod
    def unchecked(cls, pixels: Tensor, labels: Tensor, max_value: int = WHITE) -> ImageSet:
        """The set of tensors that are known to be right, such as a part of another set's: nothing is looked at."""
        made = object.__new__(cls)
        made._take(pixels, labels, max_value)
        return made

    @classmethod
    def of(cls, images: Tensor, labels: Tensor) -> ImageSet:
        """The set of images [N, C, H, W], as `pixels.stored_images` takes them, with their labels [N].

        Raises:
            InputError: for what are no images, or not their labels.
        """
        return cls(images, labels)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def images(self) -> Tensor:
        """All images, float32 [N, C, H, W] in [0, 1], on the device of `pixels`."""
        return self.pixels.float() / self.max_value

    def __getitem__(self, index: slice | Tensor) -> ImageSet:
        return self.unchecked(self.pixels[index], self.labels[index], self.max_value)

    def to(self, device: torch.device | str) -> ImageSet:
        """Return the set on another device."""
        return self.unchecked(self.pixels.to(device), self.labels.to(device), self.max_value)

    @property
    def device(self) -> torch.device:
        """The device of the images."""
        return self.pixels.device

    @property
    def digest(self) -> str:
        """The digest of the images in their order."""
        pixels = self.pixels
        about = f"{list(pixels.shape)} {pixels.dtype} {self.max_value}"
        digest = hashlib.blake2b(about.encode(), digest_size=16)
        digest.update(pixels.cpu().contiguous().numpy().data)
        return digest.hexdigest()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        channels, height, width = self.pixels.shape[1:]
        return channels, height, width

    @property
    def channel_statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel over all images, [C] each, in [0, 1] units."""
        import torch

        if self.pixels.is_floating_point():
            channels = self.pixels.double().transpose(0, 1).flatten(1) / self.max_value
            deviation, mean = torch.std_mean(channels.cpu(), dim=1, correction=0)
            return mean.float(), deviation.clamp_min(1e-3).float()
        levels = torch.arange(max(256, self.max_value + 1), dtype=torch.float64) / self.max_value
        means, deviations = [], []
        for channel in self.pixels.unbind(dim=1):
            share = torch.bincount(channel.reshape(-1).int().cpu(), minlength=len(levels)) / channel.numel()
            mean = (share * levels).sum()
            means.append(mean)
            # A channel that never varies is left almost unscaled.
            deviations.append((share * (levels - mean) ** 2).sum().sqrt().clamp_min(1e-3))
        return torch.stack(means).float(), torch.stack(deviations).float()

    def batches(self, indices: Sequence[Tensor], *, size: int | None = None, seed: int = 0) -> Iterator[ImageSet]:
        """Yield the images at each list of indices [B]; see `TrainingImages.batches`. Nothing is drawn here.

        Raises:
            InputError: if `size` is below 1.
        """
        for chosen in indices:
            batch = self[chosen.to(self.device)]
            yield batch if size is None else batch.resized(size)

    def resized(self, size: int) -> ImageSet:
        """Return the images with `size` pixels on the shorter side (bilinear, antialiased), on the same device.

        Raises:
            InputError: if `size` is below 1.
        """
        from torch.nn import functional as F

        if size < 1:
            raise InputError(f"The size of images must be at least 1 pixel, but got {size}.")
        height, width = self.pixels.shape[2:]
        shorter = min(height, width)
        if size == shorter:
            return self
        shape = (size * height // shorter, size * width // shorter)
        pixels = F.interpolate(self.pixels.float(), shape, mode="bilinear", antialias=True).clamp(0, self.max_value)
        stored = pixels if self.pixels.is_floating_point() else pixels.round().to(self.pixels.dtype)
        return self.unchecked(stored, self.labels, self.max_value)

    def to_frame(self) -> pd.DataFrame:
        """Return a row per image: image (its place) and label."""
        return frame({"image": place, "label": label} for place, label in enumerate(self.labels.tolist()))

    def plot(self, count: int = 16) -> Figure:
        """Return a figure with the first `count` images and their labels."""
        few = self[:count]
        pictures = [image.permute(1, 2, 0) if len(image) == 3 else image[0] for image in few.images.cpu()]
        labels = [str(label) for label in few.labels.tolist()]
        return picture_plot(pictures, labels, f"{len(few)} of {len(self)} images")

    def _summary(self) -> Summary:
        return Summary(f"{len(self)} images of {_size_in_words(self)}, {len(self.labels.unique())} different labels")


def _size_in_words(images: TrainingImages) -> str:
    return " x ".join(map(str, images.image_shape))


class NetworkData(Protocol):
    """The part of a data set that a network is built from."""

    @property
    def name(self) -> str:
        """The name that results on it carry."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes' names, in the order of the labels."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""

    @property
    def channel_statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel, [C] each, in [0, 1] units."""


@dataclass(frozen=True)
class DataForm:
    """The form of a data set, without its images: the numbers that networks are built from.

    Args:
        name: the data set's.
        classes: the classes' names, in the order of the labels.
        image_shape: channels, height and width.
        statistics: the mean and deviation of each channel, [C] each; for a network that saved weights are loaded into
            none are needed, as they bring those that it was trained with.
    """

    name: str
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    statistics: tuple[Tensor, Tensor] | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, data: NetworkData) -> DataForm:
        """Return the form of a data set, whose statistics are computed once here, and not again for each network."""
        return cls(data.name, data.classes, data.image_shape, data.channel_statistics)

    @property
    def channel_statistics(self) -> tuple[Tensor, Tensor]:
        """The statistics; zeros and ones without."""
        import torch

        return self.statistics or (torch.zeros(self.image_shape[0]), torch.ones(self.image_shape[0]))


SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, repr=False)
class Dataset(Shown):
    """A data set's three splits.

    Args:
        name: its name in results.
        classes: the classes' names, in the order of the labels.
        train: in memory or in files.
        notes: suspicious signs in the images, such as test images that are training images too.

    Raises:
        InputError: for labels that are no places in `classes`.
    """

    name: str
    classes: tuple[str, ...]
    train: TrainingImages
    validation: ImageSet
    test: ImageSet
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        # Who trains or searches may be blind to a split.
        there = {split: part for split in ("train", "validation", "test") if (part := getattr(self, split)) is not None}
        for split, part in there.items():
            labels = part.labels
            if len(labels) and not (int(labels.min()) >= 0 and int(labels.max()) < len(self.classes)):
                raise InputError(
                    f"The labels of {self.name}'s {split} split must be places in its {len(self.classes)} classes, "
                    f"from 0 to {len(self.classes) - 1}, but are from {int(labels.min())} to {int(labels.max())}."
                )

    @classmethod
    def from_torch(
        cls,
        train: object,
        validation: object = None,
        test: object = None,
        *,
        name: str = "own",
        classes: Sequence[str] | None = None,
    ) -> Dataset:
        """Return the splits that data sets or loaders of torch hold, whose samples are images and labels.

            rn.Dataset.from_torch(torchvision.datasets.ImageFolder("train", transform=ToTensor()))

        Every sample is read once, as it is given: leave out `Normalize`, as networks normalise their own input, and
        random changes, which a training makes itself. Of validation and test images that are not given, each is a
        tenth of the training images, in an order that depends on their number alone.

        Args:
            train: a `torch.utils.data.Dataset` or a `DataLoader`; an image is a tensor [C, H, W] in [0, 1] or of bytes,
                an array [H, W, C], or one of Pillow's; all are of one size.
            validation: of the same kind; it selects epochs and architectures.
            test: of the same kind; it only measures.
            name: the data set's name in results.
            classes: the classes' names; those of `train.classes`, if not given, and without these the labels.

        Raises:
            InputError: for samples that are no images with labels, or splits that do not fit each other.
        """
        from robust_nas.datasets._own import dataset

        return dataset(train, validation, test, name=name, classes=classes)

    @classmethod
    def from_arrays(
        cls,
        train: tuple[Any, Any],
        validation: tuple[Any, Any] | None = None,
        test: tuple[Any, Any] | None = None,
        *,
        name: str = "own",
        classes: Sequence[str] | None = None,
    ) -> Dataset:
        """Return the splits that pairs of arrays or tensors hold, images [N, C, H, W] and labels [N].

            rn.Dataset.from_arrays((images, labels), classes=["cat", "dog"])

        Images are floats in [0, 1] or bytes. The rest is as for `from_torch`.
        """
        from robust_nas.datasets._own import dataset

        return dataset(train, validation, test, name=name, classes=classes)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        return self.train.image_shape

    @property
    def channel_statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel over the training images, [C] each, in [0, 1] units."""
        return self.train.channel_statistics

    def some(self, count: int) -> Tensor:
        """Return the first training images, [min(count, N), C, H, W]."""
        import torch

        return self.train[torch.arange(min(count, len(self.train)))].images

    def to_frame(self) -> pd.DataFrame:
        """Return a row per split and class: split, label, class and count (of images)."""
        rows = []
        for split, images in self._splits().items():
            counts = images.labels.bincount(minlength=len(self.classes)).tolist()
            rows += [
                {"split": split, "label": label, "class": name, "count": counts[label]}
                for label, name in enumerate(self.classes)
            ]
        return frame(rows)

    def plot(self, count: int = 16) -> Figure:
        """Return a figure with the first `count` training images and their classes."""
        import torch

        few = self.train[torch.arange(min(count, len(self.train)))]
        pictures = [image.permute(1, 2, 0) if len(image) == 3 else image[0] for image in few.images.cpu()]
        names = [self.classes[label] for label in few.labels.tolist()]
        return picture_plot(pictures, names, f"{len(few)} of {len(self.train)} training images of {self.name}")

    def _splits(self) -> dict[str, TrainingImages]:
        return {split: images for split in SPLITS if (images := getattr(self, split)) is not None}

    def _summary(self) -> Summary:
        rows = tuple((split, str(len(images))) for split, images in self._splits().items())
        title = f"{self.name}: {len(self.classes)} classes, images of {_size_in_words(self.train)}"
        return Summary(title, ("split", "images"), rows, self.notes)

    def to(self, device: torch.device | str) -> Dataset:
        """Return the data set on another device."""
        splits = {name: getattr(self, name).to(device) for name in ("train", "validation", "test")}
        return replace(self, **splits)

    def fingerprint(self, splits: Sequence[str] = SPLITS) -> dict[str, Any]:
        """The classes' names, and of each of `splits` its size and digests, which tell this data from other data."""
        found = {}
        for name in splits:
            images = getattr(self, name)
            labels = hashlib.blake2b(images.labels.cpu().numpy().tobytes(), digest_size=16).hexdigest()
            found[name] = {"count": len(images), "labels": labels, "images": images.digest}
        return {"name": self.name, "classes": list(self.classes), "splits": found}


def changes(before: Mapping[str, Any], now: Mapping[str, Any], splits: Sequence[str] = SPLITS) -> list[str]:
    """Return in words how one fingerprint of data differs from an earlier one, as far as `splits` go."""
    found = []
    if before["classes"] != now["classes"]:
        found.append(f"the classes are {', '.join(now['classes'])} instead of {', '.join(before['classes'])}")
    for split in splits:
        earlier, later = before["splits"][split], now["splits"][split]
        if earlier["count"] != later["count"]:
            found.append(f"the {split} split has {later['count']} images instead of {earlier['count']}")
        elif odd := [part for part in ("images", "labels") if earlier[part] != later[part]]:
            found.append(f"the {split} split has other {' and '.join(odd)}")
    return found


@runtime_checkable
class DataSource(Protocol):
    """A data set's configuration."""

    def load_splits(self) -> Dataset:
        """Read the images and split them; the same call gives the same splits on every machine.

        Raises:
            InputError: if the files are not there and cannot be downloaded, or are damaged.
        """


_GROUP = Group(__name__, "DataSource", "load_splits")
get, names = _GROUP.get, _GROUP.names


def section(data: str) -> dict[str, str]:
    """The section of a configuration for a data set's name, or for a folder of class folders or of tar shards.

    Raises:
        InputError: if it is neither, nor the name of a module.
    """
    path = Path(data).expanduser()
    if data in names() or (is_module_name(data) and not path.exists()):
        return {"name": data}
    if path.is_dir():
        shards = any(path.glob("*.tar")) and not any(entry.is_dir() for entry in path.iterdir())
        return {"name": "shards" if shards else "folder", "root": str(path.resolve())}
    if path.exists():
        raise InputError(f"{data} is a file, not a folder of class folders; unpack an archive, and give the folder.")
    raise InputError(
        f"There is no data set or folder '{data}'. {suggest(data, names())} A folder of class folders works too."
    )


def load(name: str, **options: Any) -> Dataset:
    """Load a data set by name: `datasets.load("cifar10", root="data", train_size=5000)`.

    Suspicious signs in its images are given as warnings.

    Raises:
        InputError: for a name that is none, or that of a folder; see `DataSource.load_splits`.
    """
    check_type("The name of a data set", name, str, 'a text, such as "digits"')
    if name not in names() and Path(name).expanduser().is_dir():
        raise InputError(
            f"'{name}' is a folder and no data set's name; a folder of class folders is "
            f'rn.datasets.load("folder", root={name!r}).'
        )
    from robust_nas.core import config

    source: DataSource = config.build(get(name), named(options), "data")
    data = source.load_splits()
    for note in data.notes:
        warnings.warn(note, stacklevel=2)
    return data


__getattr__ = offered(
    __name__,
    {
        "check_batch": "_batches",
        "dataset": "_own",
        "image_set": "_own",
        "epoch_batches": "_batches",
        "stream_batches": "_batches",
        "unlabelled": "_unlabelled",
    },
)
