"""ImageNet: photographs in 1,000 classes (ILSVRC 2012; Russakovsky et al. 2015, arXiv:1409.0575)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from robust_nas.core.catalogue import expanded
from robust_nas.core.errors import InputError
from robust_nas.datasets import Dataset
from robust_nas.datasets._splits import chosen_places, files_cut

MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)
"""Of the training images' channels, as published with torchvision's models."""


@dataclass(frozen=True, kw_only=True)
class ImageNet:
    """Images in `root/train/<class>/*` and `root/val/<class>/*`: ImageNet, or any subset of its classes.

    Training images stay in their files, and are decoded when they are needed. The official validation images test, as
    is usual; those that validate are cut out of the training images, and both are read into memory: the shorter side
    resized to size * 256 / 224, the centre cut out.

    Args:
        root: the folder.
        size: pixels a side.
        train_size: training images to use; all that validation leaves, if not given.
        validation_size: validation images.
        test_size: test images to use; all, if not given.
        workers: processes that decode, for each process of the run, at most one per core; 0 decodes in the run's own.
        memory: the largest size that validation and test images together may take in memory, in bytes.
    """

    root: Path
    size: int = 224
    train_size: int | None = None
    validation_size: int = 5000
    test_size: int | None = None
    workers: int = 8
    memory: int = 8 * 2**30

    def load_splits(self) -> Dataset:
        """List the training images, and read those that validate and test."""
        import torch

        from robust_nas.datasets._class_folders import ClassFolders
        from robust_nas.datasets._files import ImageFiles

        root = expanded(self.root).resolve()
        absent = [name for name in ("train", "val") if not (root / name).is_dir()]
        if absent:
            shards = " Its tar shards are read with data.name=shards." if any(root.glob("*.tar")) else ""
            raise InputError(
                f"ImageNet is not in {root} (there is no folder '{absent[0]}'), and cannot be downloaded without an "
                "account: get ILSVRC 2012 from https://image-net.org/download.php, and unpack it to "
                f"train/<class>/*.JPEG and val/<class>/*.JPEG there.{shards}"
            )
        files, test_files = ClassFolders.of(root / "train"), ClassFolders.of(root / "val")
        files.check_same_classes(test_files)
        listed = {
            split: ImageFiles.of(
                each.paths,
                each.labels,
                self.size,
                workers=min(self.workers, os.cpu_count() or 1),
                statistics=(torch.tensor(MEAN), torch.tensor(DEVIATION)),
            )
            for split, each in (("train", files), ("test", test_files))
        }
        counts = {split: len(each) for split, each in listed.items()}
        chosen = chosen_places(counts, "ImageNet", self.train_size, self.validation_size, self.test_size)
        splits = files_cut(listed, chosen, self.memory)
        count = len(files.classes)
        # Results on some of the classes are not results on ImageNet.
        name = "imagenet" if count == 1000 else f"imagenet-{count}"
        notes = (*files.notes, *test_files.notes)
        return Dataset(name, files.classes, *splits, notes)
