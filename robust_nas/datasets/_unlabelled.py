"""Images without labels: a folder of image files, however it is ordered, or an array in a file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from robust_nas.core.catalogue import expanded
from robust_nas.core.errors import InputError, reason_of
from robust_nas.datasets import ImageSet
from robust_nas.datasets._class_folders import image_files
from robust_nas.datasets._files import ImageFiles, check_memory, in_mode, read_image

if TYPE_CHECKING:
    from PIL import Image

    from robust_nas.datasets import Dataset, TrainingImages

_MEMORY = 8 * 2**30
"""The largest size that unlabelled images may take in memory, in bytes."""


def unlabelled(source: Path, data: Dataset) -> TrainingImages:
    """Return unlabelled images in the form of a data set's training images, on their device; all labels are 0.

    Args:
        source: a folder with image files in it or in the folders in it, which are resized (shorter side) and
            centre-cropped, or, where the training images are in files too, cropped at random as these are; or an array
            [N, C, H, W], [N, H, W, C] or [N, H, W] in a `.npy` file, bytes or floats in [0, 1], of the same size.
        data: the data set that they are trained with.

    Raises:
        InputError: if there are none, they do not fit, or one cannot be read.
    """
    path, train = expanded(source), data.train
    if path.is_dir():
        files = image_files(str(path), Counter())
        if not files:
            raise InputError(f"train.unlabelled must be a folder with images in it, but {path} has none.")
        if isinstance(train, ImageFiles):
            return ImageFiles.of(files, [0] * len(files), train.size, workers=train.workers).to(train.device)
        check_memory(len(files), train.image_shape, _MEMORY, "give a folder with fewer images")
        return ImageSet.unchecked(
            torch.stack([read_image(file, lambda image: _fitted(image, train.image_shape)) for file in files]),
            torch.zeros(len(files), dtype=torch.int64),
        ).to(train.device)
    if path.suffix != ".npy" or not path.is_file():
        raise InputError(f"train.unlabelled must be a folder of images or an array in a .npy file, but got {path}.")
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as an array ({reason_of(error)}); write it by numpy.save.") from None
    return _of_array(array, path, train)


def _of_array(array: np.ndarray, path: Path, train: TrainingImages) -> TrainingImages:
    channels, *sides = train.image_shape
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[1] != channels and array.shape[3] == channels:
        array = array.transpose(0, 3, 1, 2)
    if array.ndim != 4 or array.shape[1:] != (channels, *sides) or not len(array):
        raise InputError(
            f"The unlabelled images in {path} must be of shape {[channels, *sides]} as the training images are, but "
            f"the array is {list(array.shape)}."
        )
    images = torch.from_numpy(np.ascontiguousarray(array))
    return ImageSet(images, torch.zeros(len(images), dtype=torch.int64)).to(train.device)


def _fitted(image: Image.Image, shape: tuple[int, int, int]) -> Image.Image:
    from PIL import Image, ImageOps

    channels, height, width = shape
    converted = in_mode(image, "L" if channels == 1 else "RGB")
    return ImageOps.fit(converted, (width, height), Image.Resampling.BILINEAR)
