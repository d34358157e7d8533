"""Every kind of bound in turn, from the cheapest on, until an image is proved."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from robust_nas.bounds import TOLERANCE, Bound, LinearMargins
from robust_nas.bounds._rounding import Answers, own_answers
from robust_nas.bounds.alpha_crown import AlphaCROWN
from robust_nas.bounds.crown import CROWN
from robust_nas.bounds.crown_ibp import CROWNIBP
from robust_nas.bounds.interval import Interval
from robust_nas.core.errors import InputError
from robust_nas.core.pixels import unit_images_and_labels
from robust_nas.core.registry import name_of
from robust_nas.models.frozen import frozen
from robust_nas.threat import ThreatModel


@dataclass(frozen=True, kw_only=True)
class Auto:
    """The best of several kinds of bounds, image by image.

    An image that one kind proves, the network's own rounding included, is left out of the next, and so is one that is
    misclassified, of which nothing can be proved. A kind's margins are taken whole, for all classes: that of the
    largest least margin.

    Args:
        kinds: the kinds, the cheapest first.
        memory: GiB that intermediate values may take, of every kind that can be told.

    Raises:
        InputError: for no kinds, or no `memory`.
    """

    kinds: tuple[Bound, ...] = field(default_factory=lambda: (Interval(), CROWNIBP(), CROWN(), AlphaCROWN()))
    memory: float = 2.0

    def __post_init__(self) -> None:
        if not self.kinds:
            raise InputError("Auto.kinds must name at least one kind of bound, but got none.")
        for kind in self.kinds:
            if getattr(kind, "dtype", "float64") != "float64":
                raise InputError(f"Auto.kinds must compute in float64, but {name_of(kind)} has dtype '{kind.dtype}'.")  # type: ignore[attr-defined]
        if not self.memory > 0:
            raise InputError(f"Auto.memory must be a number of GiB above 0, but got {self.memory}.")

    def margins(self, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel) -> LinearMargins:
        """Return linear lower bounds of the margins over the ball around each of `images` [N, C, H, W].

        `model` is used in evaluation mode and left as it was; `labels` is [N]. `methods` names the kind that each
        image's bounds are of; where it is one without slopes, they are 0.

        Raises:
            InputError: for images outside [0, 1], labels that are not classes, an operation without a sound rule, or a
                model that mixes the images of a batch.
        """
        images, labels = unit_images_and_labels(images, labels)

        def answers_on(places: Tensor) -> Answers:
            with frozen(model, fold=False):
                return own_answers(model, images[places], labels[places], threat, lower[places])

        first, *others = map(self._limited, self.kinds)
        found = first.margins(model, images, labels, threat)
        # A bound on the whole ball holds on the part of it that is in [0, 1].
        best = LinearMargins(
            # The others' are not to be rounded, where one's own kind gives float32.
            found.offsets.double(),
            None if found.slopes is None else found.slopes.double(),
            found.clean,
            images.double(),
            methods=(name_of(first),) * len(images),
        )
        lower = best.lower(threat)
        answers = answers_on(torch.arange(len(images), device=images.device))
        for kind in others:
            open_ = ~(lower.amin(1) - answers.taken > TOLERANCE)
            if best.clean is not None:
                open_ &= best.clean.amin(1) > 0
            places = open_.nonzero().squeeze(1)
            if len(places):
                found = kind.margins(model, images[places], labels[places], threat)
                least = lower.amin(1)[places]
                better = (found.lower(threat).amin(1) > least) | least.isnan()
                best = _with(best, found, name_of(kind), places, better)
                lower, chosen = best.lower(threat), places[better]
                answers = answers.replaced(chosen, answers_on(chosen))
        return replace(best, answers=answers)

    def _limited(self, kind: Bound) -> Bound:
        exact: Any = kind
        limited: Bound = replace(exact, memory=self.memory) if hasattr(kind, "memory") else kind
        return limited


def _with(best: LinearMargins, found: LinearMargins, name: str, places: Tensor, better: Tensor) -> LinearMargins:
    """`best` with those that were found for the images at `places`, where they are better."""
    assert best.methods is not None
    chosen = places[better]
    offsets, slopes, methods = best.offsets.clone(), best.slopes, list(best.methods)
    offsets[chosen] = found.offsets[better].to(offsets)
    if found.slopes is not None or slopes is not None:
        pixels = (found.slopes if slopes is None else slopes).shape[2]  # type: ignore[union-attr]
        slopes = offsets.new_zeros(*offsets.shape, pixels) if slopes is None else slopes.clone()
        slopes[chosen] = 0.0 if found.slopes is None else found.slopes[better].to(slopes)
    for place in chosen.tolist():
        methods[place] = name
    return replace(best, offsets=offsets, slopes=slopes, methods=tuple(methods))
