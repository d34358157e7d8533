"""Threat models: which perturbed images an adversary may send.

Images are in [0, 1] and epsilon is in the same pixel units. `ThreatModel.around(images)` is the set of allowed images
around each image: it draws random starts, takes steepest-ascent steps and projects. A returned image is inside the
ball and inside [0, 1] exactly, in real arithmetic and not only up to float32 rounding.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal, Protocol, get_args

from pydantic import BeforeValidator

from robust_nas.errors import InputError
from robust_nas.pixels import parse_pixels

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Norm = Literal["linf", "l2"]


Pixels = Annotated[float, BeforeValidator(parse_pixels)]
"""A length in pixel units of [0, 1]; configuration files may write it as a fraction."""


def check_pixels(name: str, value: float | str, *, low: float = 0.0, high: float = 1.0) -> float:
    """Return `value` in pixel units if it is in (low, high].

    Raises:
        InputError: naming `name`, and suggesting k/255 for what looks like units of 0..255.
    """
    length = parse_pixels(value)
    if not low < length <= high:
        looks_like_bytes = high <= 1 < length <= 255
        hint = f" (pixels are in [0, 1]; did you mean {length:g}/255?)" if looks_like_bytes else ""
        raise InputError(f"{name} must be in ({low:g}, {high:g}]{hint}, but got {value}.")
    return length


@dataclass(frozen=True, kw_only=True)
class ThreatModel:
    """All images within `epsilon` of the original in a norm, and inside [0, 1].

    Args:
        norm: "linf" (largest change of one pixel) or "l2" (Euclidean length of the change).
        epsilon: radius in pixel units of [0, 1]; a fraction may be given as text, such as "8/255".

    Raises:
        InputError: for an unknown norm, or an epsilon outside (0, 1] for linf and (0, 100] for l2.
    """

    norm: Norm = "linf"
    epsilon: Pixels = 8 / 255

    def __post_init__(self) -> None:
        if self.norm not in get_args(Norm):
            raise InputError(f"ThreatModel.norm must be one of {', '.join(get_args(Norm))}, but got '{self.norm}'.")
        high = 1.0 if self.norm == "linf" else 100.0
        object.__setattr__(self, "epsilon", check_pixels("ThreatModel.epsilon", self.epsilon, high=high))

    @classmethod
    def parse(cls, text: str) -> ThreatModel:
        """Return the threat model written as "linf:8/255"."""
        norm, separator, epsilon = text.partition(":")
        if not separator:
            raise InputError(f"A threat model is written as norm:epsilon, such as linf:8/255, but got '{text}'.")
        return cls(norm=norm, epsilon=parse_pixels(epsilon))  # type: ignore[arg-type]

    def with_epsilon(self, epsilon: float | str) -> ThreatModel:
        """Return this threat model at another radius."""
        return replace(self, epsilon=parse_pixels(epsilon))

    def ramped(self, done: float, ramp: float) -> ThreatModel:
        """Return this threat model when a share `done` of a training is over whose first `ramp` share is a ramp.

        Epsilon grows linearly from almost 0 to its full size.
        """
        return self if done >= ramp else self.with_epsilon(self.epsilon * max(done / ramp, 1e-6))

    def around(self, images: Tensor) -> Ball:
        """Return the allowed images around each of `images` [B, C, H, W].

        Raises:
            InputError: if `images` are not floating point numbers in [0, 1].
        """
        check_images(images)
        return LinfBall(images, self.epsilon) if self.norm == "linf" else L2Ball(images, self.epsilon)


def check_images(images: Tensor) -> None:
    """Raise InputError unless `images` is a [B, C, H, W] floating point tensor with values in [0, 1]."""
    if images.ndim != 4 or not images.is_floating_point():
        raise InputError(
            f"Images must be floating point numbers [B, C, H, W], but got {images.dtype} of shape {list(images.shape)}."
        )
    if images.numel() == 0:
        return
    low, high = (float(value) for value in images.detach().aminmax())
    if not (low >= 0.0 and high <= 1.0):
        raise InputError(
            f"Images must be in [0, 1], but got values from {low:g} to {high:g}; "
            "divide by 255, and leave normalisation to the model."
        )


class Ball(Protocol):
    """The allowed images around a batch of images."""

    def random(self, generator: torch.Generator) -> Tensor:
        """Return one point per image, drawn uniformly from the ball and then projected onto [0, 1]."""

    def project(self, points: Tensor) -> Tensor:
        """Return the allowed points [B, C, H, W] for `points`: nearest in the ball, clipped to [0, 1]."""

    def ascend(self, points: Tensor, gradient: Tensor, step_size: float | Tensor) -> Tensor:
        """Return the projected points after a step of length `step_size` of steepest ascent in the norm."""

    def contains(self, points: Tensor) -> Tensor:
        """Return [B] booleans: whether each point is allowed, in exact arithmetic on the float32 values."""


class LinfBall:
    """The box [x - epsilon, x + epsilon] of each image, cut with [0, 1]."""

    def __init__(self, images: Tensor, epsilon: float) -> None:
        import torch

        self._images, self._epsilon = images, epsilon
        exact = images.double()
        # Rounding x + epsilon to float32 can leave the ball by half a unit in the last place: step back inside.
        lower, upper = ((exact + offset).to(images.dtype) for offset in (-epsilon, epsilon))
        lower = torch.where(exact - lower.double() > epsilon, torch.nextafter(lower, images), lower)
        upper = torch.where(upper.double() - exact > epsilon, torch.nextafter(upper, images), upper)
        self.lower, self.upper = lower.clamp(0, 1), upper.clamp(0, 1)

    def random(self, generator: torch.Generator) -> Tensor:
        import torch

        noise = torch.empty_like(self._images).uniform_(-self._epsilon, self._epsilon, generator=generator)
        return self.project(self._images + noise)

    def project(self, points: Tensor) -> Tensor:
        return points.clamp(self.lower, self.upper)

    def ascend(self, points: Tensor, gradient: Tensor, step_size: float | Tensor) -> Tensor:
        return self.project(points + step_size * gradient.sign())

    def contains(self, points: Tensor) -> Tensor:
        inside = (points.double() - self._images.double()).abs() <= self._epsilon
        return (inside & (points >= 0) & (points <= 1)).flatten(1).all(1)


class L2Ball:
    """The Euclidean ball of each image, cut with [0, 1] (projection onto the ball, then onto the box)."""

    def __init__(self, images: Tensor, epsilon: float) -> None:
        self._images, self._epsilon = images, epsilon

    def random(self, generator: torch.Generator) -> Tensor:
        import torch

        direction = torch.empty_like(self._images).normal_(generator=generator)
        uniform = torch.rand(len(direction), device=direction.device, generator=generator)
        # The radius of a uniform point of a d-dimensional ball is U ** (1/d).
        radius = self._epsilon * uniform ** (1 / max(direction[0].numel(), 1))
        return self.project(self._images + _unit_l2(direction) * radius.view(-1, 1, 1, 1))

    def project(self, points: Tensor) -> Tensor:
        import torch

        # Clipping to [0, 1] moves every pixel towards the original, so it never leaves the ball. The factor keeps
        # the length below epsilon after the sum is rounded to float32.
        delta = points - self._images
        length = delta.double().flatten(1).norm(dim=1)
        radius = max(0.0, self._epsilon - 1e-7 * max(delta[0].numel(), 1) ** 0.5)
        scale = torch.where(length > radius, radius / length.clamp_min(1e-300), 1.0).to(points.dtype)
        return (self._images + delta * scale.view(-1, 1, 1, 1)).clamp(0, 1)

    def ascend(self, points: Tensor, gradient: Tensor, step_size: float | Tensor) -> Tensor:
        return self.project(points + step_size * _unit_l2(gradient))

    def contains(self, points: Tensor) -> Tensor:
        length = (points.double() - self._images.double()).flatten(1).norm(dim=1)
        return (length <= self._epsilon) & ((points >= 0) & (points <= 1)).flatten(1).all(1)


def _unit_l2(direction: Tensor) -> Tensor:
    # Scaled first: the squares of a sure model's tiny gradients would round to zero and stop an attack.
    direction = direction / direction.abs().flatten(1).amax(1).clamp_min(1e-37).view(-1, 1, 1, 1)
    return direction / direction.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
