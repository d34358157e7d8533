"""Distributed adversarial training: its loss against closed forms, its unlabelled images by what is seen of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from robust_nas import datasets
from robust_nas.core.config import build
from robust_nas.core.errors import InputError, Interrupted
from robust_nas.datasets import stream_batches
from robust_nas.runtime.distributed import World
from robust_nas.runtime.progress import Progress
from robust_nas.runtime.stages import Stage
from robust_nas.threat import ThreatModel
from robust_nas.training import Batch, Memory, Training, fit
from robust_nas.training.dat import DAT
from tests.test_distributed import on_two_ranks

THREAT = ThreatModel(epsilon=0.1)


def _data() -> Any:
    digits = datasets.load("digits")
    return dataclasses.replace(digits, train=digits.train[:64], validation=digits.validation[:16])


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))


def _batch() -> Batch:
    part, others = datasets.load("digits").train[:8], datasets.load("digits").train[8:20]
    places = torch.arange(8)
    whole = Batch(part.images, part.labels, part.labels, THREAT, 3, places, places, 8, 8, Memory())
    return dataclasses.replace(whole, unlabelled=others.images)


@pytest.mark.parametrize("of_unlabelled", ["consistency", "pseudo_labels"])
def test_the_loss_is_the_sum_of_the_papers_terms(of_unlabelled: str) -> None:
    method, model, batch = DAT(clean_weight=0.5, beta=2.0, unlabelled_loss=of_unlabelled), _model(), _batch()
    crafted = method.craft(model, batch)
    own, other = crafted[:8], crafted[8:]
    assert len(other) == 12 and bool(THREAT.around(batch.unlabelled).contains(other).all())
    expected = F.cross_entropy(model(own), batch.labels) + 0.5 * F.cross_entropy(model(batch.images), batch.labels)
    clean, adversarial = model(batch.unlabelled), model(other)
    if of_unlabelled == "consistency":
        phi = F.kl_div(adversarial.log_softmax(1), clean.log_softmax(1), log_target=True, reduction="batchmean")
    else:
        phi = F.cross_entropy(adversarial, clean.argmax(1))
    loss = method.loss(model, crafted, batch)
    torch.testing.assert_close(loss, expected + 2 * phi)
    # The attack has raised what is minimised.
    noise = torch.cat([own, THREAT.around(batch.unlabelled).project(batch.unlabelled + 0.001)])
    assert method.loss(model, noise, batch) < loss


def test_without_unlabelled_images_it_is_the_authors_code_clean_and_adversarial_losses_added() -> None:
    method, model, batch = DAT(), _model(), dataclasses.replace(_batch(), unlabelled=None)
    crafted = method.craft(model, batch)
    expected = F.cross_entropy(model(crafted), batch.labels) + F.cross_entropy(model(batch.images), batch.labels)
    torch.testing.assert_close(method.loss(model, crafted, batch), expected)


def test_a_stream_shows_every_image_once_in_each_pass_and_ranks_share_its_batches() -> None:
    worlds = [World(rank=rank, size=2) for rank in range(2)]
    ranks = [stream_batches(10, 4, world, 0, "unlabelled", first=0, number=5) for world in worlds]
    seen = torch.cat([torch.cat(both) for both in zip(*ranks, strict=True)])
    assert sorted(seen.tolist()) == sorted([*range(10)] * 2)
    # Of the third batch, half is of the first pass and half of the second, in other orders.
    later = stream_batches(10, 4, worlds[1], 0, "unlabelled", first=3, number=2)
    assert all(map(torch.equal, later, ranks[1][3:]))
    assert stream_batches(3, 8, World(), 0, "unlabelled", first=0, number=1)[0].bincount().max() == 3


def _trained(world: World, folder: Path, source: Path, **options: Any) -> Any:
    seen: list[torch.Tensor] = []

    class Noting(DAT):
        def craft(self, model: nn.Module, batch: Batch) -> torch.Tensor:
            assert batch.unlabelled is not None
            seen.append(batch.unlabelled)
            return super().craft(model, batch)

    table = {"epochs": 2, "batch_size": 16, "unlabelled": source, "unlabelled_batch": 8, "selection_attack": "fgsm"}
    plan = dataclasses.replace(build(Training, {"method": "dat", **table, **options}, "train"), method=Noting())
    stage = Stage("train", 0, world, Progress(quiet=True), folder)
    return {"weights": fit(_model(), _data(), THREAT, plan, stage).last, "seen": torch.cat(seen)}


def test_two_ranks_see_the_unlabelled_images_of_one_process_and_a_run_goes_on_in_the_stream(tmp_path: Path) -> None:
    images = datasets.load("digits").train[100:120]
    np.save(tmp_path / "own.npy", images.images.numpy())
    for name in ("two", "stopped"):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
    alone = _trained(World(), tmp_path / "stopped", tmp_path / "own.npy")
    ranks = on_two_ranks(lambda world: _trained(world, tmp_path / "two", tmp_path / "own.npy"), tmp_path)
    both = torch.cat([rank["seen"] for rank in ranks])
    sums = [rows.flatten(1).double().sum(1).sort().values for rows in (both, alone["seen"])]
    torch.testing.assert_close(*sums)
    assert len(alone["seen"]) == 8 * 8  # 8 steps of 8
    assert all(torch.equal(value, ranks[1]["weights"][name]) for name, value in ranks[0]["weights"].items())
    # Broken off after its first epoch, the run goes on with the images of the second.
    (tmp_path / "again" / "checkpoints").mkdir(parents=True)
    real = Stage.save

    def save(stage: Stage, step: int, state: Any) -> None:
        real(stage, step, state)
        if stage.name == "train":
            raise Interrupted("here")

    with pytest.raises(Interrupted), mock.patch.object(Stage, "save", save):
        _trained(World(), tmp_path / "again", tmp_path / "own.npy")
    rest = _trained(World(), tmp_path / "again", tmp_path / "own.npy")
    assert torch.equal(rest["seen"], alone["seen"][32:])
    assert all(torch.equal(value, alone["weights"][name]) for name, value in rest["weights"].items())


def test_a_folder_of_files_in_any_order_is_read_in_the_form_of_the_training_images(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    Image.fromarray(np.full((16, 16, 3), 51, np.uint8)).save(tmp_path / "a" / "b" / "one.png")
    Image.fromarray(np.full((8, 8), 255, np.uint8)).save(tmp_path / "two.png")
    (tmp_path / "notes.txt").write_text("no image")
    found = datasets.unlabelled(tmp_path, _data())
    assert found.image_shape == (1, 8, 8)
    assert sorted(round(float(image.mean()), 3) for image in found[:2].images) == [0.2, 1.0]


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((3, 9, 9), np.uint8), r"must be of shape \[1, 8, 8\].* but the array is \[3, 1, 9, 9\]"),
        (np.array([object()]), "cannot be read as an array"),
        (None, "a folder of images or an array"),
    ],
)
def test_what_are_no_unlabelled_images_is_refused(array: Any, said: str, tmp_path: Path) -> None:
    if array is not None:
        np.save(tmp_path / "own.npy", array, allow_pickle=True)
    with pytest.raises(InputError, match=said):
        datasets.unlabelled(tmp_path / "own.npy", _data())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "trades", "unlabelled": "x"}, "take the method dat"),
        ({"method": "dat", "unlabelled": "x", "accumulate": 2}, "train.accumulate"),
        ({"method": "dat", "unlabelled": "x", "norm": "mixture"}, "train.norm"),
        ({"method": "dat", "unlabelled_batch": 4}, "give that folder"),
    ],
)
def test_settings_that_do_not_go_with_unlabelled_images_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        build(Training, options, "train")
