"""A training on files that is killed in an epoch goes on without an image that is repeated or left out."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import multiprocessing
import os
import signal
import tarfile
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from robust_nas import datasets
from robust_nas.core.config import build
from robust_nas.runtime.distributed import World
from robust_nas.runtime.progress import Progress
from robust_nas.runtime.stages import Stage
from robust_nas.threat import ThreatModel
from robust_nas.training import Trainer, Training, fit
from tests.test_distributed import on_two_ranks

TRAINED, BATCH, KILLED_AT = 64, 16, 7
"""Images of an epoch and of a step; the kill is in the third of the second epoch's four steps."""


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return pieces of scikit-learn's two photographs, as JPEG files in class folders, and as shards of the same."""
    root = tmp_path_factory.mktemp("photographs")
    for name in ("china", "flower"):
        whole = Image.open(str(resources.files("sklearn.datasets") / "images" / f"{name}.jpg"))
        places = list(itertools.product(range(0, 400, 50), range(0, 500, 100)))[:40]
        for number, (top, left) in enumerate(places):
            path = root / "folders" / ("train" if number < 36 else "test") / name / f"{number:02}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            whole.crop((left, top, left + 60, top + 50)).save(path, quality=90)
    (root / "shards").mkdir()
    for split in ("train", "test"):
        files = sorted((root / "folders" / split).rglob("*.jpg"), key=lambda path: path.stem)
        for part in range(3):
            with tarfile.open(root / f"shards/{split}-{part}.tar", "w") as shard:
                for path in files[part::3]:
                    shard.add(path, f"{path.parent.name}-{path.name}")
                    label = tarfile.TarInfo(f"{path.parent.name}-{path.stem}.cls")
                    label.size = 1
                    shard.addfile(label, io.BytesIO(b"0" if path.parent.name == "china" else b"1"))
    return root


def _training(root: Path, folder: Path, kill: bool = False) -> Callable[[World], dict[str, Tensor]]:
    """Return a function that trains for 2 epochs, and appends what each step sees to a file of each rank."""
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    sizes = {"train_size": TRAINED, "validation_size": 4, "test_size": 4}
    options: dict[str, Any] = {"in_files": True} if root.name == "folders" else {}

    def train(world: World) -> dict[str, Tensor]:
        data = datasets.load("folder" if options else "shards", root=root, size=24, workers=1, **options, **sizes)
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3, 4), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
        step, log = Trainer.step, folder / f"seen-{world.rank}"

        def watched(self: Trainer, batch: Any, *rest: Any) -> Tensor:
            seen = [batch.ids.tolist(), hashlib.sha256(batch.images.numpy().tobytes()).hexdigest()]
            with log.open("a") as file:
                print(json.dumps(seen), file=file)
            if kill and len(log.read_text().splitlines()) == KILLED_AT:
                world.barrier()  # what the others of a group do that has lost one is no matter here
                os.kill(os.getpid(), signal.SIGKILL)
            return step(self, batch, *rest)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Trainer, "step", watched)
            table = {"method": "fast", "epochs": 2, "batch_size": BATCH, "selection_attack": "fgsm", "padding": 1}
            stage = Stage("train", 0, world, Progress(quiet=True), folder, save_steps=2)
            return fit(model, data, ThreatModel(epsilon=0.01), build(Training, table), stage).last

    return train


def _on_one(function: Callable[[World], dict[str, Tensor]], folder: Path) -> list[dict[str, Tensor]]:
    """Return the result of a function in this process, or in one of its own that may be killed."""
    if folder.name != "killed":
        return [function(World())]
    process = multiprocessing.get_context("fork").Process(target=function, args=(World(),))
    process.start()
    process.join(timeout=60)
    assert process.exitcode == 0
    return []


@pytest.mark.parametrize(
    ("layout", "ranks"), [pytest.param("folders", 1, marks=pytest.mark.slow), ("shards", 1), ("folders", 2)]
)
def test_a_kill_in_an_epoch_repeats_and_leaves_out_no_image(
    layout: str, ranks: int, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROBUST_NAS_HOME", str(photographs / "home"))
    run, root = (_on_one if ranks == 1 else on_two_ranks), photographs / layout
    whole = run(_training(root, tmp_path / "whole"), tmp_path)
    with pytest.raises(AssertionError, match="-9 == 0"):
        run(_training(root, tmp_path / "killed", kill=True), tmp_path / "killed")
    resumed = run(_training(root, tmp_path / "killed"), tmp_path)

    def seen(name: str, rank: int) -> list[Any]:
        return [json.loads(line) for line in (tmp_path / name / f"seen-{rank}").read_text().splitlines()]

    for rank in range(ranks):
        expected, steps = seen("whole", rank), seen("killed", rank)
        # The step that was killed had changed nothing that was saved: it alone is taken again, with the same crops.
        assert steps[KILLED_AT - 1] == steps[KILLED_AT] and steps[:KILLED_AT] + steps[KILLED_AT + 1 :] == expected
        torch.testing.assert_close(resumed[rank], whole[rank], rtol=0, atol=0)
    taken = [seen("killed", rank)[: KILLED_AT - 1] + seen("killed", rank)[KILLED_AT:] for rank in range(ranks)]
    for epoch in range(2):
        steps_of_epoch = slice(4 * epoch, 4 * epoch + 4)
        images = [image for steps in taken for ids, _ in steps[steps_of_epoch] for image in ids]
        assert sorted(images) == list(range(TRAINED))
