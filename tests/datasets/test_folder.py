"""Folders of class folders as people have them."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from robust_nas import datasets
from robust_nas.core.errors import InputError
from robust_nas.datasets import Dataset
from robust_nas.datasets._files import ImageFiles


def fill(folder: Path, classes: Sequence[str] = "ab", count: int = 10, side: int = 4) -> Path:
    """Write different random images, which depend on the folder's name."""
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            draw = np.random.default_rng([number, *f"{folder.name}/{name}".encode()])
            Image.fromarray(draw.integers(0, 256, (side, side, 3), np.uint8)).save(folder / name / f"{number}.png")
    return folder


def load(root: Path, **options: object) -> Dataset:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return datasets.load("folder", root=root, **options)


def sizes(data: Dataset) -> tuple[int, int, int]:
    return len(data.train), len(data.validation), len(data.test)


def test_what_systems_and_notebooks_leave_changes_nothing(tmp_path: Path) -> None:
    root = fill(tmp_path / "images")
    before = load(root)
    shutil.copytree(root / "a", root / "a" / ".ipynb_checkpoints")
    shutil.copytree(root, root / "__MACOSX" / "images")
    for name in ("._0.png", "a/._0.png", "a/.DS_Store", "Thumbs.db", "a/@eaDir/0.png", ".git/x/0.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"\0\5\26\7")
    after = load(root)
    assert after.notes == () and after.classes == before.classes == ("a", "b")
    for split in ("train", "validation", "test"):
        assert getattr(after, split).pixels.equal(getattr(before, split).pixels)


@pytest.mark.parametrize(("train", "val", "test"), [("train", "val", "test"), ("Train", "VALID", "Testing")])
def test_a_folder_of_validation_images_is_the_validation_split(tmp_path: Path, train: str, val: str, test: str) -> None:
    for name, count in {train: 10, val: 3, test: 4}.items():
        fill(tmp_path / name, count=count)
    data = load(tmp_path)
    assert sizes(data) == (20, 6, 8) and data.classes == ("a", "b") and data.notes == ()
    validated = {np.asarray(Image.open(path)).tobytes() for path in (tmp_path / val).rglob("*.png")}
    assert {image.permute(1, 2, 0).numpy().tobytes() for image in data.validation.pixels} == validated
    assert sizes(load(tmp_path, train_size=9, validation_size=5, test_size=7)) == (9, 5, 7)


def test_images_in_two_splits_or_classes_and_files_left_out_are_said(tmp_path: Path) -> None:
    for name in ("train", "val", "test"):
        fill(tmp_path / name)
    (tmp_path / "extra").mkdir()
    assert load(tmp_path).notes == (f"{tmp_path} has folders beside its splits that are not used: extra.",)
    for number in (1, 2):
        shutil.copy(tmp_path / f"train/a/{number}.png", tmp_path / f"test/a/copy-{number}.png")
    shutil.copy(tmp_path / "test/b/7.png", tmp_path / "test/a/other.png")
    (tmp_path / "train/a/x.gif").touch()
    shutil.copy(tmp_path / "train/a/0.png", tmp_path / "train/loose.png")
    gif, loose, copies, classes = load(tmp_path).notes[1:]
    assert "1 file in" in gif and ".gif" in gif and "1 image in" in loose and "loose.png" in loose
    assert copies.startswith("2 of the 23 test images are among the train") and "test/a/copy-" in copies
    assert classes.startswith("1 image is in two classes") and "test/a/other.png" in classes
    with pytest.warns(UserWarning, match="Remove them from one of the two"):
        datasets.load("folder", root=tmp_path)


def test_nearly_black_files_are_black_images_and_no_reason_for_a_warning(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        for number in range(5):
            Image.new("RGB", (4, 4), (number, number, number)).save(tmp_path / name / f"{number}.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = datasets.get("folder")(root=tmp_path).load_splits()
    assert int(data.test.pixels.max()) <= 4 and data.test.max_value == 255


def test_an_orientation_in_a_photographs_exif_data_is_said_and_not_applied_as_in_torchvision(tmp_path: Path) -> None:
    from torchvision.datasets.folder import default_loader

    turned = Image.Exif()
    turned[0x0112] = 6
    for name in "ab":
        (tmp_path / name).mkdir()
        for number in range(5):
            image = Image.fromarray(np.random.default_rng(number).integers(0, 256, (6, 4, 3), np.uint8))
            image.save(tmp_path / name / f"{number}.jpg", exif=turned if (name, number) == ("a", 3) else Image.Exif())
    data = load(tmp_path)
    assert data.image_shape == (3, 6, 4)
    (note,) = [note for note in data.notes if "EXIF" in note]
    assert note.startswith("1 of the images, such as") and "a/3.jpg" in note
    expected = np.asarray(default_loader(tmp_path / "a" / "3.jpg")).transpose(2, 0, 1)
    everything = np.concatenate([part.pixels.numpy() for part in (data.train[:], data.validation, data.test)])
    assert (everything == expected).all((1, 2, 3)).any()


def one_class_less(root: Path) -> None:
    fill(root / "train"), fill(root / "val"), fill(root / "test")
    shutil.rmtree(root / "val" / "b")
    fill(root / "val", "c")


def one_image_of_a_class(root: Path) -> None:
    fill(root, "ab", 20)
    fill(root, "c", 1)


MISTAKES: dict[str, Callable[[Path], object]] = {
    "differ in b, c": one_class_less,
    "'train' and 'test'.*only train and val": lambda root: (fill(root / "train"), fill(root / "val")),
    "val, validation, which all stand": lambda root: [
        fill(root / name) for name in ("train", "test", "val", "validation")
    ],
    "class 'c' .*has no training images": one_image_of_a_class,
    "two or more class folders .*0 class folders": lambda root: [(root / name).mkdir() for name in ("Train", "Test")],
    "is no file": lambda root: (fill(root), os.mkfifo(root / "a" / "pipe.png")),
    "broken link": lambda root: (fill(root), (root / "a" / "gone.png").symlink_to(root / "nowhere")),
    "link to a folder that it is in": lambda root: (fill(root), (root / "a" / "up").symlink_to(root)),
    "file .an archive is to be unpacked first": lambda root: (root.rmdir(), root.write_bytes(b"PK")),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_a_mistake_is_refused_in_a_sentence(tmp_path: Path, message: str) -> None:
    root = tmp_path / "images"
    root.mkdir()
    MISTAKES[message](root)
    with pytest.raises(InputError, match=message):
        datasets.load("folder", root=root)


def test_a_folder_in_place_of_a_name_is_told_how_it_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "imgs").mkdir()
    for place in ("./imgs", "imgs", str(tmp_path)):
        with pytest.raises(InputError, match=r'is a folder .*datasets\.load\("folder", root=') as refused:
            datasets.load(place)
        assert f"root={place!r})" in str(refused.value)


def test_training_images_that_stay_in_their_files_are_those_in_memory_and_take_none_of_it(tmp_path: Path) -> None:
    for name, count in {"train": 10, "test": 4}.items():
        fill(tmp_path / name, count=count)
    lazy = load(tmp_path, in_files=True, size=4, workers=0, memory=480)
    assert isinstance(lazy.train, ImageFiles) and sizes(lazy) == sizes(load(tmp_path)) == (18, 2, 8)
    assert lazy.train.labels.equal(load(tmp_path).train.labels)
    assert lazy.validation.labels.equal(load(tmp_path).validation.labels)
    with pytest.raises(InputError, match=r"10 images of .3, 4, 4. need"):
        load(tmp_path, in_files=True, size=4, workers=0, memory=479)
    for options in ({}, {"size": 4, "grey": True}):
        with pytest.raises(InputError, match=r"data.in_files needs data.size"):
            load(tmp_path, in_files=True, **options)


@pytest.mark.parametrize("denied", ["", "a", "a/more"])
def test_a_folder_that_cannot_be_read_is_no_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, denied: str
) -> None:
    fill(tmp_path)
    fill(tmp_path / "a", ["more"])
    scan = os.scandir

    def scandir(path: str) -> object:
        if os.fspath(path) == str(tmp_path / denied):
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(InputError, match=f"The folder {tmp_path / denied} cannot be read .Permission denied"):
        datasets.load("folder", root=tmp_path)


@pytest.mark.parametrize("options", [{"size": 100_000}, {"memory": 1000}])
def test_memory_is_looked_at_before_anything_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, int]
) -> None:
    fill(tmp_path, count=20)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("An image was decoded."))
    # 40 images of 3 x 4 x 4 bytes, in all splits together.
    with pytest.raises(InputError, match=r"40 images of \[3, \d+, \d+\] need .*set data.size lower"):
        datasets.load("folder", root=tmp_path, **options)
