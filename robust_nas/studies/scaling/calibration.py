"""The pace of a device at adversarial training, from a few seconds of it, and the passes of attacks.

A step takes time for its multiplications, for the memory that its operations read and write, and for every operation as
such: small networks are slow by the last of these, wide ones by the first. A few networks are timed, real steps with
few images and passes with many, and the three rates are fitted to them; between the networks that were timed, the fit's
ratio to the measured time is interpolated over the size.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robust_nas.core.seeds import seeded
from robust_nas.datasets import DataForm, ImageSet
from robust_nas.evaluation import evaluate
from robust_nas.models.scores import logits_of
from robust_nas.recipes import Recipe
from robust_nas.runtime.distributed import World
from robust_nas.runtime.resident import growth
from robust_nas.studies.scaling import costs
from robust_nas.training import Batch, StepCost, trainer_of

NOTHING_FALLS = 1e-6
"""The share of the radius at which attacks are counted: no image falls, so that they do all they can."""

FIRST_GUESS = 2e10
"""Multiplications and additions in a second, before any were timed: a slow core."""

SMALLEST = 32
"""Pixels a side of the smallest images on which a step is timed."""

OF_WEIGHTS = 10
"""How often a pass, the update included, reads or writes a number for each weight."""


@dataclass(frozen=True)
class Candidate:
    """A network that may be timed.

    Args:
        make: returns it, on the CPU.
        cost: its passes, at the batch of the training.
        shape: [C, H, W] of its images.
    """

    make: Callable[[], nn.Module]
    cost: costs.NetworkCost
    shape: tuple[int, int, int]

    @property
    def flops(self) -> float:
        """Those of a training pass of one image."""
        return self.cost.training.flops / self.cost.training.images


def load_of(cost: costs.NetworkCost, images: int) -> tuple[float, float, float]:
    """Return the multiplications, the bytes read and written, and the operations of a training pass of a batch."""
    one = cost.training
    weights = min(OF_WEIGHTS * cost.gradients, one.traffic)
    share = images / one.images
    return one.flops * share, (one.traffic - weights) * share + weights, float(one.kernels)


@dataclass(frozen=True)
class Pace:
    """The pace of a device.

    Args:
        rates: seconds for a multiplication, a byte and an operation.
        sizes: multiplications of a training pass of one image, of the networks that were timed, rising.
        ratios: of each, its measured time over the fitted one.
        timed: the steps: images, multiplications of a training pass of one, and seconds for a pass of all.
        overhead: the memory that steps really took, as a multiple of the activations that torch held.
    """

    rates: tuple[float, float, float]
    sizes: tuple[float, ...]
    ratios: tuple[float, ...]
    timed: tuple[tuple[int, float, float], ...]
    overhead: float

    def seconds(self, cost: costs.NetworkCost, images: int) -> float:
        """Return the expected time of a training pass of a batch."""
        fitted = float(np.dot(self.rates, load_of(cost, images)))
        size = cost.training.flops / cost.training.images
        ratio = np.interp(math.log(size), np.log(self.sizes), np.log(self.ratios))
        return fitted * math.exp(float(ratio))


@dataclass(frozen=True)
class Timed:
    """What was found of a network.

    Args:
        points: images, and the seconds that a step takes for each of its training passes.
        ratio: of the time of a step for each of its training passes to that of a pass by itself.
        held: bytes of activations that torch held at most.
        taken: bytes that the process took for them; None where the system does not say.
    """

    points: list[tuple[int, float]]
    ratio: float
    held: float
    taken: int | None


@dataclass(frozen=True)
class Trial:
    """The way in which networks are timed.

    Args:
        recipe: its training is timed.
        form: of the data.
        step: the cost of a step.
        world: the device.
        memory: bytes that a timed pass may take.
        seconds: to be spent, about.
        clock: the time in seconds.
    """

    recipe: Recipe
    form: DataForm
    step: StepCost
    world: World
    memory: float
    seconds: float
    clock: Callable[[], float] = time.perf_counter

    def timed(self, candidate: Candidate, rate: float, ratio: float | None) -> Timed:
        """Return the seconds of passes of a network by few images and by many, and of a step.

        Args:
            rate: multiplications and additions in a second, about.
            ratio: as `Timed` has it, of another network; for one whose steps are too long to be timed.
        """
        training, device = self.recipe.train, self.world.device
        batch = candidate.cost.training.images
        full = max(min(2, batch), min(batch, int(self.memory / candidate.cost.activations)))
        with seeded(0, "calibration"):
            model = candidate.make().to(device).train()
        trainer = trainer_of(training, model, self.world)
        half = training.precision != "float32"
        images = self._batch(candidate.shape, full)
        layout = torch.channels_last if training.channels_last else torch.contiguous_format

        def one_pass(batch: Batch) -> None:
            seen = batch.images.contiguous(memory_format=layout)  # as the steps of the training have it
            with torch.autocast(device.type, getattr(torch, training.precision), enabled=half):
                loss = F.cross_entropy(logits_of(model, seen), batch.labels)
            loss.backward()
            model.zero_grad()

        def step(batch: Batch) -> None:
            trainer.step(batch, 0.0)

        def most(passes: float, share: float, flops: float = candidate.flops) -> int:
            """Return as many images as there is time for, all things done twice."""
            count = full
            while count > 1 and 2 * passes * flops * count / rate > share:
                count //= 2
            return count

        share, passes = self.seconds / 9, self.step.passes / 3
        few = most(passes, share)
        stepped = costs.part_of(images, max(min(2, full), few))
        if few < 2 and ratio is None:
            # Steps of smaller images have about the same ratio.
            channels, height, width = candidate.shape
            least = max(2, math.ceil(math.sqrt(2 * 2 * passes * candidate.flops / rate / share)))
            shape = (channels, max(SMALLEST, height // least), max(SMALLEST, width // least))
            stepped = self._batch(shape, min(2, full))
        if few >= 2 or ratio is None:
            ratio = self._mean(partial(step, stepped)) / passes / self._mean(partial(one_pass, stepped))
        many = max(min(2, full), most(1.0, share))
        counts = sorted({max(min(2, full), many // 4), many})
        points = [(count, ratio * self._mean(partial(one_pass, costs.part_of(images, count)))) for count in counts]
        # Of few images it is mostly pieces: once more of as many as possible.
        several = max(many, most(1.0, 2 * share))
        held = candidate.cost.step * several / batch
        taken = self._memory(partial(one_pass, costs.part_of(images, several)))
        return Timed(points, ratio, held, None if taken is None else taken - candidate.cost.gradients)

    def _batch(self, shape: tuple[int, int, int], count: int) -> Batch:
        return costs.random_batch(replace(self.form, image_shape=shape), self.recipe.threat, count, self.world.device)

    def _mean(self, work: Callable[[], None]) -> float:
        """Return the seconds of some work, the second time that it is done; of short work, the mean of several.

        What takes longer than there is time for is done once.
        """
        started = self.clock()
        work()
        times = [self.clock()]
        if times[0] - started > self.seconds / 9:
            return times[0] - started
        while len(times) < 2 or (len(times) < 6 and times[-1] - times[0] < 0.2):
            work()
            if self.world.device.type == "cuda":
                torch.cuda.synchronize(self.world.device)
            times.append(self.clock())
        return (times[-1] - times[0]) / (len(times) - 1)

    def _memory(self, *works: Callable[[], None]) -> int | None:
        """Return the bytes that some work takes; None where the system does not say."""
        device = self.world.device
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_reserved(device)
            for work in works:
                work()
            return torch.cuda.max_memory_reserved(device) - before
        with growth() as found:
            until = self.clock() + self.seconds / 9
            for number in range(3):  # pieces add up
                if number and self.clock() > until:
                    break
                for work in works:
                    work()
        return found.most


def calibrate(candidates: Sequence[Candidate], trial: Trial) -> Pace:
    """Return the pace of a device, from some networks.

    The smallest network is timed, then the largest that there is time for, then those between.

    Args:
        candidates: networks of about the grid's sizes.
        trial: the way.
    """
    left = sorted(candidates, key=lambda each: each.flops)
    started, rate = trial.clock(), FIRST_GUESS
    points: list[tuple[Candidate, int, float]] = []
    found: list[Timed] = []
    while left:
        rest = min(trial.seconds / 9, trial.seconds - (trial.clock() - started))
        fitting = [each for each in left if 4 * each.flops / rate <= rest]
        if points and not fitting:
            break
        candidate = left[0] if not points else fitting[-1]
        left = [each for each in left if each is not candidate]
        found.append(trial.timed(candidate, rate, found[-1].ratio if found else None))
        points += [(candidate, images, seconds) for images, seconds in found[-1].points]
        images, seconds = found[-1].points[-1]
        rate = candidate.flops * images / seconds
    return _fit(points, found)


def _fit(points: Sequence[tuple[Candidate, int, float]], memory: Sequence[Timed]) -> Pace:
    """Return the rates, none below 0, whose relative errors have the least squares, and what is left of them."""
    from scipy.optimize import nnls

    loads = np.array([load_of(candidate.cost, images) for candidate, images, _ in points])
    taken = np.array([seconds for *_, seconds in points])
    relative = loads / taken[:, None]
    scale = relative.max(axis=0)
    found, _ = nnls(relative / scale, np.ones(len(points)))
    rates = found / scale
    # Of each network, the largest batch counts: that of the training, or the nearest to it.
    last = {
        candidate.flops: seconds / float(load @ rates)
        for (candidate, _, seconds), load in zip(points, loads, strict=True)
    }
    sizes = sorted(last)
    return Pace(
        tuple(map(float, rates)),  # type: ignore[arg-type]
        tuple(sizes),
        tuple(last[size] for size in sizes),
        tuple((images, candidate.flops, seconds) for candidate, images, seconds in points),
        _overhead(memory),
    )


def _overhead(memory: Sequence[Timed]) -> float:
    """Return the memory taken over the memory held, at least 1; the large networks count."""
    known = [(found.taken, found.held) for found in memory if found.taken is not None]
    taken, held = (math.fsum(column) for column in zip(*known, strict=True)) if known else (1.0, 1.0)
    return max(1.0, taken / held)


class _Counted(nn.Module):
    """A linear classifier of the mean colours, which counts the images that pass through it, both ways."""

    def __init__(self, form: DataForm) -> None:
        super().__init__()
        self.classify = nn.Linear(form.image_shape[0], len(form.classes))
        self.passes = 0

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, K]."""
        self.passes += len(images)
        logits: Tensor = self.classify(images.mean(dim=(2, 3)))
        if logits.requires_grad:
            logits.register_hook(self._count)
        return logits

    def _count(self, gradient: Tensor) -> None:
        self.passes += len(gradient)


COUNTED = 8
"""Images on which the passes of attacks are counted, and their side in pixels."""


def validation_passes(recipe: Recipe, form: DataForm) -> float:
    """Return the passes that a validation image takes after an epoch, at most: if no image falls."""
    model, images = _counted(form)
    threat = recipe.threat.with_epsilon(recipe.threat.epsilon * NOTHING_FALLS)
    evaluate(model, images, threat, [recipe.train.selection_attack])
    return model.passes / len(images)


def evaluation_passes(recipe: Recipe, form: DataForm, num_images: int) -> float:
    """Return the passes of all attacks of an evaluation on test images, at most: if no image falls."""
    model, images = _counted(form)
    threat = recipe.threat.with_epsilon(recipe.threat.epsilon * NOTHING_FALLS)
    found = recipe.evaluation.costs(model, images, [threat], World(), recipe.seed)
    both_ways = model.passes / sum(cost.forwards for cost in found)
    checks = sum(cost.forwards for cost in found if cost.label.startswith("checks"))
    attacks = sum(cost.forwards for cost in found) - checks
    checked = min(recipe.evaluation.masking_images, num_images)
    return both_ways * (attacks * num_images + checks * checked) / len(images)


def _counted(form: DataForm) -> tuple[_Counted, ImageSet]:
    small = replace(form, image_shape=(form.image_shape[0], COUNTED, COUNTED))
    with seeded(0, "calibration"):
        model = _Counted(small).eval()
    pixels = costs.random_images(small, COUNTED)
    with torch.no_grad():
        labels = model(pixels).argmax(1)
    model.passes = 0
    return model, ImageSet.of(pixels, labels)
