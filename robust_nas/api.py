"""The Python calls behind `import robust_nas as rn`: one per job, on objects instead of run folders.

A call that takes longer than a second shows its progress on standard error, in a notebook under its cell;
`progress=False` leaves that out, and `rn.show_progress(False)` for all calls.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from torch import Tensor, nn

from robust_nas import bounds as bound_group
from robust_nas import datasets, derivation, evaluation, intake, pipeline, records, report, searches, spaces
from robust_nas.architectures import AnyArchitecture
from robust_nas.certification import Certifications
from robust_nas.certification import certify as certify_model
from robust_nas.certification.smoothing import SmoothedClassifier, Smoothing
from robust_nas.core import config
from robust_nas.core.checks import check_at_least, check_path, check_type, check_utf8
from robust_nas.core.errors import InputError, Interrupted
from robust_nas.core.figures import ATTACKED, CERTIFIED, CLEAN, interval_plot
from robust_nas.core.files import is_there, read_json
from robust_nas.core.registry import allowing_code, named
from robust_nas.core.seeds import seeded
from robust_nas.core.shown import Shown, Summary, frame
from robust_nas.core.writing import make_folder
from robust_nas.datasets import DataForm, Dataset
from robust_nas.ensembles import Ensemble, fit_with
from robust_nas.evaluation import Evaluation
from robust_nas.models.complexity import within_memory
from robust_nas.models.history import remember
from robust_nas.models.pace import settle_threads
from robust_nas.recipes import from_table
from robust_nas.recipes import load as load_recipe
from robust_nas.recipes.rehearsal import any_network
from robust_nas.records import KINDS, read_stage
from robust_nas.runtime.distributed import World, is_launched, losses_said
from robust_nas.runtime.process import unchanged_process
from robust_nas.runtime.progress import Progress, of_call
from robust_nas.runtime.run_folder import RunFolder
from robust_nas.runtime.stages import Stage
from robust_nas.threat import ThreatModel
from robust_nas.training import Training, TrainingResult

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from robust_nas.attacks import Attack
    from robust_nas.bounds import Bound
    from robust_nas.datasets import Images
    from robust_nas.searches import SearchResult
    from robust_nas.spaces import Space
    from robust_nas.training import TrainingMethod


@unchanged_process()
@losses_said()
def search(
    space: Space | str,
    data: Dataset | Images,
    threat: ThreatModel | str,
    *,
    method: str = "dirichlet",
    seed: int = 0,
    folder: Path | str | None = None,
    save_steps: int = 0,
    progress: bool = True,
    **options: Any,
) -> SearchResult:
    """Search `space`; `options` are the search's fields. The result's `best` is the most probable architecture.

    Data without splits is split as `rn.Dataset.from_torch` says. In a script that `torchrun` started, all processes
    make the call, and work on it together.

    Args:
        folder: for the state under way: the same call goes on where it was ended.
        save_steps: optimiser steps after which the state is saved, beside that after every epoch.
    """
    data = datasets.dataset(data)
    threat = ThreatModel.of(threat)
    space = _space(space)
    chosen = config.build(searches.get(method), named(options), "search")
    world = _world(data)
    settings = {"space": spaces.describe(space), "search": config.to_dict(chosen), "threat": config.to_dict(threat)}
    stage = _stage("search", seed, data, world, progress, folder, settings, save_steps)
    data = data.to(world.device)
    if world.size == 1:
        settle_threads(any_network(space, data, seed), data.some(max(chosen.batch_sizes, default=1)))
    found: SearchResult = chosen.search(space, data, threat, stage)
    return found


@unchanged_process()
@losses_said()
def derive(
    found: SearchResult,
    space: Space | str,
    data: Dataset | Images,
    threat: ThreatModel | str,
    *,
    seed: int = 0,
    progress: bool = True,
    **options: Any,
) -> list[AnyArchitecture]:
    """Return functionally different architectures, best first; `options` are fields of the recipe's [derive]."""
    check_type("What derive takes", found, searches.SearchResult, "a search's result (rn.search gives it)")
    data = datasets.dataset(data)
    threat = ThreatModel.of(threat)
    plan = config.build(derivation.Derivation, named(options), "derive")
    world = _world(data)
    stage = _stage("derive", seed, data, world, progress)
    candidates = derivation.derive(found, _space(space), data.to(world.device), threat, plan, stage)
    return [candidate.architecture for candidate in candidates[: plan.count]]


@unchanged_process()
def create(
    architecture: AnyArchitecture | str,
    data: Dataset | Images | DataForm,
    *,
    space: Space | str | None = None,
    seed: int = 0,
) -> nn.Module:
    """Return the untrained network of an architecture, from images [B, C, H, W] in [0, 1] to logits [B, K].

        rn.create("resnet-152 width=2", data)
        rn.create("wrn-28-10", rn.datasets.DataForm("photos", ("cat", "dog"), (3, 224, 224)))

    Args:
        architecture: of `space`, or its string.
        data: the data set, whose pixels' means and deviations the network normalises by; or its form.
        space: the architecture's; if not given, that of ResNets by their names where it is one, else nasbench201.
        seed: of the weights.

    Raises:
        InputError: for an architecture that is none of the space's, or images that are too small for it.
    """
    if not isinstance(data, DataForm):
        data = datasets.dataset(data)
    check_type("seed", seed, Integral, "a whole number")
    return _network("create", architecture, data, space, seed)


def _network(
    call: str, architecture: AnyArchitecture | str, data: Dataset | DataForm, space: Space | str | None, seed: int
) -> nn.Module:
    if not isinstance(architecture, str | AnyArchitecture):
        among = ", its string, or a module (not its class)" if call == "train" else " or its string"
        raise InputError(f"{call} takes an architecture{among}, but got {architecture!r}.")
    if space is None:
        space = spaces.alone(str(architecture)) or "nasbench201"
    space = _space(space)
    architecture = space.parse(str(architecture))  # also of one, which may be another space's
    with seeded(seed, "train"), within_memory(f"The network of {space.name}"):
        return space.network(architecture, data)


@unchanged_process()
@losses_said()
def train(
    architecture: AnyArchitecture | str | nn.Module,
    data: Dataset | Images,
    threat: ThreatModel | str,
    *,
    space: Space | str | None = None,
    method: str | dict[str, Any] | TrainingMethod | None = None,
    frozen_members: Sequence[nn.Module] = (),
    seed: int = 0,
    recipe: str | None = None,
    folder: Path | str | None = None,
    save_steps: int = 0,
    progress: bool = True,
    **options: Any,
) -> nn.Module:
    """Train an architecture from scratch and return the epoch that is best on the validation split (`keep`).

        model = rn.train("|nor_conv_3x3~0|+...", data, threat, method="trades", epochs=20)
        model.history.plot()  # or .to_frame(): loss and accuracies of every epoch, and which one is kept
        rn.train(torchvision.models.resnet18(num_classes=10), data, threat, recipe="fast-cifar10")
        rn.train("wrn-28-10 activation=silu", data, threat, recipe="fast-cifar10")

    The returned module has the epochs in its attribute `history` (`robust_nas.models.history.History`), which is no
    part of its weights. In a script that `torchrun` started, all processes make the call: each has its part of every
    batch and its accelerator, and all return the same weights.

    Args:
        architecture: of `space`; or a module that takes images [B, C, H, W] in [0, 1] to logits [B, K], on the device
            of `data`. A module is trained in place, from the weights that it has.
        data: the data set; without splits, it is split as `rn.Dataset.from_torch` says.
        space: the architecture's; if not given, that of ResNets by their names where it is one, else nasbench201.
        method: the training method, with its examples and its loss; `pgd_at`, if neither it nor a recipe is given.
        frozen_members: trained models: the new one is trained for what it adds to an ensemble with them. Their
            parameters lose their gradients.
        recipe: whose [train] section gives what is not given here.
        folder: for the state under way: the same call goes on where it was ended, also by Ctrl-C or SIGTERM.
        save_steps: optimiser steps after which the state is saved, beside that after every epoch.
        options: fields of the recipe's [train] section (`epochs`, `batch_size`, `learning_rate`, `awp`, ...).

    Raises:
        InputError: for an unknown or wrong option, a module that cannot be trained, or what the training raises.
    """
    data = datasets.dataset(data)
    threat = ThreatModel.of(threat)
    section = config.to_dict(load_recipe(recipe).train) if recipe else {}
    given = named({**({} if method is None else {"method": method}), **options})
    plan = config.build(Training, {**section, **given}, "train")
    if plan.boosting:
        raise InputError("train.boosting is for runs; give the trained networks: frozen_members=[...].")
    if plan.start_from is not None:
        raise InputError("train.start_from is for runs; give the module with its weights in place of an architecture.")
    if not isinstance(frozen_members, Sequence) or not all(isinstance(model, nn.Module) for model in frozen_members):
        raise InputError(f"train takes a list of modules as frozen_members, but got {frozen_members!r}.")
    world = _world(data)
    data, own = data.to(world.device), isinstance(architecture, nn.Module)
    if isinstance(architecture, nn.Module):
        model = architecture if world.size == 1 else architecture.to(world.device)
        _check_trainable(model, data)
    else:
        model = _network("train", architecture, data, space, seed).to(world.device)
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    settings = {
        "network": type(model).__name__ if own else str(architecture),
        "shapes": config.digest(shapes),
        "train": config.to_dict(plan),
        "threat": config.to_dict(threat),
    }
    stage = _stage("train", seed, data, world, progress, folder, settings, save_steps)
    if world.size == 1:
        settle_threads(model, data.some(plan.batch_size))
    return _with_history(fit_with(frozen_members, model, data, threat, plan, stage))


def _with_history(fitted: TrainingResult) -> nn.Module:
    remember(fitted.model, fitted.history)
    return fitted.model


@overload
def evaluate(
    model: nn.Module,
    data: Images,
    threat: ThreatModel | str | Sequence[ThreatModel | str],
    /,
    *,
    attacks: Sequence[Attack | str] = ...,
    batch_size: int = ...,
    seed: int = ...,
    folder: Path | str | None = ...,
    name: str = ...,
    progress: bool = ...,
) -> Evaluation: ...


@overload
def evaluate(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: ThreatModel | str | Sequence[ThreatModel | str],
    /,
    *,
    attacks: Sequence[Attack | str] = ...,
    batch_size: int = ...,
    seed: int = ...,
    folder: Path | str | None = ...,
    name: str = ...,
    progress: bool = ...,
) -> Evaluation: ...


@unchanged_process()
@losses_said()
def evaluate(
    model: nn.Module,
    *given: Any,
    attacks: Sequence[Attack | str] = ("pgd", "apgd"),
    batch_size: int = evaluation.BATCH_SIZE,
    seed: int = 0,
    folder: Path | str | None = None,
    name: str = "model",
    progress: bool = True,
) -> Evaluation:
    """Return the clean accuracy and what every attack leaves of it, image by image.

        rn.evaluate(model, images, labels, threat, attacks=["pgd", "autoattack"])
        rn.evaluate(model, data.test, [rn.ThreatModel(epsilon="8/255"), rn.ThreatModel(norm="l2", epsilon=0.5)])

    `images` are [N, C, H, W] in [0, 1] (or bytes), `labels` [N], in place of which a `torch.utils.data.Dataset` or a
    `DataLoader` will do (`rn.Dataset.from_torch` says of which samples); several threat models are evaluated one by
    one, and `robust_accuracy` is then their worst-case union. Suspicious signs in the model (logits that depend on more
    than the image, gradients of another function, probabilities instead of logits, other pre-processing) are given as
    warnings, and kept in the result's `notes`.

    Args:
        batch_size: images in a chunk; the outcome of an image depends on the chunk's number.
        folder: for the result, saved as evaluation.json and evaluation.parquet under `name`, beside other models'
            results; finished chunks are kept in its `checkpoints`, so that an interrupted call goes on.

    Raises:
        InputError: for images or labels of another form, a model that cannot be attacked, or what
            `robust_nas.evaluation.evaluate` raises.
    """
    if len(given) == 3:
        images, labels, threat = given
        data = datasets.image_set((images, labels))
    elif len(given) == 2:
        data, threat = datasets.image_set(given[0]), given[1]
    else:
        raise InputError(
            "evaluate takes a model, then images, labels and a threat model, or data and a threat model, but got "
            f"{len(given)} arguments after the model."
        )
    intake.check_model(model)
    check_type("name", name, str, "the model's name")
    check_utf8("name", name)
    check_at_least("batch_size", batch_size, 1)
    if folder is not None:
        check_path("folder", folder)
    notes = tuple(evaluation.notes(model, data, seed))
    world = _world(data)
    for note in notes if world.is_main else ():
        warnings.warn(note, stacklevel=4)  # the caller's line; between are this function and its decorators
    if folder is None:
        if len(data) >= batch_size and world.size == 1:  # what is less takes no longer than this
            settle_threads(model, data.images[:batch_size])
        alone = Stage("evaluate", seed, world, of_call(progress and world.is_main))
        found = evaluation.evaluate(model, data, threat, attacks, batch_size=batch_size, stage=alone)
        return replace(found, notes=notes)
    place = RunFolder(Path(folder))

    def begin() -> None:
        make_folder(place.path, "give another folder")
        place.lock()

    world.on_main(begin)
    shown = of_call(progress and world.is_main)
    stage = Stage(f"attack-{evaluation.file_name(name)}", seed, world, shown, place.path)
    result = evaluation.evaluate(model, data, threat, attacks, batch_size=batch_size, stage=stage)
    result = replace(result, notes=notes)
    world.on_main(lambda: result.save(folder, name))
    stage.finish()
    return result


@unchanged_process()
@losses_said()
def certify(
    model: nn.Module,
    data: Images,
    threat: ThreatModel | str,
    *,
    bound: Bound | str = "auto",
    epsilons: Sequence[float] | None = None,
    batch_size: int = 128,
    progress: bool = True,
) -> Certifications:
    """Certify a model's predictions at each radius (the threat's own, if none is given), image by image.

    Returns:
        A list with a `Certification` for each radius, with `to_frame()` and `plot()` over the radii.

    `bound` is a kind of bound: "interval" in no time, "crown_ibp", "crown", "alpha_crown", or "auto" for the cheapest
    that proves an image. Of deep networks, where bounds say nothing, `smooth` makes a classifier with certificates.
    """
    if epsilons is not None and not isinstance(epsilons, Sequence):
        raise InputError(f"certify takes a list of radii as epsilons, but got {epsilons!r}; write [{epsilons!r}].")
    chosen, images = config.made(bound_group.get, bound, "bound"), datasets.image_set(data)
    world = _world(images)
    return certify_model(
        model,
        images,
        threat,
        bound=chosen,
        epsilons=epsilons,
        batch_size=batch_size,
        stage=Stage("certify", 0, world, of_call(progress and world.is_main)),
    )


@unchanged_process()
def smooth(model: nn.Module, *, sigma: float | str, **options: Any) -> SmoothedClassifier:
    """Return the classifier that answers as `model` does most often under Gaussian noise, with l2 certificates.

        smoothed = rn.smooth(model, sigma=0.25, num_samples=1000)
        smoothed.predict(images), smoothed.certify(data.test[:100]).accuracy(0.5)

    `sigma` is that with which the model was trained (`method="gaussian"`); `options` are the other fields of
    `robust_nas.certification.smoothing.Smoothing`. Certificates hold for the answers of `predict`, not for the model.
    """
    intake.check_model(model)
    return SmoothedClassifier(model, config.build(Smoothing, named({"sigma": sigma, **options}), "smooth"))


@unchanged_process()
def build_ensemble(
    models: Sequence[nn.Module],
    validation: Images,
    threat: ThreatModel | str,
    *,
    rule: str = "robboost",
    bound: Bound | str = "crown",
    progress: bool = True,
    **options: Any,
) -> Ensemble:
    """Return the ensemble whose weights a rule fits to the models' bounds on validation images.

    `threat.epsilon` is the radius of the bounds: choose one at which they say something. Of large networks, `bound`
    "crown_ibp" is quicker. The models themselves are the members, and are in evaluation mode afterwards.
    """
    if not isinstance(models, Sequence) or not models or not all(isinstance(model, nn.Module) for model in models):
        raise InputError(
            "build_ensemble takes a list of at least one model, such as list(run.models.values()), but got "
            f"{type(models).__name__}{' without models' if isinstance(models, Sequence) else ''}."
        )
    return (
        Ensemble(list(models))
        .fit(datasets.image_set(validation, "validation"), threat, rule=rule, bound=bound, progress=progress, **options)
        .eval()
    )


@unchanged_process()
def write_report(path: Path | str) -> Path:
    """Write the report of a run folder, as far as its stages have run, or of attacked models, and return its place."""
    check_path("What write_report takes", path)
    if (Path(path) / "attack.toml").is_file():
        return report.write_attack_report(Path(path))
    return report.write_report(RunFolder.open(path))


@unchanged_process()
def run(
    name: str,
    *overrides: str,
    out: Path | str = "runs",
    data_root: Path | None = None,
    allow_code: bool = False,
    progress: bool = True,
) -> Run:
    """Run a recipe in a new run folder, as `robust-nas run` does, and return it.

    Args:
        name: a recipe's name, a path to a .toml file, or a folder with images.
        overrides: `key=value` assignments, which may name code.
        out: the folder for the run folder.
        data_root: the folder of the data set's files.
        allow_code: whether what else is not robust-nas's own is run where the recipe's file names it.
    """
    with allowing_code(allow_code):
        recipe = load_recipe(name, overrides, data_root=data_root)
        job = pipeline.start(recipe, Path(out), of_call(progress), [name, *overrides])
        try:
            with losses_said():
                pipeline.run(job)
        except Interrupted as error:
            raise Interrupted(f"{error} Go on with: robust-nas run --resume {job.folder.path}") from error
    # The code that the recipe's file and the overrides name has run.
    return load_run(job.folder.path, allow_code=True)


@dataclass(frozen=True, repr=False)
class Run(Shown):
    """A run folder's contents: trained models and the record of every finished stage.

    Args:
        path: the folder.
        data: the data set it was made with.
        models: the trained models by name, in evaluation mode.
        threat: the threat model.
    """

    path: Path
    data: Dataset
    models: dict[str, nn.Module]
    threat: ThreatModel

    def read(self, stage_file: str) -> Any:
        """Return a stage's JSON record, such as `read("evaluation.json")`.

        Raises:
            InputError: if there is none, or it is damaged.
        """
        path = self.path / str(stage_file)
        return read_stage(path) if path.name in KINDS else read_json(path)

    def to_frame(self) -> pd.DataFrame:
        """Return what was measured of each model on the test images so far, a row each.

        The columns are model, measure ("clean", an attack's name, "worst case" or "certified"), norm and epsilon
        (missing of "clean"), accuracy (a fraction), low and high (its 95 % interval) and count (images).
        """
        columns = ("model", "measure", "norm", "epsilon", "accuracy", "low", "high", "count")
        return frame(self._measured(), columns)

    def plot(self) -> Figure:
        """Return a figure with the clean, the worst-case and the certified accuracies of each model."""
        colours = {"clean": CLEAN, "worst case": ATTACKED, "certified": CERTIFIED}
        rows = [
            (f"{row['model']}, {self._column(row)}", row["accuracy"], row["low"], row["high"], colours[row["measure"]])
            for row in self._measured()
            if row["measure"] in colours
        ]
        return interval_plot(rows, f"Accuracies of {self.path.name}")

    def _measured(self) -> list[dict[str, Any]]:
        counted = ("accuracy", "low", "high", "count")
        rows: list[dict[str, Any]] = []
        attacked, certified = self.path / "evaluation.json", self.path / "certification.json"
        if is_there(attacked):
            for model, found in records.read(attacked, records.EvaluationRecord).models.items():
                measured = [("clean", found.clean), *((attack.name, attack) for attack in found.attacks)]
                for name, item in [*measured, ("worst case", found.worst_case)]:
                    at = {"norm": getattr(item, "norm", None), "epsilon": getattr(item, "epsilon", None)}
                    rows.append({"model": model, "measure": name, **at, **{key: getattr(item, key) for key in counted}})
        if is_there(certified):
            for model, proved in records.read(certified, records.CertificationRecord).models.items():
                for radius in proved:
                    at = {"norm": self.threat.norm, "epsilon": radius.epsilon}
                    values = {key: getattr(radius, key) for key in counted}
                    rows.append({"model": model, "measure": "certified", **at, **values})
        return rows

    @staticmethod
    def _column(row: dict[str, Any]) -> str:
        return row["measure"] if row["epsilon"] is None else f"{row['measure']} @ {row['epsilon']:g}"

    def _summary(self) -> Summary:
        title = f"Run {self.path}: {self.data.name}, {self.threat.norm} {self.threat.epsilon:g}, " + (
            "1 network" if len(self.models) == 1 else f"{len(self.models)} networks"
        )
        try:
            rows = [row for row in self._measured() if row["measure"] in ("clean", "worst case", "certified")]
        except InputError as error:  # a damaged file; what shows an object raises nothing
            return Summary(title, notes=(str(error),))
        columns = list(dict.fromkeys(map(self._column, rows)))
        cells = {(row["model"], self._column(row)): f"{100 * row['accuracy']:.1f}" for row in rows}
        lines = [
            (model, *(cells.get((model, column), "-") for column in columns))
            for model in dict.fromkeys(row["model"] for row in rows)
        ]
        return Summary(title, ("accuracies in %", *columns), tuple(lines))


@unchanged_process()
def load_run(path: Path | str, *, allow_code: bool = False) -> Run:
    """Return the models and records of a run folder whose training is finished.

    Args:
        path: the folder.
        allow_code: whether what is not robust-nas's own is run where the folder's files name it.
    """
    folder = RunFolder.open(path)
    with allowing_code(allow_code):
        saved = from_table(config.read_toml(folder / "config.toml"), str(folder.path))
        job = pipeline.Job(saved, folder, World(), Progress(quiet=True))
        return Run(folder.path, job.data, pipeline.load_models(job), saved.threat)


def _check_trainable(model: nn.Module, data: Dataset) -> None:
    """Raise InputError unless a module gives a logit for every class of `data` and has something to train."""
    num_classes, notes = intake.check_outputs(model, data.validation[:64].images)
    if num_classes != len(data.classes):
        raise InputError(
            f"The module must give a logit for each of the {len(data.classes)} classes of {data.name}, but gives "
            f"{num_classes}."
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError("The module has no parameter that requires a gradient; there is nothing to train.")
    for note in notes:
        warnings.warn(note, stacklevel=5)


def _space(space: Space | str) -> Space:
    check_type("space", space, (str, spaces.Space), "a search space, or the name of one")
    return spaces.load(space) if isinstance(space, str) else space


def _world(data: Dataset | datasets.ImageSet) -> World:
    """Join the processes that `torchrun` started, as all of them make the same call; or be alone with the data."""
    device = (data.train if isinstance(data, Dataset) else data).device
    return World.start(device.type) if is_launched() else World(device=device)


def _stage(
    name: str,
    seed: int,
    data: Dataset,
    world: World,
    progress: bool,
    folder: Path | str | None = None,
    settings: Mapping[str, Any] | None = None,
    save_steps: int = 0,
) -> Stage:
    """Return a call's stage; in a folder, which has no other call's, where one is given."""
    check_type("seed", seed, Integral, "a whole number")
    check_at_least("save_steps", save_steps, 0)
    shown = of_call(progress and world.is_main)
    if folder is None:
        return Stage(name, seed, world, shown)
    check_path("folder", folder)
    call = {**(settings or {}), "seed": int(seed), "processes": world.size, "data": data.fingerprint()}
    place = RunFolder.open_or_create(Path(folder), records.plain(call), world, file=f"{name}-call.json")
    return Stage(name, seed, world, shown, place.path, save_steps)
