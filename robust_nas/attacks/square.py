"""The Square attack: random search with square-shaped updates, by scores alone (arXiv:1912.00049)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robust_nas.attacks._draws import Draws
from robust_nas.attacks._model_state import (
    check_at_least,
    check_finite,
    choose,
    due,
    frozen,
    margin,
    misclassified,
    scores,
)
from robust_nas.errors import InputError
from robust_nas.threat import ThreatModel

# The share of the image that a square covers is halved after each of these iterations out of 10,000 (the authors'
# published schedule).
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)

# Random numbers are made for so many queries at a time.
_BLOCK = 50


class _Chance:
    """Each sample's own uniform random numbers [B, n], taken one after the other."""

    def __init__(self, numbers: Tensor) -> None:
        self._numbers, self._taken = numbers, 0

    def take(self, *shape: int) -> Tensor:
        """Return the next numbers, [B, *shape]."""
        count = math.prod(shape)
        taken = self._numbers[:, self._taken : self._taken + count]
        self._taken += count
        return taken.reshape(-1, *shape)

    def signs(self, *shape: int) -> Tensor:
        """Return 1 or -1, [B, *shape]."""
        return torch.where(self.take(*shape) < 0.5, -1.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Square:
    """The Square attack (Andriushchenko et al. 2020, arXiv:1912.00049, algorithms 1 to 3), black-box.

    It asks the model for logits only. A random proposal inside a square is kept if it makes the margin between the
    label's logit and the largest other one smaller. A fooled sample leaves the batch.

    Args:
        queries: the most forward passes spent on one sample.
        first_share: the share of the image that the first squares cover.

    Raises:
        InputError: if `queries` is below 1 or `first_share` is outside (0, 1].
    """

    queries: int = 5000
    first_share: float = 0.8

    def __post_init__(self) -> None:
        check_at_least("Square.queries", self.queries, 1)
        if not 0 < self.first_share <= 1:
            raise InputError(f"Square.first_share must be in (0, 1], but got {self.first_share}.")

    def perturb(
        self, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, *, seed: int = 0
    ) -> Tensor:
        """Return adversarial images [B, C, H, W], detached, inside `threat` around `images`."""
        images = images.detach()
        if len(images) == 0:
            return images.clone()
        if threat.norm == "l1":
            raise InputError("Square is for linf and l2, but got an l1 threat model; use apgd and fab instead.")
        channels, height, width = images.shape[1:]
        draws, per_query = Draws(images, seed), channels + 5
        start, propose = (_stripes, _flip_square) if threat.norm == "linf" else (_tiles, _move_square)
        with frozen(model):
            # At most one sign per channel and column, or per channel and tile.
            chance = _Chance(draws.uniform(channels * height * width, 0))
            ball, left = threat.around(images), torch.arange(len(images), device=images.device)
            points = ball.project(images + start(images, threat.epsilon, chance))
            found = points.clone()
            logits = scores(model, points)
            check_finite(self, logits)
            highest, fooled = margin(logits, labels), misclassified(logits, labels)
            for query in range(1, self.queries):
                if due(images, query) and fooled.any():
                    found[left], stay = points, ~fooled
                    left, points, images, labels = left[stay], points[stay], images[stay], labels[stay]
                    highest, fooled, ball = highest[stay], fooled[stay], ball[stay]
                    numbers = draws[left].uniform(_BLOCK * per_query, 1 + (query - 1) // _BLOCK)
                if len(left) == 0:
                    return found
                place = (query - 1) % _BLOCK
                if place == 0:
                    numbers = draws[left].uniform(_BLOCK * per_query, 1 + (query - 1) // _BLOCK)
                chance = _Chance(numbers[:, place * per_query : (place + 1) * per_query])
                # Algorithm 1, lines 4-6: propose a change inside a square and project.
                side = self._side(query, height, width)
                candidates = ball.project(images + propose(points - images, threat.epsilon, side, chance))
                logits = scores(model, candidates)
                values, wrong = margin(logits, labels), misclassified(logits, labels)
                # Lines 7-9: keep it if it is better.
                points = choose((values > highest) | wrong, candidates, points)
                highest, fooled = torch.maximum(values, highest), fooled | wrong
            check_finite(self, logits, highest)
            found[left] = points
        return found

    def _side(self, query: int, height: int, width: int) -> int:
        """Return the side of the square: its area is the scheduled share of the image."""
        iteration = (query - 1) * 10_000 / self.queries
        share = self.first_share / 2 ** sum(iteration > halving for halving in _HALVINGS)
        return min(max(round(math.sqrt(share * height * width)), 1), height, width)


def _stripes(images: Tensor, epsilon: float, chance: _Chance) -> Tensor:
    """Return vertical stripes one pixel wide, epsilon or -epsilon at random in every channel (section 3.3)."""
    _, channels, _, width = images.shape
    return epsilon * chance.signs(channels, 1, width).to(images).expand_as(images)


def _flip_square(delta: Tensor, epsilon: float, side: int, chance: _Chance) -> Tensor:
    """Return `delta` moved by 2 epsilon or -2 epsilon in every channel of one square per sample (algorithm 2)."""
    batch, channels, height, width = delta.shape
    window = _windows(delta, side, chance)
    signs = chance.signs(channels, 1, 1).to(delta)
    # A change that moves nothing would waste a query; the authors draw again, here the signs are turned round.
    inside = torch.zeros(batch, 1, height * width, dtype=torch.bool, device=delta.device).scatter(2, window, True)
    inside = inside.view(batch, 1, height, width)
    same = ((delta * signs >= epsilon * (1 - 1e-3)) | ~inside).flatten(1).all(1).view(-1, 1, 1, 1)
    return delta + 2 * epsilon * torch.where(same, -signs, signs) * inside


def _tiles(images: Tensor, epsilon: float, chance: _Chance) -> Tensor:
    """Return a grid of about 5 x 5 bumps of random signs, of length epsilon altogether (section 3.4)."""
    batch, channels, height, width = images.shape
    side = max(min(height, width) // 5, 1)
    rows, columns = height // side, width // side
    signs = chance.signs(channels, rows, columns).to(images)
    pattern = _bumps(side).to(images)
    grid = torch.einsum("bcrs,hw->bcrhsw", signs, pattern).reshape(batch, channels, rows * side, columns * side)
    top, left = (height - rows * side) // 2, (width - columns * side) // 2
    delta = torch.zeros_like(images)
    delta[:, :, top : top + rows * side, left : left + columns * side] = grid
    return epsilon * delta / _length(delta.flatten(1)).view(-1, 1, 1, 1)


def _move_square(delta: Tensor, epsilon: float, side: int, chance: _Chance) -> Tensor:
    """Return `delta` with one square's length moved into bumps in another square (algorithm 3)."""
    _, channels, height, width = delta.shape
    # The authors keep the side odd and at least 3, so that the bumps have a centre.
    side = min(max(side + (side + 1) % 2, 3), height, width)
    to, source = (_windows(delta, side, chance).expand(-1, channels, -1) for _ in range(2))
    flat = delta.flatten(2)
    unused = (epsilon**2 - (flat**2).sum((1, 2), keepdim=True)).clamp_min(0)
    pattern = _bumps(side).to(delta)
    turned = chance.take(1, 1) < 0.5
    bumps = torch.where(turned, pattern.T.flatten(), pattern.flatten()) * chance.signs(channels, 1).to(delta)
    there = flat.gather(2, to)
    direction = bumps + there / _length(there)
    # The length available to a channel: what the two squares hold, and its part of what is not used yet.
    both = torch.zeros_like(flat).scatter(2, to, 1.0).scatter(2, source, 1.0)
    available = (((flat * both) ** 2).sum(2, keepdim=True) + unused / channels).sqrt()
    moved = flat.scatter(2, source, 0.0).scatter(2, to, direction / _length(direction) * available)
    return moved.view_as(delta)


def _bumps(side: int) -> Tensor:
    """Return one positive and one negative bump side by side, [side, side], of length 1 (equation 2)."""
    half = side // 2
    pattern = torch.cat([_bump(half, side), -_bump(side - half, side)])
    length: Tensor = pattern.norm()
    return pattern / length


def _bump(height: int, width: int) -> Tensor:
    """Return [height, width] values sum_{k=0}^{M} 1 / (n + 1 - k)^2, with n half the longer side and n - M the
    distance from the centre in the maximum norm.
    """
    half = max(height, width) // 2
    away = torch.maximum(
        (torch.arange(height) - height // 2).abs().view(-1, 1), (torch.arange(width) - width // 2).abs().view(1, -1)
    )
    terms = 1 / torch.arange(half + 1, 0, -1).double() ** 2
    return terms.cumsum(0)[half - away] if height else torch.zeros(0, width, dtype=torch.float64)


def _windows(images: Tensor, side: int, chance: _Chance) -> Tensor:
    """Return the flat pixel numbers [B, 1, side * side] of one uniformly placed square per sample."""
    batch, _, height, width = images.shape
    place = torch.arange(side, device=images.device)
    rows, columns = ((chance.take(1) * (size - side + 1)).long() + place for size in (height, width))
    return (rows.unsqueeze(2) * width + columns.unsqueeze(1)).view(batch, 1, -1)


def _length(values: Tensor) -> Tensor:
    length: Tensor = values.norm(dim=-1, keepdim=True)
    return length.clamp_min(1e-12)
