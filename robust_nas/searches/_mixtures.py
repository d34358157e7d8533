"""Mixtures of a supernet's operations, and the examples that are crafted against them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from robust_nas.core.errors import InputError
from robust_nas.core.seeds import seed_at
from robust_nas.datasets import epoch_batches
from robust_nas.relaxations.relaxation import drawn_by
from robust_nas.training import Batch, Forward, Memory

if TYPE_CHECKING:
    from robust_nas.datasets import Dataset, TrainingImages
    from robust_nas.relaxations.relaxation import Relaxation
    from robust_nas.runtime.stages import Stage
    from robust_nas.searches._settings import SupernetSettings
    from robust_nas.spaces import MixedSpace
    from robust_nas.spaces.cell.supernet import Supernet
    from robust_nas.threat import ThreatModel

DRAWS = 1000
"""Draws after which a search is said to have come to constant architectures alone."""

_SPLIT = {"virtual": "weights", "stability": "alpha"}
"""The level whose images these are of."""


@dataclass(frozen=True)
class Step:
    """The common parts of both levels of an iteration; `place` is (epoch, iteration)."""

    threat: ThreatModel
    epsilon_scale: float
    place: tuple[int, int]


class Mixtures:
    """The inputs of either level's loss: mixtures of the supernet, their examples, and the objective's loss.

    Args:
        single_path: whether the weights get one operation per edge.
        advice: what to do where only constant architectures are drawn.
    """

    def __init__(
        self,
        settings: SupernetSettings,
        space: MixedSpace,
        supernet: Supernet,
        relaxation: Relaxation,
        data: Dataset,
        stage: Stage,
        *,
        single_path: bool,
        advice: str,
    ) -> None:
        self.space, self.supernet, self.relaxation, self.data = space, supernet, relaxation, data
        self.seed, self.world = stage.seed, stage.world
        self._settings, self._single_path, self._advice = settings, single_path, advice
        self._memory = {"alpha": Memory(), "weights": Memory()}

    def sample(self, *place: str | int) -> Tensor:
        """Return a mixture [E, O]; a single architecture whose output does not depend on its input is drawn again.

        Raises:
            InputError: if there are hardly any others.
        """
        for attempt in range(DRAWS):
            seed = seed_at(self.seed, *place, *[attempt] * (attempt > 0))
            mixture = self.relaxation.sample(seed)
            if self._single_path and "weights" in place:
                mixture = drawn_by(mixture.detach(), seed)
            weights, chosen = mixture.detach().max(-1)
            if bool((weights < 1).any()) or self.space.is_connected(chosen.tolist()):
                return mixture.to(self.world.device)
        raise InputError(
            f"The search has come to architectures whose output does not depend on their input, {DRAWS} draws in a "
            f"row; {self._advice}."
        )

    def crafted(self, step: Step, level: str, data: TrainingImages, indices: Tensor) -> tuple[Tensor, Batch, Tensor]:
        """Return a mixture, differentiable in alpha, a batch, and its examples, crafted against a sampled supernet."""
        world = self.world
        place = ("search", level, *step.place)
        mixture = self.sample(*place)
        batch = Batch(
            images=(chosen := data[indices]).images,
            labels=chosen.labels,
            targets=chosen.labels,
            threat=step.threat,
            seed=seed_at(self.seed, *place, "rank", world.rank),
            ids=indices.to(world.device),
            places=torch.arange(world.rank, len(indices) * world.size, world.size, device=world.device),
            num_samples=len(data),
            batch_size=len(indices) * world.size,
            memory=self._memory_of(level),
            mean=world.mean,
            epsilon_scale=step.epsilon_scale,
        )
        crafted = self._settings.objective.craft(self.supernet.at(mixture.detach()), batch)
        if not self._settings.hold_sample:
            mixture = self.sample(*place, "loss")
        return mixture, batch, crafted

    def _memory_of(self, level: str) -> Memory:
        """Return the objective's memory of a level's images.

        Measurements beside the steps of the search leave no trace in it.
        """
        return self._memory[level] if level in self._memory else copy.deepcopy(self._memory[_SPLIT[level]])

    def loss(
        self, model: nn.Module, crafted: Tensor, batch: Batch, forward: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """Return the objective on a batch; `forward` computes what `model` does."""
        passed = Forward(model, model if forward is None else forward, batch.images, torch.contiguous_format)
        return self._settings.objective.loss(passed, crafted, batch)

    def validation_batch(self, epoch: int, iteration: int) -> Tensor:
        """Return this rank's validation indices; a split smaller than the training one is gone through again."""
        count, world = len(self.data.validation), self.world
        size = min(self._settings.batch_size, count - count % world.size)
        number, place = divmod(iteration, count // size)
        return epoch_batches(count, size, world, self.seed, "search", "alpha", epoch, number)[place]

    def merge(self) -> None:
        """Give every rank what the objective remembers of the others' images."""
        for kept in self._memory.values():
            kept.merge(self.world)

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {level: kept.state() for level, kept in self._memory.items()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go back to a checkpoint."""
        for level, kept in state.items():
            self._memory[level].load_state(kept, self.world.device)
