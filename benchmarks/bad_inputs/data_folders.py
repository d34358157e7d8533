"""Folders of images."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

from cases import DIGITS, Case
from good_files import TINY
from spoiling import as_folder, as_loop, cut, each, put, without


def data_folders() -> Iterator[Case]:
    """Folders of images."""
    kind = "data folders"
    line = [
        "run",
        "images",
        *TINY[:-3],
        "data.size=8",
        "train.batch_size=2",
        "search.batch_size=2",
        "derive.batch_size=2",
    ]
    first = "images/train/cat/0.png"
    for name, change in {
        "an image is empty": put(first, ""),
        "an image is text": put(first, "a cat"),
        "an image is cut off": cut(first, 0.9),
        "an image is a folder with a broken one": each(as_folder(first), put(f"{first}/1.png", "a cat")),
        "an image is a link to itself": as_loop(first),
        "a class is empty": each(without("images/train/cat"), lambda folder: (folder / "images/train/cat").mkdir()),
        "one class": each(*(without(f"images/{split}/dog") for split in ("train", "validation", "test"))),
        "no classes": each(without("images"), lambda folder: (folder / "images").mkdir()),
        "a class that only the test split has": lambda folder: shutil.copytree(
            folder / "images/test/cat", folder / "images/test/owl"
        ),
        "no test split": without("images/test"),
        "images without classes": lambda folder: (
            shutil.copy(folder / first, folder / "images/train/0.png"),
            shutil.rmtree(folder / "images/train/cat"),
            shutil.rmtree(folder / "images/train/dog"),
        ),
        "a FIFO among the images": lambda folder: os.mkfifo(folder / "images/train/cat/x.png"),
        "an archive for a folder": each(without("images"), put("images", b"PK\x03\x04")),
        "a class that is no folder": each(without("images/train/cat"), put("images/train/cat", "")),
        "classes are links to their parents": each(
            without("images/train/cat"), lambda folder: (folder / "images/train/cat").symlink_to("..")
        ),
    }.items():
        yield Case(kind, name, line, change)
    for override in ("data.size=0", "data.size=-3", "data.size=100000000", "data.size=x", f"data.size={DIGITS}",
                     "data.root=nowhere", "data.root=net.py", "data.root=3", "data.root=''", "data.validation_size=-1"):  # fmt: skip
        yield Case(kind, override[:40], [*line, override])
