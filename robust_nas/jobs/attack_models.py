"""`robust-nas attack MODEL ...`: the attacks of a run, on any models, in a folder of their own.

    runs/attack-1a2b3c4d/
        attack.toml            the settings
        environment.json       version, commit, packages, hardware, arguments
        evaluation.json        accuracies, curves, checks, by model
        evaluation.parquet     one row per model, image and attack; distortions.parquet beside it, where asked for
        checkpoints/           the state of an evaluation under way, the strongest examples
        report.html

The folder's name is a digest of settings, weights and images: the same command continues where it ended, and prints its
results again. Another setting, other weights or other images have another folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from robust_nas import __version__, datasets, intake, records
from robust_nas.core import config
from robust_nas.core.catalogue import expanded
from robust_nas.core.errors import InputError
from robust_nas.core.files import is_there
from robust_nas.core.registry import ModelName, named
from robust_nas.datasets import Dataset, DataSource, ImageSet
from robust_nas.ensembles import Ensemble, is_saved
from robust_nas.evaluation import EvaluationPlan, costs_text, digest_of, file_name, notes, save_examples
from robust_nas.models.frozen import evaluating
from robust_nas.pipeline import check_same_data, read_data
from robust_nas.records.evaluation import EvaluationRecord
from robust_nas.report import write_attack_report
from robust_nas.runtime.distributed import PATIENCE, World
from robust_nas.runtime.environment import add_session
from robust_nas.runtime.progress import Progress
from robust_nas.runtime.run_folder import RunFolder, is_run
from robust_nas.runtime.stages import Stage
from robust_nas.threat import ThreatModel

SETTINGS = "attack.toml"

_RESOURCES = ("threads", "workers", "patience")
"""Settings that change no result but its last digits and its time."""


@dataclass(frozen=True, kw_only=True)
class AttackedModels:
    """Models, what they are attacked on, and with what.

    Args:
        models: names for `intake.load_models`: run folders, weights files, "module:attribute", "torchvision:NAME"; or
            folders of saved ensembles.
        data: whose test images are attacked.
        threats: the threat models; of several, the average and the worst-case union are reported too.
        normalise: the pixels that the models expect, if they do not normalise them themselves: a name such as
            "imagenet", or mean and deviation.
        outputs: whether the models give logits, or probabilities, of which the logarithm is attacked.
        evaluation: the attacks and their settings.
        seed: of the attacks.
        device: "auto", "cpu" or "cuda".
        threads: threads per process on the CPU; torch's choice if not given.
        workers: forked processes that share out the chunks of images on the CPU.
        patience: seconds that one of several processes waits for the others before it takes them for lost and ends.
    """

    models: tuple[ModelName, ...]
    data: DataSource
    threats: tuple[ThreatModel, ...]
    normalise: str | None = None
    outputs: Literal["logits", "probabilities"] = "logits"
    evaluation: EvaluationPlan = field(default_factory=EvaluationPlan)
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = None
    workers: int = 1
    patience: float = PATIENCE

    def __post_init__(self) -> None:
        for name in ("models", "threats"):
            given = getattr(self, name)
            if not given or len(set(given)) < len(given):
                raise InputError(f"{name} must be one or several different ones, but got {len(given)}.")
        if self.evaluation.curve_epsilons and len({threat.norm for threat in self.threats}) > 1:
            raise InputError("Radii of a curve are of one norm, but the threat models have several; leave them out.")
        self.evaluation.check(self.threats)


def from_words(
    models: Sequence[str],
    overrides: Sequence[str] = (),
    *,
    data: str | None = None,
    data_root: Path | None = None,
    threat: Sequence[str] = (),
    attack: Sequence[str] = ("pgd", "autoattack"),
    epsilons: str | None = None,
    distances: str | None = None,
    images: int | None = None,
    normalise: str | None = None,
    outputs: str | None = None,
    checks: bool = True,
) -> AttackedModels:
    """Read the words of `robust-nas attack`; the words are strings as people type them.

    Data and threat model that are not given are those of the first model's run, in which a saved ensemble may lie too.

    Raises:
        InputError: for a mistake in them, or data or a threat model that are neither given nor known.
    """
    for model in models:
        if model.endswith(".py") and ":" not in model:
            raise InputError(f"Name the model in {model}, a class or a function that makes one: {model}:NAME.")
        if ":" not in model and not Path(model).exists():
            raise InputError(
                f"There is no {model}; name a run folder, weights in one, a saved ensemble, package.module:attribute, "
                "path/to/file.py:attribute or torchvision:NAME."
            )
    run = _run_of(models[0])
    of_run = config.read_toml(run / "config.toml") if run else {}
    table: dict[str, Any] = {"models": named(list(models)), "evaluation": {"strongest": []}}
    if data is not None:
        table["data"] = named(datasets.section(data))
    elif "data" in of_run:
        table["data"] = of_run["data"]
    if data_root is not None:
        config.set_key(table, "data.root", str(expanded(data_root).resolve()))
    if threat:
        table["threats"] = [config.to_dict(ThreatModel.parse(text)) for text in threat]
    elif "threat" in of_run:
        table["threats"] = [of_run["threat"]]
    for key, example in {"data": "--data digits", "threats": "--threat linf:8/255"}.items():
        if key not in table:
            raise InputError(
                f"'{models[0]}' belongs to no run folder that would say its {key}; give them, such as {example}."
            )
    table["evaluation"]["attacks"] = [config.component(text) for text in attack]
    if epsilons is not None:
        table["evaluation"]["curve_epsilons"] = epsilons.split(",")
    if distances is not None:
        table["evaluation"]["distortion"] = config.component(distances)
    if images is not None:
        table["evaluation"]["num_images"] = images
    if not checks:
        table["evaluation"]["masking_images"] = 0
    table |= {key: value for key, value in {"normalise": normalise, "outputs": outputs}.items() if value is not None}
    return config.build(AttackedModels, config.override(table, overrides))


def _run_of(model: str) -> Path | None:
    """Return the run folder that a model is from, or None."""
    path = Path(model)
    folder = path.parent.parent if path.suffix == ".safetensors" and path.is_file() else path
    folder = path.resolve().parent if is_saved(path) else folder
    return folder if is_run(folder) else None


def run(chosen: AttackedModels, out: Path, progress: Progress, arguments: list[str], *, budget: bool = False) -> Path:
    """Attack the models and return the folder with the results; what is there already is not done again.

    Args:
        budget: whether to print the expected cost beforehand.
    """
    world = World.start(chosen.device, chosen.threads, chosen.workers, chosen.patience)
    # The same operations in the same order give the same bits; nondeterministic kernels would not.
    torch.use_deterministic_algorithms(world.device.type == "cpu")
    data = read_data(_test_only(chosen.data), world).to(world.device)
    _check_data(chosen, data)
    for note in data.notes:
        progress.say(f"beware: {note}")
    test, models = data.test[: chosen.evaluation.num_images], load(chosen, world.device)
    # Before there is a folder: a model that cannot take the images leaves none.
    for name, model in models.items():
        with _about(name):
            for note in notes(model, test, chosen.seed):
                progress.say(f"beware: {name}: {note}")
    path = out / f"attack-{_digest(chosen, models, data, test)}"
    folder = RunFolder.open_or_create(path, config.to_dict(chosen), world, file=SETTINGS, free=_RESOURCES)
    try:
        progress.say(f"folder: {folder.path}")
        left = {name: model for name, model in models.items() if name not in _results(folder, data, test).models}
        if left:
            add_session(folder, world, arguments)
        if budget:
            for name, model in left.items():
                with _about(name):
                    costs = chosen.evaluation.costs(model, test, chosen.threats, world, chosen.seed)
                progress.say(costs_text(name, costs, len(test), world))
        for name, model in left.items():
            with _about(name):
                _attack_one(chosen, folder, name, model, data, test, world, progress)
        if world.is_main:
            write_attack_report(folder.path)
    finally:
        folder.unlock()
        world.stop()
    return folder.path


@contextlib.contextmanager
def _about(model: str) -> Iterator[None]:
    """Say which model an InputError is about."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{model}: {error}") from error


def load(chosen: AttackedModels, device: torch.device) -> dict[str, nn.Module]:
    """Return the models by name, prepared for [0, 1] images and logits; those of several runs are told apart."""
    found: dict[str, nn.Module] = {}
    runs = {spec: run.resolve().name for spec in chosen.models if (run := _run_of(spec))}
    for spec in chosen.models:
        for name, model in _load_one(spec, device).items():
            named = f"{runs[spec]}/{name}" if spec in runs and len({*runs.values()}) > 1 else name
            named = spec if named in found else named
            prepared = intake.prepared(model, normalise=chosen.normalise, outputs=chosen.outputs)
            found[named] = evaluating(prepared.to(device))
    return found


def _load_one(spec: str, device: torch.device) -> dict[str, nn.Module]:
    path = Path(spec)
    return {path.resolve().name: Ensemble.load(path)} if is_saved(path) else intake.load_models(spec, device=device)


def _check_data(chosen: AttackedModels, data: Dataset) -> None:
    """Raise InputError if a run among the models was made with other images than there are now in the same place."""
    for run in filter(None, map(_run_of, chosen.models)):
        if config.read_toml(run / "config.toml").get("data") == config.to_dict(chosen)["data"]:
            check_same_data(run, data, ("test",))


def _digest(chosen: AttackedModels, models: dict[str, nn.Module], data: Dataset, test: ImageSet) -> str:
    """Return the digest of the settings, weights, images and classes."""
    fixed = {key: value for key, value in config.to_dict(chosen).items() if key not in _RESOURCES}
    place = {"version": __version__, "device": test.labels.device.type, "classes": list(data.classes)}
    contents = [[name, digest_of(model, test, chosen.evaluation)] for name, model in models.items()]
    return config.digest({**fixed, **place, "models": contents})


def _test_only(source: DataSource) -> DataSource:
    """Return a data set with next to no training images: only what is attacked is to be read."""
    known = {field.name for field in dataclasses.fields(source)}  # type: ignore[arg-type]
    sizes = {name: 1 for name in ("train_size", "validation_size") if name in known}
    return dataclasses.replace(source, **sizes)  # type: ignore[type-var]


def _results(folder: RunFolder, data: Dataset, test: ImageSet) -> EvaluationRecord:
    path = folder / "evaluation.json"
    if is_there(path):
        return records.read(path, EvaluationRecord)
    return EvaluationRecord(models={}, num_images=len(test), data=data.name, classes=data.classes, notes=data.notes)


def _attack_one(
    chosen: AttackedModels,
    folder: RunFolder,
    name: str,
    model: nn.Module,
    data: Dataset,
    test: ImageSet,
    world: World,
    progress: Progress,
) -> None:
    plan, stage = chosen.evaluation, Stage(f"attack-{file_name(name)}", chosen.seed, world, progress, folder.path)
    result = plan.assess(model, test, chosen.threats, stage)
    if world.is_main:
        save_examples(
            folder.path,
            name,
            model,
            test,
            chosen.threats[0],
            plan.curve_attack,
            num_classes=len(data.classes),
            seed=chosen.seed,
        )
        result.save_outcomes(folder.path, name)
        done = _results(folder, data, test).with_model(name, result.summary())
        records.write(folder / "evaluation.json", done)
    world.barrier()
    plan.finish(stage, chosen.threats)
