"""`robust-nas ensemble build --from RUN MODEL ...`: trained models, joined in a run of their own.

The new run folder has copies of the weights, and their origin in train.json. From there it is a run like any other:
attacked, certified, joined and reported; `robust-nas run --resume` goes on with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robust_nas import intake, pipeline, records, spaces
from robust_nas.attacks.pgd import PGD
from robust_nas.certification import refusal
from robust_nas.core import config
from robust_nas.core.errors import InputError
from robust_nas.core.files import damaged
from robust_nas.core.pixels import parse_pixels
from robust_nas.core.registry import model_parts, named
from robust_nas.core.writing import write_text
from robust_nas.datasets import Dataset
from robust_nas.ensembles import Ensemble, is_saved
from robust_nas.evaluation import evaluate
from robust_nas.jobs.given_models import about
from robust_nas.models.complexity import count_multiply_adds, count_parameters
from robust_nas.models.preparation import Normalised
from robust_nas.recipes import Recipe, from_table, load
from robust_nas.records.derivation import DerivationRecord
from robust_nas.records.run import RecordedRows
from robust_nas.records.training import Trained, TrainingRecord
from robust_nas.runtime.progress import Progress
from robust_nas.runtime.run_folder import RunFolder, is_run
from robust_nas.runtime.states import load_state, save_state
from robust_nas.spaces import BuiltFrom, Space
from robust_nas.threat import ThreatModel

SETTINGS = ("evaluation", "certification", "ensemble", "device", "threads", "workers", "patience", "seed")
"""The settings that a joined run can be told; the others are the runs' own."""


@dataclass(frozen=True)
class Member:
    """A trained model.

    Args:
        origin: its run and its name in it, or its own name.
        space: its space.
        architecture: its architecture string.
        state: its weights.
        record: its entry in the train.json of its run, if it is of one.
    """

    origin: str
    space: Space
    architecture: str
    state: Mapping[str, Tensor]
    record: Trained | None = None


def build(
    models: Sequence[str],
    overrides: Sequence[str],
    out: Path,
    progress: Progress,
    arguments: list[str],
    *,
    data: str | None = None,
    data_root: Path | None = None,
    threat: str | None = None,
    normalise: str | None = None,
    epsilon: str | None = None,
    members: int | None = None,
    images: int | None = None,
) -> pipeline.Job:
    """Make a run folder with the trained models of runs, and models of one's own, and return its job.

    Settings that are not given are the first run's; without a run, those of the data set's recipe.

    Args:
        models: run folders; models of one's own with their weights, as `intake.own_model` reads them; saved ensembles,
            whose members are joined.
        data: without a run, a data set that has a recipe, or a folder of class folders.
        threat: without a run, such as "linf:8/255"; the recipe's, if not given.
        normalise: the pixels that the models of one's own expect, if they do not normalise them themselves.
        epsilon: the radius of attack, certificates and weights, as text.
        members: with weights above 0, at most.
        images: test images to attack and to certify, and validation images to bound.

    Raises:
        InputError: for runs without trained models, of different images or norms, a run that is named twice, less than
            two models, or a wrong setting.
    """
    for model in models:
        intake.check_named(model)
    recipes = {model: _recipe_of(Path(model)) for model in models if not _is_own(model)}
    runs = list(map(Path, recipes))
    if len({*models}) < len(models):
        raise InputError(f"A run is joined once, and so is a model, but got {', '.join(models)}.")
    first = _first(recipes, data, data_root, threat)
    found = [
        member
        for model in models
        for member in (_members_of(Path(model), recipes[model]) if model in recipes else _own(model, normalise))
    ]
    if len(found) < 2:
        raise InputError(f"An ensemble needs two trained models or more, but {models[0]} has {len(found)}; add one.")
    for setting in overrides:
        if setting.partition("=")[0].partition(".")[0] not in SETTINGS:
            raise InputError(
                f"Trained models are joined as they are, on the images of their runs; '{setting}' cannot be set, "
                f"but {', '.join(SETTINGS)} can."
            )
    table = first.to_dict()
    table.update(
        name="ensemble",
        space=named(spaces.describe(found[0].space)),
        search={"name": "given", "architecture": found[0].architecture},
    )
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
    for model in models:
        if (parts := model_parts(model)) is not None and parts.weights is None and not is_saved(Path(model)):
            progress.warn(f"{model} is joined as it is made; weights are named behind an @: {model}@WEIGHTS.")

    def fill(folder: RunFolder, images: Dataset) -> None:
        for run in runs:
            pipeline.check_same_data(run, images, ("validation", "test"))
        _fill(folder, images, found, joined)

    return pipeline.start(joined, out, progress, arguments, fill)


def _first(recipes: Mapping[str, Recipe], data: str | None, data_root: Path | None, threat: str | None) -> Recipe:
    """Return the recipe whose settings hold: the first run's; without a run, that of the data."""
    if recipes:
        first_run, first = next(iter(recipes.items()))
        if data or data_root or threat:
            raise InputError(
                f"Models are joined on the images and the threat model of {first_run}; leave --data, --data-root and "
                "--threat out."
            )
        _check_common(list(map(Path, recipes)), list(recipes.values()))
        return first
    if data is None:
        raise InputError("No run says on which images the models are joined; give them, such as --data digits.")
    first = load(data, data_root=data_root)
    return first if threat is None else replace(first, threat=ThreatModel.parse(threat))


def names_of_code(models: Sequence[str]) -> list[str]:
    """Return the names of code, as the files of a joined run have them, of the models that the person at work named."""
    return [intake.absolute_name(parts) for model in models if (parts := model_parts(model)) is not None]


def _is_own(model: str) -> bool:
    """Whether a word names a model of one's own, or a saved ensemble, and no run."""
    return is_saved(Path(model)) or model_parts(model) is not None


def _own(model: str, normalise: str | None) -> list[Member]:
    """Return a model of one's own, or the members of a saved ensemble."""
    if not is_saved(Path(model)):
        name, _ = intake.own_model(model)
        (loaded,) = intake.load_models(model, device="cpu").values()
        return [_given(intake.short_name(model), name, intake.prepared(loaded, normalise=normalise), normalise)]
    ensemble, place = Ensemble.load(model), Path(model).resolve()
    # A run's ensembles are all called "ensemble".
    title = f"{place.parent.name}/{place.name}" if is_run(place.parent) else place.name
    return [_of_ensemble(f"{title}/{index}", member) for index, member in enumerate(ensemble.members)]


def _of_ensemble(origin: str, member: nn.Module) -> Member:
    built: BuiltFrom | None = getattr(member, "built_from", None)
    if built is not None:
        return Member(origin, built.space, str(built.architecture), member.state_dict())
    inner = member.model if isinstance(member, Normalised) else member
    name = intake.made_by(inner)
    if name is None:
        raise InputError(
            f"{origin} is a model that cannot be made anew by a name; name its model in place of the ensemble."
        )
    return _given(origin, name, member, _normalisation(member) if isinstance(member, Normalised) else None)


def _normalisation(member: Normalised) -> str:
    """Return the word for a normalisation, as `intake.prepared` reads it."""
    return "/".join(",".join(map(repr, values.flatten().tolist())) for values in (member.mean, member.std))


def _given(origin: str, name: str, model: nn.Module, normalise: str | None) -> Member:
    space = intake.own_space(name, normalise)
    return Member(origin, space, name, model.state_dict())


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
        Member(
            f"{run.resolve().name}/{name}",
            space,
            str(architecture),
            load_state(run / "checkpoints" / f"{name}.safetensors")["weights"],
            trained[name],
        )
        for name, (space, architecture) in chosen.items()
    ]


def _fill(folder: RunFolder, data: Dataset, found: Sequence[Member], joined: Recipe) -> None:
    """Write what the stages up to training would have written.

    Which member is the best single one is measured anew, as their trainings had threats and attacks of their own.
    """
    joint = []
    validation = data.validation[: joined.ensemble.num_images]
    for index, member in enumerate(found):
        weights = folder / "checkpoints" / f"model-{index}.safetensors"
        save_state(weights, {"weights": member.state})
        with about(member.origin):
            model = intake.trained_network(member.space, member.space.parse(member.architecture), data, weights)
            if reason := refusal(model, validation):
                raise InputError(f"{reason.rstrip('.')}; an ensemble's weights are of bounds, so leave the model out.")
            result = evaluate(model.to(validation.device), validation, joined.threat, [PGD()])
        record = replace(
            member.record.of_the_kept() if member.record else _untold(member, model, data),
            name=weights.stem,
            from_=member.origin,
            validation={"clean": result.clean_accuracy, "robust": result.robust_accuracy},
        )
        save_state(weights, {"weights": member.state, "record": records.plain(record)})
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


def _untold(member: Member, model: nn.Module, data: Dataset) -> Trained:
    """Return the record of a network of whose training nothing is known."""
    return Trained(
        name="",
        architecture=member.architecture,
        parameters=count_parameters(model),
        multiply_adds=count_multiply_adds(model, data.image_shape),
        method="given",
        epochs=0,
        seconds=0.0,
        validation={"clean": 0.0, "robust": 0.0},
    )
