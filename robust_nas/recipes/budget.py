"""The expected time of a run, stage by stage: a little of each stage is done, on a few of the images, and timed."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import nn

from robust_nas import derivation
from robust_nas.bounds import Bound, foretold_seconds, slow_kind
from robust_nas.certification import certify, refusal
from robust_nas.core.seeds import seeded
from robust_nas.datasets import Dataset, ImageSet
from robust_nas.evaluation.costs import duration
from robust_nas.evaluation.plan import EvaluationPlan
from robust_nas.models.complexity import count_parameters
from robust_nas.models.scores import logits_of
from robust_nas.recipes import Recipe
from robust_nas.recipes.rehearsal import uniform_rows
from robust_nas.runtime.distributed import World
from robust_nas.runtime.progress import Progress
from robust_nas.runtime.stages import Stage
from robust_nas.searches import SearchResult
from robust_nas.searches.given import Given
from robust_nas.threat import ThreatModel
from robust_nas.training import fit

T = TypeVar("T")

BATCHES = 2
"""Batches of an epoch that are tried."""

LONG = 20.0
"""Seconds after which no further step of a stage is tried. Early ones may do less: alpha begins frozen, radii at 0."""

DRAWN = 12
"""Random networks of which the largest is taken for those that will be found."""

NOTHING_FALLS = 1e-6
"""The share of the radius at which attacks are timed: no image falls, so that the time is the longest there is."""


@dataclass(frozen=True)
class Expected:
    """The expected time of a stage.

    Args:
        stage: its name.
        seconds: the time on the processes at hand; None, where a little of the stage says nothing of the whole.
        about: what it is the time of.
    """

    stage: str
    seconds: float | None
    about: str


def expected(chosen: Recipe, data: Dataset, world: World) -> list[Expected]:
    """Return the expected time of each stage of a recipe that takes long.

    Args:
        chosen: the recipe.
        data: its data set, on the device of the work.
        world: the processes at work, all of which call this.
    """
    network = _large_network(chosen, data)
    count = chosen.derive.count
    number = f"{count} network{'s' * (count > 1)}"
    parameters = f"{number} of about {count_parameters(network):,} parameters"
    found = [_search(chosen, data, world), _training(chosen, network, data, world, parameters)]
    return [*found, _attacks(chosen, network.eval(), data, world, count), _bounds(chosen, network, data, world)]


def text(found: Sequence[Expected], world: World) -> str:
    """Return expected times as lines for a terminal."""
    known = [part.seconds for part in found if part.seconds is not None]
    all_known = len(known) == len(found)
    rows = [[part.stage, "not known" if part.seconds is None else duration(part.seconds), part.about] for part in found]
    rows.append(["all", f"{'' if all_known else 'more than '}{duration(sum(known))}", ""])
    processes = world.size * world.workers
    return "\n".join(
        [
            f"expected, from a little of each stage, in {processes} process{'es' * (processes > 1)}:",
            *(f"  {'  '.join(cells).rstrip()}" for cells in _columns(rows)),
        ]
    )


def _columns(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    return [[row[0].ljust(widths[0]), row[1].rjust(widths[1]), row[2]] for row in rows]


def _large_network(chosen: Recipe, data: Dataset) -> nn.Module:
    """Return the given network, or the largest of some random ones: what a robust search finds is seldom small."""
    if isinstance(chosen.search, Given):
        architectures = [chosen.space.parse(chosen.search.architecture)]
    else:
        uniform = SearchResult(chosen.space, uniform_rows(chosen.space), None, {})
        drawn = derivation.distinct(uniform, DRAWN, uniform.drawn(chosen.seed)) or derivation.distinct(uniform, 1)
        architectures = [candidate.architecture for candidate in drawn]
    with seeded(chosen.seed, "budget"):
        networks = [chosen.space.network(architecture, data) for architecture in architectures]
    return max(networks, key=count_parameters).to(data.train.device)


class _Enough(Exception):
    """Enough steps were timed."""


class _Stopwatch(Progress):
    """Times the outermost steps of a piece of work, and ends it after `LONG`, but not before the second.

    The first one sets things up, and does not count.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(quiet=True, clock=clock)
        self.seconds: list[float] = []
        self.total = 0

    def steps(self, items: Iterable[T], title: str, *, total: int | None = None, done: int = 0) -> Iterator[T]:
        if self.total:
            yield from items
            return
        listed = list(items)
        self.total = total or len(listed)
        for item in listed:
            started = self._clock()
            yield item
            self.seconds.append(self._clock() - started)
            if len(self.seconds) > 1 and sum(self.seconds[1:]) >= LONG:
                raise _Enough

    @property
    def foretold(self) -> float | None:
        """Seconds of all steps, by the mean of those that count; None if there were none."""
        counted = self.seconds[1:] or self.seconds
        return sum(counted) / len(counted) * self.total if counted else None


def _timed(
    work: Callable[[Stage], object], name: str, seed: int, world: World, clock: Callable[[], float] = time.monotonic
) -> float | None:
    """Return the seconds of all steps (epochs, trials) of some work, judged by some of them; None if it has none."""
    watch = _Stopwatch(clock)
    with contextlib.suppress(_Enough):
        work(Stage(name, seed, world, watch))
    return watch.foretold


def _little(data: Dataset, batch_size: int) -> tuple[Dataset, float]:
    """Return the data with a few batches to train on, as great a share of the images to validate on, and this share."""
    count = min(len(data.train), BATCHES * batch_size)
    share = count / len(data.train)
    few = math.ceil(share * len(data.validation))
    return replace(data, train=data.train[torch.arange(count)], validation=data.validation[:few]), share


def _search(chosen: Recipe, data: Dataset, world: World) -> Expected:
    if not chosen.search.batch_sizes:
        return Expected("search", 0.0, "nothing is trained")
    little, share = _little(data, max(chosen.search.batch_sizes))
    seconds = _timed(
        lambda stage: chosen.search.search(chosen.space, little, chosen.threat, stage), "search", chosen.seed, world
    )
    return Expected("search", seconds and seconds / share, "")


def _training(chosen: Recipe, network: nn.Module, data: Dataset, world: World, about: str) -> Expected:
    little, share = _little(data, max(chosen.train.batch_sizes))
    with seeded(chosen.seed, "budget"):
        seconds = _timed(
            lambda stage: fit(network, little, chosen.threat, chosen.train, stage), "train", chosen.seed, world
        )
    return Expected("train", seconds and seconds / share * chosen.derive.count, about)


def _attacks(chosen: Recipe, network: nn.Module, data: Dataset, world: World, count: int) -> Expected:
    plan: EvaluationPlan = chosen.evaluation
    threat = chosen.threat.with_epsilon(chosen.threat.epsilon * NOTHING_FALLS)
    test = data.test[: plan.num_images]
    # An untrained network is wrong about most images, and these are not attacked.
    with torch.no_grad():
        answers = [logits_of(network, chunk).argmax(1) for chunk in test.images.split(plan.batch_size)]
    right = ImageSet.unchecked(test.pixels, torch.cat(answers), test.max_value)

    def seconds(strongest: bool) -> float:
        costs = plan.costs(network, right, [threat], world, chosen.seed, strongest=strongest)
        return sum(cost.seconds for cost in costs)

    weak, strong = seconds(False), seconds(True)
    # The best network and the ensemble meet the strongest attacks; an ensemble is all networks at once.
    total = strong if count == 1 else strong + (count - 1) * weak + count * (weak + strong)
    return Expected("attack", total, f"at most, if no image of {len(test)} falls")


def _bounds(chosen: Recipe, network: nn.Module, data: Dataset, world: World) -> Expected:
    """Return the time of certificates and, for several networks, of the bounds that the ensemble is fitted to."""
    plan, count = chosen.certification, chosen.derive.count
    if refusal(network, data.test):
        # Those of the networks that a search finds may have some.
        return Expected("certify", None, "the operations of the network that was tried have no sound bounds")
    test, validation = data.test[: plan.num_images], data.validation[: chosen.ensemble.num_images]
    threats = [chosen.threat.with_epsilon(epsilon) for epsilon in plan.epsilons]
    each = _seconds_of_bounds(plan.bound, network, test, threats)
    if count == 1:
        return Expected("certify", each * len(test) / (world.size * world.workers), f"{len(test)} images")
    # Both ensembles are all networks at once.
    total = 3 * count * len(test) * each
    fitted = _seconds_of_bounds(chosen.ensemble.bound or plan.bound, network, validation, [chosen.ensemble_threat])
    total += count * len(validation) * fitted
    about = f"{len(test)} images, and {len(validation)} on which the ensemble is fitted"
    return Expected("certify", total / (world.size * world.workers), about)


def _seconds_of_bounds(bound: Bound, network: nn.Module, images: ImageSet, threats: Sequence[ThreatModel]) -> float:
    """Return the seconds that a network's bounds take for an image."""
    few = images[:4]
    if (slow := slow_kind(bound)) is not None:
        return sum(foretold_seconds(slow, network, few[:1].images, few[:1].labels, threats))
    started = time.monotonic()
    certify(network, few, threats[0], bound=bound, epsilons=[threat.epsilon for threat in threats])
    return (time.monotonic() - started) / len(few)
