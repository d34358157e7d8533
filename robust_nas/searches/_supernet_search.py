"""The base class of searches with a supernet: the supernet, mixtures of its operations, the search's course."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from robust_nas.core.errors import InputError
from robust_nas.core.registry import name_of
from robust_nas.core.seeds import seed_at, seeded
from robust_nas.models.complexity import within_memory
from robust_nas.searches import Search, SearchResult
from robust_nas.searches._mixtures import Mixtures
from robust_nas.searches._settings import SupernetSettings
from robust_nas.spaces import mixed

if TYPE_CHECKING:
    from robust_nas.datasets import Dataset
    from robust_nas.relaxations.relaxation import Relaxation
    from robust_nas.runtime.stages import Stage
    from robust_nas.searches._trainer import SupernetTrainer
    from robust_nas.spaces import Space
    from robust_nas.spaces.cell.supernet import Supernet
    from robust_nas.threat import ThreatModel


@dataclass(frozen=True, kw_only=True)
class SupernetSearch(Search, SupernetSettings):
    """A search that trains a supernet on mixtures of operations."""

    @property
    def batch_sizes(self) -> list[int]:
        """The global batch of either level."""
        return [self.batch_size]

    @abstractmethod
    def relaxation(self, num_edges: int, num_operations: int, seed: int) -> Relaxation:
        """Return the relaxation that mixtures are drawn from."""

    @abstractmethod
    def trainer(self, space: Space, data: Dataset, threat: ThreatModel, stage: Stage) -> SupernetTrainer:
        """Return the trainer of the supernet, at its first stage.

        Raises:
            InputError: for a space or data that the search is not for.
        """

    def search(self, space: Space, data: Dataset, threat: ThreatModel, stage: Stage) -> SearchResult:
        """Search `space`; see `Search.search`.

        Raises:
            InputError: if a batch does not fit, or the loss is no longer a number.
        """
        return self.trainer(space, data, threat, stage).run()

    def make_supernet(self, space: Space, data: Dataset) -> Supernet:
        """Return the supernet of the first stage.

        Raises:
            InputError: if it does not take the partial channels of one of the stages.
        """
        mixable, (partial, *later) = mixed(space, name_of(self)), self.partial_channels or (1,)
        with within_memory(f"The supernet of {space.name}"):
            supernet = mixable.supernet(data, partial=partial)
        for other in {*later} - {partial}:
            mixable.supernet(data, partial=other)  # refused here, if at all, and not in the middle of the search
        return supernet

    def rehearse(self, space: Space, data: Dataset) -> None:
        """Raise InputError for what the search is refused for when it begins."""
        self.make_supernet(space, data)

    def mixtures(
        self, space: Space, data: Dataset, stage: Stage, *, single_path: bool = False, advice: str
    ) -> Mixtures:
        """Return the mixtures of a new supernet; see `Mixtures`.

        Raises:
            InputError: if the validation split is smaller than there are processes, or what `check` raises.
        """
        mixable, world = mixed(space, name_of(self)), stage.world
        if len(data.validation) < world.size:
            raise InputError(
                f"A search needs a validation image for each of {world.size} processes, but the validation split "
                f"of {data.name} has {len(data.validation)}; set data.validation_size higher."
            )
        self.check(space)
        with seeded(stage.seed, "search", "weights"):
            supernet = self.make_supernet(space, data).to(world.device)
        self.objective.prepare(supernet, seed_at(stage.seed, "search", "prepare"))
        relaxation = self.relaxation(len(mixable.edges), len(mixable.operations), seed_at(stage.seed, "search"))
        return Mixtures(self, mixable, supernet, relaxation, data, stage, single_path=single_path, advice=advice)
