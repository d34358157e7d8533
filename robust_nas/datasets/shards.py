"""Tar shards: images and labels in tar files of webdataset's layout, read in any order through an index."""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from robust_nas.core.catalogue import expanded
from robust_nas.core.errors import InputError
from robust_nas.datasets import Dataset
from robust_nas.datasets._splits import chosen_places, files_cut

if TYPE_CHECKING:
    from robust_nas.datasets._files import ImageFiles

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass(frozen=True, kw_only=True)
class Shards:
    """Images `KEY.jpg` with labels `KEY.cls`, whole numbers from 0, in tar files such as `train-{000000..000009}.tar`.

    Training images stay in the tar files. Any of them is read at its place, so that batches, their order and their
    resumption are as with a folder. Those that validate and test are read into memory: the shorter side resized to
    size * 256 / 224, the centre cut out. Of a file's other members nothing is read.

    A pattern names files below `root`: `*` and `?` stand for any letters, `{000..127}` for numbers, all of which must
    be there. An index of each tar file, which must not be compressed, is made when it is first read, and kept in
    `~/.cache/robust-nas/shards`, or `$ROBUST_NAS_HOME/shards`.

    Args:
        root: the folder.
        train: a pattern for the training shards.
        validation: a pattern for those that validate; if not given, `validation_size` images are cut out of the
            training images, unless there are shards `*val*.tar` beside `*test*.tar`.
        test: a pattern for those that test; if not given, `*test*.tar`, and without such files `*val*.tar`.
        classes: a text file in `root` with the class names, one a line, in the order of the labels; the labels
            themselves, if not given.
        size: pixels a side.
        train_size: training images to use; all that validation leaves, if not given.
        validation_size: validation images; if not given, all of the validation shards, or a tenth of the training
            images.
        test_size: test images to use; all, if not given.
        workers: processes that decode, for each process of the run, at most one per core; 0 decodes in the run's own.
        memory: the largest size that validation and test images together may take in memory, in bytes.
    """

    root: Path
    train: str = "*train*.tar"
    validation: str | None = None
    test: str | None = None
    classes: str | None = None
    size: int = 224
    train_size: int | None = None
    validation_size: int | None = None
    test_size: int | None = None
    workers: int = 8
    memory: int = 8 * 2**30

    def load_splits(self) -> Dataset:
        """Index the shards, and read the images that validate and test."""
        root = expanded(self.root).resolve()
        if not root.is_dir():
            raise InputError(f"There is no folder {root}; give the one with the tar files in data.root.")
        patterns = self._patterns(root)
        paths = {split: matching(root, pattern, f"data.{split}") for split, pattern in patterns.items()}
        if twice := [
            path for path, count in Counter(path for each in paths.values() for path in each).items() if count > 1
        ]:
            raise InputError(
                f"{twice[0]} is a shard of two splits ({', '.join(map(repr, patterns.values()))}); set data.train, "
                "data.validation and data.test to patterns that name each file once."
            )
        notes: list[str] = []
        files = {split: self._files(each, notes) for split, each in paths.items()}
        classes = self._classes(root, files)
        counts = {split: len(each) for split, each in files.items()}
        chosen = chosen_places(counts, root.name, self.train_size, self.validation_size, self.test_size)
        return Dataset(root.name, classes, *files_cut(files, chosen, self.memory), notes=tuple(dict.fromkeys(notes)))

    def _patterns(self, root: Path) -> dict[str, str]:
        """The patterns of the splits that have shards of their own, the one that is learned from first."""
        test, validation = self.test, self.validation
        if test is None:
            test = "*test*.tar" if any(root.glob("*test*.tar")) else "*val*.tar"
            if validation is None and test == "*test*.tar" and any(root.glob("*val*.tar")):
                validation = "*val*.tar"
        return {"train": self.train, **({"validation": validation} if validation else {}), "test": test}

    def _files(self, paths: list[Path], notes: list[str]) -> ImageFiles:
        import torch

        from robust_nas.datasets._files import ImageFiles
        from robust_nas.datasets._tar import indexed

        members, labels, said = indexed(paths)
        notes += said
        return ImageFiles(members, torch.tensor(labels), self.size, workers=min(self.workers, os.cpu_count() or 1))

    def _classes(self, root: Path, files: dict[str, ImageFiles]) -> tuple[str, ...]:
        """The classes' names, each of which has training images."""
        largest = max(int(each.labels.max()) for each in files.values())
        trained = {*files["train"].labels.tolist()}
        if absent := {*range(largest + 1)} - trained:
            raise InputError(
                f"The class {min(absent)} has no images in the training shards of {root}, though labels go to "
                f"{largest}; labels count from 0, and each class needs training images."
            )
        if self.classes is None:
            return tuple(map(str, range(largest + 1)))
        try:
            names = (root / self.classes).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{root / self.classes} cannot be read as a text of class names ({error}).") from None
        names = [name.strip() for name in names if name.strip()]
        if len(names) != largest + 1 or len({*names}) < len(names):
            raise InputError(
                f"{root / self.classes} must have {largest + 1} different names, one a line, but has {len({*names})}."
            )
        return tuple(names)


def matching(root: Path, pattern: str, where: str) -> list[Path]:
    """Return the files below a folder that a pattern names, sorted.

    Args:
        where: the setting that has the pattern, for errors.

    Raises:
        InputError: if there are none, or not all of a range of numbers.
    """
    ranges = list(_RANGE.finditer(pattern))
    if len(ranges) > 1 or Path(pattern).is_absolute() or ".." in Path(pattern).parts or not pattern:
        raise InputError(
            f"{where} must name files below {root}, with one range of numbers at most, such as "
            f"'train-{{000000..000009}}.tar' or 'train-*.tar', but got '{pattern}'."
        )
    names = [pattern]
    if ranges:
        first, last = ranges[0].groups()
        numbers = range(int(first), int(last) + 1)
        names = [f"{pattern[: ranges[0].start()]}{n:0{len(first)}}{pattern[ranges[0].end() :]}" for n in numbers]
    found = [sorted(path for path in root.glob(name) if not path.name.startswith(".")) for name in names]
    if absent := [name for name, paths in zip(names, found, strict=True) if not paths]:
        more = f", nor are {len(absent) - 1} others" if len(absent) > 1 else ""
        raise InputError(f"There is no {absent[0]} in {root}{more}; set {where} to the names of tar files there.")
    if not names:
        raise InputError(f"{where} has a range that ends before it begins: '{pattern}'.")
    return [path for paths in found for path in paths]
