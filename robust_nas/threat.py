"""Threat models: the perturbed images that an adversary may send.

Images are in [0, 1] and epsilon is in the same pixel units. `ThreatModel.around(images)` is the set of allowed images
around each image: it places random starts, takes steepest-ascent steps and projects. A returned image is inside the
ball and inside [0, 1] exactly, in real arithmetic and not only up to float32 rounding.
"""

from __future__ import annotations

import contextlib
import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal, Protocol, Self, get_args

from pydantic import BeforeValidator

from robust_nas.core.checks import check_type
from robust_nas.core.errors import InputError
from robust_nas.core.pixels import parse_pixels, unit_images

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Norm = Literal["linf", "l2", "l1"]

LARGEST_EPSILON = {"linf": 1.0, "l2": 100.0, "l1": 10_000.0}
"""The largest radius of each norm that is accepted."""

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


def epsilon_scale_at(done: float, warm_up: float, ramp: float) -> float:
    """Return the factor of epsilon when a share `done` of a training is over, in [0, 1].

    It is 0 in the first `warm_up` share and grows linearly to 1 over the next `ramp` share.
    """
    begun = done - warm_up
    if begun >= ramp:
        return 1.0
    return begun / ramp if begun > 0 else 0.0


@dataclass(frozen=True, kw_only=True)
class ThreatModel:
    """All images within `epsilon` of the original in a norm, and inside [0, 1].

    Args:
        norm: "linf" (largest change of one pixel), "l2" (Euclidean length of the change) or "l1" (sum of the changes).
        epsilon: radius in pixel units of [0, 1]; a fraction may be given as text, such as "8/255".

    Raises:
        InputError: for an unknown norm, or an epsilon outside (0, 1] for linf, (0, 100] for l2 and (0, 10000] for l1.
    """

    norm: Norm = "linf"
    epsilon: Pixels = 8 / 255

    def __post_init__(self) -> None:
        if self.norm not in get_args(Norm):
            raise InputError(f"ThreatModel.norm must be one of {', '.join(get_args(Norm))}, but got '{self.norm}'.")
        high = LARGEST_EPSILON[self.norm]
        object.__setattr__(self, "epsilon", check_pixels("ThreatModel.epsilon", self.epsilon, high=high))

    @classmethod
    def parse(cls, text: str) -> ThreatModel:
        """Return the threat model written as "linf:8/255"."""
        check_type("A threat model", text, str, "written as norm:epsilon, such as linf:8/255")
        norm, separator, epsilon = text.partition(":")
        if not separator:
            raise InputError(f"A threat model is written as norm:epsilon, such as linf:8/255, but got '{text}'.")
        return cls(norm=norm, epsilon=parse_pixels(epsilon))  # type: ignore[arg-type]

    @classmethod
    def of(cls, given: ThreatModel | str) -> ThreatModel:
        """Return a threat model that is given as one, or as text for `parse`: what every Python call takes as threat.

        Raises:
            InputError: for anything else, such as a radius without a norm.
        """
        if isinstance(given, cls):
            return given
        if isinstance(given, str) and ":" in given:
            return cls.parse(given)
        advice = "such as rn.ThreatModel(epsilon=0.03), or its text, 'linf:0.03'"
        with contextlib.suppress(InputError):
            cls(epsilon=parse_pixels(given))  # type: ignore[arg-type]  # a radius, which needs a norm
            advice = f"which is written rn.ThreatModel(epsilon={given!r}), or as text, 'linf:{given}'"
        got = repr(given)[:100] if isinstance(given, str | float | int | None) else f"one {type(given).__name__}"
        raise InputError(f"A threat model is a norm and a radius, {advice}, but got {got}.")

    def with_epsilon(self, epsilon: float | str) -> ThreatModel:
        """Return this threat model at another radius."""
        return replace(self, epsilon=parse_pixels(epsilon))

    def grown(self, epsilon_scale: float) -> ThreatModel:
        """Return this threat model with a share of its epsilon, which is never quite 0 (see `epsilon_scale_at`)."""
        return self if epsilon_scale >= 1 else self.with_epsilon(self.epsilon * max(epsilon_scale, 1e-6))

    def around(self, images: Tensor) -> Ball:
        """Return the allowed images around each of `images` [B, C, H, W].

        Raises:
            InputError: if `images` are none.
        """
        kinds: dict[str, type[LinfBall | L2Ball | L1Ball]] = {"linf": LinfBall, "l2": L2Ball, "l1": L1Ball}
        return kinds[self.norm](unit_images(images), self.epsilon)

    def lengths(self, delta: Tensor) -> Tensor:
        """Return the norm of each change [B, C, H, W] in double precision, [B]."""
        order = {"linf": float("inf"), "l2": 2.0, "l1": 1.0}[self.norm]
        lengths: Tensor = delta.double().flatten(1).norm(p=order, dim=1)
        return lengths


class Ball(Protocol):
    """The allowed images around a batch of images."""

    def __getitem__(self, index: Tensor | slice) -> Ball:
        """Return the allowed images around some of the images, as `images[index]` chooses them."""

    def random(self, generator: torch.Generator) -> Tensor:
        """Return one point per image, drawn uniformly from the ball and then projected onto [0, 1]."""

    def at(self, uniform: Tensor) -> Tensor:
        """Return the random points that independent uniform numbers [B, C * H * W + 1] in (0, 1) stand for."""

    def project(self, points: Tensor) -> Tensor:
        """Return the allowed points [B, C, H, W] for `points`: nearest in the ball, clipped to [0, 1]."""

    def ascend(self, points: Tensor, gradient: Tensor, step_size: float | Tensor) -> Tensor:
        """Return the projected points after a step of length `step_size` of steepest ascent in the norm."""

    def contains(self, points: Tensor) -> Tensor:
        """Return [B] booleans: whether each point is allowed, in exact arithmetic on the float32 values."""

    def least(self, slopes: Tensor) -> Tensor:
        """Return the least <slopes, d>, [B, ...], over the allowed changes d, for slopes [B, ..., C * H * W].

        The result is never above the minimum, up to rounding, and its gradient is the place of the minimum.
        """

    def least_at(self, slopes: Tensor) -> Tensor:
        """Return an allowed change d [B, ..., C * H * W] at which <slopes, d> is least."""


class _Around:
    """The base class of the balls."""

    def __init__(self, images: Tensor, epsilon: float) -> None:
        self._images, self._epsilon = images, epsilon

    def __getitem__(self, index: Tensor | slice) -> Self:
        part = copy.copy(self)
        # Epsilon is a number; what are tensors belong to the images.
        part.__dict__ |= {key: value if key == "_epsilon" else value[index] for key, value in vars(self).items()}
        return part

    def random(self, generator: torch.Generator) -> Tensor:
        import torch

        shape = len(self._images), self._images[0:1].numel() + 1
        return self.at(torch.rand(shape, device=self._images.device, generator=generator))

    def at(self, uniform: Tensor) -> Tensor:
        raise NotImplementedError

    def least(self, slopes: Tensor) -> Tensor:
        least: Tensor = (slopes * self.least_at(slopes.detach())).sum(-1)
        return least

    def least_at(self, slopes: Tensor) -> Tensor:
        raise NotImplementedError

    def _room(self, slopes: Tensor) -> tuple[Tensor, Tensor]:
        """Return the room [B, ..., D] of every pixel down and up in [0, 1], shaped to go with `slopes`."""
        pixels = self._images.to(slopes.dtype).reshape(len(slopes), *[1] * (slopes.ndim - 2), slopes.shape[-1])
        return pixels, 1 - pixels


class LinfBall(_Around):
    """The box [x - epsilon, x + epsilon] of each image, cut with [0, 1]."""

    def __init__(self, images: Tensor, epsilon: float) -> None:
        import torch

        super().__init__(images, epsilon)
        exact = images.double()
        # Rounding x + epsilon to float32 can leave the ball by half a unit in the last place: step back inside.
        lower, upper = ((exact + offset).to(images.dtype) for offset in (-epsilon, epsilon))
        lower = torch.where(exact - lower.double() > epsilon, torch.nextafter(lower, images), lower)
        upper = torch.where(upper.double() - exact > epsilon, torch.nextafter(upper, images), upper)
        self.lower, self.upper = lower.clamp(0, 1), upper.clamp(0, 1)

    def at(self, uniform: Tensor) -> Tensor:
        noise = self._epsilon * _symmetric(uniform[:, :-1], self._images)
        return self.project(self._images + noise)

    def project(self, points: Tensor) -> Tensor:
        return points.clamp(self.lower, self.upper)

    def ascend(self, points: Tensor, gradient: Tensor, step_size: float | Tensor) -> Tensor:
        return self.project(points + step_size * gradient.sign())

    def contains(self, points: Tensor) -> Tensor:
        inside = (points.double() - self._images.double()).abs() <= self._epsilon
        return (inside & (points >= 0) & (points <= 1)).flatten(1).all(1)

    def least(self, slopes: Tensor) -> Tensor:
        rows = slopes.reshape(len(slopes), -1, slopes.shape[-1])
        down, up = (room.clamp_max(self._epsilon).transpose(1, 2) for room in self._room(rows))
        return (rows @ ((up - down) / 2) - rows.abs() @ ((up + down) / 2)).view(slopes.shape[:-1])

    def least_at(self, slopes: Tensor) -> Tensor:
        down, up = (room.clamp_max(self._epsilon) for room in self._room(slopes))
        return -down * (slopes > 0) + up * (slopes < 0)


class L2Ball(_Around):
    """The Euclidean ball of each image, cut with [0, 1] (projection onto the ball, then onto the box)."""

    def at(self, uniform: Tensor) -> Tensor:
        # Gaussian numbers have a uniform direction.
        direction = _symmetric(uniform[:, :-1], self._images).erfinv()
        # The radius of a uniform point of a d-dimensional ball is U ** (1/d).
        radius = self._epsilon * uniform[:, -1] ** (1 / max(uniform.shape[1] - 1, 1))
        return self.project(self._images + _unit_l2(direction) * _per_image(radius).to(direction.dtype))

    def project(self, points: Tensor) -> Tensor:
        import torch

        # Clipping to [0, 1] moves every pixel towards the original, so it never leaves the ball. The factor keeps
        # the length below epsilon after the sum is rounded to float32.
        delta = points - self._images
        length = delta.double().flatten(1).norm(dim=1)
        radius = max(0.0, self._epsilon - 1e-7 * max(delta[0:1].numel(), 1) ** 0.5)
        scale = torch.where(length > radius, radius / length.clamp_min(1e-300), 1.0).to(points.dtype)
        return (self._images + delta * _per_image(scale)).clamp(0, 1)

    def ascend(self, points: Tensor, gradient: Tensor, step_size: float | Tensor) -> Tensor:
        return self.project(points + step_size * _unit_l2(gradient))

    def contains(self, points: Tensor) -> Tensor:
        length = (points.double() - self._images.double()).flatten(1).norm(dim=1)
        return (length <= self._epsilon) & ((points >= 0) & (points <= 1)).flatten(1).all(1)

    def least(self, slopes: Tensor) -> Tensor:
        # Weak duality: min <s, d> + mu/2 (|d|^2 - epsilon^2) over the box alone is below the minimum for any mu >= 0.
        change, multiplier = self._least(slopes.detach())
        slack = change.square().sum(-1) - self._epsilon**2
        least: Tensor = (slopes * change).sum(-1) + multiplier / 2 * slack
        return least

    def least_at(self, slopes: Tensor) -> Tensor:
        change, _ = self._least(slopes)
        return change * (self._epsilon / change.norm(dim=-1, keepdim=True).clamp_min(self._epsilon))

    def _least(self, slopes: Tensor) -> tuple[Tensor, Tensor]:
        """Return the changes clamp(-s / mu) [B, ..., D] that minimise the Lagrangian, and the best mu [B, ...]."""
        import torch

        down, up = self._room(slopes)

        def at(multiplier: Tensor) -> Tensor:
            # Where mu is 0, a pixel goes to its end.
            change = torch.minimum(torch.maximum(-slopes / multiplier.clamp_min(1e-300), -down), up)
            return torch.where(slopes == 0, 0.0, change)

        def too_long(multiplier: Tensor) -> Tensor:
            return at(multiplier).norm(dim=-1, keepdim=True) > self._epsilon

        # Without the box, the change has length |s| / mu.
        low, high = torch.zeros_like(slopes[..., :1]), slopes.norm(dim=-1, keepdim=True) / self._epsilon
        to_corner = ~too_long(low)
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            longer = too_long(middle)
            low, high = torch.where(longer, middle, low), torch.where(longer, high, middle)
        multiplier = torch.where(to_corner, 0.0, high)
        return at(multiplier), multiplier.squeeze(-1)


class L1Ball(_Around):
    """The cross-polytope of each image, cut with [0, 1]; the projection is onto the intersection of the two."""

    def at(self, uniform: Tensor) -> Tensor:
        # Laplace numbers have a uniform direction in this norm.
        signed = _symmetric(uniform[:, :-1], self._images)
        direction = -signed.sign() * (1 - signed.abs()).log()
        direction = direction / _per_image(direction.abs().flatten(1).sum(1).clamp_min(1e-30))
        radius = self._epsilon * uniform[:, -1] ** (1 / max(uniform.shape[1] - 1, 1))
        return self.project(self._images + direction * _per_image(radius).to(direction.dtype))

    def project(self, points: Tensor) -> Tensor:
        """Return the nearest points of the intersection of ball and box (Croce and Hein 2021, arXiv:2103.01208)."""
        import torch

        exact = self._images.double()
        delta = (points.double() - exact).flatten(1)
        length = delta.abs()
        room = torch.where(delta > 0, 1 - exact.flatten(1), exact.flatten(1))
        # The nearest change has the lengths min(max(length - lambda, 0), room). Their sum over the pixels is
        # sum_j sign_j max(corner_j - lambda, 0): with the corners in descending order, it is known at each of them, and
        # linear from the last at which it is below the radius.
        corners = torch.cat([length, length - room], dim=1)
        signs = torch.ones_like(corners)
        signs[:, length.shape[1] :] = -1
        corners, order = corners.sort(dim=1, descending=True)
        signs = signs.gather(1, order)
        slope, offset = signs.cumsum(1), (signs * corners).cumsum(1)
        # Rounding the sums x + delta to float32 adds at most half a unit in the last place per pixel.
        radius = max(0.0, self._epsilon - 4e-8 * length.shape[1])
        below = (offset - slope * corners < radius).sum(1, keepdim=True).sub(1).clamp_min(0)
        threshold = (offset.gather(1, below) - radius) / slope.gather(1, below).clamp_min(1)
        shorter = torch.minimum((length - threshold.clamp_min(0)).clamp_min(0), room)
        outside = torch.minimum(length, room).sum(1, keepdim=True) > radius
        change = delta.sign() * torch.where(outside, shorter, torch.minimum(length, room))
        return (exact + change.view_as(exact)).to(points.dtype).clamp(0, 1)

    def ascend(self, points: Tensor, gradient: Tensor, step_size: float | Tensor) -> Tensor:
        """Return the projected points after the step of that length that gains most and stays in [0, 1].

        The pixels of the largest gradient go to their ends, one after the other, until the length is used up.
        """
        import torch

        steepness, order = gradient.flatten(1).abs().sort(dim=1, descending=True)
        up = gradient.flatten(1) > 0
        room = torch.where(up, 1 - points.flatten(1), points.flatten(1)).gather(1, order) * (steepness > 0)
        length = step_size.view(-1, 1) if isinstance(step_size, torch.Tensor) else step_size
        spent = room.cumsum(1)
        taken = torch.minimum(room, (length - (spent - room)).clamp_min(0))
        change = torch.zeros_like(taken).scatter(1, order, taken) * torch.where(up, 1, -1)
        return self.project(points + change.view_as(points) + 0 * gradient)  # a NaN stays one

    def contains(self, points: Tensor) -> Tensor:
        length = (points.double() - self._images.double()).abs().flatten(1).sum(1)
        return (length <= self._epsilon) & ((points >= 0) & (points <= 1)).flatten(1).all(1)

    def least_at(self, slopes: Tensor) -> Tensor:
        import torch

        # The steepest pixels go to their ends, one after the other, until epsilon is used up.
        down, up = self._room(slopes)
        steepness, order = slopes.abs().sort(dim=-1, descending=True)
        room = torch.where(slopes > 0, down, up).gather(-1, order) * (steepness > 0)
        spent = room.cumsum(-1)
        taken = torch.minimum(room, (self._epsilon - (spent - room)).clamp_min(0))
        return torch.zeros_like(slopes).scatter(-1, order, taken) * -slopes.sign()


_BISECTIONS = 60


def _symmetric(uniform: Tensor, like: Tensor) -> Tensor:
    """Return uniform numbers in (-1, 1), shaped as `like`, from ones in [0, 1]."""
    return (2 * uniform - 1).clamp(-1 + 1e-6, 1 - 1e-6).view_as(like).to(like.dtype)


def _per_image(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def _unit_l2(direction: Tensor) -> Tensor:
    # Scaled first: the squares of a sure model's tiny gradients would round to zero and stop an attack.
    direction = direction / _per_image(direction.abs().flatten(1).amax(1).clamp_min(1e-37))
    return direction / _per_image(direction.flatten(1).norm(dim=1).clamp_min(1e-12))
