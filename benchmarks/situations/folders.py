"""Image folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from checks import refused, situation, true
from PIL import Image

import robust_nas as rn
from robust_nas.datasets import Dataset

KIND = "image folders"


def picture(
    path: Path, mode: str = "RGB", size: tuple[int, int] = (6, 5), seed: int = 0, **options: Any
) -> Image.Image:
    """Write a random picture of one of Pillow's modes, and return it as it is read again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    if mode == "I;16":
        made = Image.fromarray(generator.integers(0, 65536, size[::-1], dtype=np.uint16))
    else:
        made = Image.fromarray(generator.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).convert(mode)
    made.save(path, **options)
    with Image.open(path) as again:
        again.load()
        return again


def class_folders(root: Path, count: int = 6, classes: Sequence[str] = ("cat", "dog"), **options: Any) -> Path:
    """Write pictures into class folders."""
    for place, name in enumerate(classes):
        for index in range(count):
            picture(root / name / f"{index}.png", seed=100 * place + index, **options)
    return root


def loaded(root: Path, **options: Any) -> Dataset:
    """Return the data set of a folder."""
    return rn.datasets.load("folder", root=root, **options)


def count_of(data: Dataset) -> int:
    """Return how many images a data set has."""
    return len(data.train) + len(data.validation) + len(data.test)


@situation(KIND, "pytorch/vision#109")
def files_beside_the_class_folders_are_no_classes(folder: Path) -> None:
    root = class_folders(folder / "data")
    for name in (".DS_Store", "Thumbs.db", "README.md"):
        (root / name).write_bytes(b"x")
        (root / "cat" / name).write_bytes(b"x")
    data = loaded(root)
    true(data.classes == ("cat", "dog") and count_of(data) == 12, f"{data.classes} with {count_of(data)} images")


@situation(KIND, "pytorch/vision#2831")
def hidden_folders_are_neither_classes_nor_images(folder: Path) -> None:
    root = class_folders(folder / "data")
    for place in (root, root / "cat"):
        picture(place / ".ipynb_checkpoints" / "0-checkpoint.png")
    data = loaded(root)
    true(data.classes == ("cat", "dog") and count_of(data) == 12, f"{data.classes} with {count_of(data)} images")


@situation(KIND, "pytorch/vision#4925")
def a_class_folder_without_images_is_refused_by_its_name(folder: Path) -> None:
    root = class_folders(folder / "data")
    (root / "bird").mkdir()
    refused(lambda: loaded(root), "bird")


@situation(KIND, "pytorch/vision#485")
def a_damaged_image_is_named(folder: Path) -> None:
    root = class_folders(folder / "data")
    whole = (root / "dog" / "3.png").read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"<html>", whole[:20] + b"\0" * 50 + whole[70:]):
        (root / "dog" / "3.png").write_bytes(damaged)
        refused(lambda: loaded(root), str(Path("dog") / "3.png"))


@situation(KIND, "pytorch/vision#669")
def images_without_class_folders_are_refused(folder: Path) -> None:
    root = class_folders(folder / "data")
    refused(lambda: loaded(root / "cat"), "class folders")
    refused(lambda: loaded(root / "cat" / "0.png"), "folder")


@situation(KIND, "pytorch/vision#72")
def a_folder_without_any_image_is_refused(folder: Path) -> None:
    for name in ("a", "b"):
        (folder / "data" / name).mkdir(parents=True)
        (folder / "data" / name / "notes.txt").write_text("x")
    refused(lambda: loaded(folder / "data"), "no images")
    refused(lambda: loaded(folder / "nowhere"), "nowhere")


@situation(KIND, "open-edge-platform/anomalib#3058")
def upper_case_extensions_are_images(folder: Path) -> None:
    root = class_folders(folder / "data")
    for place, name in enumerate(("x.JPG", "y.JPEG", "z.PNG", "u.Bmp")):
        picture(root / "cat" / name, seed=place)
    true(count_of(loaded(root)) == 16, f"{count_of(loaded(root))} images of 16")


@situation(KIND, "tryolabs/luminoth#254")
def names_that_are_not_ascii_are_read(folder: Path) -> None:
    root = class_folders(folder / "größe 図", classes=("naïve", "日本 語", "emoji 🐈"))
    picture(root / "naïve" / "äöüéè023 (copy).png", seed=900)
    data = loaded(root)
    true(count_of(data) == 19, f"{count_of(data)} images of 19")
    true(set(data.classes) == {"naïve", "日本 語", "emoji 🐈"}, f"the classes are {data.classes}")


@situation(KIND, "dmMaze/BallonsTranslator#1205")
def images_of_mixed_modes_are_read_as_pillow_converts_them(folder: Path) -> None:
    modes = ("L", "LA", "P", "RGBA", "1", "CMYK", "I;16")
    written = {}
    for place, mode in enumerate(modes):
        suffix = ".jpg" if mode == "CMYK" else ".png"
        path = folder / "data" / "cat" / f"{place}{suffix}"
        written[path.name] = picture(path, mode, seed=place)
    for index in range(7):
        picture(folder / "data" / "dog" / f"{index}.png", seed=50 + index)
    data = loaded(folder / "data")
    pixels = torch.cat([part.pixels[part.labels == 0] for part in (data.train, data.validation, data.test)])
    for name, image in written.items():
        if image.mode.startswith("I"):
            wanted = np.repeat((np.asarray(image) / 65535 * 255).round().astype(np.uint8)[..., None], 3, 2)
        else:
            wanted = np.asarray(image.convert("RGB"))
        expected = torch.from_numpy(wanted.copy()).permute(2, 0, 1)
        true(any(torch.equal(each, expected) for each in pixels), f"{name}, of mode {image.mode}, is another image")


@situation(KIND, "imageio/imageio#478")
def a_palette_with_transparency_keeps_its_colours(folder: Path) -> None:
    root = class_folders(folder / "data")
    made = Image.new("P", (6, 5), 1)
    made.putpalette([10, 20, 30, 200, 100, 50] + [0] * 762)
    made.save(root / "cat" / "p.png", transparency=0)
    data = loaded(root)
    pixels = torch.cat([part.pixels for part in (data.train, data.validation, data.test)])
    wanted = torch.tensor([200, 100, 50], dtype=torch.uint8).view(3, 1, 1).expand(3, 5, 6)
    true(any(torch.equal(each, wanted) for each in pixels), "the colours are others")


@situation(KIND, "pytorch/vision#864")
def images_of_several_sizes_are_refused_or_brought_to_one(folder: Path) -> None:
    root = class_folders(folder / "data")
    wide = picture(root / "cat" / "wide.png", size=(12, 5), seed=7)
    refused(lambda: loaded(root), "data.size")
    from PIL import ImageOps

    data = loaded(root, size=4)
    pixels = torch.cat([part.pixels for part in (data.train, data.validation, data.test)])
    fitted = np.asarray(ImageOps.fit(wide.convert("RGB"), (4, 4), Image.Resampling.BILINEAR))
    wanted = torch.from_numpy(fitted.copy()).permute(2, 0, 1)
    true(any(torch.equal(each, wanted) for each in pixels), "an image is cut otherwise")


@situation(KIND, "kohya-ss/sd-scripts#1316")
def an_image_that_exif_turns_is_read_as_torchvision_reads_it_and_the_help_says_so(folder: Path) -> None:
    from torchvision.datasets.folder import default_loader

    root = class_folders(folder / "data", size=(5, 5))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    picture(root / "cat" / "turned.png", size=(5, 5), seed=77, exif=exif)
    data = loaded(root)
    pixels = torch.cat([part.pixels for part in (data.train, data.validation, data.test)])
    wanted = torch.from_numpy(np.asarray(default_loader(str(root / "cat" / "turned.png"))).copy()).permute(2, 0, 1)
    true(any(torch.equal(each, wanted) for each in pixels), "it is another image")
    true("EXIF" in (rn.datasets.get("folder").__doc__ or ""), "the help does not say what EXIF's orientation does")


@situation(KIND, "pytorch/vision#8297")
def train_and_test_with_other_classes_are_refused(folder: Path) -> None:
    class_folders(folder / "data" / "train", classes=("a", "b", "c"))
    class_folders(folder / "data" / "test", classes=("a", "b"))
    refused(lambda: loaded(folder / "data"), "c")
    class_folders(folder / "other" / "train", classes=("a", "b"))
    refused(lambda: loaded(folder / "other"), "test")
