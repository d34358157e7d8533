"""The settings of searches that train a supernet, by concern: each part checks its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from robust_nas.attacks import Attack
from robust_nas.attacks.fgsm import FGSM
from robust_nas.attacks.pgd import PGD
from robust_nas.core.config import Section
from robust_nas.core.errors import InputError
from robust_nas.core.registry import name_of
from robust_nas.searches._prior import Prior
from robust_nas.searches._resources import Resource
from robust_nas.searches._smoothness import Smoothness
from robust_nas.searches._stability import CollapseMonitor
from robust_nas.threat import epsilon_scale_at
from robust_nas.training import TrainingMethod
from robust_nas.training.pgd_at import PGDAT


@dataclass(frozen=True, kw_only=True)
class Course(Section):
    """The objective, and the length of the search.

    Args:
        epochs: passes over the training split.
        batch_size: global batch of either level.
        objective: of both levels: a training method, with its examples and its loss. `standard` searches on
            clean images, `pgd_at` on adversarial ones, `ibp` on a bound of the loss over the ball.
    """

    epochs: int = 50
    batch_size: int = 64
    objective: TrainingMethod = field(default_factory=lambda: PGDAT(attack=FGSM(random_start=True, batch_norm="batch")))

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_at_least_one(epochs=self.epochs, batch_size=self.batch_size)
        if not self.objective.fits_searches:
            raise InputError(
                f"search.objective cannot be '{name_of(self.objective)}': replayed batches and mixtures of batch "
                "norms are for trainings; take another method, such as pgd_at."
            )


@dataclass(frozen=True, kw_only=True)
class Objective(Course):
    """The objective of both levels on mixtures.

    Args:
        hold_sample: whether the loss uses the mixture that its examples were crafted against, or a fresh one.
    """

    hold_sample: bool = True


@dataclass(frozen=True, kw_only=True)
class Levels(Section):
    """The turns of weight steps and alpha steps.

    Args:
        single_path: whether the weights learn on one operation per edge, drawn by the mixture's weights, in place of
            the mixture: as in a found cell, and in a quarter of the time. Alpha learns on mixtures all the same.
        alpha_interval: steps of the weights for each step of alpha.
        order: whether alpha's gradient takes the weights as they are ("first"), or as they are after a step on a
            training batch, through which it is differentiated ("second"; DARTS, equation 7, without its
            approximation). Twice the time and memory and more.
    """

    single_path: bool = False
    alpha_interval: int = 1
    order: Literal["first", "second"] = "first"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_at_least_one(alpha_interval=self.alpha_interval)


@dataclass(frozen=True, kw_only=True)
class WeightSettings(Section):
    """The optimiser of the supernet's weights.

    Args:
        learning_rate: of the weights (SGD, momentum 0.9), falling to `final_learning_rate` along a cosine.
        final_learning_rate: the end of the cosine.
        weight_decay: of the weights.
        gradient_clip: largest norm of the weights' gradient; alpha's gradient has no part in it.
    """

    learning_rate: float = 0.025
    final_learning_rate: float = 0.001
    weight_decay: float = 3e-4
    gradient_clip: float = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_not_negative(final_learning_rate=self.final_learning_rate, weight_decay=self.weight_decay)
        _check_above_zero(learning_rate=self.learning_rate, gradient_clip=self.gradient_clip)

    def learning_rate_at(self, progress: float) -> float:
        """Return the weights' learning rate when a share of the search is over."""
        low, high = self.final_learning_rate, self.learning_rate
        return low + (high - low) * (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True, kw_only=True)
class AlphaSettings(Section):
    """The optimiser of alpha, its start, and its penalties and limits.

    Args:
        alpha_learning_rate: of alpha (Adam, betas 0.5 and 0.999).
        anchor_scale: the weight of |alpha|^2 / 2, which holds the mixtures near their start.
        smoothness: a regulariser of alpha's loss: the curvature of the loss, or the Jacobian, at the images.
        resource: a limit on the cost of the expected network, which alpha pays for or keeps to.
        prior: the start of alpha, by a score of untrained networks for each operation; near 0, if not given.
        watch: the monitor of collapses and its reaction; none, if not given.
    """

    alpha_learning_rate: float = 3e-4
    anchor_scale: float = 1e-3
    smoothness: Smoothness | None = None
    resource: Resource | None = None
    prior: Prior | None = None
    watch: CollapseMonitor | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_not_negative(anchor_scale=self.anchor_scale)
        _check_above_zero(alpha_learning_rate=self.alpha_learning_rate)


@dataclass(frozen=True, kw_only=True)
class AuxiliarySkip(Section):
    """A skip connection beside every mixture.

    Args:
        auxiliary_skip: share of an edge's input that is added to its mixture at the start, falling linearly to 0 at the
            end (DARTS-, arXiv:2009.01027). It carries the gradient for which alpha would otherwise choose skip
            connections.
    """

    auxiliary_skip: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_not_negative(auxiliary_skip=self.auxiliary_skip)


@dataclass(frozen=True, kw_only=True)
class Shrinking(Section):
    """The operations that are left in each stage of a search.

    Args:
        alpha_frozen: share of a stage's iterations, from its start, in which only the weights learn.
        kept_operations: progressive shrinking: number of operations on an edge in each stage of the search; stages take
            equally many epochs. `[5, 3]` leaves out the two of the least weight at half-time. All, if not given.
    """

    alpha_frozen: float = 0.0
    kept_operations: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_shares(alpha_frozen=self.alpha_frozen)


@dataclass(frozen=True, kw_only=True)
class Widening(Section):
    """The number of channels that operations see in each stage of a search.

    Args:
        partial_channels: k for each stage: operations see 1/k of the channels, the others pass by, and all
            are shuffled. `[4, 2]`.
        widening: share of a stage's iterations over which the channels that it adds cease to pass by.
    """

    partial_channels: tuple[int, ...] = ()
    widening: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_shares(widening=self.widening)


@dataclass(frozen=True, kw_only=True)
class Curriculum(Section):
    """The growth of epsilon.

    Args:
        epsilon_warm_up: share of the iterations, from the start, in which epsilon is almost 0.
        epsilon_ramp: share of the iterations after that, over which epsilon grows linearly to its full size.
    """

    epsilon_warm_up: float = 0.0
    epsilon_ramp: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_shares(epsilon_warm_up=self.epsilon_warm_up, epsilon_ramp=self.epsilon_ramp)
        if self.epsilon_warm_up + self.epsilon_ramp > 1:
            raise InputError(
                f"search.epsilon_warm_up and search.epsilon_ramp must be at most 1 together, but got "
                f"{self.epsilon_warm_up} and {self.epsilon_ramp}; epsilon would not reach its full size."
            )

    def epsilon_scale_at(self, progress: float) -> float:
        """Return the factor of epsilon when a share of the search is over."""
        return epsilon_scale_at(progress, self.epsilon_warm_up, self.epsilon_ramp)


@dataclass(frozen=True, kw_only=True)
class Validation(Section):
    """The measurements after each epoch.

    Args:
        validation_attack: attacks the supernet after each epoch: at the mean mixture; an elastic one as its largest and
            its smallest network.
        validation_images: number of validation images for that, the first ones; all, if not given.
    """

    validation_attack: Attack = field(default_factory=lambda: PGD(steps=10))
    validation_images: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.validation_images is not None:
            _check_at_least_one(validation_images=self.validation_images)


@dataclass(frozen=True, kw_only=True)
class SupernetSettings(Validation, Curriculum, Widening, AuxiliarySkip, WeightSettings, Objective):
    """The training of a supernet's weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_stages("partial_channels", self.partial_channels)
        if self.epochs < self.num_stages:
            raise InputError(
                f"search.epochs must be at least 1 for each of the {self.num_stages} stages, but got {self.epochs}."
            )

    def _check_stages(self, name: str, given: Sequence[int]) -> None:
        stages = self.num_stages
        if given and (len(given) != stages or list(given) != sorted(given, reverse=True) or given[-1] < 1):
            raise InputError(
                f"search.{name} has one number for each of the {stages} stages, 1 at least and none above the one "
                f"before, but got {list(given)}."
            )

    @property
    def num_stages(self) -> int:
        """Stages of other channels, or of other operations; 1 without any."""
        return max(len(self.partial_channels), 1)

    def first_epoch(self, stage: int) -> int:
        """Return the epoch in which a stage begins."""
        return -(-stage * self.epochs // self.num_stages)


@dataclass(frozen=True, kw_only=True)
class BilevelSettings(
    SupernetSettings,
    Validation,
    Curriculum,
    Widening,
    Shrinking,
    AuxiliarySkip,
    AlphaSettings,
    WeightSettings,
    Levels,
    Objective,
):
    """The training of a supernet's weights and alpha by turns, and the rules that its parts must agree on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_stages("kept_operations", self.kept_operations)
        if self.order == "second" and self.smoothness is not None:
            raise InputError("search.smoothness has second derivatives already; set search.order to 'first'.")
        if self.smoothness is not None and self.objective.bounds_network:
            raise InputError(
                f"search.smoothness is of ordinary passes, beside which '{name_of(self.objective)}' cannot bound the "
                "network; leave one of them out."
            )
        if self.order == "second" and self.objective.bounds_network:
            raise InputError(
                f"search.order 'second' differentiates a step of the weights, which '{name_of(self.objective)}' cannot "
                "be taken through; set it to 'first'."
            )

    @property
    def num_stages(self) -> int:
        """Stages of progressive shrinking; 1 without it."""
        return max(len(self.kept_operations), super().num_stages)

    def check_schedule(self, name: str, schedule: tuple[float, float]) -> None:
        """Raise InputError unless both ends of a schedule are above 0."""
        if min(schedule) <= 0:
            raise InputError(f"search.{name} must be above 0 at the start and the end, but got {schedule}.")


def _check_at_least_one(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise InputError(f"search.{name} must be at least 1, but got {value}.")


def _check_shares(**values: float) -> None:
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise InputError(f"search.{name} is a share and must be in [0, 1], but got {value}.")


def _check_not_negative(**values: float) -> None:
    for name, value in values.items():
        if value < 0:
            raise InputError(f"search.{name} must not be negative, but got {value}.")


def _check_above_zero(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise InputError(f"search.{name} must be above 0, but got {value}.")
