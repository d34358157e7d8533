"""ImageNet's layout: training images stay in files, validation and test images are the usual centre crops."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from robust_nas import datasets
from robust_nas.core.errors import InputError
from robust_nas.datasets import Dataset
from robust_nas.datasets._files import ImageFiles

CLASSES = ("airplane", "automobile", "bird")


@pytest.fixture(scope="module")
def photographs(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return real JPEG files in ImageNet's layout: 30 to train and 10 to test of each of three classes."""
    folder = tmp_path_factory.mktemp("photographs")
    with tarfile.open(shared_data / "cifar10-jpeg.tar.xz") as archive:
        for member in archive:
            split, _, rest = member.name.partition("/")
            name, _, number = rest.partition("/")
            if split == "test" and name in CLASSES and number and int(number[:4]) < 40:
                archive.extract(member, folder, filter="data")
            if (split, name) == ("test", "cat"):
                break
    root = tmp_path_factory.mktemp("root")
    for name in CLASSES:
        for number, path in enumerate(sorted((folder / "test" / name).iterdir())):
            link = root / ("train" if number < 30 else "val") / name / path.name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
    return root


def load(root: Path, **options: Any) -> Dataset:
    # 28 = 32 * 224 / 256: nothing is resized.
    return datasets.load("imagenet", **{"root": root, "size": 28, "validation_size": 12, "workers": 0, **options})


def centre(path: Path) -> bytes:
    return np.asarray(Image.open(path).convert("RGB"))[2:30, 2:30].tobytes()


def as_bytes(images: torch.Tensor) -> list[bytes]:
    return [image.permute(1, 2, 0).contiguous().numpy().tobytes() for image in images]


def test_the_val_folder_tests_and_part_of_the_train_folder_validates(photographs: Path) -> None:
    data = load(photographs)
    assert isinstance(data.train, ImageFiles)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [78, 12, 30]
    assert data.classes == CLASSES and data.image_shape == (3, 28, 28)
    tested = {centre(path) for path in (photographs / "val").rglob("*.jpg")}
    assert {*as_bytes(data.test.pixels)} == tested
    trained = {Path(os.fsdecode(path)) for path in data.train.paths}
    left = {*(photographs / "train").rglob("*.jpg")} - trained
    assert len(left) == 12 and {*as_bytes(data.validation.pixels)} == {centre(path) for path in left}


def test_every_image_has_the_label_of_its_folder(photographs: Path) -> None:
    data = load(photographs, workers=2)
    assert isinstance(data.train, ImageFiles)
    folders = [Path(os.fsdecode(path)).parent.name for path in data.train.paths]
    assert [CLASSES[label] for label in data.train.labels.tolist()] == folders
    where = {centre(path): path.parent.name for path in photographs.rglob("*.jpg")}
    for part in (data.validation, data.test):
        named = [where[image] for image in as_bytes(part.pixels)]
        assert [CLASSES[label] for label in part.labels.tolist()] == named


def test_the_splits_are_always_the_same_and_validation_does_not_depend_on_the_training_size(photographs: Path) -> None:
    one, two = load(photographs), load(photographs, train_size=20, test_size=5)
    assert torch.equal(one.validation.pixels, two.validation.pixels)
    assert [len(part) for part in (two.train, two.test)] == [20, 5]
    index = [torch.arange(20)]
    (first,), (second,) = one.train.batches(index, seed=4), two.train.batches(index, seed=4)
    assert torch.equal(first.pixels, second.pixels)


def test_the_channel_statistics_are_the_published_ones_and_a_part_of_the_classes_is_named_as_one(
    photographs: Path,
) -> None:
    data = load(photographs)
    mean, deviation = data.channel_statistics
    assert mean.tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert deviation.tolist() == pytest.approx([0.229, 0.224, 0.225])
    assert data.name == "imagenet-3"


def test_images_of_all_sizes_and_modes_are_brought_to_one(tmp_path: Path) -> None:
    modes = ("RGB", "L", "CMYK", "RGBA")
    for split in ("train", "val"):
        for label in ("n01", "n02"):
            folder = tmp_path / split / label
            folder.mkdir(parents=True)
            for number, mode in enumerate(modes * 2):
                image = Image.new("RGB", (30 + 17 * number, 90 - 11 * number), (200, 200, 200)).convert(mode)
                # As in ImageNet itself, a file's name may say JPEG where it is none.
                image.save(folder / f"{number}.JPEG", "PNG" if mode == "RGBA" else "JPEG")
    data = load(tmp_path, size=32, validation_size=4)
    (batch,) = data.train.batches([torch.arange(12)])
    for part in (batch, data.validation, data.test):
        assert part.image_shape == (3, 32, 32)
        assert int((part.pixels.int() - 200).abs().max()) <= 2


def test_where_to_get_imagenet_and_how_to_lay_it_out_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no folder 'train'.*https://image-net.org/.*train/<class>/\*.JPEG and val/"):
        load(tmp_path)
    (tmp_path / "train").mkdir()
    with pytest.raises(InputError, match="no folder 'val'"):
        load(tmp_path)


def test_folders_of_different_classes_are_refused(photographs: Path, tmp_path: Path) -> None:
    (tmp_path / "train").symlink_to(photographs / "train")
    (tmp_path / "val").mkdir()
    for name in CLASSES[:2]:
        (tmp_path / "val" / name).symlink_to(photographs / "val" / name)
    with pytest.raises(InputError, match="must have the same classes, but differ in bird"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        # 42 images of 3 * 28 * 28 bytes are 98,784 bytes.
        ({"memory": 98_783}, r"42 images of \[3, 28, 28\] need 0.0 GiB.*data.test_size lower, or allow more"),
        ({"validation_size": 90}, "cannot give parts of 90, 0"),
        ({"size": 0}, "at least 1 pixel, but got 0"),
        ({"workers": -1}, "0 or more, but got -1"),
    ],
)
def test_what_cannot_be_is_refused(photographs: Path, options: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(photographs, **options)
    if "memory" in options:
        assert len(load(photographs, memory=98_784).test) == 30
