"""The Square attack: random search with square-shaped updates, by scores alone (arXiv:1912.00049)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from robust_nas.attacks import Attack
from robust_nas.attacks._draws import Draws
from robust_nas.attacks._leaving import LOOK_EVERY, cheap_batch, looking_is_free
from robust_nas.core.checks import check_at_least
from robust_nas.core.errors import InputError
from robust_nas.core.pixels import unit_images_and_labels
from robust_nas.models.frozen import frozen
from robust_nas.models.losses import choose, margin
from robust_nas.models.scores import check_finite, misclassified, scores
from robust_nas.threat import ThreatModel

# The share of the image that a square covers is halved after each of these iterations out of 10,000 (the authors'
# published schedule).
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


# The most proposals for one sample in a batch.
_MOST_TRIES = 32


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


_Propose = Callable[[Tensor, float, int, _Chance], Tensor]
"""The changes so far [B, C, H, W], epsilon, the side of the square and random numbers to the changes to try."""


@dataclass(frozen=True, kw_only=True)
class Square(Attack):
    """The Square attack (Andriushchenko et al. 2020, arXiv:1912.00049, algorithms 1 to 3), black-box.

    It asks the model for logits only. A random proposal inside a square is kept if it makes the margin between the
    label's logit and the largest other one smaller. A fooled sample leaves the batch.

    A rejected proposal changes nothing. So, where it is cheap, one batch tries the next few proposals of a sample and
    keeps the first good one: points and queries are those of one proposal after the other.

    Args:
        queries: the most proposals that are made for one sample.
        first_share: the share of the image that the first squares cover.
        schedule: the queries in which squares shrink to their smallest; `queries`, if not given.

    Raises:
        InputError: if `queries` or `schedule` is below 1 or `first_share` is outside (0, 1].
    """

    queries: int = 5000
    first_share: float = 0.8
    schedule: int | None = None

    def __post_init__(self) -> None:
        check_at_least("Square.queries", self.queries, 1)
        if self.schedule is not None:
            check_at_least("Square.schedule", self.schedule, 1)
        if not 0 < self.first_share <= 1:
            raise InputError(f"Square.first_share must be in (0, 1], but got {self.first_share}.")

    def perturb(
        self, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, *, seed: int = 0
    ) -> Tensor:
        """Return adversarial images [B, C, H, W], detached, inside `threat` around `images`."""
        images, labels = unit_images_and_labels(images, labels)
        if len(images) == 0:
            return images.clone()
        channels, height, width = images.shape[1:]
        draws = Draws(images, seed)
        order = {"linf": math.inf, "l2": 2.0, "l1": 1.0}[threat.norm]
        start, propose = (_stripes, _flip_square) if threat.norm == "linf" else (_tiles, _move_square)
        with frozen(model):
            # At most one sign per channel and column, or per channel and tile.
            chance = _Chance(draws.uniform(channels * height * width, 0))
            points = threat.around(images).project(images + start(images, threat.epsilon, order, chance))
            logits = scores(model, points)
            check_finite(self, logits)
            samples = _Samples(model, images, labels, points, logits, threat, draws)
            for side, queries in self._sides(height, width):
                samples.search(side, queries, partial(propose, order=order))
            check_finite(self, samples.total)
        return samples.points

    def _sides(self, height: int, width: int) -> Iterator[tuple[int, range]]:
        """Return the sides of the squares, whose areas are the scheduled shares of the image, and their queries."""
        per_query = 10_000 / (self.schedule or self.queries)
        first = 1
        for halvings in range(len(_HALVINGS) + 1):
            share = self.first_share / 2**halvings
            side = min(max(round(math.sqrt(share * height * width)), 1), height, width)
            last = math.floor(_HALVINGS[halvings] / per_query) + 1 if halvings < len(_HALVINGS) else self.queries
            queries = range(first, min(last + 1, self.queries))
            yield side, queries
            first = queries.stop


class _Samples:
    """The samples' best points so far [B, C, H, W], their margins and whether they are misclassified [B]."""

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        points: Tensor,
        logits: Tensor,
        threat: ThreatModel,
        draws: Draws,
    ) -> None:
        self._model, self._images, self._labels, self._draws = model, images, labels, draws
        self._ball, self._epsilon, self._tries = threat.around(images), threat.epsilon, 1
        self.points, self.highest, self.fooled = points, margin(logits, labels), misclassified(logits, labels)
        self.total = torch.zeros((), device=images.device)  # of all margins: a NaN stays in it

    def search(self, side: int, queries: range, propose: _Propose) -> None:
        """Make the proposals `queries` for every sample that is not fooled.

        Who leaves, and how many tries are made at once, is looked at after every pass, or after `LOOK_EVERY` of them
        where looking waits; a sample that is through before the others is then tried in vain.
        """
        next_query = torch.full_like(self._labels, queries.start)
        while True:
            left = ((next_query < queries.stop) & ~self.fooled).nonzero().squeeze(1)
            if len(left) == 0:
                return
            tries = max(min(self._tries, cheap_batch(self._images) // len(left), len(queries)), 1)
            passes, used = 1, torch.zeros((), device=left.device)
            if not looking_is_free(left):
                passes = min(LOOK_EVERY, math.ceil((queries.stop - int(next_query[left].min())) / tries))
            for _ in range(passes):
                query = next_query[left].unsqueeze(1) + torch.arange(tries, device=left.device)
                taken = self._propose(left, query, queries.stop, side, propose)
                next_query[left] = query[:, 0] + taken
                used = used + taken.sum()
            # Many at once pay while few are kept: those that come after a kept one were looked at in vain.
            useful = float(used) / (passes * len(left) * tries)
            if useful > 0.75:
                self._tries = min(2 * tries, _MOST_TRIES)
            elif useful < 0.4:
                self._tries = max(tries // 2, 1)

    def _propose(self, left: Tensor, query: Tensor, stop: int, side: int, propose: _Propose) -> Tensor:
        """Look at the proposals `query` [N, tries] for the samples `left` [N]; return how many each sample used [N].

        Nothing waits for the device, so a fooled sample may still be there; it stays as it is.
        """
        tries = query.shape[1]
        each = left.repeat_interleave(tries)
        images, labels, points = self._images[each], self._labels[each], self.points[each]
        chance = _Chance(self._draws[each].uniform(images.shape[1] + 5, query.flatten()))
        # Algorithm 1, lines 4-6: propose a change inside a square and project.
        candidates = self._ball[each].project(images + propose(points - images, self._epsilon, side, chance))
        logits = scores(self._model, candidates)
        values, wrong = margin(logits, labels), misclassified(logits, labels)
        self.total = self.total + values.sum()
        # Lines 7-9: keep the first that is better.
        points, highest, fooled = self.points[left], self.highest[left], self.fooled[left]
        better = ((values > self.highest[each]) | wrong).view(query.shape)
        better = better & (query < stop) & ~fooled.unsqueeze(1)
        first, kept = better.to(torch.uint8).argmax(1), better.any(1)
        chosen = torch.arange(len(left), device=left.device) * tries + first
        self.points[left] = choose(kept, candidates[chosen], points)
        self.highest[left] = torch.where(kept, values[chosen], highest)
        self.fooled[left] = fooled | (kept & wrong[chosen])
        return torch.where(kept, first + 1, tries)


def _stripes(images: Tensor, epsilon: float, order: float, chance: _Chance) -> Tensor:
    """Return vertical stripes one pixel wide, epsilon or -epsilon at random in every channel (section 3.3)."""
    _, channels, _, width = images.shape
    return epsilon * chance.signs(channels, 1, width).to(images).expand_as(images)


def _flip_square(delta: Tensor, epsilon: float, side: int, chance: _Chance, *, order: float) -> Tensor:
    """Return `delta` moved by 2 epsilon or -2 epsilon in every channel of one square per sample (algorithm 2)."""
    batch, channels, height, width = delta.shape
    window = _windows(delta, side, chance)
    signs = chance.signs(channels, 1, 1).to(delta)
    # A change that moves nothing would waste a query; the authors draw again, here the signs are turned round.
    inside = torch.zeros(batch, 1, height * width, dtype=torch.bool, device=delta.device).scatter(2, window, True)
    inside = inside.view(batch, 1, height, width)
    same = ((delta * signs >= epsilon * (1 - 1e-3)) | ~inside).flatten(1).all(1).view(-1, 1, 1, 1)
    return delta + 2 * epsilon * torch.where(same, -signs, signs) * inside


def _tiles(images: Tensor, epsilon: float, order: float, chance: _Chance) -> Tensor:
    """Return a grid of about 5 x 5 bumps of random signs, of length epsilon altogether (section 3.4).

    Args:
        order: of the norm in which length is measured, 2 or 1.
    """
    batch, channels, height, width = images.shape
    side = max(min(height, width) // 5, 1)
    rows, columns = height // side, width // side
    signs = chance.signs(channels, rows, columns).to(images)
    pattern = _bumps(side).to(images)
    grid = torch.einsum("bcrs,hw->bcrhsw", signs, pattern).reshape(batch, channels, rows * side, columns * side)
    top, left = (height - rows * side) // 2, (width - columns * side) // 2
    delta = torch.zeros_like(images)
    delta[:, :, top : top + rows * side, left : left + columns * side] = grid
    return epsilon * delta / _length(delta.flatten(1), order).view(-1, 1, 1, 1)


def _move_square(delta: Tensor, epsilon: float, side: int, chance: _Chance, *, order: float) -> Tensor:
    """Return `delta` with one square's length moved into bumps in another square (algorithm 3).

    In l1, as Croce and Hein 2021 (arXiv:2103.01208) do it: the same with lengths in that norm; the projection onto the
    ball and the box comes after it.
    """
    _, channels, height, width = delta.shape
    # The authors keep the side odd and at least 3, so that the bumps have a centre.
    side = min(max(side + (side + 1) % 2, 3), height, width)
    to, source = (_windows(delta, side, chance).expand(-1, channels, -1) for _ in range(2))
    flat = delta.flatten(2)
    unused = (epsilon**order - (flat.abs() ** order).sum((1, 2), keepdim=True)).clamp_min(0)
    pattern = _bumps(side).to(delta)
    turned = chance.take(1, 1) < 0.5
    bumps = torch.where(turned, pattern.T.flatten(), pattern.flatten()) * chance.signs(channels, 1).to(delta)
    there = flat.gather(2, to)
    direction = bumps / _length(bumps, order) + there / _length(there, order)
    # The length available to a channel: what the two squares hold, and its part of what is not used yet.
    both = torch.zeros_like(flat).scatter(2, to, 1.0).scatter(2, source, 1.0)
    available = (((flat * both).abs() ** order).sum(2, keepdim=True) + unused / channels) ** (1 / order)
    moved = flat.scatter(2, source, 0.0).scatter(2, to, direction / _length(direction, order) * available)
    return moved.view_as(delta)


def _bumps(side: int) -> Tensor:
    """Return one positive and one negative bump side by side, [side, side] (equation 2 without its scale)."""
    half = side // 2
    return torch.cat([_bump(half, side), -_bump(side - half, side)])


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


def _length(values: Tensor, order: float) -> Tensor:
    length: Tensor = values.norm(p=order, dim=-1, keepdim=True)
    return length.clamp_min(1e-12)
