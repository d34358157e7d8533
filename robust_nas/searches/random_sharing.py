"""Random search with weight sharing (Li & Talwalkar 2019, arXiv:1902.07638): the baseline of differentiable search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from robust_nas.relaxations.uniform import UniformRelaxation
from robust_nas.searches._shrinking import Stages
from robust_nas.searches._supernet_search import SupernetSearch
from robust_nas.searches._trainer import SupernetTrainer
from robust_nas.searches._weight_step import WeightStep

if TYPE_CHECKING:
    from robust_nas.datasets import Dataset
    from robust_nas.relaxations.relaxation import Relaxation
    from robust_nas.runtime.stages import Stage
    from robust_nas.spaces import Space
    from robust_nas.threat import ThreatModel


@dataclass(frozen=True, kw_only=True)
class RandomSharing(SupernetSearch):
    """Train the supernet's weights on architectures that are drawn uniformly; nothing is learned of which are good.

    Derivation then chooses the best of `derive.pool` random architectures by accuracy with inherited weights.

    Raises:
        InputError: for a value outside its range.
    """

    def relaxation(self, num_edges: int, num_operations: int, seed: int) -> Relaxation:
        """Return the relaxation that architectures are drawn by."""
        return UniformRelaxation(num_edges, num_operations, seed=seed)

    def trainer(self, space: Space, data: Dataset, threat: ThreatModel, stage: Stage) -> SupernetTrainer:
        """Return the trainer of the supernet.

        Raises:
            InputError: for a space or data that the search is not for.
        """
        mixtures = self.mixtures(space, data, stage, advice="take a space with more operations")
        stages = Stages(self, mixtures, kept_operations=())
        trainer = SupernetTrainer(self, mixtures, WeightStep(self, mixtures), stages, threat, stage)
        trainer.begin(0)
        return trainer
