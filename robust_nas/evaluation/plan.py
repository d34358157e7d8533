"""The plan of attacks, and the whole assessment of one model: every measurement of the report."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from robust_nas import intake
from robust_nas.attacks import Attack, check_data, check_norm
from robust_nas.attacks.apgd import APGD
from robust_nas.attacks.autoattack_reference import AutoAttackReference
from robust_nas.attacks.fgsm import FGSM
from robust_nas.attacks.pgd import PGD
from robust_nas.core.checks import check_at_least
from robust_nas.core.errors import InputError
from robust_nas.core.pixels import format_pixels
from robust_nas.core.registry import name_of
from robust_nas.datasets import ImageSet, NetworkData
from robust_nas.evaluation._chunks import BATCH_SIZE
from robust_nas.evaluation.accuracy import Evaluation, attack_labels, evaluate
from robust_nas.evaluation.costs import NUM_IMAGES, Cost, calibration_images, estimate_cost
from robust_nas.evaluation.curves import Curve, Distortions, check_minimises, minimal_distortions, robustness_curve
from robust_nas.evaluation.masking import masking_checks
from robust_nas.evaluation.steps import StepCurve, accuracy_over_steps, check_one_ascent, check_steps
from robust_nas.models.frozen import device_of
from robust_nas.models.scores import NoGradient
from robust_nas.records.evaluation import Attacked, Check, Point
from robust_nas.runtime.distributed import World
from robust_nas.runtime.per_sample import add_outcomes
from robust_nas.runtime.stages import Stage
from robust_nas.threat import LARGEST_EPSILON, Pixels, ThreatModel

_CURVE = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
"""The radii of a curve for which none are given, as multiples of the threat's."""


@dataclass(frozen=True)
class Assessment:
    """All measurements of one model.

    Args:
        evaluation: every attack's outcome on every image, those of the curve and of the nearest examples included.
        distortions: distances of the nearest adversarial examples, for every norm; none, if they were not looked for.
        curve: accuracy over epsilon, as `Curve.points` gives it, for every norm.
        steps: accuracy over the steps of one ascent, for every threat model; none, if it was not asked for.
        masking: the checks for gradient masking, with the threat model that each was made at.
    """

    evaluation: Evaluation
    distortions: tuple[Distortions, ...]
    curve: tuple[Point, ...]
    masking: tuple[Check, ...]
    steps: tuple[StepCurve, ...] = ()

    def summary(self) -> Attacked:
        """Return the model's entry in evaluation.json."""
        distances = tuple(item.summary() for item in self.distortions)
        steps = tuple(point for curve in self.steps for point in curve.points())
        return replace(
            self.evaluation.summary(), curve=self.curve, steps=steps, masking=self.masking, distortions=distances
        )

    def save_outcomes(self, folder: Path, model: str) -> None:
        """Add the rows of single images to evaluation.parquet and distortions.parquet in `folder`."""
        add_outcomes(folder / "evaluation.parquet", model, self.evaluation.rows())
        if self.distortions:
            add_outcomes(
                folder / "distortions.parquet", model, [row for item in self.distortions for row in item.rows()]
            )


@dataclass(frozen=True, kw_only=True)
class EvaluationPlan:
    """The plan of attacks on images.

    Args:
        attacks: the attacks on every model.
        strongest: a further attack on the best single model and on the ensemble.
        curve_attack: attacks at each radius of `curve_epsilons`.
        curve_epsilons: radii of the accuracy-over-epsilon curve, in pixel units, beside the threat's own; multiples of
            the threat's radius from 0 to 2, if not given.
        curve_steps: numbers of steps, such as [10, 100, 2000], after which one long ascent is looked at; the accuracy
            over steps is not measured, if none are given.
        steps_attack: this ascent, a PGD with one start; a step is a sixteenth of the radius where it has no
            `step_size`. With `early_stop` images leave it once they are fooled.
        distortion: the attack that finds the nearest adversarial example of every image, such as "fab"; none, if not
            given.
        num_images: test images to attack, the first ones; all, if not given.
        batch_size: images in a chunk.
        masking_images: images of the gradient-masking checks; 0 makes none, which reports say.
    """

    attacks: tuple[Attack, ...] = field(default_factory=lambda: (FGSM(), PGD(steps=20, restarts=2), APGD()))
    strongest: tuple[Attack, ...] = field(default_factory=lambda: (AutoAttackReference(),))
    curve_attack: Attack = field(default_factory=lambda: PGD(steps=20))
    curve_epsilons: tuple[Pixels, ...] = ()
    curve_steps: tuple[int, ...] = ()
    steps_attack: Attack = field(default_factory=PGD)
    distortion: Attack | None = None
    num_images: int | None = None
    batch_size: int = BATCH_SIZE
    masking_images: int = 128

    def __post_init__(self) -> None:
        check_at_least("evaluation.masking_images", self.masking_images, 0)
        for name in ("num_images", "batch_size"):
            if getattr(self, name) is not None:
                check_at_least(f"evaluation.{name}", getattr(self, name), 1)
        if not self.attacks:
            raise InputError("evaluation.attacks must name at least one attack, but got none.")
        if self.curve_steps:
            check_steps("evaluation.curve_steps", self.curve_steps)
        check_one_ascent(self.steps_attack)
        self.named()

    def named(self, *, strongest: bool = True) -> dict[str, Attack]:
        """Return the attacks by the names that they have in all results, with or without the strongest.

        Raises:
            InputError: if two attacks are the same in every setting.
        """
        # Named together, so that an attack has one name for all models of a run.
        both = [*self.attacks, *self.strongest]
        count = len(both) if strongest else len(self.attacks)
        return dict(list(zip(attack_labels(both), both, strict=True))[:count])

    def radii(self, threats: Sequence[ThreatModel]) -> list[tuple[ThreatModel, list[float]]]:
        """Return a threat model of every norm and the radii of its curve, the threat models' own among them.

        A curve without a threat's own radius would stand beside its attacks with the result of a smaller ball.
        """
        found: dict[str, tuple[ThreatModel, set[float]]] = {}
        for threat in threats:
            multiples = {share * threat.epsilon for share in _CURVE}
            allowed = {radius for radius in multiples if radius <= LARGEST_EPSILON[threat.norm]}
            found.setdefault(threat.norm, (threat, set()))[1].update(self.curve_epsilons or allowed, {threat.epsilon})
        return [(threat, sorted(radii)) for threat, radii in found.values()]

    def check(self, threats: Sequence[ThreatModel]) -> None:
        """Raise InputError if something here cannot be measured at the threat models: said before anything has run."""
        for threat, attack in itertools.product(threats, [*self.named().values(), self.curve_attack]):
            check_norm(attack, threat)
        for threat, radii in self.radii(threats):
            for radius in radii:
                if radius != 0:
                    threat.with_epsilon(radius)
            if self.distortion is not None:
                check_norm(self.distortion, threat)
                check_minimises(self.distortion)

    def check_data(self, threat: ThreatModel, data: NetworkData) -> None:
        """Raise InputError if something here cannot be measured on a data set: said before anything is searched."""
        self.check([threat])
        nearest = [] if self.distortion is None else [self.distortion]
        steps = [self.steps_attack] if self.curve_steps else []
        for attack in (*self.named().values(), self.curve_attack, *nearest, *steps):
            check_data(attack, threat, data.image_shape, len(data.classes))

    def assess(
        self,
        model: nn.Module,
        data: ImageSet,
        threats: Sequence[ThreatModel],
        stage: Stage,
        *,
        strongest: bool = True,
    ) -> Assessment:
        """Return everything that is measured of one model.

        Every measurement keeps what it has done in a stage of its own; `finish` ends them all.
        """
        # First, because a model that cannot be attacked as it is makes all numbers worthless.
        suspicious = list(notes(model, data, stage.seed))
        named, parts = self.named(strongest=strongest), _parts(stage)
        settings: dict[str, Any] = {"batch_size": self.batch_size}
        with _square_named():
            result = evaluate(model, data, threats, list(named.values()), labels=list(named), stage=stage, **settings)
        for outcome in result.attacks:
            if outcome.left_out:
                suspicious.append(
                    f"{outcome.label} is not the whole attack: what compares more classes than the model has is left "
                    f"out, {' and '.join(outcome.left_out)}."
                )
                stage.progress.say(f"{stage.name}: {suspicious[-1]}")
        curves: list[Curve] = []
        distortions: list[Distortions] = []
        for threat, radii in self.radii(threats):
            at = parts(f"curve-{threat.norm}")
            with _square_named():
                curves.append(robustness_curve(model, data, threat, radii, self.curve_attack, stage=at, **settings))
            if self.distortion is not None:
                at = parts(f"distortion-{threat.norm}")
                distortions.append(minimal_distortions(model, data, threat, self.distortion, stage=at, **settings))
        over_steps: list[StepCurve] = []
        for number, threat in enumerate(threats if self.curve_steps else ()):
            at = parts(f"steps-{number}")
            with _square_named():
                over_steps.append(
                    accuracy_over_steps(model, data, threat, self.curve_steps, self.steps_attack, stage=at, **settings)
                )
        masking = tuple(
            Check(**vars(check), norm=threat.norm, epsilon=threat.epsilon)
            for threat in (threats if self.masking_images else ())
            for check in masking_checks(
                model,
                data,
                threat,
                num_images=self.masking_images,
                known=[(named[each.label], each.correct) for each in result.attacks if each.threat == threat],
                stage=stage,
            )
        )
        # The worst case is over every example that was found, whatever it was looked for.
        found = [item.outcome(threat) for threat in threats for item in curves if item.norm == threat.norm]
        found += [
            item.outcome(threat, result.labels)
            for threat in threats
            for item in distortions
            if item.norm == threat.norm
        ]
        found += [item.outcome() for item in over_steps]
        result = replace(result, attacks=(*result.attacks, *found), notes=tuple(suspicious))
        points = tuple(point for curve in curves for point in curve.points())
        return Assessment(result, tuple(distortions), points, masking, tuple(over_steps))

    def finish(self, stage: Stage, threats: Sequence[ThreatModel]) -> None:
        """Forget the state under way: the entry is written."""
        parts = _parts(stage)
        for threat in threats:
            parts(f"curve-{threat.norm}").finish()
            parts(f"distortion-{threat.norm}").finish()
        for number in range(len(threats)):
            parts(f"steps-{number}").finish()
        stage.finish()

    def costs(
        self,
        model: nn.Module,
        data: ImageSet,
        threats: Sequence[ThreatModel],
        world: World,
        seed: int,
        *,
        strongest: bool = True,
    ) -> list[Cost]:
        """Return the expected cost of `assess`, part by part, from a few of the images."""
        # A twentieth of the images: the estimate is to cost little of what it estimates.
        sample = calibration_images(data, seed, min(NUM_IMAGES, max(8, len(data) // 20)))

        def cost(label: str, threat: ThreatModel, work: Callable[[ImageSet], object], count: int = len(data)) -> Cost:
            named = f"{label}, {threat.norm} {format_pixels(threat.epsilon)}"
            processes = min(world.size * world.workers, math.ceil(count / self.batch_size))
            return estimate_cost(named, model, sample, count, work, processes)

        found = [
            cost(name, threat, partial(evaluate, model, threat=threat, attacks=[attack]))
            for threat in threats
            for name, attack in self.named(strongest=strongest).items()
        ]
        for threat, radii in self.radii(threats):
            curve = partial(robustness_curve, model, threat=threat, epsilons=radii, attack=self.curve_attack)
            found.append(cost(f"{name_of(self.curve_attack)} at {len(radii)} radii", threat, curve))
            if self.distortion is not None:
                nearest = partial(minimal_distortions, model, threat=threat, attack=self.distortion)
                found.append(cost(f"{name_of(self.distortion)}, nearest examples", threat, nearest))
        for threat in threats if self.curve_steps else ():
            steps = partial(accuracy_over_steps, model, threat=threat, steps=self.curve_steps, attack=self.steps_attack)
            found.append(cost(f"{name_of(self.steps_attack)} over {max(self.curve_steps)} steps", threat, steps))
        for threat in threats if self.masking_images else ():
            checks, count = partial(masking_checks, model, threat=threat), min(self.masking_images, len(data))
            found.append(cost("checks for gradient masking", threat, checks, count))
        return found


def notes(model: nn.Module, data: ImageSet, seed: int, count: int = 256) -> list[str]:
    """Return the suspicious signs in a model's outputs and pre-processing, from `count` random images."""
    sample = calibration_images(data, seed, count)
    device = device_of(model, sample.labels)
    return intake.diagnose(model, sample.images.to(device), sample.labels.to(device))


def _parts(stage: Stage) -> Callable[[str], Stage]:
    return lambda name: replace(stage, name=f"{stage.name}-{name}")


@contextlib.contextmanager
def _square_named() -> Iterator[None]:
    """Say how the attack that follows no gradient is set, for the attacks and for the curve."""
    try:
        yield
    except NoGradient as error:
        raise InputError(
            f"{error} All attacks that follow some: evaluation.attacks=['square'] evaluation.strongest=[] "
            "evaluation.curve_attack=square."
        ) from error
