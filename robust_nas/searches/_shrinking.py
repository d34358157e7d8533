"""Progressive shrinking: the stages of a search, each with fewer operations and more channels than the one before."""

from __future__ import annotations

from typing import TYPE_CHECKING

from robust_nas.core.seeds import seeded

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from robust_nas.searches._mixtures import Mixtures
    from robust_nas.searches._settings import SupernetSettings


class Stages:
    """The stage of a search, and the supernet and the relaxation in it.

    Args:
        kept_operations: number of operations on an edge in each stage; all, if there are none.
    """

    def __init__(self, settings: SupernetSettings, mixtures: Mixtures, kept_operations: Sequence[int]) -> None:
        self._settings, self._mixtures, self._kept_operations = settings, mixtures, kept_operations
        self.number = -1
        self.progress = 0.0
        """The share of the stage that is over."""

    def begin(self, number: int, active: Tensor | None = None) -> Mapping[Tensor, Tensor]:
        """Begin a stage; return the supernet's weights as they were, by those that continue them.

        Which operations are `active` [E, O] is decided by alpha, if it is not given.
        """
        supernet, relaxation = self._mixtures.supernet, self._mixtures.relaxation
        channels, places = self._settings.partial_channels, {}
        if number and channels and channels[number] < channels[number - 1]:
            with seeded(self._mixtures.seed, "search", "widen", number):
                places = supernet.widen(channels[number])
        if active is not None:
            relaxation.active.copy_(active)
        elif self._kept_operations:
            relaxation.keep(self._kept_operations[number])
        supernet.keep(relaxation.active)
        self.number = number
        return places

    def is_over(self, epoch: int) -> bool:
        """Whether a later stage begins in an epoch, or has begun before it."""
        return self.number + 1 < self._settings.num_stages and epoch >= self._settings.first_epoch(self.number + 1)

    def go_to(self, progress: float) -> None:
        """Set what follows how much of the search, and of its stage, is over."""
        settings, first = self._settings, self._settings.first_epoch(self.number)
        self.progress = (progress * settings.epochs - first) / (settings.first_epoch(self.number + 1) - first)
        self._mixtures.relaxation.progress = progress
        self._mixtures.supernet.add_skip(settings.auxiliary_skip * (1 - progress))
        if self.number and settings.partial_channels:
            passing = max(0.0, 1 - self.progress / settings.widening) if settings.widening else 0.0
            self._mixtures.supernet.pass_by(passing)
