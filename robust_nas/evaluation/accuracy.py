"""Clean accuracy, and accuracy under each attack, at one threat model or several."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from robust_nas import attacks as attack_group
from robust_nas import records
from robust_nas.attacks import Attack, Composed, check_classes, check_norm, left_out
from robust_nas.core import config
from robust_nas.core.checks import check_type
from robust_nas.core.errors import InputError
from robust_nas.core.figures import ATTACKED, CLEAN, INK, interval_plot
from robust_nas.core.files import is_there
from robust_nas.core.registry import name_of
from robust_nas.core.shown import Shown, Summary, frame, with_interval
from robust_nas.core.writing import write_json
from robust_nas.datasets import ImageSet
from robust_nas.evaluation._chunks import BATCH_SIZE, Chunks, stage_or_alone
from robust_nas.records import evaluation as recorded
from robust_nas.runtime.per_sample import add_outcomes
from robust_nas.runtime.stages import Stage
from robust_nas.threat import ThreatModel

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

FILE, OUTCOMES = "evaluation.json", "evaluation.parquet"

_COUNTED = ("accuracy", "low", "high", "count", "seconds")


def wilson_interval(successes: int, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval of a proportion (Wilson 1927, JASA 22, 209-212).

    Raises:
        InputError: if `successes` is not in [0, count], or `count` is 0.
    """
    if not (0 <= successes <= count and count > 0):
        raise InputError(f"An interval needs 0 <= successes <= count, and count >= 1, but got {successes} of {count}.")
    z, share = NormalDist().inv_cdf((1 + confidence) / 2), successes / count
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    # At the ends the formula gives 0 and 1 exactly; rounding would not.
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == count else centre + half)


def measured(correct: Tensor) -> recorded.Measured:
    """Return the accuracy of [N] outcomes, its 95 % Wilson interval and the number of images."""
    successes, count = int(correct.sum()), len(correct)
    low, high = wilson_interval(successes, count)
    return recorded.Measured(accuracy=successes / count, low=low, high=high, count=count)


@dataclass(frozen=True, repr=False)
class AttackOutcome:
    """The outcome of one attack at one threat model.

    Args:
        label: the attack's name, with the settings that tell it from another of the same name.
        threat: its threat model.
        correct: [N] booleans: the image was classified correctly and still is after the attack.
        predictions: [N] int64: the prediction after the attack; of an image that was wrong before, what was.
        seconds: wall time.
        left_out: the parts that it was run without, because the model has too few classes for them.
    """

    label: str
    threat: ThreatModel
    correct: Tensor
    predictions: Tensor
    seconds: float
    left_out: tuple[str, ...] = ()

    def __repr__(self) -> str:
        found = f"{int(self.correct.sum())} of {len(self.correct)} images survive"
        return f"AttackOutcome({self.label}, {self.threat.norm} {self.threat.epsilon:g}: {found})"


@dataclass(frozen=True, repr=False)
class Evaluation(Shown):
    """The outcome of every attack on every image. Tensors are on the CPU.

    Args:
        threats: the threat models, in the order asked for.
        labels: [N], int64.
        clean_predictions: [N], int64.
        attacks: one entry per threat model and attack, in the order asked for.
        notes: suspicious signs in the model, where it was checked.
    """

    threats: tuple[ThreatModel, ...]
    labels: Tensor
    clean_predictions: Tensor
    attacks: tuple[AttackOutcome, ...]
    notes: tuple[str, ...] = ()

    @property
    def clean(self) -> Tensor:
        """[N] booleans: the image itself is classified correctly."""
        return self.clean_predictions == self.labels

    @property
    def worst_case(self) -> Tensor:
        """[N] booleans: the image is classified correctly and survives every attack of every threat model."""
        return torch.stack([self.clean, *(attack.correct for attack in self.attacks)]).all(0)

    def under(self, threat: ThreatModel) -> Tensor:
        """Return [N] booleans: the image is classified correctly and survives every attack of one threat model."""
        own = [attack.correct for attack in self.attacks if attack.threat == threat]
        return torch.stack([self.clean, *own]).all(0)

    @property
    def clean_accuracy(self) -> float:
        """The share of images that are classified correctly."""
        return int(self.clean.sum()) / len(self.labels)

    @property
    def robust_accuracy(self) -> float:
        """The share of images that survive every attack: with several threat models, their worst-case union."""
        return int(self.worst_case.sum()) / len(self.labels)

    @property
    def average_accuracy(self) -> float:
        """The mean over the threat models of the share of images that survive every attack of it."""
        return sum(int(self.under(threat).sum()) for threat in self.threats) / len(self.labels) / len(self.threats)

    def confusion(self, num_classes: int | None = None) -> list[list[int]]:
        """Count the images of each class (row) that are classified as each class (column) under attack.

        An image that survives counts as its class; one that falls, as what the first attack that broke it made of it.
        """
        found = self.clean_predictions
        for attack in reversed(self.attacks):
            found = torch.where(self.clean & ~attack.correct, attack.predictions, found)
        size = num_classes or 1 + int(torch.stack([self.labels, found]).max())
        counts = torch.bincount(self.labels * size + found, minlength=size * size)
        return [[int(count) for count in row] for row in counts.view(size, size)]

    def summary(self) -> recorded.Attacked:
        """Return accuracies with their 95 % Wilson intervals, the entry of one model in evaluation.json."""

        def entry(name: str, threat: ThreatModel, correct: Tensor, seconds: float) -> recorded.Attack:
            counted = vars(measured(correct))
            return recorded.Attack(name=name, norm=threat.norm, epsilon=threat.epsilon, **counted, seconds=seconds)

        def seconds(attacks: Sequence[AttackOutcome]) -> float:
            return sum(attack.seconds for attack in attacks)

        threats = tuple(
            entry(
                "worst case",
                threat,
                self.under(threat),
                seconds([attack for attack in self.attacks if attack.threat == threat]),
            )
            for threat in self.threats
        )
        union = recorded.WorstCase(
            name="worst-case union", **vars(measured(self.worst_case)), seconds=seconds(self.attacks)
        )
        return recorded.Attacked(
            clean=measured(self.clean),
            attacks=tuple(
                entry(attack.label, attack.threat, attack.correct, attack.seconds) for attack in self.attacks
            ),
            threats=threats,
            worst_case=recorded.WorstCase(**vars(threats[0])) if len(threats) == 1 else union,
            average=self.average_accuracy,
            confusion=tuple(map(tuple, self.confusion())),
            notes=self.notes,
        )

    def rows(self) -> list[dict[str, Any]]:
        """Return one row per image and attack, as evaluation.parquet holds them; "clean" is the attack at radius 0."""
        outcomes = [("clean", threat.norm, 0.0, self.clean_predictions) for threat in self.threats[:1]]
        outcomes += [
            (attack.label, attack.threat.norm, attack.threat.epsilon, attack.predictions) for attack in self.attacks
        ]
        labels = self.labels.tolist()
        return [
            {
                "attack": name,
                "norm": norm,
                "epsilon": epsilon,
                "image": image,
                "label": label,
                "prediction": prediction,
                "correct": label == prediction,
            }
            for name, norm, epsilon, predictions in outcomes
            for image, (label, prediction) in enumerate(zip(labels, predictions.tolist(), strict=True))
        ]

    def save(self, folder: Path | str, model: str = "model") -> None:
        """Add this evaluation to evaluation.json and evaluation.parquet in a folder, under the model's name.

        A model that is there already is replaced; the others stay.
        """
        place = Path(folder)
        before: dict[str, Any] = {"models": {}}
        if is_there(place / FILE):
            before = records.read_stage(place / FILE, "move it away", records.SavedEvaluations)
        add_outcomes(place / OUTCOMES, model, self.rows())
        write_json(place / FILE, records.plain({**before, "models": {**before["models"], model: self.summary()}}))

    def to_frame(self, *, per_image: bool = False) -> pd.DataFrame:
        """Return the accuracies, a row each: "clean", every attack, and the worst case.

        Args:
            per_image: the outcomes instead, a row per image and attack, as `rows` gives them.

        Returns:
            The columns attack, norm, epsilon, accuracy (a fraction), low and high (its 95 % interval), count (images)
            and seconds; of "clean", norm and seconds are missing, and epsilon is 0.
        """
        return frame(self.rows() if per_image else self._accuracies())

    def plot(self) -> Figure:
        """Return a figure with the clean accuracy and that under each attack, with their intervals."""
        names = ["clean", *("worst" if name.startswith("worst") else "attacked" for name in self._names()[1:])]
        colours = {"clean": CLEAN, "attacked": ATTACKED, "worst": INK}
        rows = [
            (label, row["accuracy"], row["low"], row["high"], colours[name])
            for label, row, name in zip(self._names(), self._accuracies(), names, strict=True)
        ]
        return interval_plot(rows, self._title)

    @property
    def _title(self) -> str:
        return f"Accuracy of {len(self.labels)} images, clean and attacked"

    def _accuracies(self) -> list[dict[str, Any]]:
        summary = self.summary()
        rows: list[dict[str, Any]] = [{"attack": "clean", "norm": None, "epsilon": 0.0, **vars(summary.clean)}]
        for item in (*summary.attacks, *summary.threats):
            rows.append({"attack": item.name, **{name: getattr(item, name) for name in ("norm", "epsilon", *_COUNTED)}})
        if len(self.threats) > 1:
            rows.append({"attack": summary.worst_case.name, "norm": None, "epsilon": None})
            rows[-1] |= {name: getattr(summary.worst_case, name) for name in _COUNTED}
        return [{**row, "seconds": row.get("seconds")} for row in rows]

    def _names(self) -> list[str]:
        return [
            row["attack"] + (f" {row['norm']} {row['epsilon']:g}" if row["norm"] else "") for row in self._accuracies()
        ]

    def _summary(self) -> Summary:
        rows = [
            (name, with_interval(row["accuracy"], row["low"], row["high"]))
            for name, row in zip(self._names(), self._accuracies(), strict=True)
        ]
        if len(self.threats) > 1:
            rows.append(("average of the threat models", f"{100 * self.average_accuracy:.1f} %"))
        return Summary(self._title, ("attack", "accuracy (95 % interval)"), tuple(rows), self.notes)


def attack_labels(attacks: Sequence[Attack]) -> list[str]:
    """Return a name for every attack; those of one name get the settings in which they differ: "pgd[steps=100]".

    Raises:
        InputError: if two attacks are the same in every setting.
    """
    names, labels = [name_of(attack) for attack in attacks], []
    for name, attack in zip(names, attacks, strict=True):
        twins = [other for other, other_name in zip(attacks, names, strict=True) if other_name == name]
        settings = [field.name for field in _fields(attack)] if len(twins) > 1 else []
        differing = [key for key in settings if len({repr(getattr(twin, key)) for twin in twins}) > 1]
        labels.append(config.word(name, {key: getattr(attack, key) for key in differing}))
    repeated = sorted({label for label in labels if labels.count(label) > 1})
    if repeated:
        raise InputError(f"The attack {repeated[0]} is listed twice with the same settings; list it once.")
    return labels


def _fields(attack: Attack) -> tuple[dataclasses.Field[Any], ...]:
    if not dataclasses.is_dataclass(attack):
        raise InputError(
            f"The attack {type(attack).__name__} must be a frozen dataclass, whose fields tell it from another of its "
            "kind."
        )
    return fields(attack)


def evaluate(
    model: nn.Module,
    data: ImageSet,
    threat: ThreatModel | str | Sequence[ThreatModel | str],
    attacks: Sequence[Attack | str],
    *,
    labels: Sequence[str] | None = None,
    batch_size: int = BATCH_SIZE,
    seed: int | None = None,
    stage: Stage | None = None,
) -> Evaluation:
    """Measure clean accuracy, and accuracy under each attack on its own.

    An attack that can stop early does: of a sample only its survival is of interest.

    Args:
        threat: the attacks' threat model; several of them are evaluated one after the other.
        attacks: attacks, or the names of attacks with their default settings.
        labels: the attacks' names in the result, which also seed them; `attack_labels` of them, if not given.
        batch_size: images in a chunk, the unit of work of one process.
        seed: root of the attacks' seeds; the stage's seed if not given.
        stage: shows progress, shares the chunks out among processes and keeps every finished round of them; after an
            interruption, the same call continues. The caller ends it (`stage.finish()`) when the result is written.

    Raises:
        InputError: for labels the model has no logit for, NaN logits, an attack listed twice or one that leaves the
            threat model, or an interrupted evaluation with other settings.
    """
    several = isinstance(threat, Sequence) and not isinstance(threat, str)
    threats = tuple(map(ThreatModel.of, threat if several else [threat]))  # type: ignore[arg-type]
    if not threats or len(set(threats)) < len(threats):
        raise InputError(f"An evaluation needs one threat model or several different ones, but got {len(threats)}.")
    if isinstance(attacks, str):
        raise InputError(f"attacks is a list of attacks or their names, such as ['{attacks}'], but got '{attacks}'.")
    check_type("attacks", attacks, Iterable, "a list of attacks or their names")
    chosen = [config.made(attack_group.get, attack, "attack") for attack in attacks]
    for attack in chosen:
        if isinstance(attack, type):
            raise InputError(
                f"attacks is a list of attacks or their names, but got the class {attack.__name__}; write "
                f"{attack.__name__}()."
            )
    names, stage = attack_labels(chosen) if labels is None else list(labels), stage_or_alone(stage, seed)
    if not names or len(set(names)) < len(names):
        raise InputError(f"An evaluation needs one attack or several of different names, but got {names}.")
    # Said now, and not after the others have run for hours.
    for allowed, attack in itertools.product(threats, chosen):
        check_norm(attack, allowed)
    run = Chunks(model, data, batch_size, seed, stage, (threats, chosen))
    own, clean = data.labels.cpu(), run.clean_predictions()
    choosy = [attack for attack in chosen if attack.classes > 2 or isinstance(attack, Composed)]
    num_classes = run.num_classes() if choosy else 2
    for attack in choosy:
        check_classes(attack, num_classes)
    left = (clean == own).nonzero().squeeze(1)
    outcomes = []
    for allowed in threats:
        for name, attack in zip(names, chosen, strict=True):
            found, seconds = run.predictions(left, allowed, attack.stopping_early(), name)
            predictions = clean.index_put((left,), found)
            missing = left_out(attack, num_classes) if attack in choosy else ()
            # It is another attack, and has another name in all results.
            label = f"{name}[without={'+'.join(missing)}]" if missing else name
            outcomes.append(AttackOutcome(label, allowed, predictions == own, predictions, seconds, missing))
    return Evaluation(threats, own, clean, tuple(outcomes))
