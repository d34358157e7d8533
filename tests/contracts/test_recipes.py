"""The contract of recipes: each is a complete configuration that survives its own record."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from robust_nas import recipes as recipe
from robust_nas import spaces
from robust_nas.core import catalogue, config


@pytest.mark.parametrize("name", recipe.names())
def test_a_recipe_is_complete_and_its_record_reads_back_as_itself(name: str) -> None:
    overrides = ["data.root=somewhere"] if name == "folder" else []
    loaded = recipe.load(name, overrides)
    record = tomllib.loads(config.to_toml(loaded.to_dict()))
    assert recipe.from_table(record, name) == loaded
    assert loaded.name == name
    assert record["search"].get("hold_sample", True) is True


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
    }


@pytest.mark.parametrize("name", sorted(catalogue.files("search_spaces")))
def test_a_declared_space_loads_and_reads_its_own_architectures(name: str) -> None:
    space = spaces.load(name)
    architecture = space.decided([values[0] for values in space.decisions.values()])
    assert space.parse(str(architecture)) == architecture
