"""Attacks: value objects that are applied to a model.

One file is one attack: a frozen, keyword-only dataclass with `perturb`. `attacks.get("pgd")`, `attacks.names()`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from robust_nas.errors import InputError
from robust_nas.registry import Group

if TYPE_CHECKING:
    from torch import Tensor, nn

    from robust_nas.threat import ThreatModel


@runtime_checkable
class Attack(Protocol):
    """What every attack does."""

    def perturb(
        self, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, *, seed: int = 0
    ) -> Tensor:
        """Return adversarial images [B, C, H, W], detached, inside `threat` around `images`.

        `model` maps [0, 1] images to logits [B, K]; its mode, parameters, gradients and buffers are left as they
        were. `labels` is [B]. The result depends on nothing but the arguments: equal seeds give equal images.
        """


def check_norm(attack: Attack, threat: ThreatModel) -> None:
    """Raise InputError if an attack is not for the threat's norm: an attack for some norms only names them, `norms`."""
    known = getattr(attack, "norms", (threat.norm,))
    if threat.norm not in known:
        raise InputError(
            f"{type(attack).__name__} is for {' and '.join(known)}, but got an {threat.norm} threat model; "
            "use apgd and fab instead."
        )


def check_classes(attack: Attack, num_classes: int) -> None:
    """Raise InputError if a model has too few classes for an attack: one that needs more than 2 says so, `classes`."""
    needed = getattr(attack, "classes", 2)
    if num_classes < needed:
        raise InputError(
            f"{type(attack).__name__} needs at least {needed} classes (its difference of logits ratio compares that "
            f"many logits), but the model has {num_classes}; use apgd, fab and square instead."
        )


def check_data(attack: Attack, threat: ThreatModel, image_shape: tuple[int, int, int], num_classes: int) -> None:
    """Raise InputError for what an attack would refuse of a data set, before anything is searched or trained.

    An attack that needs more than its norm and classes has a method `check` for it.
    """
    check_norm(attack, threat)
    check_classes(attack, num_classes)
    if (own := getattr(attack, "check", None)) is not None:
        own(threat, image_shape)


def left_out(attack: Attack, num_classes: int) -> tuple[str, ...]:
    """Which of its parts an attack leaves out for so few classes: one of several parts says so, `left_out`."""
    own = getattr(attack, "left_out", None)
    return tuple(own(num_classes)) if callable(own) else ()


@runtime_checkable
class Continuing(Attack, Protocol):
    """An attack that can begin where another one ended."""

    def continue_from(
        self, model: nn.Module, points: Tensor, images: Tensor, labels: Tensor, threat: ThreatModel, *, seed: int = 0
    ) -> Tensor:
        """Return what `perturb` does, with `points` [B, C, H, W] of the ball as the first start."""


_GROUP = Group(__name__, "Attack", "perturb")
get, names = _GROUP.get, _GROUP.names
