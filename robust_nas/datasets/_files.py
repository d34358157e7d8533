"""Labelled image files, decoded when they are asked for, by processes that work ahead.

For training images that do not fit in memory. In training each is read by a random crop, resized to one size
(`random_crop`); everywhere else by the centre crop that ImageNet results are measured on (`centre_crop`).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import math
import os
import random
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from robust_nas.core.errors import InputError, Interrupted
from robust_nas.core.seeds import seed_at
from robust_nas.datasets import ImageSet
from robust_nas.datasets._splits import permutation
from robust_nas.datasets._tar import Member, Members

if TYPE_CHECKING:
    import numpy.typing as npt

STATISTICS_SAMPLE = 1000
"""Images whose centre crops give the channel statistics, where these are not known."""

_READ_AT_ONCE = 64
"""Images that a process decodes as one piece when all of them are read into memory."""


@dataclass(frozen=True)
class ImageFiles:
    """Labelled image files, decoded when they are asked for: a training split that need not fit in memory.

    Args:
        paths: [N], the files' names as bytes: one array, so that no process that decodes gets a copy. See `of`. Or
            images in tar files.
        labels: [N], int64, on `device`.
        size: pixels a side of the images that are given out.
        workers: processes that decode, each two batches ahead, which lie in shared memory; 0 decodes in this one. The
            images are the same for any number.
        statistics: mean and standard deviation of each channel, [3] each, where they are known.
        device: the device that images are given out on.

    Raises:
        InputError: if `size` or `workers` is too small.
    """

    paths: npt.NDArray[np.bytes_] | Members
    labels: Tensor
    size: int
    workers: int = 0
    statistics: tuple[Tensor, Tensor] | None = None
    device: torch.device = torch.device("cpu")

    def __post_init__(self) -> None:
        if self.size < 1:
            raise InputError(f"The size of images must be at least 1 pixel, but got {self.size}.")
        if self.workers < 0:
            raise InputError(f"The workers that decode images must be 0 or more, but got {self.workers}.")

    @classmethod
    def of(cls, paths: Sequence[str | Path], labels: Sequence[int], size: int, **options: Any) -> ImageFiles:
        """Return the set of given files with their labels."""
        return cls(np.array([os.fsencode(path) for path in paths]), torch.tensor(labels), size, **options)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def max_value(self) -> int:
        """The byte that stands for 1.0."""
        return 255

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        return 3, self.size, self.size

    @property
    def digest(self) -> str:
        """The digest of the files in their order: of their names below the folder of all, and their sizes.

        An image that is replaced by another one of the same size to the byte is not noticed: reading every file would
        take as long as an epoch.
        """
        names, sizes = self._entries()
        folder = os.path.commonpath([min(names), max(names)]) if names else ""
        digest = hashlib.blake2b(digest_size=16)
        for name, size in zip(names, sizes, strict=True):
            digest.update(os.fsencode(f"{os.path.relpath(name, folder)}\0{size}\0"))
        return digest.hexdigest()

    def _entries(self) -> tuple[list[str], list[int]]:
        if isinstance(self.paths, Members):
            names, sizes = zip(*self.paths.entries(), strict=True) if len(self) else ((), ())
            return list(names), list(sizes)
        paths = [os.fsdecode(path) for path in self.paths]
        return paths, [os.path.getsize(path) for path in paths]

    @property
    def channel_statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel, [3] each, in [0, 1] units.

        Those given; without, of the centre crops of `STATISTICS_SAMPLE` images, always the same.
        """
        if self.statistics is not None:
            return self.statistics
        return self.part(permutation(len(self))[:STATISTICS_SAMPLE]).in_memory().channel_statistics

    def to(self, device: torch.device | str) -> ImageFiles:
        """Return the same files, their images given out on another device."""
        return replace(self, labels=self.labels.to(device), device=torch.device(device))

    def part(self, index: slice | Tensor) -> ImageFiles:
        """Return some of the files, still files."""
        chosen = index.numpy(force=True) if isinstance(index, Tensor) else index
        return replace(self, paths=self.paths[chosen], labels=self.labels[_on(index, self.device)])

    def __getitem__(self, index: slice | Tensor) -> ImageSet:
        """Return the centre crops of some images; `batches` has the random crops of training.

        They are decoded by threads of this process, as many as there are workers: for one batch, processes would take
        longer to start.

        Raises:
            InputError: if a file cannot be read; it is named.
        """
        part = self.part(index)
        if self.workers < 2 or len(part) < 2:
            return replace(part, workers=0).in_memory()
        reader = _Reader(part.paths, self.size, seed=None)
        with ThreadPoolExecutor(min(self.workers, len(part))) as pool:
            images = list(pool.map(reader.read, range(len(part))))
        return ImageSet.unchecked(torch.stack(images).to(self.device), part.labels)

    def in_memory(self) -> ImageSet:
        """Return the centre crops of all images.

        Raises:
            InputError: if a file cannot be read; it is named.
        """
        pixels = torch.empty((len(self), *self.image_shape), dtype=torch.uint8, device=self.device)
        pieces = torch.arange(len(self)).split(_READ_AT_ONCE)
        reader = _Reader(self.paths, self.size, seed=None)
        for piece, decoded in zip(pieces, _decoded_ahead(reader, pieces, self.workers, self.device), strict=True):
            pixels[piece[0] : piece[-1] + 1] = decoded
        # A file's white is 255, also where its images are nearly black: nothing is to be said of that.
        return ImageSet.unchecked(pixels, self.labels)

    def batches(self, indices: Sequence[Tensor], *, size: int | None = None, seed: int = 0) -> Iterator[ImageSet]:
        """Yield the images at each list of indices [B] by random crops; see `TrainingImages.batches`.

        An image's crop depends on `seed` and its place in this set alone, not on the batches, their order, the
        workers or the ranks. The workers start with the first batch, and end with the last or when the iterator is
        dropped.

        Args:
            indices: places in this set.
            size: pixels a side, if not the set's own.
            seed: of the crops.

        Raises:
            InputError: if a file cannot be read; it is named. If `size` is below 1.
        """
        files = self if size is None else replace(self, size=size)
        reader = _Reader(files.paths, files.size, seed)
        for chosen, pixels in zip(indices, _decoded_ahead(reader, indices, self.workers, self.device), strict=True):
            yield ImageSet.unchecked(pixels, self.labels[_on(chosen, self.device)])


def random_crop(width: int, height: int, generator: random.Random) -> tuple[int, int, int, int]:
    """Return a box (left, top, right, bottom) inside an image, drawn as torchvision's `RandomResizedCrop` does.

    Its share of the image is uniform between 0.08 and 1, the logarithm of its width over its height between those
    of 3/4 and 4/3, its place uniform (Szegedy et al. 2015, arXiv:1409.4842, section 6). After 10 boxes that do not
    fit, it is the largest one in the centre with such a ratio.
    """
    for _ in range(10):
        area = width * height * generator.uniform(0.08, 1)
        ratio = math.exp(generator.uniform(math.log(3 / 4), math.log(4 / 3)))
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left = generator.randint(0, width - crop_width)
            top = generator.randint(0, height - crop_height)
            return left, top, left + crop_width, top + crop_height
    crop_width, crop_height = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    left, top = (width - crop_width) // 2, (height - crop_height) // 2
    return left, top, left + crop_width, top + crop_height


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """Return an image's centre: the shorter side is resized to size * 256 / 224, then `size` x `size` pixels are cut.

    Pixel by pixel what torchvision's `Resize` and `CenterCrop` make of it, which ImageNet results are measured on.
    """
    shorter = round(size * 256 / 224)
    width, height = (shorter * side // min(image.size) for side in image.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    return resized.crop((left, top, left + size, top + size))


def in_mode(image: Image.Image, mode: str) -> Image.Image:
    """Return an image whose pixels are bytes of `mode`, in Pillow's words: "RGB" or "L".

    Raises:
        ValueError: if its pixels are numbers of no known range.
    """
    # Pillow's own conversions cut such values off at 255.
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels, of Pillow's mode {image.mode}, do not say what white is")
    return image if image.mode == mode else image.convert(mode)


@functools.cache
def _formats() -> list[str]:
    """Return the formats of images that Pillow reads itself: for PostScript it would run Ghostscript."""
    Image.init()
    return [name for name in Image.OPEN if name not in ("EPS", "WMF")]


def image_size(path: str) -> tuple[int, int]:
    """Width and height of an image file, from its head.

    Raises:
        InputError: if it cannot be read; it is named.
    """
    with _reading(path), Image.open(path, formats=_formats()) as file:
        width, height = file.size
    return width, height


def is_turned(image: Image.Image) -> bool:
    """Whether a file that is open says, in its EXIF data, that its pixels are to be turned or mirrored."""
    if image.format not in ("JPEG", "MPO", "TIFF", "WEBP"):
        return False
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1) not in (0, 1)
    # Damaged data about an image does not make the image unreadable.
    except Exception:
        return False


@contextlib.contextmanager
def _reading(path: str | Member) -> Iterator[None]:
    """Say which file cannot be read."""
    try:
        yield
    # Decoders raise whatever a damaged file leads them to: OSError, SyntaxError, ValueError, struct.error.
    except Exception as error:
        # Pillow names a file by its address in memory, where it has no name.
        reason = "no image of a known format" if isinstance(error, UnidentifiedImageError) else error
        raise InputError(f"{path} cannot be read as an image ({reason}); remove or replace it.") from None


def read_image(path: str | Member, view: Callable[[Image.Image], Image.Image]) -> Tensor:
    """Return the view of an image file that is open but not yet decoded: bytes [C, H, W].

    Raises:
        InputError: if it cannot be read; it is named.
    """
    with _reading(path), Image.open(_opened(path), formats=_formats()) as file:
        pixels = np.array(view(file))
    return torch.from_numpy(pixels).view(*pixels.shape[:2], -1).permute(2, 0, 1)


def _opened(path: str | Member) -> str | io.BytesIO:
    return io.BytesIO(path.read()) if isinstance(path, Member) else path


def check_memory(count: int, shape: Sequence[int], memory: int, advice: str) -> None:
    """Raise InputError, with `advice`, if `count` images of a shape, one byte per value, exceed `memory` bytes."""
    needed = count * math.prod(shape)
    if needed > memory:
        raise InputError(
            f"{count} images of {list(shape)} need {needed / 2**30:.1f} GiB, but data.memory allows "
            f"{memory / 2**30:.1f}; {advice}, or allow more."
        )


@dataclass(frozen=True)
class _Reader:
    """Decodes lists of files; what torch's DataLoader takes for a data set.

    Args:
        paths: [N].
        size: pixels a side.
        seed: of the random crops; centre crops without one.
    """

    paths: npt.NDArray[np.bytes_] | Members
    size: int
    seed: int | None

    def __getitems__(self, indices: list[int]) -> Tensor | str:
        """Return a batch [B, 3, S, S], or why there is none."""
        try:
            return torch.stack([self.read(index) for index in indices])
        # Sent as it is: an exception from a worker would arrive with the worker's traceback in its text.
        except InputError as error:
            return str(error)

    def read(self, index: int) -> Tensor:
        """Return an image [3, S, S].

        Raises:
            InputError: if it cannot be read; it is named.
        """
        entry = self.paths[index]
        path = entry if isinstance(entry, Member) else os.fsdecode(entry)
        if self.seed is None:
            return read_image(path, lambda image: centre_crop(in_mode(image, "RGB"), self.size))
        generator = random.Random(seed_at(self.seed, index))
        return read_image(path, lambda image: self._resized_crop(image, generator))

    def _resized_crop(self, image: Image.Image, generator: random.Random) -> Image.Image:
        """Return a random crop of an image that is not yet decoded, as RGB and resized."""
        width, height = image.size
        left, top, right, bottom = random_crop(width, height, generator)
        # A JPEG file can be decoded at 1/2, 1/4 or 1/8 of its size, in much less time; as small as leaves the crop
        # the pixels that are wanted. Other formats ignore this.
        image.draft(
            None, (math.ceil(width * self.size / (right - left)), math.ceil(height * self.size / (bottom - top)))
        )
        across, down = image.size[0] / width, image.size[1] / height
        box = (round(left * across), round(top * down), round(right * across), round(bottom * down))
        return in_mode(image, "RGB").crop(box).resize((self.size, self.size), Image.Resampling.BILINEAR)


def _decoded_ahead(reader: _Reader, indices: Sequence[Tensor], workers: int, device: torch.device) -> Iterator[Tensor]:
    """Yield the images [B, 3, S, S] at each list of indices, on `device`, decoded by `workers` forks of this process.

    Raises:
        InputError: if a file cannot be read; it is named.
    """
    # Slow to import, and not needed for images in memory.
    from torch.utils.data import DataLoader

    loader: DataLoader[Tensor | str] = DataLoader(
        reader,  # type: ignore[arg-type]  # it has the methods of a Dataset, and nothing of it to inherit
        batch_sampler=(chosen.tolist() for chosen in indices),
        num_workers=workers,
        collate_fn=_as_it_is,
        pin_memory=device.type == "cuda",
        # A fork needs no `if __name__ == "__main__"` in people's scripts, and shares the list of files.
        multiprocessing_context="fork" if workers else None,
        worker_init_fn=_leave_ctrl_c_to_the_parent,
        # Without one of its own it draws from torch's global generator.
        generator=torch.Generator(),
    )
    iterator = iter(loader)
    try:
        for pixels in _unless_killed(iterator):
            if isinstance(pixels, str):
                raise InputError(pixels)
            yield pixels.to(device, non_blocking=True)
    finally:
        # Now, not when the iterator is collected: after Ctrl-C the traceback keeps it.
        if workers:
            iterator._shutdown_workers()  # type: ignore[attr-defined]  # it has no public name


def _unless_killed(batches: Iterator[Tensor | str]) -> Iterator[Tensor | str]:
    """Yield the batches.

    Raises:
        Interrupted: if a process that decodes them was killed.
    """
    try:
        yield from batches
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise Interrupted(
            "A process that decodes images was killed, as one is for want of memory; free some, or set data.workers "
            "lower in a new run."
        ) from error


def _as_it_is(batch: Any) -> Any:
    return batch


def _leave_ctrl_c_to_the_parent(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _on(index: slice | Tensor, device: torch.device) -> slice | Tensor:
    return index.to(device) if isinstance(index, Tensor) else index
