"""Tar shards give the images and labels that torchvision's folders give, in any order, and say which file is bad."""

from __future__ import annotations

import io
import os
import tarfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from robust_nas import datasets
from robust_nas.core.errors import InputError
from robust_nas.datasets import Dataset, _tar
from robust_nas.datasets._files import ImageFiles, centre_crop
from robust_nas.datasets._tar import Members


def add(shard: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    shard.addfile(member, io.BytesIO(data))


def encoded(number: int, kind: str = "JPEG") -> bytes:
    """Return a photograph-like image of its own size: smooth, so that its JPEG is nearly it."""
    draw = np.random.default_rng(number).integers(0, 256, (3, 3, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(draw).resize((40 + number, 60 - number), Image.Resampling.BICUBIC).save(file, kind)
    return file.getvalue()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the indexes in a folder of the test."""
    monkeypatch.setenv("ROBUST_NAS_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "shards"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return 36 images of three classes as class folders in `folders`, and the same as shards in `tars`."""
    tars = tmp_path / "tars"
    tars.mkdir()
    for split, counts in {"train": [9, 8, 7], "val": [6, 6]}.items():
        number = 0
        for place, count in enumerate(counts):
            with tarfile.open(tars / f"{split}-{place:06}.tar", "w") as shard:
                for _ in range(count):
                    label, data = number % 3, encoded(number + (30 if split == "val" else 0))
                    path = tmp_path / "folders" / split / f"n{label}" / f"{number:03}.jpg"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(data)
                    # What else a sample may have is passed over, and so is the order of its parts.
                    parts = {"cls": f"{label}\n".encode(), "json": b"{}", "jpg": data, "seg.png": b"no image"}
                    for ending in sorted(parts, reverse=bool(number % 2)):
                        add(shard, f"./n{label}/{number:03}.{ending}", parts[ending])
                    number += 1
    return tmp_path


def load(root: Path, **options: Any) -> Dataset:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return datasets.load("shards", **{"root": root / "tars", "size": 28, "workers": 0, **options})


def test_shards_give_the_images_and_labels_of_torchvisions_folders(root: Path) -> None:
    data = load(root, train="train-{000000..000002}.tar", validation_size=1)
    assert isinstance(data.train, ImageFiles) and isinstance(data.train.paths, Members)
    assert data.classes == ("0", "1", "2") and len(data.train) == 23 and len(data.test) == 12
    expected = [ImageFolder(str(root / "folders" / split)) for split in ("train", "val")]
    for files, parts in zip(expected, ([data.train[:], data.validation], [data.test]), strict=True):
        theirs = {np.asarray(centre_crop(image, 28)).tobytes(): label for image, label in files}
        ours = {
            image.permute(1, 2, 0).contiguous().numpy().tobytes(): int(label)
            for part in parts
            for image, label in zip(part.pixels, part.labels, strict=True)
        }
        assert ours == theirs and len(ours) == len(files)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_shards_are_those_of_the_same_files_in_folders(root: Path, workers: int) -> None:
    shards = load(root, workers=workers).train
    assert isinstance(shards, ImageFiles) and isinstance(shards.paths, Members)
    names = [root / "folders" / "train" / shards.paths[place].name for place in range(len(shards))]
    folders = ImageFiles.of(names, shards.labels.tolist(), 28)
    order = torch.randperm(len(shards), generator=torch.Generator().manual_seed(0)).split(4)
    for one, other in zip(shards.batches(order, seed=3), folders.batches(order, seed=3), strict=True):
        assert torch.equal(one.pixels, other.pixels) and torch.equal(one.labels, other.labels)
    # As with folders, what tells them from others are the names below the folder of all, and the sizes.
    assert shards.digest == load(root).train.digest != load(root, train_size=20).train.digest


def test_an_index_is_made_once_for_each_shard_and_again_for_one_that_has_changed(
    root: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scanned, scan = [], _tar._scanned

    def counted(shard: _tar.Shard) -> Any:
        scanned.append(Path(shard.path).name)
        return scan(shard)

    monkeypatch.setattr(_tar, "_scanned", counted)
    first = load(root)
    assert sorted(scanned) == sorted(path.name for path in (root / "tars").iterdir())
    again = load(root)
    assert len(scanned) == 5 and torch.equal(again.test.pixels, first.test.pixels)
    with tarfile.open(root / "tars/val-000001.tar", "a") as shard:
        add(shard, "new.jpg", encoded(50))
        add(shard, "new.cls", b"1")
    for kept in list(home.iterdir())[:2]:
        kept.write_text("{}")  # damaged
    assert len(load(root).test) == 13 and len(scanned) >= 7
    assert not [path for path in (root / "tars").iterdir() if path.suffix != ".tar"]


def test_where_no_index_can_be_kept_it_is_made_again_and_said(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "file").touch()
    monkeypatch.setenv("ROBUST_NAS_HOME", str(root / "file"))
    with pytest.warns(UserWarning, match="index of shards could not be kept in .*/file/shards"):
        assert len(datasets.load("shards", root=root / "tars", size=28, workers=0).test) == 12


def test_validation_and_test_shards_are_found_by_their_names_and_classes_get_theirs(root: Path) -> None:
    os.rename(root / "tars/train-000002.tar", root / "tars/test-000000.tar")
    (root / "tars/names.txt").write_text("cat\ndog\nowl\n")
    data = load(root, classes="names.txt")
    assert [len(part) for part in (data.train, data.validation, data.test)] == [17, 12, 7]
    assert data.classes == ("cat", "dog", "owl")
    assert datasets.section(str(root / "folders"))["name"] == "folder"
    (root / "tars/names.txt").unlink()
    assert datasets.section(str(root / "tars"))["name"] == "shards"


def _rewritten(root: Path, change: Callable[[dict[str, bytes]], object]) -> None:
    path = root / "tars/train-000001.tar"
    with tarfile.open(path) as shard:
        parts = {member.name: shard.extractfile(member).read() for member in shard}  # type: ignore[union-attr]
    change(parts)
    with tarfile.open(path, "w") as shard:
        for name, data in parts.items():
            add(shard, name, data)


def _cut(root: Path, size: int) -> None:
    os.truncate(root / "tars/train-000001.tar", size)


def _damaged_head(root: Path) -> None:
    path = root / "tars/train-000001.tar"
    with tarfile.open(path) as shard:
        offset = shard.getmembers()[6].offset
    with open(path, "rb+") as file:
        file.seek(offset)
        file.write(b"\1" * 512)


def _second_image(parts: dict[str, bytes]) -> None:
    data = parts.pop("./n1/010.jpg")
    parts |= {"n1/010.JPEG": data, "./n1/010.jpg": data}


def _no_tests(root: Path) -> None:
    for path in (root / "tars").glob("val*"):
        path.unlink()


def _compressed(root: Path) -> None:
    with tarfile.open(root / "tars/train-000001.tar", "w:gz") as shard:
        add(shard, "a.jpg", encoded(0))


MISTAKES: dict[str, tuple[Callable[[Path], object], dict[str, Any]]] = {
    "train-000001.tar is no whole tar file .*unexpected end of data": (lambda root: _cut(root, 3000), {}),
    "train-000001.tar is no whole tar file .*damaged [0-9]+ bytes after": (_damaged_head, {}),
    "train-000001.tar is no whole tar file without compression": (_compressed, {}),
    "train-000001.tar is no whole tar file .*empty file": (lambda root: _cut(root, 0), {}),
    "train-000001.tar has no images .KEY.jpg": (lambda root: _rewritten(root, dict.clear), {}),
    r"n1/010.jpg in \S*train-000001.tar has no label .1 such": (
        lambda root: _rewritten(root, lambda parts: parts.pop("./n1/010.cls")), {}
    ),
    r"n1/010.cls in \S*train-000001.tar must have a whole number, 0 or more, but has b'cat'": (
        lambda root: _rewritten(root, lambda parts: parts.update({"./n1/010.cls": b"cat"})), {}
    ),
    "two images of one key, n1/010.JPEG and ./n1/010.jpg": (
        lambda root: _rewritten(root, _second_image), {}
    ),
    r"n1/010.jpg in \S*/train-000001.tar cannot be read as an image .*remove or replace it": (
        lambda root: _rewritten(root, lambda parts: parts.update({"./n1/010.jpg": b"no image"})), {}
    ),
    "There is no train-000003.tar in .*nor are 1 others": (lambda _: None, {"train": "train-{000000..000004}.tar"}),
    "There is no .*val.*tar in": (_no_tests, {}),
    "is a shard of two splits": (lambda _: None, {"train": "*.tar"}),
    "must name files below": (lambda _: None, {"train": "../tars/*.tar"}),
    "class 3 has no images in the training shards": (
        lambda root: _rewritten(root, lambda parts: parts.update({"./n1/010.cls": b"4"})), {}
    ),
    "must have 3 different names, one a line, but has 1": (
        lambda root: (root / "tars/names.txt").write_text("a\na\n"), {"classes": "names.txt"}
    ),
    "14 images of .3, 28, 28. need": (lambda _: None, {"memory": 10}),
}  # fmt: skip


@pytest.mark.parametrize("message", MISTAKES)
def test_what_is_wrong_is_said_in_a_sentence(root: Path, message: str) -> None:
    spoil, options = MISTAKES[message]
    spoil(root)
    with pytest.raises(InputError, match=message):
        load(root, **options).train[:]


def test_a_shard_that_is_gone_in_training_is_said(root: Path) -> None:
    train = load(root).train
    (root / "tars/train-000001.tar").unlink()
    _tar._descriptor.cache_clear()
    with pytest.raises(InputError, match=r"train-000001.tar cannot be read as an image"):
        list(train.batches([torch.arange(len(train))]))
