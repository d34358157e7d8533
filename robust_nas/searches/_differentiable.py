"""The base class of differentiable searches: the weights and alpha of a supernet learn by turns.

The objective comes from a training method, the mixture from a relaxation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from robust_nas.core.errors import InputError
from robust_nas.core.registry import name_of
from robust_nas.searches._alpha_step import AlphaStep
from robust_nas.searches._collapses import Collapses
from robust_nas.searches._settings import BilevelSettings
from robust_nas.searches._shrinking import Stages
from robust_nas.searches._supernet_search import SupernetSearch
from robust_nas.searches._trainer import BilevelTrainer
from robust_nas.searches._weight_step import WeightStep
from robust_nas.spaces import mixed

if TYPE_CHECKING:
    from robust_nas.datasets import Dataset
    from robust_nas.relaxations.relaxation import Relaxation
    from robust_nas.runtime.stages import Stage
    from robust_nas.spaces import Space
    from robust_nas.threat import ThreatModel


@dataclass(frozen=True, kw_only=True)
class DifferentiableSearch(SupernetSearch, BilevelSettings):
    """A search whose mixtures are differentiable in alpha."""

    def check(self, space: Space) -> None:
        """Raise InputError unless the operations that stages keep are those of the space; see `Search`."""
        mixable, kept = mixed(space, name_of(self)), list(self.kept_operations)
        if kept and kept[0] != len(mixable.operations):
            raise InputError(
                f"search.kept_operations must begin with all {len(mixable.operations)} operations of {space.name}, of "
                f"which nothing is known yet, but got {kept}."
            )
        if kept and kept[-1] == 1 and mixable.final_operations != mixable.operations:
            raise InputError(
                f"search.kept_operations must leave 2 operations or more in {space.name}: a single one could be none, "
                f"which its architectures do not have, but got {kept}."
            )

    def rehearse(self, space: Space, data: Dataset) -> None:
        """Raise InputError for what the search is refused for when it begins."""
        super().rehearse(space, data)
        if self.resource is not None and self.resource.hard:
            self.resource.cost(mixed(space, name_of(self)), data, data.train.device)

    def anchored(self, relaxation: Relaxation) -> Tensor:
        """Return the term added to alpha's loss, times `anchor_scale`."""
        return relaxation.anchor("l2")

    def trainer(self, space: Space, data: Dataset, threat: ThreatModel, stage: Stage) -> BilevelTrainer:
        """Return the trainer of the supernet and alpha, at the first stage of progressive shrinking.

        Raises:
            InputError: for a space or data that the search is not for, or a limit that no network keeps to.
        """
        advice = f"set search.alpha_learning_rate lower than {self.alpha_learning_rate}, or keep more operations"
        mixtures = self.mixtures(space, data, stage, single_path=self.single_path, advice=advice)
        if self.prior is not None:
            mixtures.relaxation.alpha.data += self.prior.alpha(mixtures.space, data, threat, stage)
        cost = None
        if self.resource is not None:
            # One process's: a latency is not measured twice alike, and all have to keep the same alpha.
            cost = stage.world.broadcast(self.resource.cost(mixtures.space, data, stage.world.device))
        weights = WeightStep(self, mixtures)
        trainer = BilevelTrainer(
            self,
            mixtures,
            weights,
            Stages(self, mixtures, self.kept_operations),
            threat,
            stage,
            alpha=AlphaStep(self, mixtures, weights, cost, self.anchored),
            collapses=None if self.watch is None else Collapses(self.watch),
        )
        trainer.begin(0)
        return trainer
