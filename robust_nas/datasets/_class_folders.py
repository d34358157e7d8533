"""Folders of class folders: the images among the files, their splits and classes, and the warnings about them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

from robust_nas.core.errors import InputError

if TYPE_CHECKING:
    from robust_nas.datasets import ImageSet

SPLITS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
"""The folder names of each split, in any case."""

_LEFT_BY_SYSTEMS = {"__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found", "__pycache__"}
"""Folders that operating systems and programs leave anywhere, beside those whose names begin with a dot."""

_NAMED = 5
"""As many names stand in a sentence."""


@dataclass(frozen=True)
class ClassFolders:
    """The image files of a folder of class folders, in sorted order.

    Args:
        folder: their folder.
        classes: the class folders' names.
        paths: [N].
        labels: [N], places in `classes`.
        notes: the files that were left out.
    """

    folder: Path
    classes: tuple[str, ...]
    paths: list[str]
    labels: list[int]
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, folder: Path) -> ClassFolders:
        """List the images in `folder/<class>` and the folders in it, also behind links.

        The left-overs of systems, such as `.ipynb_checkpoints`, `._x.png` and `__MACOSX`, are no images and no classes.

        Raises:
            InputError: if there are fewer than two classes, one has no images, or something cannot be read.
        """
        entries, others = _entries(str(folder)), Counter[str]()
        files = {entry.name: image_files(entry.path, others) for entry in sorted(entries, key=_name) if entry.is_dir()}
        empty = [name for name, found in files.items() if not found]
        if len(files) < 2 or empty:
            what = f"the class folder '{empty[0]}' has no images" if empty else f"it has {len(files)} class folders"
            raise InputError(f"{folder} must have two or more class folders with images in them, but {what}.")
        labels = [label for label, found in enumerate(files.values()) for _ in found]
        notes = []
        if others:
            endings = ", ".join(f"{count} {ending or 'without an ending'}" for ending, count in others.most_common(5))
            notes.append(
                f"{_count(others.total(), 'file')} in {folder} {_are(others.total())} no images by their names, and "
                f"left out ({endings})."
            )
        if loose := [entry.name for entry in entries if not entry.is_dir() and _is_image(entry.name)]:
            notes.append(
                f"{_count(len(loose), 'image')} in {folder} {_are(len(loose))} in no class folder, and left out "
                f"({listed(loose)})."
            )
        paths = [path for found in files.values() for path in found]
        return cls(folder, tuple(files), paths, labels, tuple(notes))

    def check_same_classes(self, other: ClassFolders) -> None:
        """Raise InputError unless another folder has the same classes."""
        if odd := sorted({*self.classes} ^ {*other.classes}):
            raise InputError(
                f"{self.folder} and {other.folder} must have the same classes, but differ in {listed(odd)}."
            )


def split_folders(root: Path) -> tuple[dict[str, Path], list[str]]:
    """The folders of splits in `root` by split, and the entries that are left out; none, if it has class folders.

    Raises:
        InputError: if there is one of `train` and `test` without the other, or two of one split.
    """
    folders = sorted(entry.name for entry in _entries(str(root)) if entry.is_dir())
    named: dict[str, list[str]] = {}
    for name in folders:
        if name.lower() in SPLITS:
            named.setdefault(SPLITS[name.lower()], []).append(name)
    if not {"train", "test"} & {*named}:
        return {}, []
    for split, names in named.items():
        if len(names) > 1:
            raise InputError(f"{root} has {listed(names)}, which all stand for its {split} images; keep one of them.")
    if not {"train", "test"} <= {*named}:
        raise InputError(
            f"{root} must have both 'train' and 'test' folders (and may have 'val'), or neither, but it has only "
            f"{' and '.join(names[0] for names in named.values())}; validation images choose, test images measure."
        )
    beside = [name for name in folders if name.lower() not in SPLITS]
    notes = [f"{root} has folders beside its splits that are not used: {listed(beside)}."] if beside else []
    return {split: root / names[0] for split, names in named.items()}, notes


def repeated_images(splits: Mapping[str, tuple[ImageSet, list[str]]]) -> list[str]:
    """The warnings about images that are in two splits, or in two classes, pixel by pixel.

    Args:
        splits: the images and their files, by split, the one that is learned from first.
    """
    seen: dict[bytes, dict[str, tuple[str, int]]] = {}
    across, classes = dict[tuple[str, str], list[tuple[str, str]]](), list[tuple[str, str]]()
    for split, (images, paths) in splits.items():
        for pixels, label, path in zip(images.pixels, images.labels.tolist(), paths, strict=True):
            before = seen.setdefault(blake2b(pixels.numpy().tobytes(), digest_size=16).digest(), {})
            for other, (first, _) in before.items():
                if other != split:
                    across.setdefault((other, split), []).append((first, path))
            if other_class := [first for first, known in before.values() if known != label]:
                classes.append((other_class[0], path))
            before.setdefault(split, (path, label))
    notes = [
        f"{len(pairs)} of the {len(splits[split][1])} {split} images {_are(len(pairs))} among the {other} images too, "
        f"such as {pairs[0][1]} and {pairs[0][0]}: they say nothing about new images. Remove them from one of the two."
        for (other, split), pairs in across.items()
    ]
    if classes:
        notes.append(
            f"{_count(len(classes), 'image')} {_are(len(classes))} in two classes, such as {classes[0][1]} and "
            f"{classes[0][0]}. Remove the wrong ones."
        )
    return notes


def listed(names: list[str]) -> str:
    """Names in a sentence, the first few of them."""
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _are(number: int) -> str:
    return "is" if number == 1 else "are"


def _name(entry: os.DirEntry[str]) -> str:
    return entry.name


def _is_image(name: str) -> bool:
    from torchvision.datasets.folder import IMG_EXTENSIONS

    return os.path.splitext(name)[1].lower() in IMG_EXTENSIONS


def _entries(folder: str) -> list[os.DirEntry[str]]:
    """The entries of a folder, but for those that systems leave there.

    Raises:
        InputError: if the folder cannot be read.
    """
    try:
        with os.scandir(folder) as found:
            return [entry for entry in found if not _is_left_over(entry.name)]
    except OSError as error:
        raise InputError(
            f"The folder {folder} cannot be read ({error.strerror or error}); give access to it, or take it away."
        ) from None


def _is_left_over(name: str) -> bool:
    return name.startswith(".") or name.lower() in _LEFT_BY_SYSTEMS


def image_files(folder: str, others: Counter[str]) -> list[str]:
    """The image files in a folder and those in it, sorted; other files are counted in `others`, by ending."""
    found: list[str] = []
    for entry in _files(folder):
        if not _is_image(entry.name):
            others[os.path.splitext(entry.name)[1].lower()] += 1
        elif entry.is_file():
            found.append(entry.path)
        else:
            # To open a FIFO would wait for its writer.
            raise InputError(f"{entry.path} is no file (but a pipe, a socket, a device or a broken link); remove it.")
    return sorted(found, key=lambda path: path.split(os.sep))


def _files(folder: str) -> Iterator[os.DirEntry[str]]:
    for entry in _entries(folder):
        if not entry.is_dir():
            yield entry
            continue
        if entry.is_symlink() and Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(entry.path)):
            raise InputError(f"{entry.path} is a link to a folder that it is in; remove it.")
        yield from _files(entry.path)
