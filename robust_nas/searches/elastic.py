"""Search along depth and width with one elastic supernet, whose networks are parts of its largest one."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from robust_nas.attacks import Attack
from robust_nas.attacks.pgd import PGD
from robust_nas.core.errors import InputError
from robust_nas.core.registry import name_of
from robust_nas.core.seeds import seed_at, seeded
from robust_nas.datasets import DataForm
from robust_nas.models.complexity import within_memory
from robust_nas.samplers import Questions, Sampler
from robust_nas.samplers.evolution import Evolution
from robust_nas.searches import Search, SearchResult
from robust_nas.searches._limited import Limit, LimitedSpace
from robust_nas.searches._measured import believed, check_replay
from robust_nas.searches._settings import Course, Curriculum, Validation, WeightSettings
from robust_nas.searches._subnetworks import SubnetworkTrainer
from robust_nas.spaces import ElasticSupernet, elastic

if TYPE_CHECKING:
    from robust_nas.datasets import Dataset
    from robust_nas.runtime.stages import Stage
    from robust_nas.spaces import Space
    from robust_nas.threat import ThreatModel


@dataclass(frozen=True, kw_only=True)
class Elastic(Search, Validation, Curriculum, WeightSettings, Course):
    """Train networks of all depths and widths at once with shared weights, then choose among them by these weights.

    A network of fewer blocks has the first blocks of each stage (Once-for-all, Cai et al. 2020, arXiv:1908.09791), one
    of fewer channels the first channels of each layer (Slimmable networks, Yu et al. 2019, arXiv:1812.08928). Batch
    norm has the batch's statistics in training, and statistics measured anew on training images after it. No stage of
    the training leaves networks out (BigNAS, arXiv:2003.11142; Once-for-all shrinks progressively).

    Args:
        sandwich: whether the largest and the smallest network learn in every step, beside the random ones; the
            networks' gradients are summed (US-Nets, Yu & Huang 2019, arXiv:1903.05134, section 3.2).
        num_random: random networks that learn in every step.
        distillation: whether all networks but the largest learn its probabilities in place of the labels, each at
            images that are crafted against itself (arXiv:1903.05134, section 3.3, where they are clean).
        resource: a limit that all networks keep to that are drawn in training or measured. The largest network of a
            step has the largest of each option that a network within the limit has, and may be beyond it itself.
        sampler: chooses the next architecture to measure.
        trials: architectures that are measured with the shared weights; equivalent ones count once.
        attack: attacks them; they are ranked by their accuracy under it.
        num_images: validation images that measure them, the first ones; all, if not given.

    Raises:
        InputError: for a value outside its range, distillation without the sandwich rule, or an objective that bounds
            the network.
    """

    sandwich: bool = True
    num_random: int = 2
    distillation: bool = True
    resource: Limit | None = None
    sampler: Sampler = field(default_factory=Evolution)
    trials: int = 50
    attack: Attack = field(default_factory=lambda: PGD(steps=10))
    num_images: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        least = {"trials": 1, "num_images": 1, "num_random": 0 if self.sandwich else 1}
        for name, low in least.items():
            if (value := getattr(self, name)) is not None and value < low:
                raise InputError(f"search.{name} must be at least {low}, but got {value}.")
        if self.distillation and not self.sandwich:
            raise InputError(
                "search.distillation has the largest network as its teacher, which learns in every step with "
                "search.sandwich alone; set distillation to false, or sandwich to true."
            )
        if self.objective.bounds_network:
            raise InputError(
                f"search.objective '{name_of(self.objective)}' bounds the network at running statistics of batch norm, "
                "which networks with shared weights have none of; take another one, such as pgd_at."
            )

    @property
    def batch_sizes(self) -> list[int]:
        """The global batch."""
        return [self.batch_size]

    def check(self, space: Space) -> None:
        """Raise InputError unless depth and width are all that `space` decides."""
        elastic(space, name_of(self))

    def rehearse(self, space: Space, data: Dataset) -> None:
        """Raise InputError for what the search is refused for when it begins."""
        self._supernet(self._within(space, data), data, prepare_at=0)

    def _within(self, space: Space, data: Dataset) -> LimitedSpace:
        return LimitedSpace(elastic(space, name_of(self)), DataForm.of(data), self.resource)

    def _supernet(self, within: LimitedSpace, data: Dataset, prepare_at: int) -> ElasticSupernet:
        """Return a new supernet of the options that there are within the limit."""
        options = {name: within.decisions[name] for name in within.space.sizes}
        with within_memory(f"The supernet of {within.name}"):
            return ElasticSupernet(
                within.space, data, options, lambda network: self.objective.prepare(network, prepare_at)
            )

    def supernet_of(self, space: Space, data: Dataset, structure: Mapping[str, Any]) -> ElasticSupernet:
        """Return a supernet that a search's weights fit; see `Search.supernet_of`."""
        return ElasticSupernet(elastic(space, name_of(self)), data, structure["sizes"])

    def search(self, space: Space, data: Dataset, threat: ThreatModel, stage: Stage) -> SearchResult:
        """Search `space`; see `Search.search`.

        Raises:
            InputError: for a space or a limit that it cannot search, if the loss is no longer a number, or if the
                sampler asks other questions than before an interruption.
        """
        self.check(space)
        within = self._within(space, data)
        with seeded(stage.seed, "search", "weights"):
            supernet = self._supernet(within, data, seed_at(stage.seed, "search", "prepare"))
        supernet.to(stage.world.device)
        trainer = SubnetworkTrainer(self, supernet, within, data, threat, stage)
        questions = Questions(self.sampler, within, 1, seed_at(stage.seed))  # refuses before the supernet is trained
        course = trainer.run()
        measuring, started = replace(stage, name=f"{stage.name}-trials"), time.monotonic()
        done, state = measuring.resume()
        trials: list[dict[str, Any]] = [] if state is None else state["trials"]
        trained = course.pop("seconds")
        seconds = trained if state is None else state["seconds"]
        images = data.validation[: self.num_images]
        left = stage.progress.steps(range(done, self.trials), "trials", total=self.trials, done=done)
        for number in range(1, self.trials + 1):
            if (architecture := questions.ask()) is None:
                break
            if number <= done:
                check_replay(number, trials[number - 1]["architecture"], str(architecture), stage)
                questions.answer(trials[number - 1]["values"])
                continue
            found = trainer.measure(architecture, images, self.attack)
            questions.answer([found["robust"]])
            costs = within.costs.of(architecture)
            trials.append(
                {"architecture": str(architecture), "values": [found["robust"]], "clean": found["clean"], **costs}
            )
            measuring.log(number, **trials[-1])
            seconds, started = seconds + time.monotonic() - started, time.monotonic()
            measuring.save(number, {"trials": trials, "seconds": seconds})
            next(left, None)
        next(left, None)
        measuring.finish()
        result = believed(space, supernet, trials, seconds)
        return replace(result, record={**result.record, "elastic": course})
