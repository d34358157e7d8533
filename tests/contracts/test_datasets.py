"""The contract of data sets."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from robust_nas import datasets
from robust_nas.core.errors import InputError


def options(name: str, folder: Path, shared: Path) -> dict[str, Any]:
    if name in ("folder", "imagenet", "shards"):
        splits = 1 if name == "folder" else 2
        for split, label, number in np.ndindex(splits, 2, 10):
            path = folder / (("train", "val")[split] if splits == 2 else "") / str(label) / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            draw = np.random.default_rng([label, number, split])
            Image.fromarray(draw.integers(0, 256, (6, 6, 3), np.uint8)).save(path)
        if name == "shards":
            for split in ("train", "val"):
                with tarfile.open(folder / f"{split}-0.tar", "w") as shard:
                    for path in sorted((folder / split).rglob("*.png")):
                        key = f"{path.parent.name}-{path.stem}"
                        shard.add(path, f"{key}.png")
                        path.with_suffix(".cls").write_text(path.parent.name)
                        shard.add(path.with_suffix(".cls"), f"{key}.cls")
        return {"root": folder, **({"size": 6, "validation_size": 4, "workers": 0} if splits == 2 else {})}
    return {} if name == "digits" else {"root": shared, "download": False}


@pytest.mark.parametrize("name", datasets.names())
def test_a_data_set_gives_the_same_disjoint_splits_of_bytes_every_time(
    name: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROBUST_NAS_HOME", str(tmp_path / "home"))
    shared = (
        request.getfixturevalue("shared_data") if name not in ("digits", "folder", "imagenet", "shards") else tmp_path
    )
    chosen = options(name, tmp_path, shared)
    try:
        data, again = (datasets.load(name, **chosen) for _ in range(2))
    except InputError as error:
        pytest.skip(f"{name} is not among the real data here: {error}")
    for split in ("train", "validation", "test"):
        # Training images may be in files; [:] reads them.
        part, same = getattr(data, split)[:], getattr(again, split)[:]
        assert part.pixels.dtype == torch.uint8 and part.pixels.shape[1:] == data.image_shape
        assert torch.equal(part.pixels, same.pixels) and torch.equal(part.labels, same.labels)
        assert int(part.labels.min()) >= 0 and int(part.labels.max()) < len(data.classes)
        images = part[:50].images
        assert images.dtype == torch.float32 and float(images.min()) >= 0 and float(images.max()) <= 1
    train, validation = (
        {image.numpy().tobytes() for image in part[:].pixels} for part in (data.train, data.validation)
    )
    # Two images may be equal by chance; splits that overlap share many.
    assert len(train & validation) <= len(validation) // 50
