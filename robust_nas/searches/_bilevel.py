"""What the differentiable searches share: their settings, and the epochs of an `Alternation`.

What is minimised is a training method's; what a mixture is, is a relaxation's.
"""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from robust_nas.attacks import Attack
from robust_nas.attacks.fgsm import FGSM
from robust_nas.attacks.pgd import PGD
from robust_nas.errors import InputError
from robust_nas.registry import name_of
from robust_nas.searches import Search, SearchResult
from robust_nas.searches._alternation import Alternation
from robust_nas.searches._prior import Prior
from robust_nas.searches._resources import Resource
from robust_nas.searches._smoothness import Smoothness
from robust_nas.searches._stability import Watch
from robust_nas.spaces import mixed
from robust_nas.training import TrainingMethod
from robust_nas.training.pgd_at import PGDAT

if TYPE_CHECKING:
    from robust_nas.datasets import Dataset
    from robust_nas.run_dir import Stage
    from robust_nas.spaces import Space
    from robust_nas.supernet import Supernet
    from robust_nas.supernet._relaxation import Relaxation
    from robust_nas.threat import ThreatModel


@dataclass(frozen=True, kw_only=True)
class Bilevel(Search):
    """What the differentiable searches share.

    Args:
        epochs: passes over the training split.
        batch_size: global batch of either level.
        objective: what both levels minimise: a training method, with its examples and its loss. `standard` searches on
            clean images, `pgd_at` on adversarial ones, `ibp` on a bound of the loss over the ball.
        hold_sample: whether the loss uses the mixture that its examples were crafted against, or a fresh one.
        single_path: whether the weights learn on one operation per edge, drawn by the mixture's weights, in place of
            the mixture: a quarter of the time, and what a found cell is made of. Alpha learns on mixtures all the same.
        alpha_interval: steps of the weights for each step of alpha.
        order: whether alpha's gradient takes the weights as they are ("first"), or as they are after a step on a
            training batch, through which it is differentiated ("second"; DARTS, equation 7, without its
            approximation). Twice the time and memory and more.
        learning_rate: of the weights (SGD, momentum 0.9), falling to `final_learning_rate` along a cosine.
        final_learning_rate: where the cosine ends.
        weight_decay: of the weights.
        gradient_clip: largest norm of the weights' gradient; alpha's gradient has no part in it.
        alpha_learning_rate: of alpha (Adam, betas 0.5 and 0.999).
        anchor_scale: the weight of |alpha|^2 / 2, which holds the mixtures near their start.
        smoothness: a regulariser of alpha's loss: the curvature of the loss, or the Jacobian, at the images.
        resource: a limit on what the expected network costs, which alpha pays for or keeps to.
        prior: where alpha starts: what a score of untrained networks says of the operations; near 0, if not given.
        watch: what tells that the search collapses, and what is done then; nothing, if not given.
        auxiliary_skip: how much of an edge's input is added to its mixture at the start, falling linearly to 0 at the
            end (DARTS-, arXiv:2009.01027). It carries the gradient that alpha would otherwise choose skip connections
            for.
        alpha_frozen: share of a stage's iterations, from its start, in which only the weights learn.
        kept_operations: progressive shrinking: how many operations an edge has in each stage of the search; stages take
            equally many epochs. `[5, 3]` leaves out the two of the least weight at half-time. All, if not given.
        partial_channels: k for each stage: operations see 1/k of the channels, the others pass by, and all
            are shuffled. `[4, 2]`.
        widening: share of a stage's iterations over which the channels that it adds cease to pass by.
        epsilon_warm_up: share of the iterations, from the start, in which epsilon is almost 0.
        epsilon_ramp: share of the iterations after that, over which epsilon grows linearly to its full size.
        validation_attack: attacks the supernet at the mean mixture after each epoch.
        validation_images: how many of the validation split that is for, the first ones; all, if not given.

    Raises:
        InputError: for a value outside its range.
    """

    epochs: int = 50
    batch_size: int = 64
    objective: TrainingMethod = field(default_factory=lambda: PGDAT(attack=FGSM(random_start=True, batch_norm="batch")))
    hold_sample: bool = True
    single_path: bool = False
    alpha_interval: int = 1
    order: Literal["first", "second"] = "first"
    learning_rate: float = 0.025
    final_learning_rate: float = 0.001
    weight_decay: float = 3e-4
    gradient_clip: float = 5.0
    alpha_learning_rate: float = 3e-4
    anchor_scale: float = 1e-3
    smoothness: Smoothness | None = None
    resource: Resource | None = None
    prior: Prior | None = None
    watch: Watch | None = None
    auxiliary_skip: float = 0.0
    alpha_frozen: float = 0.0
    kept_operations: tuple[int, ...] = ()
    partial_channels: tuple[int, ...] = ()
    widening: float = 0.2
    epsilon_warm_up: float = 0.0
    epsilon_ramp: float = 0.0
    validation_attack: Attack = field(default_factory=lambda: PGD(steps=10))
    validation_images: int | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "alpha_interval"):
            if getattr(self, name) < 1:
                raise InputError(f"search.{name} must be at least 1, but got {getattr(self, name)}.")
        for name in ("alpha_frozen", "epsilon_warm_up", "epsilon_ramp", "widening"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"search.{name} is a share and must be in [0, 1], but got {getattr(self, name)}.")
        if self.epsilon_warm_up + self.epsilon_ramp > 1:
            raise InputError(
                f"search.epsilon_warm_up and search.epsilon_ramp must be at most 1 together, but got "
                f"{self.epsilon_warm_up} and {self.epsilon_ramp}; epsilon would not reach its full size."
            )
        for name in ("final_learning_rate", "weight_decay", "anchor_scale", "auxiliary_skip"):
            if getattr(self, name) < 0:
                raise InputError(f"search.{name} must not be negative, but got {getattr(self, name)}.")
        for name in ("learning_rate", "alpha_learning_rate", "gradient_clip"):
            if not getattr(self, name) > 0:
                raise InputError(f"search.{name} must be above 0, but got {getattr(self, name)}.")
        if self.validation_images is not None and self.validation_images < 1:
            raise InputError(f"search.validation_images must be at least 1, but got {self.validation_images}.")
        if self.order == "second" and self.smoothness is not None:
            raise InputError("search.smoothness has second derivatives already; set search.order to 'first'.")
        if self.order == "second" and self.objective.bounds_network:
            raise InputError(
                f"search.order 'second' differentiates a step of the weights, which '{name_of(self.objective)}' cannot "
                "be taken through; set it to 'first'."
            )
        self._check_stages()
        if not self.objective.fits_searches:
            raise InputError(
                f"search.objective cannot be '{name_of(self.objective)}': replayed batches and mixtures of batch "
                "norms are for trainings; take another method, such as pgd_at."
            )

    def _check_stages(self) -> None:
        stages = self.num_stages
        for name, least in (("kept_operations", 1), ("partial_channels", 1)):
            given = getattr(self, name)
            if given and (len(given) != stages or list(given) != sorted(given, reverse=True) or given[-1] < least):
                raise InputError(
                    f"search.{name} has one number for each of the {stages} stages, {least} at least and none above "
                    f"the one before, but got {list(given)}."
                )
        if self.epochs < stages:
            raise InputError(
                f"search.epochs must be at least 1 for each of the {stages} stages, but got {self.epochs}."
            )

    def check(self, space: Space) -> None:
        """Raise InputError unless the operations that stages keep are those of the space; see `Search`."""
        mixable, kept = mixed(space, name_of(self)), list(self.kept_operations)
        if kept and kept[0] != len(mixable.operations):
            raise InputError(
                f"search.kept_operations must begin with all {len(mixable.operations)} operations of {space.name}, of "
                f"which nothing is known yet, but got {kept}."
            )
        if kept and kept[-1] == 1 and mixable.choices != mixable.operations:
            raise InputError(
                f"search.kept_operations must leave 2 operations or more in {space.name}: a single one could be none, "
                f"which its architectures do not have, but got {kept}."
            )

    def make_supernet(self, space: Space, data: Dataset) -> Supernet:
        """Return the supernet of the first stage.

        Raises:
            InputError: if it does not take the partial channels of one of the stages.
        """
        mixable, (partial, *later) = mixed(space, name_of(self)), self.partial_channels or (1,)
        supernet = mixable.supernet(data, partial=partial)
        for other in {*later} - {partial}:
            mixable.supernet(data, partial=other)  # refused here, if at all, and not in the middle of the search
        return supernet

    def rehearse(self, space: Space, data: Dataset) -> None:
        """Raise InputError for what the search is refused for when it begins."""
        self.make_supernet(space, data)
        if self.resource is not None and self.resource.hard:
            self.resource.cost(mixed(space, name_of(self)), data, data.train.device)

    def check_schedule(self, name: str) -> None:
        """Raise InputError unless both ends of a schedule are above 0."""
        if min(getattr(self, name)) <= 0:
            raise InputError(f"search.{name} must be above 0 at the start and the end, but got {getattr(self, name)}.")

    @property
    def batch_sizes(self) -> list[int]:
        """The global batch of either level."""
        return [self.batch_size]

    @property
    def num_stages(self) -> int:
        """Stages of progressive shrinking; 1 without it."""
        return max(len(self.kept_operations), len(self.partial_channels), 1)

    def first_epoch(self, stage: int) -> int:
        """Return the epoch in which a stage of progressive shrinking begins."""
        return -(-stage * self.epochs // self.num_stages)

    @abstractmethod
    def relaxation(self, num_edges: int, num_operations: int, seed: int) -> Relaxation:
        """Return what mixtures are drawn from."""

    def learning_rate_at(self, share: float) -> float:
        """Return the weights' learning rate when a share of the search is over."""
        low, high = self.final_learning_rate, self.learning_rate
        return low + (high - low) * (1 + math.cos(math.pi * share)) / 2

    def anchored(self, relaxation: Relaxation) -> Tensor:
        """Return what is added to alpha's loss, times `anchor_scale`."""
        return relaxation.anchor("l2")

    def search(self, space: Space, data: Dataset, threat: ThreatModel, stage: Stage) -> SearchResult:
        """Search `space`; see `Search.search`.

        Raises:
            InputError: if a batch does not fit, or the loss is no longer a number.
        """
        at_work = Alternation(self, space, data, threat, stage)
        started = time.monotonic()
        done, state = stage.resume()
        seconds, trajectory = 0.0, []
        if state is None:
            trajectory = [at_work.snapshot(0)]
        else:
            at_work.load_state(state)
            seconds, trajectory = state["seconds"], state["trajectory"]
        for epoch in stage.progress.steps(at_work.epochs(done), "search", total=self.epochs, done=done):
            mean_loss = at_work.learn(epoch)
            if not math.isfinite(mean_loss):
                raise InputError(
                    f"The search's loss is {mean_loss} in epoch {epoch + 1}; set search.learning_rate lower "
                    f"than {self.learning_rate}."
                )
            snapshot = {**at_work.snapshot(epoch + 1), "loss": mean_loss}
            seconds, started = seconds + time.monotonic() - started, time.monotonic()
            trajectory.append({**snapshot, "seconds": seconds})
            stage.log(epoch + 1, **trajectory[-1])
            at_work.watch(trajectory)
            stage.save(epoch + 1, {**at_work.state(), "seconds": seconds, "trajectory": trajectory})
        # A search that its watch has ended is left before the skip is gone, which what is derived does not have.
        at_work.supernet.add_skip(0.0)
        record = {"trajectory": trajectory, "seconds": seconds, "hold_sample": self.hold_sample}
        record["epoch"] = trajectory[-1]["epoch"]
        if self.watch is not None:
            record["collapses"] = at_work.collapses
            if at_work.collapses and at_work.collapses[-1]["epoch"] == record["epoch"]:
                record["epoch"] = at_work.collapses[-1]["back_to"]
        return SearchResult(space, at_work.relaxation.mean().tolist(), at_work.supernet, record)
