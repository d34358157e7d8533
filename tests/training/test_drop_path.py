"""Dropped paths and auxiliary heads, which networks of the DARTS space have."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from robust_nas import datasets, spaces
from robust_nas.attacks.fgsm import FGSM
from robust_nas.attacks.pgd import PGD
from robust_nas.core.errors import InputError
from robust_nas.core.seeds import seeded
from robust_nas.datasets import Dataset
from robust_nas.runtime.distributed import World
from robust_nas.runtime.progress import Progress
from robust_nas.runtime.stages import Stage
from robust_nas.spaces.darts.network import AuxiliaryHead
from robust_nas.threat import ThreatModel
from robust_nas.training import Batch, Memory, Training, fit
from robust_nas.training._loop import Trainer
from robust_nas.training.ibp import IBP
from robust_nas.training.pgd_at import PGDAT
from robust_nas.training.standard import Standard
from robust_nas.training.trades import TRADES

THREAT = ThreatModel(epsilon=0.1)
SPACE = spaces.load("darts", channels=2, num_cells=3)
GENOTYPE = SPACE.decided([values[-1] for values in SPACE.decisions.values()])
TRAINING = Training(
    epochs=2,
    batch_size=32,
    method=Standard(),
    selection_attack=FGSM(),
    drop_path=0.4,
    auxiliary=0.4,
    learning_rate=0.05,
)


@pytest.fixture(scope="module")
def data() -> Dataset:
    digits = datasets.load("digits")
    return dataclasses.replace(digits, train=digits.train[:64], validation=digits.validation[:16], test=None)  # type: ignore[arg-type]


def _network(data: Dataset) -> nn.Module:
    with seeded(0):
        return SPACE.network(GENOTYPE, data)


def _batch(data: Dataset) -> Batch:
    chosen = data.train[torch.arange(16)]
    return Batch(
        images=chosen.images,
        labels=chosen.labels,
        targets=chosen.labels,
        threat=THREAT,
        seed=3,
        ids=torch.arange(16),
        places=torch.arange(16),
        num_samples=64,
        batch_size=16,
        memory=Memory(),
        mean=lambda value: value,
    )


def _stage(path=None) -> Stage:
    return Stage("train", 0, World(), Progress(quiet=True), path)


@pytest.mark.parametrize(
    "method", [Standard(), PGDAT(attack=PGD(steps=1)), TRADES()], ids=["standard", "pgd_at", "trades"]
)
def test_the_auxiliary_loss_is_the_cross_entropy_of_the_head_at_the_crafted_images(data, method):
    batch, losses = _batch(data), {}
    crafted = method.craft(_network(data).train(), batch)
    for weight in (0.0, 0.4):
        network = _network(data).train()
        training = dataclasses.replace(TRAINING, method=method, auxiliary=weight, drop_path=0.0)
        trainer = Trainer(network, training, World(), seed=5)
        losses[weight] = float(trainer.step(batch, 0.5))
    with seeded(5):
        head = AuxiliaryHead(network.auxiliary_channels, 10).train()
    network = _network(data).train()
    features = []
    network.cells[2].register_forward_hook(lambda _, __, output: features.append(output))
    network(crafted)
    expected = 0.4 * float(F.cross_entropy(head(features[0]), batch.targets).detach())
    assert losses[0.4] - losses[0.0] == pytest.approx(expected, rel=1e-4)


def test_the_head_learns_and_is_no_part_of_the_network(data):
    network = _network(data)
    names = set(network.state_dict())
    trainer = Trainer(network.train(), TRAINING, World())
    before = [parameter.clone() for parameter in trainer._head.parameters()]
    trainer.step(_batch(data), 0.5)
    assert all(not torch.equal(old, new) for old, new in zip(before, trainer._head.parameters(), strict=True))
    assert set(network.state_dict()) == names == set(trainer.state()["model"])


@pytest.mark.parametrize("size", [8, 7, 5, 2, 1])
def test_the_head_takes_features_of_any_size(size):
    assert AuxiliaryHead(4, 10)(torch.rand(2, 4, size, size)).shape == (2, 10)


def test_paths_are_dropped_more_from_epoch_to_epoch_and_not_after_the_training(data, monkeypatch):
    network, seen = _network(data), []
    step = Trainer.step
    monkeypatch.setattr(Trainer, "step", lambda self, *rest: seen.append(network.drop_path) or step(self, *rest))
    fit(network, data, THREAT, dataclasses.replace(TRAINING, epochs=4, auxiliary=0.0), _stage())
    assert seen == pytest.approx([0.0] * 2 + [0.1] * 2 + [0.2] * 2 + [0.3] * 2)
    assert network.drop_path == 0


def test_a_training_with_both_resumes_to_the_same_weights(data, tmp_path, monkeypatch):
    whole = fit(_network(data), data, THREAT, TRAINING, _stage()).last
    stage = _stage(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    save = Stage.save

    def save_and_stop(self, done, state):
        save(self, done, state)
        if done == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(Stage, "save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        fit(_network(data), data, THREAT, TRAINING, stage)
    monkeypatch.setattr(Stage, "save", save)
    resumed = fit(_network(data), data, THREAT, TRAINING, _stage(tmp_path)).last
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_networks_without_paths_or_heads_are_named(data):
    cell = spaces.load("nasbench201", channels=2, cells_per_stage=1, stages=1)
    for options, sentence in (
        ({"auxiliary": 0.0}, "train.drop_path is for networks with paths to drop"),
        ({"drop_path": 0.0}, "train.auxiliary is for networks with an auxiliary head"),
    ):
        network = cell.network(cell.parse("323133"), data)
        with pytest.raises(InputError, match=sentence):
            fit(network, data, THREAT, dataclasses.replace(TRAINING, **options), _stage())


@pytest.mark.parametrize("name", ["drop_path", "auxiliary"])
def test_what_cannot_be_bounded_or_compiled_is_named(name):
    for options in ({"method": IBP()}, {"compile": True}):
        with pytest.raises(InputError, match=f"train.{name} changes the network in training"):
            Training(**{name: 0.2}, **options)
