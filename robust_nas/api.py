"""The Python calls behind `import robust_nas as rn`: one per job, on objects instead of run folders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from robust_nas import attacks as attack_group
from robust_nas import bounds as bound_group
from robust_nas import config, derivation, ensembles, pipeline, recipe, searches, spaces
from robust_nas.certification import Certification
from robust_nas.certification import certify as certify_model
from robust_nas.datasets import Dataset, ImageSet
from robust_nas.distributed import World
from robust_nas.ensembles import Ensemble
from robust_nas.evaluation import Evaluation
from robust_nas.evaluation import evaluate as evaluate_model
from robust_nas.progress import Progress
from robust_nas.run_dir import RunDir, Stage
from robust_nas.seeds import seeded

if TYPE_CHECKING:
    from robust_nas.architecture import Architecture
    from robust_nas.attacks import Attack
    from robust_nas.bounds import Bound
    from robust_nas.searches import SearchResult
    from robust_nas.spaces import Space
    from robust_nas.threat import ThreatModel


def search(
    space: Space | str, data: Dataset, threat: ThreatModel, *, method: str = "dirichlet", seed: int = 0, **options: Any
) -> SearchResult:
    """Search `space`; `options` are the search's fields. The result's `best` is the most probable architecture."""
    space = spaces.load(space) if isinstance(space, str) else space
    chosen = config.build(searches.get(method), options, "search")
    found: SearchResult = chosen.search(space, data, threat, _stage("search", seed, data))
    return found


def derive(
    found: SearchResult, space: Space, data: Dataset, threat: ThreatModel, *, seed: int = 0, **options: Any
) -> list[Architecture]:
    """Return functionally different architectures, best first; `options` are fields of the recipe's [derive]."""
    plan = config.build(derivation.Derivation, options, "derive")
    candidates = derivation.derive(found, space, data, threat, plan, _stage("derive", seed, data))
    return [candidate.architecture for candidate in candidates[: plan.count]]


def train(
    architecture: Architecture | str,
    data: Dataset,
    threat: ThreatModel,
    *,
    space: Space | str = "nasbench201",
    method: str | dict[str, Any] = "pgd_at",
    seed: int = 0,
    **options: Any,
) -> nn.Module:
    """Train an architecture from scratch and return the epoch that is most robust on the validation split.

    `options` are the fields of the recipe's [train] section (`epochs`, `batch_size`, `learning_rate`, ...).
    """
    from robust_nas.training._loop import Training, fit

    space = spaces.load(space) if isinstance(space, str) else space
    architecture = space.parse(architecture) if isinstance(architecture, str) else architecture
    plan = config.build(Training, {"method": method, **options}, "train")
    stage = _stage("train", seed, data)
    with seeded(seed, "train"):
        model = space.network(architecture, data).to(data.train.pixels.device)
    return fit(model, data, threat, plan, stage).model


def evaluate(
    model: nn.Module,
    data: ImageSet,
    threat: ThreatModel,
    *,
    attacks: Sequence[Attack | str] = ("pgd", "apgd"),
    batch_size: int = 250,
    seed: int = 0,
) -> Evaluation:
    """Return the clean accuracy and what every attack leaves of it, image by image."""
    chosen = [attack_group.get(attack)() if isinstance(attack, str) else attack for attack in attacks]
    return evaluate_model(model, data, threat, chosen, batch_size=batch_size, seed=seed)


def certify(
    model: nn.Module,
    data: ImageSet,
    threat: ThreatModel,
    *,
    bound: Bound | str = "interval",
    epsilons: Sequence[float] | None = None,
    batch_size: int = 128,
) -> list[Certification]:
    """Return what can be proved at each radius (the threat's own, if none is given), image by image."""
    chosen = bound_group.get(bound)() if isinstance(bound, str) else bound
    return certify_model(model, data, threat, bound=chosen, epsilons=epsilons, batch_size=batch_size)


def build_ensemble(
    models: Sequence[nn.Module],
    validation: ImageSet,
    threat: ThreatModel,
    *,
    rule: str = "robboost",
    bound: Bound | str = "interval",
    **options: Any,
) -> Ensemble:
    """Return the ensemble whose weights a rule fits to the models' bounds on validation images.

    `threat.epsilon` is the radius of the bounds: choose one at which they say something.
    """
    chosen = bound_group.get(bound)() if isinstance(bound, str) else bound
    bounds = [chosen.margins(model, validation.images, validation.labels, threat) for model in models]
    fitted = config.build(ensembles.get(rule), options, "ensemble").fit(bounds, threat)
    return Ensemble(list(models), fitted.weights, fitted.scales).eval()


def write_report(path: Path | str) -> Path:
    """Write the report of a run folder, as far as its stages have run, and return its place."""
    from robust_nas import report

    return report.write_report(RunDir.open(path))


def run(name: str, *overrides: str, out: Path | str = "runs", data_root: Path | None = None) -> Run:
    """Run a recipe in a new run folder, as `robust-nas run` does, and return it."""
    job = pipeline.start(recipe.load(name, overrides, data_root=data_root), Path(out), Progress(), [name, *overrides])
    pipeline.run(job)
    return load_run(job.folder.path)


@dataclass(frozen=True)
class Run:
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
        """Return a stage's JSON record, such as `read("evaluation.json")`."""
        from robust_nas.run_dir import read_json

        return read_json(self.path / stage_file)


def load_run(path: Path | str) -> Run:
    """Return the models and records of a run folder whose training is finished."""
    folder = RunDir.open(path)
    saved = recipe.from_table(config.read_toml(folder / "config.toml"), str(folder.path))
    job = pipeline.Job(saved, folder, World(), Progress(quiet=True))
    return Run(folder.path, job.data, pipeline.load_models(job), saved.threat)


def _stage(name: str, seed: int, data: Dataset) -> Stage:
    return Stage(name, seed, World(device=data.train.pixels.device), Progress())
