"""Data of one's own: pairs of arrays, and data sets and loaders of torch, as image sets.

Images are read once, as they are given, and kept in memory; those that came from bytes are kept as bytes. What a
training changes in them (crops, flips) is the training's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from robust_nas.core.errors import InputError
from robust_nas.core.pixels import WHITE
from robust_nas.datasets import Dataset, ImageSet
from robust_nas.datasets._files import in_mode
from robust_nas.datasets._splits import cut

_IMAGE_KEYS, _LABEL_KEYS = ("image", "images", "img", "pixel_values"), ("label", "labels", "target")
"""The keys of a sample that is a table, as those of Hugging Face's data sets are."""

_FEWEST = 3
"""The fewest images that can be cut into three splits."""

_TAKEN = (
    "one ImageSet (such as data.test), a pair (images, labels), a torch.utils.data.Dataset of such samples, or a "
    "DataLoader of it"
)


def image_set(given: object, name: str = "data") -> ImageSet:
    """Return the image set of what people hold: see `_TAKEN`.

    Samples of a data set are images and labels: an image is a tensor [C, H, W] or [H, W], an array [H, W, C] or [H, W],
    or one of Pillow's. All are of one size.

    Args:
        given: the data.
        name: the argument's, for messages.

    Raises:
        InputError: for anything else, or images or labels of another form.
    """
    if isinstance(given, ImageSet):
        return given
    if isinstance(given, Dataset):
        raise InputError(f"{name} must be one ImageSet (such as data.test), but got one Dataset.")
    if isinstance(given, tuple | list) and len(given) == 2:
        return ImageSet(_tensor(given[0], "Images"), _tensor(given[1], "Labels"))
    if isinstance(given, DataLoader | TorchDataset):
        return _read(given, name)
    raise InputError(f"{name} must be {_TAKEN}, but got one {type(given).__name__}.")


def dataset(
    train: object,
    validation: object = None,
    test: object = None,
    *,
    name: str = "own",
    classes: Sequence[str] | None = None,
) -> Dataset:
    """Return the data set of splits, each as `image_set` takes it.

    Validation and test images that are not given are cut out of the training images, a tenth each, in an order that
    depends on their number alone.

    Args:
        classes: the classes' names; those that the data set of torch has, if not given, and else the labels.

    Raises:
        InputError: for what `image_set` refuses, or too few images.
    """
    if isinstance(train, Dataset):
        return train
    if classes is None:
        classes = _classes_of(train)
    learned = image_set(train, "train")
    given = {
        split: image_set(part, split)
        for split, part in (("validation", validation), ("test", test))
        if part is not None
    }
    missing = [split for split in ("validation", "test") if split not in given]
    if missing:
        if len(learned) < _FEWEST:
            raise InputError(f"{name} has {len(learned)} images, which cannot be cut into splits; give at least 3.")
        tenth = max(1, len(learned) // 10)
        *parts, learned = cut(learned, [*[tenth] * len(missing), len(learned) - tenth * len(missing)], name)
        given |= dict(zip(missing, parts, strict=True))
    splits = {"train": learned, **given}
    for split, images in splits.items():
        if not len(images):
            raise InputError(f"{name}'s {split} split has no images.")
        if images.image_shape != learned.image_shape:
            raise InputError(
                f"{name}'s {split} images are of {list(images.image_shape)}, and its training images of "
                f"{list(learned.image_shape)}; give splits of one size."
            )
    largest = max(int(images.labels.max()) for images in splits.values())
    named = tuple(map(str, range(largest + 1))) if classes is None else tuple(map(str, classes))
    return Dataset(name, named, learned, given["validation"], given["test"], tuple(_same_images(splits)))


def _same_images(splits: Mapping[str, ImageSet]) -> Iterator[str]:
    """Yield a note on each pair of splits with the same images."""
    digests = {split: images.digest for split, images in splits.items()}
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        if digests[one] == digests[other]:
            yield f"The {one} and the {other} split are the same images: what is measured on one was seen on the other."


def _classes_of(given: object) -> Sequence[str] | None:
    """Return the classes' names that a data set of torch has, such as torchvision's; of a part, the whole's."""
    for _ in range(10):
        if isinstance(found := getattr(given, "classes", None), list | tuple):
            return list(map(str, found))
        given = getattr(given, "dataset", None)
    return None


def _tensor(values: Any, what: str) -> Tensor:
    try:
        found = values if isinstance(values, Tensor) else torch.as_tensor(np.asarray(values))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{what} must be numbers in a tensor or an array, but got {type(values).__name__} ({error})."
        ) from None
    if what == "Images" and found.ndim == 4 and found.shape[1] not in (1, 3) and found.shape[3] in (1, 3):
        raise InputError(
            f"Images must be [N, C, H, W], but got {list(found.shape)}, whose channels come last; give "
            "images.transpose(0, 3, 1, 2) of an array, or images.permute(0, 3, 1, 2) of a tensor."
        )
    return found


def _read(given: DataLoader[Any] | TorchDataset[Any], name: str) -> ImageSet:
    """Return all samples of a data set of torch, or of all batches of a loader."""
    images: list[Tensor] = []
    labels: list[Tensor] = []
    for place, sample in enumerate(_samples(given)):
        image, label = _parts(sample, name)
        if isinstance(given, DataLoader):
            image, label = _tensor(image, "Images"), _tensor(label, "Labels")
        else:
            image, label = _pixels(image, name).unsqueeze(0), _tensor(label, "Labels").reshape(-1)
        if image.ndim != 4 or (images and image.shape[1:] != images[0].shape[1:]):
            was = f", but the ones before of {list(images[0].shape[1:])}" if images else ""
            raise InputError(
                f"The images of {name} must be [C, H, W], all of one size, but number {place} is of "
                f"{list(image.shape[1:])}{was}; resize them in the data set, as torchvision.transforms.Resize and "
                "CenterCrop do."
            )
        images.append(_as_bytes(image))
        labels.append(label)
    if not images:
        raise InputError(f"{name} has no samples.")
    if len({part.dtype for part in images}) > 1:  # some are no multiples of 1/255
        images = [part.float() / WHITE if part.dtype == torch.uint8 else part for part in images]
    return ImageSet(torch.cat(images), torch.cat(labels))


def _samples(given: DataLoader[Any] | TorchDataset[Any]) -> Iterable[Any]:
    # One that has a length and no end (`__getitem__` without IndexError) would be iterated for ever.
    if isinstance(given, DataLoader) or not hasattr(given, "__len__"):
        return given  # type: ignore[return-value]
    return (given[place] for place in range(len(given)))


def _parts(sample: Any, name: str) -> tuple[Any, Any]:
    """Return the image and the label of a sample."""
    if isinstance(sample, Mapping):
        image, label = (next((key for key in keys if key in sample), None) for keys in (_IMAGE_KEYS, _LABEL_KEYS))
        if image is not None and label is not None:
            return sample[image], sample[label]
        raise InputError(
            f"A sample of {name} must have an 'image' and a 'label', but has "
            f"{', '.join(map(str, sample)) or 'nothing'}."
        )
    if isinstance(sample, tuple | list) and len(sample) >= 2:
        return sample[0], sample[1]
    raise InputError(f"A sample of {name} must be an image and its label, but got one {type(sample).__name__}.")


def _pixels(image: Any, name: str) -> Tensor:
    """Return one image as a tensor [C, H, W]."""
    if isinstance(image, Image.Image):
        try:
            image = np.array(in_mode(image, "L" if image.mode in ("1", "L") else "RGB"))
        except ValueError as error:
            raise InputError(f"An image of {name} cannot be read: {error}.") from None
    if isinstance(image, np.ndarray):
        array = torch.from_numpy(np.ascontiguousarray(image))
        return array.unsqueeze(0) if array.ndim == 2 else array.permute(2, 0, 1) if array.ndim == 3 else array
    if not isinstance(image, Tensor):
        raise InputError(
            f"An image of {name} must be a tensor, an array, or one of Pillow's, but got one {type(image).__name__}."
        )
    return image.unsqueeze(0) if image.ndim == 2 else image


def _as_bytes(images: Tensor) -> Tensor:
    """Return images that came from bytes, as `torchvision.transforms.ToTensor` gives them, as these bytes."""
    images = images.detach().cpu()
    if images.dtype != torch.float32:
        return images
    stored = (images * WHITE).round()
    if not bool(((stored >= 0) & (stored <= WHITE) & (stored / WHITE == images)).all()):
        return images
    return stored.to(torch.uint8)
