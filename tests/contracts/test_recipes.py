"""The contract of recipes: each is a complete configuration that survives its own record."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from robust_nas import recipes as recipe
from robust_nas import spaces
from robust_nas.attacks.pgd import PGD
from robust_nas.core import catalogue, config
from robust_nas.training.dat import DAT
from robust_nas.training.pgd_at import PGDAT


@pytest.mark.parametrize("name", recipe.names())
def test_a_recipe_is_complete_and_its_record_reads_back_as_itself(name: str) -> None:
    overrides = ["data.root=somewhere"] if name == "folder" else []
    loaded = recipe.load(name, overrides)
    record = tomllib.loads(config.to_toml(loaded.to_dict()))
    assert recipe.from_table(record, name) == loaded
    assert loaded.name == name
    assert record["search"].get("hold_sample", True) is True


def test_the_protocol_of_intriguing_properties_has_the_published_figures() -> None:
    chosen = recipe.load("intriguing-imagenet")
    assert isinstance(chosen.train.method, PGDAT)
    attack = chosen.train.method.attack
    assert attack == PGD(steps=30, step_size=1 / 255, random_target=True, clean_start=0.2, batch_norm="running")
    assert (chosen.threat.epsilon, chosen.train.label_smoothing) == (16 / 255, 0.1)
    # A tenth of the learning rate after epochs 35, 70 and 95 of 110, from .1 for each 256 images on.
    rates = [chosen.train.learning_rate_at((epoch - 0.5) / 110) for epoch in (1, 35, 36, 70, 71, 95, 96, 110)]
    expected = [0.1 * chosen.train.batch_size / 256 * 0.1**drops for drops in (0, 0, 1, 1, 2, 2, 3, 3)]
    assert rates == pytest.approx(expected)
    assert max(chosen.evaluation.curve_steps) == 2000
    assert config.to_dict(chosen.evaluation.steps_attack)["step_size"] == 1 / 255


@pytest.mark.parametrize(
    ("name", "epsilon", "steps", "epochs", "drops"),
    [("dat-cifar10", 8 / 255, 10, 105, (80, 95, 100)), ("dat-imagenet", 2 / 255, 4, 35, (25,))],
)
def test_distributed_adversarial_training_has_the_published_figures(
    name: str, epsilon: float, steps: int, epochs: int, drops: tuple[int, ...]
) -> None:
    chosen = recipe.load(name)
    plan = chosen.train
    assert plan.method == DAT(attack=PGD(steps=steps, step_size=2 / 255, batch_norm="running"))
    assert (chosen.threat.epsilon, plan.batch_size, plan.optimiser, plan.epochs) == (epsilon, 2048, "lamb", epochs)
    # From 0 to .01 in 5 epochs, and a tenth after each of the published ones, counted from there.
    assert [plan.learning_rate_at(epoch / epochs) for epoch in (0, 2.5, 5)] == pytest.approx([0, 0.005, 0.01])
    for number, drop in enumerate(drops):
        rates = [plan.learning_rate_at((drop + side) / epochs) for side in (-0.5, 0.5)]
        assert rates == pytest.approx([0.01 * 0.1**number, 0.01 * 0.1 ** (number + 1)])


def test_a_folder_of_images_is_a_recipe_of_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "cats-and-dogs").mkdir()
    loaded = recipe.load(str(tmp_path / "cats-and-dogs"))
    assert loaded.name == "cats-and-dogs"
    assert loaded.to_dict()["data"] == {
        "name": "folder",
        "root": str(tmp_path / "cats-and-dogs"),
        "size": 16,
        "grey": False,
        "memory": 8 * 2**30,
        "in_files": False,
        "workers": 8,
    }
    (tmp_path / "cats-and-dogs" / "train-0.tar").touch()
    assert recipe.load(str(tmp_path / "cats-and-dogs")).to_dict()["data"]["name"] == "shards"


@pytest.mark.parametrize("name", sorted(catalogue.files("search_spaces")))
def test_a_declared_space_loads_and_reads_its_own_architectures(name: str) -> None:
    space = spaces.load(name)
    architecture = space.decided([values[0] for values in space.decisions.values()])
    assert space.parse(str(architecture)) == architecture
