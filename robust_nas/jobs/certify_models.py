"""`robust-nas certify MODEL ...`: certificates of any models, in a folder of their own.

    runs/certify-1a2b3c4d/
        certify.toml           the settings
        environment.json       version, commit, packages, hardware, arguments
        certification.json     what was proved, by model and radius
        certificates.parquet   one row per model, radius and image
        checkpoints/           the state of a certification under way

The folder's name is a digest of settings, weights and images: the same command continues where it ended, and prints its
results again. Another setting, other weights or other images have another folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from robust_nas.bounds import foretold_seconds, slow_kind
from robust_nas.certification.plan import CertificationPlan, Place, Plan, SmoothingPlan, plan_with
from robust_nas.core import config
from robust_nas.core.errors import InputError
from robust_nas.datasets import ImageSet
from robust_nas.evaluation import digest_of, file_name
from robust_nas.jobs.given_models import GivenModels, about, check_given, read_words
from robust_nas.runtime.distributed import World
from robust_nas.runtime.environment import add_session, sessions_of
from robust_nas.runtime.progress import Progress
from robust_nas.runtime.run_folder import RunFolder
from robust_nas.runtime.stages import Stage
from robust_nas.threat import Norm, Pixels, ThreatModel

SETTINGS = "certify.toml"


@dataclass(frozen=True, kw_only=True)
class CertifiedModels(GivenModels):
    """Models, what they are certified on, and by what.

    Args:
        norm: of the balls; smoothing's is l2.
        certification: the bounds and their radii.
        smoothing: the noise and the samples, if it is the smoothed classifiers that are certified.
        radii: of what is said of these; the certificates do not depend on them.
    """

    free: ClassVar[tuple[str, ...]] = (*GivenModels.free, "radii")

    norm: Norm = "linf"
    certification: CertificationPlan = field(default_factory=CertificationPlan)
    smoothing: SmoothingPlan | None = None
    radii: tuple[Pixels, ...] = ()

    @property
    def plan(self) -> Plan:
        """The plan of what is certified."""
        return replace(self.smoothing, epsilons=self.radii) if self.smoothing else self.certification

    @property
    def threats(self) -> list[ThreatModel]:
        """The balls of the bounds, by radius."""
        return [ThreatModel(norm=self.norm, epsilon=epsilon) for epsilon in self.certification.epsilons]


def from_words(
    models: Sequence[str],
    overrides: Sequence[str] = (),
    *,
    norm: str | None = None,
    epsilons: Sequence[str] | None = None,
    method: str | None = None,
    memory: float | None = None,
    images: int | None = None,
    **common: Any,
) -> CertifiedModels:
    """Read the words of `robust-nas certify`; the words are strings as people type them.

    Data, norm and plan that are not given are those of the first model's run, in which a saved ensemble may lie too.
    Without a run, the bounds are "auto".

    Args:
        common: the words of `read_words`.

    Raises:
        InputError: for a mistake in them, or data or radii that are neither given nor known.
    """
    table, of_run = read_words(models, **common)
    of_plan = of_run.get("certification", {"bound": "auto"})
    if epsilons is not None or of_run:
        table["radii"] = epsilons
    if method is not None and method.startswith("smoothing"):
        table["radii"] = epsilons  # they have radii of their own
    check_given(table, models[0], {"data": "--data digits", "radii": "--epsilon 2/255"})
    del table["radii"]
    table["norm"] = norm or of_run.get("threat", {}).get("norm", "linf")
    start = config.build(CertificationPlan, of_plan, "certification")
    plan = plan_with(start, epsilons=epsilons, method=method, memory=memory, images=images)
    if isinstance(plan, SmoothingPlan):
        if norm not in (None, "l2"):
            raise InputError(f"Smoothing certifies l2 balls, but got --norm {norm}; leave it out.")
        table |= {"smoothing": plan.fixed(), "radii": list(plan.epsilons)}
    else:
        table["certification"] = config.to_dict(plan)
    return config.build(CertifiedModels, config.override(table, overrides))


def run(chosen: CertifiedModels, out: Path, progress: Progress, arguments: list[str]) -> Path:
    """Certify the models and return the folder with the results; what is there already is not done again."""
    world = chosen.start()
    data = chosen.read(world)
    # Before there is a folder: a model that cannot take the images leaves none.
    models, test = chosen.checked(data, chosen.plan.num_images, progress)
    for name, model in models.items():
        with about(name):
            _foretell(chosen, name, model, test, world, progress)
    contents = [[name, digest_of(model, test)] for name, model in models.items()]
    path = out / f"certify-{chosen.digest(data, contents, world.device)}"
    # The folder's name has the models' weights: other words for the same weights go on with it.
    free = (*chosen.free, "models")
    folder = RunFolder.open_or_create(path, config.to_dict(chosen), world, file=SETTINGS, free=free)
    begun: list[bool] = []

    def begin() -> None:
        if not begun:
            add_session(folder, world, arguments)
        begun.append(True)

    try:
        chosen.settle_threads(sessions_of(folder), models, test, world, progress)
        progress.say(f"folder: {folder.path}")
        for name, model in models.items():
            stage = Stage(f"certify-{file_name(name)}", chosen.seed, world, progress, folder.path)
            with about(name):
                chosen.plan.keep(model, test, chosen.threats[0], Place(folder.path, name, stage, begin))
    finally:
        folder.unlock()
        world.stop()
    return folder.path


def _foretell(
    chosen: CertifiedModels, name: str, model: nn.Module, test: ImageSet, world: World, progress: Progress
) -> None:
    """Say how long the bounds of a model will take, if it is long, by one image."""
    slow = None if chosen.smoothing else slow_kind(chosen.certification.bound)
    if slow is None:
        return
    one = test[:1]
    seconds = sum(foretold_seconds(slow, model, one.images, one.labels, chosen.threats))
    hours = seconds * len(test) / (world.size * world.workers) / 3600
    if hours > 0.5:
        progress.say(
            f"beware: {name}: the bounds of {len(test)} images will take about {hours:.1f} hours; fewer images "
            "(--images) or --method crown_ibp take less."
        )
