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

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from robust_nas import records
from robust_nas.core import config
from robust_nas.core.errors import InputError
from robust_nas.core.files import is_there
from robust_nas.datasets import Dataset, ImageSet
from robust_nas.evaluation import EvaluationPlan, costs_text, digest_of, file_name, save_examples
from robust_nas.jobs.given_models import GivenModels, about, check_different, check_given, read_words
from robust_nas.records.evaluation import EvaluationRecord
from robust_nas.report import write_attack_report
from robust_nas.runtime.distributed import World
from robust_nas.runtime.environment import add_session, sessions_of
from robust_nas.runtime.progress import Progress
from robust_nas.runtime.run_folder import RunFolder
from robust_nas.runtime.stages import Stage
from robust_nas.threat import ThreatModel

SETTINGS = "attack.toml"


@dataclass(frozen=True, kw_only=True)
class AttackedModels(GivenModels):
    """Models, what they are attacked on, and with what.

    Args:
        threats: the threat models; of several, the average and the worst-case union are reported too.
        evaluation: the attacks and their settings.
    """

    threats: tuple[ThreatModel, ...]
    evaluation: EvaluationPlan = field(default_factory=EvaluationPlan)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_different("threats", self.threats)
        if self.evaluation.curve_epsilons and len({threat.norm for threat in self.threats}) > 1:
            raise InputError("Radii of a curve are of one norm, but the threat models have several; leave them out.")
        self.evaluation.check(self.threats)


def from_words(
    models: Sequence[str],
    overrides: Sequence[str] = (),
    *,
    threat: Sequence[str] = (),
    attack: Sequence[str] = ("pgd", "autoattack"),
    epsilons: str | None = None,
    steps: str | None = None,
    distances: str | None = None,
    images: int | None = None,
    checks: bool = True,
    **common: Any,
) -> AttackedModels:
    """Read the words of `robust-nas attack`; the words are strings as people type them.

    Data and threat model that are not given are those of the first model's run, in which a saved ensemble may lie too.

    Args:
        common: the words of `read_words`.

    Raises:
        InputError: for a mistake in them, or data or a threat model that are neither given nor known.
    """
    table, of_run = read_words(models, **common)
    table["evaluation"] = {"strongest": []}
    if threat:
        table["threats"] = [config.to_dict(ThreatModel.parse(text)) for text in threat]
    elif "threat" in of_run:
        table["threats"] = [of_run["threat"]]
    check_given(table, models[0], {"data": "--data digits", "threats": "--threat linf:8/255"})
    table["evaluation"]["attacks"] = [config.component(text) for text in attack]
    if epsilons is not None:
        table["evaluation"]["curve_epsilons"] = epsilons.split(",")
    if steps is not None:
        # What is no number stays text, which is refused by its key's name.
        table["evaluation"]["curve_steps"] = [
            int(part) if part.strip().isdecimal() else part for part in steps.split(",")
        ]
    if distances is not None:
        table["evaluation"]["distortion"] = config.component(distances)
    if images is not None:
        table["evaluation"]["num_images"] = images
    if not checks:
        table["evaluation"]["masking_images"] = 0
    return config.build(AttackedModels, config.override(table, overrides))


def run(chosen: AttackedModels, out: Path, progress: Progress, arguments: list[str], *, budget: bool = False) -> Path:
    """Attack the models and return the folder with the results; what is there already is not done again.

    Args:
        budget: whether to print the expected cost beforehand.
    """
    world = chosen.start()
    data = chosen.read(world)
    # Before there is a folder: a model that cannot take the images leaves none.
    models, test = chosen.checked(data, chosen.evaluation.num_images, progress)
    contents = [[name, digest_of(model, test, chosen.evaluation)] for name, model in models.items()]
    path = out / f"attack-{chosen.digest(data, contents, world.device)}"
    # The folder's name has the models' weights: other words for the same weights go on with it.
    free = (*chosen.free, "models")
    folder = RunFolder.open_or_create(path, config.to_dict(chosen), world, file=SETTINGS, free=free)
    try:
        chosen.settle_threads(sessions_of(folder), models, test, world, progress)
        progress.say(f"folder: {folder.path}")
        left = {name: model for name, model in models.items() if name not in _results(folder, data, test).models}
        if left:
            add_session(folder, world, arguments)
        if budget:
            for name, model in left.items():
                with about(name):
                    costs = chosen.evaluation.costs(model, test, chosen.threats, world, chosen.seed)
                progress.say(costs_text(name, costs, len(test), world))
        for name, model in left.items():
            with about(name):
                _attack_one(chosen, folder, name, model, data, test, world, progress)
        if world.is_main:
            write_attack_report(folder.path)
    finally:
        folder.unlock()
        world.stop()
    return folder.path


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
