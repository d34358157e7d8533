"""Images a second of the loader beside torchvision's ImageFolder and torch's DataLoader, on the same files.

    python benchmarks/loader.py --images FOLDER --out benchmarks/results/loader.md

The images are those of a folder of class folders, each upsampled to a shorter side of `--side` pixels and written as
JPEG files and as tar shards in a temporary folder; `FOLDER/test` of CIFAR-10 has 10,000. Without `--images` they are
pieces of scikit-learn's two photographs. Each loader then reads the same images in the same order, an epoch at a time:
a random crop resized to `--size` pixels, batches of bytes on the CPU. Torchvision's transforms are RandomResizedCrop
and PILToTensor. All loaders take turns, so that what else the machine does meets all of them; the ratio of a round is
to torchvision's of the same round, and the table has the medians. A first round is not counted. Workers start and end
within the time of an epoch.
"""

from __future__ import annotations

import argparse
import io
import itertools
import os
import shlex
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

SHARD = 1000
"""Images of a tar file."""

STAND_INS = 40


def photographs(given: Path | None, count: int) -> Iterator[tuple[str, Any]]:
    """Yield the class and the image of as many photographs as there are, `count` at most, the classes in turn."""
    from PIL import Image

    if given is not None:
        classes = [sorted(folder.iterdir()) for folder in sorted(given.iterdir()) if folder.is_dir()]
        turns = (path for turn in itertools.zip_longest(*classes) for path in turn if path is not None)
        for path in itertools.islice(turns, count):
            yield path.parent.name, Image.open(path).convert("RGB")
        return
    wholes = [(name, Image.open(str(resources.files("sklearn.datasets") / "images" / name))) for name in
              ("china.jpg", "flower.jpg")]  # fmt: skip
    for number in range(count):
        name, whole = wholes[number % 2]
        left, top = (number * 37) % (whole.width - 100), (number * 61) % (whole.height - 100)
        yield name[:-4], whole.crop((left, top, left + 100, top + 100))


def written(root: Path, images: Iterator[tuple[str, Any]], side: int) -> int:
    """Write images as `root/folders/train/CLASS/*.jpg` and as `root/shards/train-*.tar`; return their number.

    A few of the first stand in for those that validate and test.
    """
    from PIL import Image

    paths = []
    for number, (name, image) in enumerate(images):
        width, height = (max(side, round(side * length / min(image.size))) for length in image.size)
        path = root / "folders" / "train" / name / f"{number:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.resize((width, height), Image.Resampling.BICUBIC).save(path, quality=90)
        paths.append(path)
    for path in paths[:STAND_INS]:
        link = root / "folders" / "val" / path.parent.name / path.name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    (root / "shards").mkdir()
    for start in range(0, len(paths), SHARD):
        packed(root / "shards" / f"train-{start // SHARD:06}.tar", paths[start : start + SHARD])
    packed(root / "shards" / "val-000000.tar", paths[:STAND_INS])
    return len(paths)


def packed(shard: Path, paths: Sequence[Path]) -> None:
    """Write a shard of image files, whose labels are their folders' places in the order of names."""
    labels = sorted(folder.name for folder in paths[0].parent.parent.iterdir())
    with tarfile.open(shard, "w") as archive:
        for path in paths:
            key = f"{path.parent.name}/{path.stem}"
            for ending, data in (("jpg", path.read_bytes()), ("cls", str(labels.index(path.parent.name)).encode())):
                member = tarfile.TarInfo(f"{key}.{ending}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


def loaders(root: Path, size: int, batch: int, workers: int) -> dict[str, Callable[[int], int]]:
    """Return functions that read an epoch, in the order of its number, and return how many images they have read."""
    import torch
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    import robust_nas as rn

    def order(epoch: int, count: int) -> Sequence[torch.Tensor]:
        return torch.randperm(count, generator=torch.Generator().manual_seed(epoch)).split(batch)

    folders = ImageFolder(
        str(root / "folders" / "train"),
        transforms.Compose([transforms.RandomResizedCrop(size), transforms.PILToTensor()]),
    )

    def peer(epoch: int) -> int:
        indices = [chosen.tolist() for chosen in order(epoch, len(folders))]
        loader = DataLoader(folders, batch_sampler=indices, num_workers=workers)
        return sum(len(labels) for _, labels in loader)

    options: dict[str, Any] = {"size": size, "workers": workers, "validation_size": 1, "test_size": 1}
    ours = {
        "folders": rn.datasets.load("imagenet", root=root / "folders", **options).train,
        "shards": rn.datasets.load("shards", root=root / "shards", **options).train,
    }

    def read(images: Any, epoch: int) -> int:
        return sum(len(part) for part in images.batches(order(epoch, len(images)), seed=epoch))

    found: dict[str, Callable[[int], int]] = {"torchvision, folders": peer}
    for name, images in ours.items():
        found[f"robust-nas, {name}"] = lambda epoch, images=images: read(images, epoch)  # type: ignore[misc]
    return found


def measured(root: Path, words: argparse.Namespace, workers: int) -> list[str]:
    """Return the rows of the table for a number of workers."""
    readers = loaders(root, words.size, words.batch, workers)
    speeds: dict[str, list[float]] = {name: [] for name in readers}
    for epoch in range(words.repeats + 1):
        for name, read in readers.items():
            started = time.perf_counter()
            count = read(epoch)
            if epoch:  # the first one finds the files not yet in memory
                speeds[name].append(count / (time.perf_counter() - started))
    rows = []
    first = next(iter(speeds))
    for name, found in speeds.items():
        ratios = [own / peer for own, peer in zip(found, speeds[first], strict=True)]
        cells = [str(workers), name, f"{statistics.median(found):.0f}", f"{min(found):.0f}-{max(found):.0f}"]
        rows.append(f"| {' | '.join(cells)} | {statistics.median(ratios):.2f} | {min(ratios):.2f}-{max(ratios):.2f} |")
    return rows


def page(rows: list[str], count: int, words: argparse.Namespace) -> str:
    """Return the page, in Markdown."""
    import PIL
    import torch
    import torchvision

    from robust_nas.runtime.distributed import World
    from robust_nas.runtime.environment import describe_environment, hardware

    command = shlex.join("FOLDER" if word.startswith("/") else word for word in sys.argv[1:])
    source = "of CIFAR-10" if words.images else "pieces of two photographs"
    return "\n".join(
        [
            "# Loading images from files",
            "",
            f"    python benchmarks/loader.py {command}",
            "",
            f"{count} JPEG images ({source}, shorter side {words.side} pixels), random crops resized to {words.size}, "
            f"batches of {words.batch}, the median of {words.repeats} epochs, one after another in turn. "
            f"{hardware(describe_environment(World(), []))}, torch {torch.__version__}, torchvision "
            f"{torchvision.__version__}, Pillow {PIL.__version__}.",
            "",
            "| workers | loader | images/s | from-to | to torchvision | from-to |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


def main() -> None:
    """Print the rows, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="a folder of class folders; without it, pieces of two photographs")
    parser.add_argument("--out", type=Path, help="a Markdown file for the page")
    parser.add_argument("--count", type=int, default=3000, help="images")
    parser.add_argument("--side", type=int, default=160, help="pixels of the files' shorter side")
    parser.add_argument("--size", type=int, default=128, help="pixels a side of what is given out")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", default="0,1,2")
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ROBUST_NAS_HOME"] = f"{folder}/home"
        root = Path(folder)
        count = written(root, photographs(words.images, words.count), words.side)
        rows: list[str] = []
        for workers in map(int, words.workers.split(",")):
            for row in measured(root, words, workers):
                rows.append(row)
                print(row, flush=True)
        if words.out:
            words.out.write_text(page(rows, count, words), encoding="utf-8")


if __name__ == "__main__":
    main()
