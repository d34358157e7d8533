"""The plans of certification on test images, by bounds or by smoothing, and their results, which are kept in a folder.

    FOLDER/certification.json      what was proved of each model, at each radius
    FOLDER/certificates.parquet    one row per model, radius and image

A model whose results are there is not certified again, and one that was interrupted goes on with its last chunk.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from robust_nas import records
from robust_nas.bounds import Bound
from robust_nas.bounds.interval import Interval
from robust_nas.certification import certify
from robust_nas.certification.smoothing import NORM, SmoothedCertification, SmoothedClassifier, Smoothing
from robust_nas.core import config
from robust_nas.core.checks import check_at_least
from robust_nas.core.errors import InputError
from robust_nas.core.files import is_there
from robust_nas.core.pixels import parse_pixels
from robust_nas.datasets import ImageSet
from robust_nas.records import Record
from robust_nas.records.certification import CertificationRecord, SmoothingRecord
from robust_nas.runtime.distributed import World
from robust_nas.runtime.per_sample import add_outcomes, read_outcomes
from robust_nas.runtime.stages import Stage
from robust_nas.threat import Pixels, ThreatModel

R = TypeVar("R", bound=Record)

RESULTS, ROWS = "certification.json", "certificates.parquet"


@dataclass(frozen=True)
class Place:
    """The place of a model's certificates.

    Args:
        folder: of the results.
        name: the model's, in them.
        stage: its certification, which goes on where it ended.
        begin: called before anything is computed.
    """

    folder: Path
    name: str
    stage: Stage
    begin: Callable[[], None]

    def so_far(self, start: R) -> R:
        """Return the results so far, as rank 0 sees them; their start before the first."""
        return _so_far(self.folder, start, self.stage.world)

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Add the model's rows, on rank 0."""
        if self.stage.world.is_main:
            add_outcomes(self.folder / ROWS, self.name, rows)

    def write(self, record: Record) -> None:
        """Write the results, on rank 0."""
        _write(self.folder, record, self.stage.world)


class Plan(ABC):
    """A plan of certification."""

    num_images: int | None

    def fixed(self) -> dict[str, Any]:
        """Return the settings that its results depend on."""
        return config.to_dict(self)

    @abstractmethod
    def keep(self, model: nn.Module, images: ImageSet, threat: ThreatModel, place: Place) -> None:
        """Certify a model on the first images and add it to the results in a folder, unless it is there.

        Args:
            threat: gives the norm.
            place: of the results.
        """


@dataclass(frozen=True, kw_only=True)
class CertificationPlan(Plan):
    """The plan of certification by bounds.

    Args:
        bound: the kind of bound.
        epsilons: radii, in pixel units.
        batch_size: images in a chunk.
        num_images: test images to certify, the first ones; all, if not given.
    """

    bound: Bound = field(default_factory=Interval)
    epsilons: tuple[Pixels, ...] = (0.5 / 255, 1 / 255, 2 / 255)
    batch_size: int = 128
    num_images: int | None = None

    def __post_init__(self) -> None:
        if not self.epsilons:
            raise InputError("certification.epsilons must name at least one radius, but got none.")
        check_at_least("certification.batch_size", self.batch_size, 1)
        if self.num_images is not None:
            check_at_least("certification.num_images", self.num_images, 1)

    def keep(self, model: nn.Module, images: ImageSet, threat: ThreatModel, place: Place) -> None:
        """Certify a model; see `Plan.keep`."""
        done, images = place.so_far(CertificationRecord(models={})), images[: self.num_images]
        if place.name not in done.models:
            place.begin()
            found = certify(
                model,
                images,
                threat,
                bound=self.bound,
                epsilons=self.epsilons,
                batch_size=self.batch_size,
                stage=place.stage,
            )
            place.add([row for certificate in found for row in certificate.rows()])
            everything = replace(
                done,
                method=found[0].method,
                dtype=found[0].dtype,
                num_images=len(images),
                models={**done.models, place.name: tuple(certificate.summary() for certificate in found)},
            )
            place.write(everything)
        place.stage.finish()


@dataclass(frozen=True, kw_only=True)
class SmoothingPlan(Plan):
    """The plan of smoothing, in l2 whatever the threat model is.

    Args:
        smoothing: the noise and the samples.
        epsilons: l2 radii, in pixel units, of the certified accuracies; sigma's half, itself and its double, if there
            are none. The computation does not depend on them: an image has a radius of its own.
        num_images: test images to certify, the first ones; all, if not given.
    """

    smoothing: Smoothing
    epsilons: tuple[Pixels, ...] = ()
    num_images: int | None = None

    def __post_init__(self) -> None:
        for epsilon in self.epsilons:
            ThreatModel(norm=NORM, epsilon=epsilon)
        if self.num_images is not None:
            check_at_least("certification.num_images", self.num_images, 1)

    @property
    def radii(self) -> tuple[float, ...]:
        """The radii, ascending."""
        return tuple(sorted(set(self.epsilons))) or tuple(share * self.smoothing.sigma for share in (0.5, 1.0, 2.0))

    def fixed(self) -> dict[str, Any]:
        """Return the settings that its results depend on: the images' radii are found without `epsilons`."""
        return {key: value for key, value in super().fixed().items() if key != "epsilons"}

    def keep(self, model: nn.Module, images: ImageSet, threat: ThreatModel, place: Place) -> None:
        """Certify a model's smoothed classifier; see `Plan.keep`. What is said of its radii is said anew."""
        images = images[: self.num_images]
        start = SmoothingRecord(
            norm=NORM,
            **vars(self.smoothing),
            largest_radius=self.smoothing.largest_radius,
            dtype="float32",
            num_images=len(images),
            models={},
        )
        done = place.so_far(start)
        if place.name in done.models:
            columns = ("model", "image", "label", "selected", "agreeing", "seconds")
            rows = [
                row for row in read_outcomes(place.folder / ROWS, columns).to_pylist() if row["model"] == place.name
            ]
            found = SmoothedCertification.of_rows(self.smoothing, rows)
        else:
            place.begin()
            found = SmoothedClassifier(model, self.smoothing).certify(images, stage=place.stage)
            place.add(found.rows())
        proved = tuple(found.summary(epsilon) for epsilon in self.radii)
        place.write(replace(done, models={**done.models, place.name: proved}))
        place.stage.finish()


def leave_out(folder: Path, name: str, reason: str, world: World) -> None:
    """Note in a folder's results that a model has an operation without sound bounds."""
    done = _so_far(folder, CertificationRecord(models={}), world)
    _write(folder, replace(done, left_out={**done.left_out, name: reason}), world)


def _so_far(folder: Path, start: R, world: World) -> R:
    """Return the results so far, as rank 0 sees them; their start before the first."""
    path = folder / RESULTS
    return records.read(path, type(start)) if world.broadcast(is_there(path)) else start


def _write(folder: Path, record: Record, world: World) -> None:
    if world.is_main:
        records.write(folder / RESULTS, record)
    world.barrier()


def plan_with(
    plan: CertificationPlan,
    *,
    epsilons: Sequence[str] | None = None,
    method: str | None = None,
    memory: float | None = None,
    images: int | None = None,
) -> CertificationPlan | SmoothingPlan:
    """Return a plan with what the command line says in place of its own.

    Args:
        epsilons: radii as text.
        method: a kind of bound, with settings as in "auto[memory=4]"; or "smoothing[sigma=0.25]", which is no bound of
            the network: the plan is one for its smoothed classifier, and takes only the number of images from `plan`.
        memory: GiB that the bound may take.
        images: number of test images.

    Raises:
        InputError: for what is no radius, kind of bound or setting.
    """
    chosen = {} if method is None else config.component(method)
    if chosen.get("name") == "smoothing":
        if memory is not None:
            raise InputError("--memory is what bounds may take, but smoothing has none; set its batch_size instead.")
        given = {key: value for key, value in chosen.items() if key != "name"}
        return SmoothingPlan(
            smoothing=config.build(Smoothing, given, "smoothing"),
            epsilons=tuple(parse_pixels(epsilon) for epsilon in epsilons or ()),
            num_images=plan.num_images if images is None else images,
        )
    table = config.to_dict(plan)
    if epsilons is not None:
        table["epsilons"] = [parse_pixels(epsilon) for epsilon in epsilons]
    if method is not None:
        table["bound"] = chosen
    if memory is not None:
        bound = table["bound"]
        table["bound"] = {**({"name": bound} if isinstance(bound, str) else bound), "memory": memory}
    if images is not None:
        table["num_images"] = images
    return config.build(CertificationPlan, table)
