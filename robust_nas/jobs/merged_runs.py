"""`robust-nas ensemble build --from RUN RUN ...`: the trained models of one or many runs, joined in a run of their own.

The new run folder has copies of the weights, and their origin in train.json. From there it is a run like any other:
attacked, certified, joined and reported; `robust-nas run --resume` goes on with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from robust_nas import intake, pipeline, records, spaces
from robust_nas.attacks.pgd import PGD
from robust_nas.core import config
from robust_nas.core.errors import InputError
from robust_nas.core.files import damaged
from robust_nas.core.pixels import parse_pixels
from robust_nas.core.writing import write_text
from robust_nas.datasets import Dataset
from robust_nas.evaluation import evaluate
from robust_nas.recipes import Recipe, from_table
from robust_nas.records.derivation import DerivationRecord
from robust_nas.records.run import RecordedRows
from robust_nas.records.training import Trained, TrainingRecord
from robust_nas.runtime.progress import Progress
from robust_nas.runtime.run_folder import RunFolder
from robust_nas.runtime.states import load_state, save_state
from robust_nas.spaces import Space

if TYPE_CHECKING:
    from robust_nas.records.training import Trained

SETTINGS = ("evaluation", "certification", "ensemble", "device", "threads", "workers", "patience", "seed")
"""The settings that a joined run can be told; the others are the runs' own."""


@dataclass(frozen=True)
class Member:
    """A trained model of a run.

    Args:
        run: the run folder.
        name: the model's name in it.
        space: its space.
        architecture: its architecture string.
        record: its entry in train.json.
    """

    run: Path
    name: str
    space: Space
    architecture: str
    record: Trained

    @property
    def weights(self) -> Path:
        """The file of its weights."""
        return self.run / "checkpoints" / f"{self.name}.safetensors"


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
        InputError: for runs without trained models, of different images or norms, a run that is named twice, less than
            two models, or a wrong setting.
    """
    recipes = [_recipe_of(run) for run in runs]
    _check_common(runs, recipes)
    found = [member for run, recipe in zip(runs, recipes, strict=True) for member in _members_of(run, recipe)]
    if len(found) < 2:
        raise InputError(f"An ensemble needs two trained models or more, but {runs[0]} has {len(found)}; add a run.")
    for setting in overrides:
        if setting.partition("=")[0].partition(".")[0] not in SETTINGS:
            raise InputError(
                f"Trained models are joined as they are, on the images of their runs; '{setting}' cannot be set, "
                f"but {', '.join(SETTINGS)} can."
            )
    table = recipes[0].to_dict()
    table.update(name="ensemble", search={"name": "given", "architecture": found[0].architecture})
    table["train"].pop("boosting", None)
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
    return pipeline.start(joined, out, progress, arguments, lambda folder, data: _fill(folder, data, found, joined))


def _recipe_of(run: Path) -> Recipe:
    RunFolder.open(run)
    return from_table(config.read_toml(run / "config.toml"), str(run / "config.toml"))


def _check_common(runs: Sequence[Path], recipes: Sequence[Recipe]) -> None:
    """Raise InputError unless all runs have the same splits: no member was trained on what others are measured on."""
    if len({run.resolve() for run in runs}) < len(runs):
        raise InputError(f"A run is joined once, but got {', '.join(map(str, runs))}.")
    (first, *_), (first_run, *_) = recipes, runs
    for run, recipe in zip(runs[1:], recipes[1:], strict=True):
        if recipe.threat.norm != first.threat.norm:
            raise InputError(
                f"{run} is for {recipe.threat.norm} and {first_run} for {first.threat.norm}; join runs of one norm."
            )
        if recipe.data != first.data and (_settings(recipe) != _settings(first) or not _same_images(recipe, first)):
            raise InputError(
                f"{run} was made with other data than {first_run} ({recipe.to_dict()['data']} and "
                f"{first.to_dict()['data']}); models are joined on validation images that none of them was trained on."
            )


def _settings(recipe: Recipe) -> dict[str, Any]:
    """Return the settings of a run's data set but where its files are."""
    return {key: value for key, value in recipe.to_dict()["data"].items() if key not in ("root", "download")}


def _same_images(one: Recipe, other: Recipe) -> bool:
    """Whether two data sets, in different places, have the same validation and test images."""
    first, second = one.data.load_splits(), other.data.load_splits()
    return first.classes == second.classes and all(
        torch.equal(a.pixels, b.pixels) and torch.equal(a.labels, b.labels)
        for a, b in ((first.validation, second.validation), (first.test, second.test))
    )


def _members_of(run: Path, recipe: Recipe) -> list[Member]:
    trained = {model.name: model for model in records.read(run / "train.json", TrainingRecord).models}
    chosen = intake.chosen_networks(run, recipe.space)
    if missing := chosen.keys() - trained.keys():
        reason = f"it has no {min(missing)}, which derive.json lists"
        raise InputError(damaged(run / "train.json", reason, "delete both and resume the run"))
    return [
        Member(run, name, space, str(architecture), trained[name]) for name, (space, architecture) in chosen.items()
    ]


def _fill(folder: RunFolder, data: Dataset, found: Sequence[Member], joined: Recipe) -> None:
    """Write what the stages up to training would have written.

    Which member is the best single one is measured anew, as their trainings had threats and attacks of their own.
    """
    for run in dict.fromkeys(member.run for member in found):
        pipeline.check_same_data(run, data, ("validation", "test"))
    joint = []
    validation = data.validation[: joined.ensemble.num_images]
    for index, member in enumerate(found):
        model = intake.trained_network(member.space, member.space.parse(member.architecture), data, member.weights)
        result = evaluate(model.to(validation.device), validation, joined.threat, [PGD()])
        record = replace(
            member.record.of_the_kept(),
            name=f"model-{index}",
            from_=f"{member.run.resolve().name}/{member.name}",
            validation={"clean": result.clean_accuracy, "robust": result.robust_accuracy},
        )
        weights = {"weights": load_state(member.weights)["weights"], "record": records.plain(record)}
        save_state(folder / "checkpoints" / f"model-{index}.safetensors", weights)
        joint.append(record)
    derived = DerivationRecord(
        candidates=(),
        chosen=tuple(member.architecture for member in found),
        spaces=tuple(spaces.describe(member.space) for member in found),
        num_validation=len(validation),
        seconds=0.0,
    )
    records.write(folder / "derive.json", derived)
    write_text(folder / "architecture.txt", "".join(f"{member.architecture}\n" for member in found))
    records.write(folder / "train.json", TrainingRecord(models=tuple(joint)))
    # The runs that the models come from have recorded them.
    records.write(folder / "record.json", RecordedRows(table=None, rows=0))
