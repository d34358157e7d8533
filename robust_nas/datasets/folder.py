"""A folder of class folders: one's own images, read into memory at one size, or decoded in training."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from robust_nas.core.catalogue import expanded
from robust_nas.core.errors import InputError
from robust_nas.datasets import Dataset, ImageSet
from robust_nas.datasets._splits import chosen_places, files_cut

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from robust_nas.datasets._class_folders import ClassFolders
    from robust_nas.datasets._files import ImageFiles


@dataclass(frozen=True, kw_only=True)
class Folder:
    """Images in `root/<class>/*`, or in `root/train/<class>/*` and `root/test/<class>/*`.

    `root/val/<class>/*` (or `valid`, `validation`) are the validation images, where they are there beside `train` and
    `test`; the case of these names does not matter. Without `train` and `test` folders, the images are split by a fixed
    permutation: `validation_size` and `test_size` images (a fifth each, if not given) are set aside.

    Images are read as their files store them: an orientation in a photograph's EXIF data is not applied, as it is not
    by torchvision, but said. Equal images in two splits or two classes give a warning too. The left-overs of systems
    (names that begin with a dot, `__MACOSX`) are passed over.

    With `in_files`, training images stay in their files and are decoded when they are needed, by random crops that are
    resized to `size`; those that validate and test are in memory as with ImageNet: the shorter side resized to
    size * 256 / 224, the centre cut out. Equal images and EXIF data are not looked for then.

    Args:
        root: the folder.
        size: pixels a side: images are resized (shorter side) and centre-cropped to it. If not given, all images must
            have one size.
        grey: whether to read one channel instead of three.
        train_size: training images to use; all that are left, if not given.
        validation_size: validation images; if not given, all of the validation folder, a tenth of the training folder
            or a fifth of a plain one.
        test_size: test images to use; all of the test folder or a fifth of a plain one, if not given.
        memory: the largest size that the images may take in memory, in bytes.
        in_files: whether training images stay in their files.
        workers: processes that decode these, for each process of the run, at most one per core; 0 decodes in the run's
            own.
    """

    root: Path
    size: int | None = None
    grey: bool = False
    train_size: int | None = None
    validation_size: int | None = None
    test_size: int | None = None
    memory: int = 8 * 2**30
    in_files: bool = False
    workers: int = 8

    def load_splits(self) -> Dataset:
        """Read and split the images."""
        from robust_nas.datasets._class_folders import ClassFolders, repeated_images, split_folders

        root = expanded(self.root).resolve()
        if self.size is not None and self.size < 1:
            raise InputError(f"data.size must be at least 1, but got {self.size}.")
        if self.in_files and (self.size is None or self.grey):
            raise InputError("data.in_files needs data.size, the pixels a side of all images, and no data.grey.")
        if not root.is_dir():
            what = f"{root} is a file (an archive is to be unpacked first)" if root.exists() else f"There is no {root}"
            raise InputError(f"{what}; give a folder of class folders, or one with train and test in it.")
        found, notes = split_folders(root)
        files = {split: ClassFolders.of(folder) for split, folder in found.items()} or {"train": ClassFolders.of(root)}
        for listed in files.values():
            files["train"].check_same_classes(listed)
            notes += listed.notes
        counts = {split: len(each.paths) for split, each in files.items()}
        parts = chosen_places(counts, root.name, self.train_size, self.validation_size, self.test_size)
        self._check_classes(files["train"], parts["train"])
        if self.in_files:
            kept = {split: self._listed(each) for split, each in files.items()}
            return Dataset(root.name, files["train"].classes, *files_cut(kept, parts, self.memory), tuple(notes))
        chosen = {
            split: self._chosen(files.get(split, files["train"]), part.labels.tolist()) for split, part in parts.items()
        }
        paths = {split: own for split, (own, _) in chosen.items()}
        self._check_memory(paths)
        turned: list[str] = []
        splits = {split: self._read(own, labels, turned) for split, (own, labels) in chosen.items()}
        if len({split.image_shape for split in splits.values()}) > 1:
            raise InputError(f"The images in {root} have several sizes; set data.size to bring them to one.")
        if turned:
            notes.append(
                f"{len(turned)} of the images, such as {turned[0]}, {'has' if len(turned) == 1 else 'have'} an EXIF "
                "orientation, which is not applied (as in torchvision): turn their pixels, if they are to be seen "
                "upright."
            )
        notes += repeated_images({split: (images, paths[split]) for split, images in splits.items()})
        return Dataset(root.name, files["train"].classes, **splits, notes=tuple(notes))

    def _check_classes(self, files: ClassFolders, train: ImageSet) -> None:
        """Raise InputError if a class has no training images, unless fewer of these are wanted than there are classes.

        Who only attacks wants none.
        """
        counts = Counter(files.labels[index] for index in train.labels.tolist())
        absent = [name for label, name in enumerate(files.classes) if not counts[label]]
        if absent and (self.train_size is None or self.train_size >= len(files.classes)):
            raise InputError(
                f"The class '{absent[0]}' of {files.folder} has no training images (it has "
                f"{files.labels.count(files.classes.index(absent[0]))} in all); add some, take the folder away, or set "
                "data.train_size higher."
            )

    def _listed(self, files: ClassFolders) -> ImageFiles:
        from robust_nas.datasets._files import ImageFiles

        assert self.size is not None
        return ImageFiles.of(files.paths, files.labels, self.size, workers=min(self.workers, os.cpu_count() or 1))

    @staticmethod
    def _chosen(files: ClassFolders, places: list[int]) -> tuple[list[str], list[int]]:
        return [files.paths[place] for place in places], [files.labels[place] for place in places]

    def _check_memory(self, paths: dict[str, list[str]]) -> None:
        """Raise InputError, before anything is decoded, if all images need more memory than is allowed."""
        from robust_nas.datasets._files import check_memory, image_size

        width, height = (self.size, self.size) if self.size else image_size(paths["train"][0])
        shape = (1 if self.grey else 3, height, width)
        advice = (
            "set data.size lower, or data.train_size, data.validation_size and data.test_size, or leave training "
            "images in their files (data.in_files=true)"
        )
        check_memory(sum(map(len, paths.values())), shape, self.memory, advice)

    def _read(self, paths: list[str], labels: list[int], turned: list[str]) -> ImageSet:
        import torch

        first = self._decode(paths[0], [])
        pixels = torch.empty((len(paths), *first.shape), dtype=torch.uint8)
        for row, path in enumerate(paths):
            image = self._decode(path, turned)
            if image.shape != first.shape:
                raise InputError(
                    f"The images must have one size, but {path} has {list(image.shape[1:])} and {paths[0]} has "
                    f"{list(first.shape[1:])}; set data.size to bring them to one."
                )
            pixels[row] = image
        # A file's white is 255, also where its images are nearly black: nothing is to be said of that.
        return ImageSet.unchecked(pixels, torch.tensor(labels))

    def _decode(self, path: str, turned: list[str]) -> Tensor:
        """Read an image, and note it in `turned` if it says that it is to be turned."""
        from robust_nas.datasets._files import is_turned, read_image

        def view(file: Image.Image) -> Image.Image:
            if is_turned(file):
                turned.append(path)
            return self._view(file)

        return read_image(path, view)

    def _view(self, file: Image.Image) -> Image.Image:
        from PIL import Image, ImageOps

        from robust_nas.datasets._files import in_mode

        image = in_mode(file, "L" if self.grey else "RGB")
        if self.size is None:
            return image
        return ImageOps.fit(image, (self.size, self.size), Image.Resampling.BILINEAR)
