"""Accuracy over the steps of one long ascent: what more patience of the attacker is worth."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from robust_nas import attacks as attack_group
from robust_nas.attacks import Attack, check_norm
from robust_nas.attacks.pgd import PGD
from robust_nas.core import config
from robust_nas.core.checks import check_at_least
from robust_nas.core.errors import InputError
from robust_nas.core.figures import ATTACKED, MUTED, line_plot
from robust_nas.core.pixels import format_pixels
from robust_nas.core.registry import name_of
from robust_nas.core.shown import Shown, Summary, frame, with_interval
from robust_nas.datasets import ImageSet
from robust_nas.evaluation._chunks import BATCH_SIZE, Chunks, stage_or_alone
from robust_nas.evaluation.accuracy import AttackOutcome, measured
from robust_nas.records.evaluation import StepPoint
from robust_nas.runtime.stages import Stage
from robust_nas.threat import ThreatModel

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

STEPS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)
"""The numbers of steps of a curve for which none are given."""

_LEAVE_EVERY = 50
"""Steps between two looks at who can leave, with `early_stop`."""


@dataclass(frozen=True, repr=False)
class StepCurve(Shown):
    """The number of steps that each image withstands in one ascent. Tensors are on the CPU.

    Args:
        attack: the attack's name.
        threat: its threat model.
        step_size: of every step, in pixel units.
        steps: the numbers of steps, ascending.
        labels: [N], int64.
        survived: [N], after how many of `steps` no point on the way has fooled the model yet; -1 if the image is
            misclassified as it is.
        standing: [N, number of steps] booleans, whether the point after so many steps alone is classified correctly;
            None if images have left the ascent once fooled.
        predictions: [N], what the image's first misclassified point is classified as, or its label.
        seconds: wall time.
    """

    attack: str
    threat: ThreatModel
    step_size: float
    steps: tuple[int, ...]
    labels: Tensor
    survived: Tensor
    standing: Tensor | None
    predictions: Tensor
    seconds: float

    def points(self) -> tuple[StepPoint, ...]:
        """Return the accuracy after every number of steps with its 95 % interval, as evaluation.json holds it.

        `accuracy` counts an image that no point up to there fools, which is what an attacker gets; `last` one that the
        point after exactly so many steps does not fool.
        """
        return tuple(
            StepPoint(
                attack=self.attack,
                norm=self.threat.norm,
                epsilon=self.threat.epsilon,
                step_size=self.step_size,
                steps=number,
                last=None if self.standing is None else measured(self.standing[:, place]).accuracy,
                **vars(measured(self.survived > place)),
            )
            for place, number in enumerate(self.steps)
        )

    def outcome(self) -> AttackOutcome:
        """Return the attack's outcome: an image that a point on the way has fooled has fallen."""
        correct = self.survived == len(self.steps)
        return AttackOutcome(f"{self.attack} over steps", self.threat, correct, self.predictions, self.seconds)

    def to_frame(self) -> pd.DataFrame:
        """Return a row per number of steps.

        Columns: attack, norm, epsilon, step_size, steps, accuracy (a fraction), low and high (95 % interval), last,
        count.
        """
        return frame(vars(point) for point in self.points())

    def plot(self) -> Figure:
        """Return a figure with the accuracy over the steps, on a logarithmic axis, and its interval."""
        points = self.points()
        lines = {"no point so far fools": (self.steps, [point.accuracy for point in points], ATTACKED)}
        if self.standing is not None:
            lines["the last point does not fool"] = (self.steps, [point.last or 0.0 for point in points], MUTED)
        ends = [point.low for point in points], [point.high for point in points]
        below = f"steps of {format_pixels(self.step_size)} at {self.threat.norm} {format_pixels(self.threat.epsilon)}"
        return line_plot(lines, self._title, below, bands={"no point so far fools": ends}, logarithmic=True)

    @property
    def _title(self) -> str:
        return f"Accuracy of {len(self.labels)} images over the steps of {self.attack}"

    def _summary(self) -> Summary:
        rows = [
            (
                str(at.steps),
                with_interval(at.accuracy, at.low, at.high),
                "not known" if at.last is None else f"{100 * at.last:.1f} %",
            )
            for at in self.points()
        ]
        sizes = f"{self.threat.norm} {format_pixels(self.threat.epsilon)}, steps of {format_pixels(self.step_size)}"
        return Summary(
            f"{self._title}, {sizes}", ("steps", "accuracy (95 % interval)", "by the last point alone"), tuple(rows)
        )


def accuracy_over_steps(
    model: nn.Module,
    data: ImageSet,
    threat: ThreatModel,
    steps: Sequence[int] = STEPS,
    attack: Attack | str = "pgd",
    *,
    batch_size: int = BATCH_SIZE,
    seed: int | None = None,
    stage: Stage | None = None,
) -> StepCurve:
    """Measure the accuracy after each of some numbers of steps of one ascent, which is as long as the largest.

    An ascent of k steps is the beginning of a longer one, as all steps have one size: one pass a step measures all
    numbers together, and a forward pass more at each of them judges the points that are then there.

    Args:
        steps: numbers of steps, such as 10, 100 and 2000.
        attack: a PGD with one start; its own number of steps is not used. Without a `step_size`, a step is a sixteenth
            of epsilon (1/255 at 16/255, arXiv:1906.03787). With `early_stop` an image leaves once it is fooled: the
            accuracy under all points so far is the same, and that under the last points is not known.

    Raises:
        InputError: for another attack, restarts, several targets or steps that fall.
    """
    chosen = check_one_ascent(config.made(attack_group.get, attack, "attack"))
    check_norm(chosen, threat)
    numbers = check_steps("steps", steps)
    stage, name = stage_or_alone(stage, seed), name_of(chosen)
    step_size = chosen.step_size or threat.epsilon / 16
    run = Chunks(model, data, batch_size, seed, stage, (threat, chosen, numbers))
    # Where images leave, they are looked for between the numbers as well.
    looks = {*range(_LEAVE_EVERY, numbers[-1], _LEAVE_EVERY)} if chosen.early_stop else set()
    looks |= set(numbers)

    def falls_at(chunk: Tensor, number: int) -> Tensor:
        """Return what is in `StepCurve`: survived, prediction, and standing after each number, [B, 2 + numbers]."""
        images, labels = run.images(chunk), run.labels(chunk)
        survived, predictions = torch.full_like(labels, len(numbers)), labels.clone()
        standing = torch.zeros(len(chunk), len(numbers), dtype=labels.dtype, device=labels.device)
        left, taken = torch.arange(len(chunk), device=labels.device), 0
        underway = chosen.begin(model, images.clone(), labels, threat, seed=run.seed(f"{name} over steps", number))
        for goal in sorted(looks):
            underway = chosen.go_on(model, underway, step_size, goal - taken)
            taken, place, own = goal, bisect_left(numbers, goal), labels[left]
            last = run.logits(underway.points, images[left], threat, name).argmax(1)
            found, fresh = last.clone(), underway.fooled & (survived[left] == len(numbers))
            if fresh.any():
                # What the ascent saw was with batch norm folded: on the boundary, rounding decides anew.
                on_way = run.logits(underway.fooling[fresh], images[left][fresh], threat, name).argmax(1)
                found[fresh] = torch.where(on_way != own[fresh], on_way, last[fresh])
            fallen = (found != own) & (survived[left] == len(numbers))
            survived[left[fallen]], predictions[left[fallen]] = place, found[fallen]
            if goal in numbers:
                standing[left, place] = (last == own).to(labels.dtype)
            fooled = survived[left] < len(numbers)
            underway = replace(underway, fooled=fooled)
            if chosen.early_stop:
                left, underway = left[~fooled], underway[~fooled]
                if len(left) == 0:
                    break
        return torch.cat([survived.unsqueeze(1), predictions.unsqueeze(1), standing], dim=1)

    predictions = run.clean_predictions()
    labels = data.labels.cpu()
    correct = predictions == labels
    found, seconds = run.judged(correct.nonzero().squeeze(1), f"{name} over steps", falls_at)
    run.check_model_is_as_it_was(name)
    survived, standing = torch.full_like(labels, -1), torch.zeros(len(labels), len(numbers), dtype=torch.bool)
    if correct.any():
        survived[correct], predictions[correct], standing[correct] = found[:, 0], found[:, 1], found[:, 2:].bool()
    known = None if chosen.early_stop else standing
    return StepCurve(name, threat, step_size, tuple(numbers), labels, survived, known, predictions, seconds)


def check_one_ascent(attack: Attack) -> PGD:
    """Return the attack; raise InputError if it is not one ascent of PGD with steps of one size."""
    if not isinstance(attack, PGD):
        raise InputError(f"Accuracy over steps is of PGD's, but got {name_of(attack)}; take pgd.")
    if attack.restarts > 1 or attack.targets or attack.schedule != "constant":
        raise InputError(
            f"Accuracy over steps is of one ascent with steps of one size, but got restarts={attack.restarts}, "
            f"targets={attack.targets} and schedule='{attack.schedule}'; leave them out."
        )
    return attack


def check_steps(name: str, steps: Sequence[int]) -> list[int]:
    """Return the numbers of steps, ascending and each once; raise InputError for none, or one below 1."""
    if not steps:
        raise InputError(f"{name} must be at least one number of steps, but got none.")
    for number in steps:
        check_at_least(name, number, 1)
    return sorted(set(steps))
