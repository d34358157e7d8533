"""`robust-nas ensemble build --from RUN RUN ...`: the trained models of one or many runs, joined in a run of their own.

The new run folder has copies of the weights, and in train.json and derive.json where they come from. From there it is a
run like any other: attacked, certified, joined and reported; `robust-nas run --resume` goes on with it.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robust_nas import config, intake, pipeline
from robust_nas.errors import InputError
from robust_nas.pixels import parse_pixels
from robust_nas.progress import Progress
from robust_nas.recipe import Recipe, from_table
from robust_nas.run_dir import RunDir, atomic_path, read_json, write_json

OF_THE_EPOCHS = ("kept", "best_epoch", "last_epoch", "best", "last")
"""What a training says about epochs that are not copied."""


@dataclass(frozen=True)
class Member:
    """A trained model of a run.

    Args:
        run: the run folder.
        name: the model's name in it.
        space: its space, as a configuration's table.
        architecture: its architecture string.
        record: what train.json says about it.
    """

    run: Path
    name: str
    space: dict[str, Any]
    architecture: str
    record: dict[str, Any]


def build(
    runs: Sequence[Path],
    overrides: Sequence[str],
    out: Path,
    progress: Progress,
    arguments: list[str],
    *,
    epsilon: str | None = None,
    members: int | None = None,
    images: int | None = None,
) -> pipeline.Job:
    """Make a run folder with the trained models of `runs`, and return its job.

    Settings that are not given are the first run's.

    Args:
        epsilon: the radius of attack, certificates and weights, as text.
        members: with weights above 0, at most.
        images: test images to attack and to certify, and validation images to bound.

    Raises:
        InputError: for runs without trained models, of different data sets or norms, less than two models, or a wrong
            setting.
    """
    recipes = [_recipe_of(run) for run in runs]
    _check_common(runs, recipes)
    found = [member for run, recipe in zip(runs, recipes, strict=True) for member in _members_of(run, recipe)]
    if len(found) < 2:
        raise InputError(f"An ensemble needs two trained models or more, but {runs[0]} has {len(found)}; add a run.")
    table = recipes[0].to_dict()
    table.update(name="ensemble", search={"name": "given", "architecture": found[0].architecture})
    if epsilon is not None:
        radius = parse_pixels(epsilon)
        table["threat"]["epsilon"] = table["ensemble"]["epsilon"] = radius
        table["certification"]["epsilons"] = [radius]
    if members is not None:
        table["ensemble"]["rule"] = {**table["ensemble"]["rule"], "members": members}
    if images is not None:
        for section in ("evaluation", "certification", "ensemble"):
            table[section]["num_images"] = images
    joined = from_table(config.override(table, overrides), "the first run's configuration")
    job = pipeline.start(joined, out, progress, arguments)
    if job.world.is_main:
        _copy(found, job.folder)
    job.world.barrier()
    return job


def _recipe_of(run: Path) -> Recipe:
    RunDir.open(run)
    return from_table(config.read_toml(run / "config.toml"), str(run / "config.toml"))


def _check_common(runs: Sequence[Path], recipes: Sequence[Recipe]) -> None:
    """Raise InputError unless all runs have the same splits, so that no member saw another's validation images."""
    first = recipes[0]
    for run, recipe in zip(runs[1:], recipes[1:], strict=True):
        if _splits(recipe) != _splits(first):
            raise InputError(
                f"{run} was made with other data than {runs[0]} ({_splits(recipe)} and {_splits(first)}); models are "
                "joined on validation images that none of them was trained on."
            )
        if recipe.threat.norm != first.threat.norm:
            raise InputError(
                f"{run} is for {recipe.threat.norm} and {runs[0]} for {first.threat.norm}; join runs of one norm."
            )


def _splits(recipe: Recipe) -> dict[str, Any]:
    """Return what a run's splits depend on: all settings of its data set but where its files are."""
    return {key: value for key, value in recipe.to_dict()["data"].items() if key not in ("root", "download")}


def _members_of(run: Path, recipe: Recipe) -> list[Member]:
    records = {record["name"]: record for record in read_json(run / "train.json")["models"]}
    tables = read_json(run / "derive.json").get("spaces") or [recipe.to_dict()["space"]] * len(records)
    architectures = intake.chosen_architectures(run, recipe.space)
    return [
        Member(run, name, table, str(architecture), records[name])
        for (name, architecture), table in zip(architectures.items(), tables, strict=True)
    ]


def _copy(found: Sequence[Member], folder: RunDir) -> None:
    """Write what the stages up to training would have written."""
    records = []
    for index, member in enumerate(found):
        name = f"model-{index}"
        weights = f"checkpoints/{member.name}.safetensors"
        with atomic_path(folder / "checkpoints" / f"{name}.safetensors") as path:
            shutil.copyfile(member.run / weights, path)
        record = {key: value for key, value in member.record.items() if key not in OF_THE_EPOCHS}
        records.append({**record, "name": name, "from": f"{member.run.resolve().name}/{member.name}"})
    write_json(
        folder / "derive.json",
        {
            "candidates": [],
            "chosen": [member.architecture for member in found],
            "spaces": [member.space for member in found],
            "seconds": 0.0,
        },
    )
    # The runs that the models come from have recorded them.
    write_json(folder / "record.json", {"table": None, "rows": 0})
    write_json(folder / "train.json", {"models": records})
