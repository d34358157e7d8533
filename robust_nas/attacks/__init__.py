"""Attacks: value objects that are applied to a model.

One file is one attack: a frozen, keyword-only dataclass with `perturb` that inherits `Attack`. `attacks.get("pgd")`,
`attacks.names()`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from robust_nas.core.errors import InputError
from robust_nas.core.registry import Group, offered

if TYPE_CHECKING:
    from torch import Tensor, nn

    from robust_nas.attacks._draws import Draws as Draws
    from robust_nas.threat import Norm, ThreatModel


class Attack(ABC):
    """The base class of attacks; most attacks keep its defaults."""

    @property
    def norms(self) -> tuple[Norm, ...]:
        """The norms that it is for."""
        return "linf", "l2", "l1"

    @property
    def classes(self) -> int:
        """The number of classes that it needs."""
        return 2

    def check(self, threat: ThreatModel, image_shape: tuple[int, int, int]) -> None:
        """Raise InputError for what it would refuse of a data set, beside its norm and classes."""

    def stopping_early(self) -> Attack:
        """Return the attack that stops with a sample once it has fooled it, if it can: it fools no fewer samples."""
        return self

    @abstractmethod
    def perturb(
        self, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, *, seed: int = 0
    ) -> Tensor:
        """Return adversarial images [B, C, H, W], detached, inside `threat` around `images`.

        `model` maps [0, 1] images to logits [B, K]; its mode, parameters, gradients and buffers are left as they
        were. `labels` is [B]. The result depends on nothing but the arguments: equal seeds give equal images.
        """


def check_norm(attack: Attack, threat: ThreatModel) -> None:
    """Raise InputError if an attack is not for the threat's norm, or is no `Attack`."""
    if not isinstance(attack, Attack):
        raise InputError(f"An attack inherits robust_nas.attacks.Attack, but got {attack!r}, which does not.")
    if threat.norm not in attack.norms:
        raise InputError(
            f"{type(attack).__name__} is for {' and '.join(attack.norms)}, but got an {threat.norm} threat model; "
            "use apgd and fab instead."
        )


def check_classes(attack: Attack, num_classes: int) -> None:
    """Raise InputError if a model has too few classes for an attack."""
    if num_classes < attack.classes:
        raise InputError(
            f"{type(attack).__name__} needs at least {attack.classes} classes (its difference of logits ratio compares "
            f"that many logits), but the model has {num_classes}; use apgd, fab and square instead."
        )


def check_data(attack: Attack, threat: ThreatModel, image_shape: tuple[int, int, int], num_classes: int) -> None:
    """Raise InputError for what an attack would refuse of a data set, before anything is searched or trained."""
    check_norm(attack, threat)
    check_classes(attack, num_classes)
    attack.check(threat, image_shape)


def left_out(attack: Attack, num_classes: int) -> tuple[str, ...]:
    """The parts that an attack leaves out for so few classes."""
    return attack.left_out(num_classes) if isinstance(attack, Composed) else ()


class Composed(Attack):
    """An attack of several parts, of which some need more classes than others."""

    @abstractmethod
    def left_out(self, num_classes: int) -> tuple[str, ...]:
        """Return the parts that it leaves out for so few classes."""


class Continuing(Attack):
    """An attack that can begin where another one ended."""

    @abstractmethod
    def continue_from(
        self, model: nn.Module, points: Tensor, images: Tensor, labels: Tensor, threat: ThreatModel, *, seed: int = 0
    ) -> Tensor:
        """Attack as `perturb` does, with `points` [B, C, H, W] of the ball as the first start."""


class Minimising(Attack):
    """An attack that looks for the smallest change, however large."""

    @abstractmethod
    def nearest(
        self, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, *, seed: int = 0
    ) -> Tensor:
        """Return the nearest misclassified points that are found [B, C, H, W], in the norm of `threat`.

        Where there is none, a point that is not misclassified.
        """


_GROUP = Group(__name__, "Attack", "perturb")
get, names = _GROUP.get, _GROUP.names

__getattr__ = offered(__name__, {"Draws": "_draws"})
