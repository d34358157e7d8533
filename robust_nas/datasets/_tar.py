"""Images in tar files of webdataset's layout, each read at its place, which an index has: none before it is read.

A sample is an image and its label side by side in one tar file, `KEY.jpg` and `KEY.cls`, where KEY has no dot after its
last slash and `KEY.cls` has a whole number. The index of a file is made once, and kept in the user's cache.
"""

from __future__ import annotations

import functools
import json
import os
import random
import re
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from robust_nas.core.catalogue import expanded
from robust_nas.core.errors import InputError, reason_of
from robust_nas.core.writing import write_text

if TYPE_CHECKING:
    import numpy.typing as npt

_FORM = 1
"""Of the index files: another number has them made again."""

_AT_ONCE = 8
"""Shards that are indexed side by side: on a file system of a network, most of the time is spent waiting."""

_OPEN = 64
"""Shards that a process keeps open."""

_BLOCK = 512
"""Bytes of a tar file's block."""

_SAMPLE = re.compile(r"((?:.*/)?[^./]+)\.([^/]*)")
"""A key and an ending, as webdataset splits a member's name: at the first dot after the last slash."""


@dataclass(frozen=True)
class Shard:
    """A tar file, as it was when it was indexed.

    Args:
        path: its name.
        size: in bytes.
        modified: the time of its last change, in nanoseconds.
    """

    path: str
    size: int
    modified: int

    @classmethod
    def at(cls, path: str) -> Shard:
        """The shard of that name, as it is now.

        Raises:
            InputError: if it cannot be read, or is no file.
        """
        try:
            found = os.stat(path)
            if not os.path.isfile(path):
                raise InputError(f"{path} is no file; name tar files.")
        except OSError as error:
            raise InputError(f"The shard {path} cannot be read ({error.strerror}); give access to it.") from None
        return cls(path, found.st_size, found.st_mtime_ns)


@dataclass(frozen=True)
class Member:
    """One image in a tar file.

    Args:
        shard: the tar file.
        name: the member's.
        offset: of its first byte in the tar file.
        size: in bytes.
    """

    shard: Shard
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.name} in {self.shard.path}"

    def read(self) -> bytes:
        """Return its bytes.

        Raises:
            OSError: if the shard is no longer there, or has become shorter.
        """
        data = os.pread(_descriptor(self.shard).number, self.size, self.offset)
        if len(data) < self.size:
            raise OSError("the shard has become shorter")
        return data


@dataclass(frozen=True)
class Members:
    """Images in tar files, in the place of an array of files' names.

    Args:
        shards: the tar files.
        names: [N], the members' names as bytes.
        places: [N, 3], int64: the place in `shards`, and offset and size in that file, in bytes.
    """

    shards: tuple[Shard, ...]
    names: npt.NDArray[np.bytes_]
    places: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> Member: ...

    @overload
    def __getitem__(self, index: slice | npt.NDArray[Any]) -> Members: ...

    def __getitem__(self, index: int | slice | npt.NDArray[Any]) -> Member | Members:
        if not isinstance(index, int):
            return replace(self, names=self.names[index], places=self.places[index])
        shard, offset, size = self.places[index].tolist()
        return Member(self.shards[shard], os.fsdecode(self.names[index]), offset, size)

    def entries(self) -> Iterator[tuple[str, int]]:
        """Yield the name of each image, in the folder that its shard would be, and its size in bytes."""
        for name, (shard, _, size) in zip(self.names, self.places.tolist(), strict=True):
            yield f"{self.shards[shard].path}/{os.fsdecode(name)}", size


class _Descriptor:
    """A file that is open until nobody has this any more."""

    def __init__(self, path: str) -> None:
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


@functools.lru_cache(maxsize=_OPEN)
def _descriptor(shard: Shard) -> _Descriptor:
    return _Descriptor(shard.path)


def indexed(paths: Sequence[Path]) -> tuple[Members, list[int], list[str]]:
    """Return the images of tar files, in their order, their labels, and notes about what could not be kept.

    Raises:
        InputError: if a file is no whole tar file, or an image in it has no label; it is named.
    """
    shards = [Shard.at(str(path)) for path in paths]
    folder = expanded(os.environ.get("ROBUST_NAS_HOME") or "~/.cache/robust-nas") / "shards"
    # The processes of a group come here together: each has an order of its own, and leaves out what others have done.
    order = random.Random(os.urandom(8)).sample(range(len(shards)), len(shards))
    pool = ThreadPoolExecutor(min(_AT_ONCE, len(shards)) or 1)
    try:
        found = dict(zip(order, pool.map(lambda place: _index(shards[place], folder), order), strict=True))
    finally:
        pool.shutdown(cancel_futures=True)
    tables, unkept = zip(*(found[place] for place in range(len(shards))), strict=True) if shards else ((), ())
    members = Members(
        tuple(shards),
        np.array([os.fsencode(name) for table in tables for name in table["names"]], dtype=np.bytes_),
        np.array(
            [(place, *span) for place, table in enumerate(tables) for span in table["spans"]], dtype=np.int64
        ).reshape(-1, 3),
    )
    notes = [
        f"The index of shards could not be kept in {folder} ({reason}), and is made at every start."
        for reason in dict.fromkeys(unkept)
        if reason
    ]
    return members, [label for table in tables for label in table["labels"]], notes


def _index(shard: Shard, folder: Path) -> tuple[dict[str, Any], str]:
    """Return the index of a shard, as it is kept or made now, and why it could not be kept, if so."""
    identity = [_FORM, os.path.realpath(shard.path), shard.size, shard.modified]
    kept = folder / f"{blake2b(json.dumps(identity).encode(), digest_size=16).hexdigest()}.json"
    try:
        table = json.loads(kept.read_bytes())
        if table["shard"] == identity and len(table["names"]) == len(table["spans"]) == len(table["labels"]):
            return table, ""
    except (OSError, ValueError, KeyError, TypeError):
        pass  # It is not there, or damaged: the shard itself says the same.
    table = {"shard": identity, **_scanned(shard)}
    try:
        write_text(kept, json.dumps(table))
    except OSError as error:
        return table, error.strerror or str(error)
    return table, ""


def _scanned(shard: Shard) -> dict[str, list[Any]]:
    """Return the names, places and labels of a shard's images, read from the tar file."""
    images: dict[str, tarfile.TarInfo] = {}
    labels: dict[str, int] = {}
    try:
        with open(shard.path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                key, kind = _role(member, shard)
                if kind == "image":
                    if key in images:
                        raise InputError(
                            f"{shard.path} has two images of one key, {images[key].name} and {member.name}."
                        )
                    images[key] = member
                elif kind == "label":
                    if key in labels:
                        raise InputError(f"{shard.path} has two labels of one key, {key}; keep one of them.")
                    labels[key] = _label(archive, member, shard)
            # tarfile takes a damaged head in the middle for the end.
            file.seek(archive.offset)
            if any(file.read(_BLOCK)):
                raise tarfile.ReadError(f"damaged {archive.offset} bytes after its start")
    except (tarfile.TarError, OSError, EOFError) as error:
        raise InputError(
            f"The shard {shard.path} is no whole tar file without compression ({reason_of(error)}); "
            "get or write it again."
        ) from None
    if odd := [member.name for key, member in images.items() if key not in labels]:
        raise InputError(
            f"{odd[0]} in {shard.path} has no label ({len(odd)} such images); each KEY.jpg needs a KEY.cls, with a "
            "whole number in it, in the same tar file."
        )
    if not images:
        raise InputError(f"The shard {shard.path} has no images (KEY.jpg, KEY.png, ...); take it away, or fill it.")
    return {
        "names": [member.name for member in images.values()],
        "spans": [[member.offset_data, member.size] for member in images.values()],
        "labels": [labels[key] for key in images],
    }


def _role(member: tarfile.TarInfo, shard: Shard) -> tuple[str, str]:
    """Return a member's key, and whether it is an "image", a "label" or something else, ""."""
    from torchvision.datasets.folder import IMG_EXTENSIONS

    found = _SAMPLE.fullmatch(member.name.removeprefix("./"))
    if member.isdir() or found is None:
        return "", ""
    key, ending = found[1], found[2].lower()
    kind = "image" if f".{ending}" in IMG_EXTENSIONS else "label" if ending == "cls" else ""
    if kind and not (member.isreg() and not member.issparse()):
        raise InputError(f"{member.name} in {shard.path} is no plain file (but a link, say); write it as one.")
    return key, kind


def _label(archive: tarfile.TarFile, member: tarfile.TarInfo, shard: Shard) -> int:
    data = archive.extractfile(member).read(64)  # type: ignore[union-attr]  # a plain file
    try:
        label = int(data.decode("ascii"))
    except ValueError:
        label = -1
    if not 0 <= label < 2**31:
        raise InputError(f"{member.name} in {shard.path} must have a whole number, 0 or more, but has {data[:20]!r}.")
    return label
