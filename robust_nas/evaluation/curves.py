"""Accuracy over epsilon: under one attack at given radii, and by the distances of the nearest adversarial examples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from robust_nas import attacks as attack_group
from robust_nas.attacks import Attack, Continuing, Minimising, check_norm
from robust_nas.core import config
from robust_nas.core.errors import InputError
from robust_nas.core.figures import ATTACKED, line_plot
from robust_nas.core.registry import name_of
from robust_nas.core.shown import Shown, Summary, frame, with_interval
from robust_nas.datasets import ImageSet
from robust_nas.evaluation._chunks import BATCH_SIZE, Chunks, stage_or_alone
from robust_nas.evaluation.accuracy import AttackOutcome, measured
from robust_nas.models.frozen import frozen
from robust_nas.models.scores import misclassified, scores
from robust_nas.records.evaluation import Distances, Point
from robust_nas.runtime.stages import Stage
from robust_nas.threat import Norm, ThreatModel

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True, repr=False)
class Curve(Shown):
    """The number of radii that each image survives under one attack. Tensors are on the CPU.

    Args:
        attack: the attack's name.
        norm: of the radii.
        radii: ascending, in pixel units; 0 is the clean image.
        labels: [N], int64.
        survived: [N], how many of the radii; -1 if the image is misclassified as it is.
        predictions: [N], what the image is classified as where it falls, or its label.
        seconds: wall time.
    """

    attack: str
    norm: Norm
    radii: tuple[float, ...]
    labels: Tensor
    survived: Tensor
    predictions: Tensor
    seconds: float

    def points(self) -> tuple[Point, ...]:
        """Return the accuracy at every radius with its 95 % interval, as evaluation.json holds it."""
        return tuple(
            Point(norm=self.norm, epsilon=radius, **vars(measured(self.survived > place)))
            for place, radius in enumerate(self.radii)
        )

    def outcome(self, threat: ThreatModel) -> AttackOutcome:
        """Return the attack's outcome at a threat model: an image that fell at a radius within its own has fallen."""
        within = sum(radius <= threat.epsilon for radius in self.radii)
        correct = self.survived >= within
        predictions = torch.where(correct, self.labels, self.predictions)
        return AttackOutcome(f"{self.attack} over epsilon", threat, correct, predictions, self.seconds)

    def to_frame(self) -> pd.DataFrame:
        """Return a row per radius: norm, epsilon, accuracy (a fraction), low and high (95 % interval), count."""
        return frame(vars(point) for point in self.points())

    def plot(self) -> Figure:
        """Return a figure with the accuracy over the radius, and its interval."""
        points = self.points()
        ends = [point.low for point in points], [point.high for point in points]
        line = (self.radii, [point.accuracy for point in points], ATTACKED)
        return line_plot({self.attack: line}, self._title, f"{self.norm} radius", bands={self.attack: ends})

    @property
    def _title(self) -> str:
        return f"Accuracy of {len(self.labels)} images under {self.attack} over the {self.norm} radius"

    def _summary(self) -> Summary:
        rows = [(f"{at.epsilon:g}", with_interval(at.accuracy, at.low, at.high)) for at in self.points()]
        return Summary(self._title, ("epsilon", "accuracy (95 % interval)"), tuple(rows))


def robustness_curve(
    model: nn.Module,
    data: ImageSet,
    threat: ThreatModel,
    epsilons: Sequence[float],
    attack: Attack | str,
    *,
    batch_size: int = BATCH_SIZE,
    seed: int | None = None,
    stage: Stage | None = None,
) -> Curve:
    """Measure the accuracy under `attack` as the radius grows.

    One pass per radius, in ascending order. An image that has fallen at one radius counts as fallen at every larger
    one: the balls contain each other. Of the others, an attack that can (`Continuing`) starts at the point that it
    reached at the radius before, stretched to the new one.

    Args:
        threat: gives the norm.
        epsilons: radii in pixel units; 0 is the clean accuracy.
    """
    chosen = config.made(attack_group.get, attack, "attack")
    check_norm(chosen, threat)
    chosen = chosen.stopping_early()
    stage, radii, name = stage_or_alone(stage, seed), sorted(set(epsilons)), name_of(chosen)
    threats = [threat.with_epsilon(epsilon) for epsilon in radii if epsilon != 0]
    run = Chunks(model, data, batch_size, seed, stage, (threats, chosen))

    def falls_at(chunk: Tensor, number: int) -> Tensor:
        """Return the number of balls that each image survives, and its prediction in the next, [B, 2]."""
        images, labels = run.images(chunk), run.labels(chunk)
        survived, predictions = torch.zeros_like(labels), labels.clone()
        left, points, before = torch.arange(len(chunk), device=labels.device), images, None
        for allowed in threats:
            own, start = images[left], run.seed(f"{name}@{allowed.epsilon:g}", number)
            if before is None or not isinstance(chosen, Continuing):
                points = chosen.perturb(model, own.clone(), labels[left], allowed, seed=start)
            else:
                stretched = own + (points - own) * (allowed.epsilon / before.epsilon)
                points = chosen.continue_from(
                    model, allowed.around(own).project(stretched), own.clone(), labels[left], allowed, seed=start
                )
            predictions[left] = run.logits(points, own, allowed, name).argmax(1)
            stands = predictions[left] == labels[left]
            left, points, before = left[stands], points[stands], allowed
            survived[left] += 1
            if len(left) == 0:
                break
        return torch.stack([survived, predictions], dim=1)

    predictions = run.clean_predictions()
    labels = data.labels.cpu()
    correct = predictions == labels
    found, seconds = run.judged(correct.nonzero().squeeze(1), f"{name} over epsilon", falls_at)
    run.check_model_is_as_it_was(name)
    survived = torch.full_like(labels, -1)
    if correct.any():
        # Correctly classified images survive radius 0.
        survived[correct] = found[:, 0] + (0 in radii)
        predictions[correct] = found[:, 1]
    return Curve(name, threat.norm, tuple(radii), labels, survived, predictions, seconds)


@dataclass(frozen=True, repr=False)
class Distortions(Shown):
    """The distance of the nearest adversarial example that an attack found for each image.

    Args:
        attack: the attack's name.
        norm: of the distances.
        distances: [N], float64, on the CPU; 0 for an image that is misclassified as it is, infinite where nothing was
            found.
        predictions: [N], int64, on the CPU: what the nearest example is classified as.
        seconds: wall time.
    """

    attack: str
    norm: Norm
    distances: Tensor
    predictions: Tensor
    seconds: float = 0.0

    def quantile(self, share: float) -> float:
        """Return the radius at which the accuracy has fallen to 1 - `share` at most: an order statistic, no mean.

        Raises:
            InputError: if `share` is outside (0, 1].
        """
        if not 0 < share <= 1:
            raise InputError(f"A quantile's share must be in (0, 1], but got {share}.")
        # The product may be a whole number but for rounding.
        place = max(math.ceil(share * len(self.distances) - 1e-9), 1)
        return float(self.distances.sort().values[place - 1])

    def accuracy(self, epsilon: float) -> float:
        """Return the share of images without an adversarial example within `epsilon`: never below the true one."""
        return float((self.distances > epsilon).double().mean())

    def outcome(self, threat: ThreatModel, labels: Tensor) -> AttackOutcome:
        """Return the outcome at a threat model of the norm: images [N] without an example within its radius survive."""
        correct = self.distances > threat.epsilon
        predictions = torch.where(correct, labels, self.predictions)
        return AttackOutcome(f"{self.attack} distances", threat, correct, predictions, self.seconds)

    def summary(self) -> Distances:
        """Return quantiles, as evaluation.json holds them; None where that many were not found."""
        shares = (0.1, 0.25, 0.5, 0.75, 0.9)
        quantiles = {str(share): self.quantile(share) for share in shares}
        return Distances(
            attack=self.attack,
            norm=self.norm,
            quantiles={share: value if math.isfinite(value) else None for share, value in quantiles.items()},
            count=len(self.distances),
            found=int(self.distances.isfinite().sum()),
        )

    def rows(self) -> list[dict[str, Any]]:
        """Return one row per image, as distortions.parquet holds them."""
        return [
            {"attack": self.attack, "norm": self.norm, "image": image, "distance": distance}
            for image, distance in enumerate(self.distances.tolist())
        ]

    def to_frame(self) -> pd.DataFrame:
        """Return a row per image: attack, norm, image (its place), distance (in pixel units, infinite if none)."""
        return frame(self.rows())

    def plot(self) -> Figure:
        """Return a figure with the share of images that have no adversarial example within a radius, over the radius.

        It ends at the largest distance that was found.
        """
        found = self.distances[self.distances.isfinite()]
        radii = [0.0, *found[found > 0].unique().tolist()]
        line = (radii, [self.accuracy(radius) for radius in radii], ATTACKED)
        return line_plot({f"no example of {self.attack}": line}, self._title, f"{self.norm} radius")

    @property
    def _title(self) -> str:
        return f"Distances of the nearest examples of {self.attack}, {len(self.distances)} images"

    def _summary(self) -> Summary:
        quantiles = self.summary().quantiles
        rows = [(f"{float(share):.0%}", "not found" if at is None else f"{at:.3g}") for share, at in quantiles.items()]
        return Summary(self._title, ("of the images within", f"{self.norm} distance"), tuple(rows))


def minimal_distortions(
    model: nn.Module,
    data: ImageSet,
    threat: ThreatModel,
    attack: Attack | str = "fab",
    *,
    batch_size: int = BATCH_SIZE,
    seed: int | None = None,
    stage: Stage | None = None,
) -> Distortions:
    """Measure the distance of every image's nearest adversarial example, as far as `attack` finds.

    Args:
        threat: gives the norm, and the radius of FAB's random restarts; distances are not limited by it.
        attack: one that looks for the smallest change, `Minimising`: FAB, or a hard-label one.

    Raises:
        InputError: for an attack that does not minimise.
    """
    chosen = config.made(attack_group.get, attack, "attack")
    name, stage = name_of(chosen), stage_or_alone(stage, seed)
    check_norm(chosen, threat)
    minimising = check_minimises(chosen)
    run = Chunks(model, data, batch_size, seed, stage, (threat, chosen))

    def distances(chunk: Tensor, number: int) -> Tensor:
        images, labels, start = run.images(chunk), run.labels(chunk), run.seed(name, number)
        points = minimising.nearest(model, images.clone(), labels, threat, seed=start)
        return _verified(model, images, labels, points, threat)

    predictions = run.clean_predictions()
    correct = predictions == data.labels.cpu()
    away = torch.zeros(len(data), dtype=torch.float64)
    found, seconds = run.judged(correct.nonzero().squeeze(1), f"{name} distances", distances)
    run.check_model_is_as_it_was(name)
    if correct.any():
        away[correct], predictions[correct] = found[:, 0], found[:, 1].long()
    return Distortions(name, threat.norm, away, predictions, seconds)


def check_minimises(attack: Attack) -> Minimising:
    """Return the attack; raise InputError if it does not look for the smallest change."""
    if not isinstance(attack, Minimising):
        raise InputError(f"The attack {name_of(attack)} looks for no smallest change; choose fab, opt or sign_opt.")
    return attack


def _verified(model: nn.Module, images: Tensor, labels: Tensor, points: Tensor, threat: ThreatModel) -> Tensor:
    """Return the distance and the prediction of each point, [B, 2] float64.

    Infinitely far is one that the model as it is does not misclassify. Attacks run with batch norm folded into the
    convolutions. On the very boundary, where these points lie, the rounding decides: one that is on the right side is
    pushed on by up to a hundredth.
    """
    found = torch.full((len(images),), torch.inf, dtype=torch.float64, device=images.device)
    predictions = labels.clone()
    for stretch in (1.0, 1.001, 1.01):
        tried = (images + stretch * (points - images)).clamp(0, 1)
        with frozen(model, fold=False):
            logits = scores(model, tried)
        # NaN is no class.
        wrong = misclassified(logits, labels) & ~logits.isnan().any(1) & found.isinf()
        distance = threat.lengths(tried.double() - images.double())
        found = torch.where(wrong, distance, found)
        predictions = torch.where(wrong, logits.argmax(1), predictions)
    return torch.stack([found, predictions.double()], dim=1)
