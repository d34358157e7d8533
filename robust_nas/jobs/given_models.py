"""Models that somebody names, of runs or of their own, and the test images that are measured on them."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from robust_nas import __version__, datasets, intake
from robust_nas.core import config
from robust_nas.core.catalogue import expanded
from robust_nas.core.errors import InputError
from robust_nas.core.registry import ModelName, named
from robust_nas.datasets import Dataset, DataSource, ImageSet
from robust_nas.ensembles import Ensemble, is_saved
from robust_nas.evaluation import notes
from robust_nas.models.complexity import count_parameters
from robust_nas.models.frozen import evaluating
from robust_nas.models.pace import settle_threads
from robust_nas.pipeline import check_same_data, read_data
from robust_nas.records.run import Session
from robust_nas.runtime.distributed import PATIENCE, World
from robust_nas.runtime.progress import Progress
from robust_nas.runtime.run_folder import is_run
from robust_nas.runtime.threads import recorded, sentence


@dataclass(frozen=True, kw_only=True)
class GivenModels:
    """Models, and the data that they are measured on.

    Args:
        models: names for `intake.load_models`: run folders, weights files, "module:attribute", "torchvision:NAME"; or
            folders of saved ensembles.
        data: whose test images are used.
        normalise: the pixels that the models expect, if they do not normalise them themselves: a name such as
            "imagenet", or mean and deviation.
        outputs: whether the models give logits, or probabilities, in place of which their logarithm is used.
        seed: of all draws.
        device: "auto", "cpu" or "cuda".
        threads: threads per process on the CPU; torch's choice if not given.
        workers: forked processes that share out the chunks of images on the CPU.
        patience: seconds that one of several processes waits for the others before it takes them for lost and ends.
    """

    free: ClassVar[tuple[str, ...]] = ("threads", "workers", "patience")
    """Settings that change no result but its last digits and its time."""

    models: tuple[ModelName, ...]
    data: DataSource
    normalise: str | None = None
    outputs: Literal["logits", "probabilities"] = "logits"
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = None
    workers: int = 1
    patience: float = PATIENCE

    def __post_init__(self) -> None:
        check_different("models", self.models)

    def start(self) -> World:
        """Return the processes at work."""
        world = World.start(self.device, self.threads, self.workers, self.patience)
        # The same operations in the same order give the same bits; nondeterministic kernels would not.
        torch.use_deterministic_algorithms(world.device.type == "cpu")
        return world

    def read(self, world: World) -> Dataset:
        """Return the data, with next to no training images: only what is measured on is to be read.

        Raises:
            InputError: if a run among the models was made with other images than there are now in the same place.
        """
        data = read_data(few_training_images(self.data), world).to(world.device)
        for run in filter(None, map(run_of, self.models)):
            if config.read_toml(run / "config.toml").get("data") == config.to_dict(self)["data"]:
                check_same_data(run, data, ("test",))
        return data

    def load(self, device: torch.device) -> dict[str, nn.Module]:
        """Return the models by name, prepared for [0, 1] images and logits; those of several runs are told apart."""
        found: dict[str, nn.Module] = {}
        runs = {spec: run.resolve().name for spec in self.models if (run := run_of(spec))}
        for spec in self.models:
            for name, model in _load_one(spec, device).items():
                full = f"{runs[spec]}/{name}" if spec in runs and len({*runs.values()}) > 1 else name
                full = spec if full in found else full
                prepared = intake.prepared(model, normalise=self.normalise, outputs=self.outputs)
                found[full] = evaluating(prepared.to(device))
        return found

    def checked(
        self, data: Dataset, num_images: int | None, progress: Progress
    ) -> tuple[dict[str, nn.Module], ImageSet]:
        """Return the models and the first test images; say what is suspicious in them.

        Raises:
            InputError: for a model that cannot take the images.
        """
        for note in data.notes:
            progress.say(f"beware: {note}")
        test = data.test[:num_images]
        models = self.load(test.labels.device)
        for name, model in models.items():
            with about(name):
                for note in notes(model, test, self.seed):
                    progress.say(f"beware: {name}: {note}")
        return models, test

    def settle_threads(
        self,
        sessions: Sequence[Session],
        models: Mapping[str, nn.Module],
        test: ImageSet,
        world: World,
        progress: Progress,
    ) -> None:
        """Give torch the threads that the job was begun with; at its start, those that are fastest for its models.

        Args:
            sessions: of the job.
            models: of which the largest is measured.
        """
        if self.threads is not None or world.size > 1:
            return
        if (before := recorded(sessions)) is not None:
            torch.set_num_threads(before)
            return
        if tried := settle_threads(max(models.values(), key=count_parameters), test[:32].images):
            progress.say(sentence(tried))

    def digest(self, data: Dataset, contents: Sequence[Any], device: torch.device) -> str:
        """Return the digest of the settings, the models and the images.

        Args:
            contents: what tells each model, with its images, from others.
        """
        fixed = {key: value for key, value in config.to_dict(self).items() if key not in self.free}
        place = {"version": __version__, "device": device.type, "classes": list(data.classes)}
        return config.digest({**fixed, **place, "models": list(contents)})


def few_training_images(source: DataSource) -> DataSource:
    """Return a data set with next to no training images."""
    known = {field.name for field in dataclasses.fields(source)}  # type: ignore[arg-type]
    sizes = {name: 1 for name in ("train_size", "validation_size") if name in known}
    return dataclasses.replace(source, **sizes)  # type: ignore[type-var]


def check_different(name: str, values: Sequence[object]) -> None:
    """Raise InputError unless there are one or several different values."""
    if not values or len(set(values)) < len(values):
        raise InputError(f"{name} must be one or several different ones, but got {len(values)}.")


@contextlib.contextmanager
def about(model: str) -> Iterator[None]:
    """Say which model an InputError is about."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{model}: {error}") from error


def read_words(
    models: Sequence[str],
    *,
    data: str | None = None,
    data_root: Path | None = None,
    normalise: str | None = None,
    outputs: str | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the words that verbs for models share; they are strings as people type them.

    Returns:
        The settings of `GivenModels` so far, and the configuration of the first model's run, in which a saved ensemble
        may lie too; without a run it is empty. Data that is not given is the run's.

    Raises:
        InputError: for a model that there is not.
    """
    for model in models:
        intake.check_named(model)
    run = run_of(models[0])
    of_run = config.read_toml(run / "config.toml") if run else {}
    table: dict[str, Any] = {"models": named(list(models))}
    if data is not None:
        table["data"] = named(datasets.section(data))
    elif "data" in of_run:
        table["data"] = of_run["data"]
    if data_root is not None:
        config.set_key(table, "data.root", str(expanded(data_root).resolve()))
    table |= {key: value for key, value in {"normalise": normalise, "outputs": outputs}.items() if value is not None}
    return table, of_run


def check_given(table: dict[str, Any], model: str, examples: dict[str, str]) -> None:
    """Raise InputError for settings that are neither given nor a run's.

    Args:
        examples: how to give each.
    """
    for key, example in examples.items():
        if key not in table:
            raise InputError(
                f"'{model}' belongs to no run folder that would say its {key}; give them, such as {example}."
            )


def run_of(model: str) -> Path | None:
    """Return the run folder that a model is from, or None."""
    path = Path(model)
    folder = path.parent.parent if path.suffix == ".safetensors" and path.is_file() else path
    folder = path.resolve().parent if is_saved(path) else folder
    return folder if is_run(folder) else None


def _load_one(spec: str, device: torch.device) -> dict[str, nn.Module]:
    path = Path(spec)
    return {path.resolve().name: Ensemble.load(path)} if is_saved(path) else intake.load_models(spec, device=device)
