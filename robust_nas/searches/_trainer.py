"""Differentiable search at work: a supernet's weights and alpha learn by turns, in stages of progressive shrinking.

Per iteration (DARTS, arXiv:1806.09055, algorithm 1): one step of alpha on a validation batch, then one step of the
weights on a training batch, each on examples crafted against the mixed network. `BilevelSettings` says how.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from robust_nas.certification import certify
from robust_nas.core.errors import InputError
from robust_nas.datasets import epoch_batches
from robust_nas.evaluation import evaluate
from robust_nas.runtime.progress import accuracies_in_words
from robust_nas.runtime.stepping import Steps, named_buffers
from robust_nas.searches import SearchResult
from robust_nas.searches._collapses import Collapses
from robust_nas.searches._mixtures import Step
from robust_nas.searches._resources import Cost
from robust_nas.searches._shrinking import Stages

if TYPE_CHECKING:
    from robust_nas.runtime.stages import Stage
    from robust_nas.searches._alpha_step import AlphaStep
    from robust_nas.searches._mixtures import Mixtures
    from robust_nas.searches._settings import SupernetSettings
    from robust_nas.searches._weight_step import WeightStep
    from robust_nas.threat import ThreatModel


@dataclass(eq=False, repr=False)
class SupernetTrainer:
    """The supernet's weights in training, on mixtures of which nothing is learned.

    Args:
        weights: trains the supernet of `mixtures`.
        stages: of the training.
    """

    settings: SupernetSettings
    mixtures: Mixtures
    weights: WeightStep
    stages: Stages
    threat: ThreatModel
    stage: Stage

    def __post_init__(self) -> None:
        mixtures = self.mixtures
        self.supernet, self.relaxation, self.world = mixtures.supernet, mixtures.relaxation, mixtures.world
        self.data = mixtures.data

    def begin(self, number: int, active: Tensor | None = None) -> None:
        """Begin a stage, with as many operations and channels as it has; the weights' optimiser goes on."""
        self.weights.follow(self.stages.begin(number, active))

    def epochs(self, done: int) -> Iterator[int]:
        """Yield the epochs that are left."""
        yield from range(done, self.settings.epochs)

    def steps(self, epoch: int, state: Callable[[], dict[str, Any]] | None = None) -> Steps:
        """Return the steps of an epoch, between which `state` is saved."""
        total, own = len(self.data.train) // self.settings.batch_size, partial(named_buffers, self.supernet)
        return Steps(self.stage, epoch, total, state or self.state, own, self.mixtures.merge)

    def learn(self, epoch: int, steps: Steps | None = None) -> float:
        """Go through what is left of the training split; return the weights' mean loss."""
        settings, world, seed = self.settings, self.world, self.stage.seed
        steps = steps or self.steps(epoch)
        while self.stages.is_over(epoch):
            self.begin(self.stages.number + 1)
        self.supernet.train()
        train = epoch_batches(len(self.data.train), settings.batch_size, world, seed, "search", "train", epoch)
        for iteration, indices in enumerate(train[steps.done :], steps.done):
            progress = (epoch + iteration / len(train)) / settings.epochs
            scale = settings.epsilon_scale_at(progress)
            step = Step(self.threat.grown(scale), scale, (epoch, iteration))
            self.stages.go_to(progress)
            self.weights.go_to(progress)
            self.before_weights(step, indices)
            steps.add(self.weights.take(step, indices))
        world.mean_buffers(self.supernet)
        self.mixtures.merge()
        return steps.mean_loss()

    def before_weights(self, step: Step, train: Tensor) -> None:
        """Do what comes before a step of the weights, whose training batch has the indices `train`."""

    def after_epoch(self, trajectory: list[dict[str, Any]]) -> None:
        """Do what comes after an epoch, given the snapshots so far."""

    def snapshot(self, epoch: int) -> dict[str, Any]:
        """Return the mean mixture and the validation accuracies at it, where nothing is drawn."""
        settings, relaxation = self.settings, self.relaxation
        self.stages.go_to(epoch / settings.epochs)
        mean, images = relaxation.mean(), self.data.validation[: settings.validation_images]
        network = self.supernet.at(mean.to(self.world.device))
        within = self.stage.within("validation")
        result = evaluate(network, images, self.threat, [settings.validation_attack], stage=within)
        accuracies = {"clean": result.clean_accuracy, "robust": result.robust_accuracy}
        if settings.objective.bounds_network:
            accuracies["certified"] = certify(network, images, self.threat, bound="interval", stage=within)[0].accuracy
        return {
            "epoch": epoch,
            "mixture": mean.tolist(),
            **relaxation.describe(),
            "entropy": relaxation.entropy(),
            **self.observed(mean, epoch),
            "validation": accuracies,
        }

    def observed(self, mean: Tensor, epoch: int) -> dict[str, Any]:
        """Return the further entries of a snapshot, at the mean mixture [E, O]."""
        return {}

    def concluded(self, trajectory: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the entries of the search's record beside the trajectory: the epoch whose state it ended with, ..."""
        return {"epoch": trajectory[-1]["epoch"]}

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {
            "supernet": self.supernet.state_dict(),
            "alpha": self.relaxation.alpha,
            "active": self.relaxation.active,
            "number": self.stages.number,
            "share": self.relaxation.progress,
            "weight_optimiser": self.weights.optimiser.state_dict(),
            "memory": self.mixtures.state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go to a checkpoint: the stages' sizes first, then what is in them."""
        while self.stages.number < state["number"]:
            self.begin(self.stages.number + 1, state["active"])
        self.supernet.load_state_dict(state["supernet"])
        self.relaxation.alpha.data.copy_(state["alpha"])
        self.stages.go_to(state["share"])
        self.weights.optimiser.load_state_dict(state["weight_optimiser"])
        self.mixtures.load_state(state["memory"])

    def run(self) -> SearchResult:
        """Go through all epochs, or those that an interruption has left; return the probabilities at the end.

        Raises:
            InputError: if the loss is no longer a number.
        """
        settings, stage, started = self.settings, self.stage, time.monotonic()
        done, state = stage.resume()
        if state is None:
            seconds, trajectory = 0.0, [self.snapshot(0)]
        else:
            self.load_state(state)
            seconds, trajectory = state["seconds"], state["trajectory"]

        def under_way() -> dict[str, Any]:
            now = seconds + time.monotonic() - started
            return {**self.state(), "seconds": now, "trajectory": trajectory}

        for epoch in stage.progress.steps(self.epochs(done), "search", total=settings.epochs, done=done):
            with self.steps(epoch, under_way) as steps:
                steps.go_on(state or {})
                state = None
                mean_loss = self.learn(epoch, steps)
            if not math.isfinite(mean_loss):
                raise InputError(
                    f"The search's loss is {mean_loss} in epoch {epoch + 1}; set search.learning_rate lower "
                    f"than {settings.learning_rate}."
                )
            with steps.kept():
                snapshot = {**self.snapshot(epoch + 1), "loss": mean_loss}
            seconds, started = seconds + time.monotonic() - started, time.monotonic()
            trajectory.append({**snapshot, "seconds": seconds})
            stage.progress.note(accuracies_in_words(snapshot["validation"], mean_loss))
            stage.log(epoch + 1, **trajectory[-1])
            self.after_epoch(trajectory)
            stage.save(epoch + 1, under_way())
        # A collapsed search ends before the auxiliary skip is gone, and derived networks have no such skip.
        self.supernet.add_skip(0.0)
        record = {"trajectory": trajectory, "seconds": seconds, "hold_sample": settings.hold_sample}
        record |= self.concluded(trajectory)
        return SearchResult(self.mixtures.space, self.relaxation.mean().tolist(), self.supernet, record)


@dataclass(eq=False, repr=False, kw_only=True)
class BilevelTrainer(SupernetTrainer):
    """The supernet's weights and alpha in training, by turns.

    Args:
        alpha: trains alpha, on validation batches.
        collapses: watches the search; None to look at nothing.
    """

    alpha: AlphaStep
    collapses: Collapses | None

    def begin(self, number: int, active: Tensor | None = None) -> None:
        """Begin a stage of progressive shrinking: fewer operations, more channels."""
        super().begin(number, active)
        if self.collapses is not None:
            self.collapses.forget_states()
        self.alpha.keep_to_limit()

    def epochs(self, done: int) -> Iterator[int]:
        """Yield the epochs that are left, until the search has collapsed once more than it may."""
        for epoch in super().epochs(done):
            if self.collapses is not None and self.collapses.are_too_many:
                return
            yield epoch

    def before_weights(self, step: Step, train: Tensor) -> None:
        """Take a step of alpha, if one is due."""
        if self.alpha.is_due(self.stages.progress, step.place[1]):
            found = 0 if self.collapses is None else len(self.collapses.found)
            self.alpha.take(step, train, self.mixtures.validation_batch(*step.place), collapses=found)

    def after_epoch(self, trajectory: list[dict[str, Any]]) -> None:
        """Go back to the last healthy state, if the search has collapsed, and say so."""
        if self.collapses is None:
            return
        healthy = self.collapses.judge(trajectory, self._own_state, since=self.settings.first_epoch(self.stages.number))
        if healthy is not None:
            self._go_back(healthy)
        if self.collapses.found and self.collapses.found[-1]["epoch"] == trajectory[-1]["epoch"]:
            self.stage.progress.say(self.collapses.last_said(self.settings.epochs))

    def observed(self, mean: Tensor, epoch: int) -> dict[str, Any]:
        """Return the signs of a collapse, and the cost of the expected network."""
        found: dict[str, Any] = {}
        if self.collapses is not None:
            found |= self.collapses.signs(self.mixtures, self.threat, epoch, learns=self.alpha.has_begun)
        if self.alpha.cost is not None:
            found["expected_cost"] = float(self.alpha.cost.of(mean))
        return found

    def concluded(self, trajectory: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the epoch whose state the search ended with, its collapses, and what a limit came to."""
        record = super().concluded(trajectory)
        if self.collapses is not None:
            record["collapses"] = self.collapses.found
            if self.collapses.found and self.collapses.found[-1]["epoch"] == record["epoch"]:
                record["epoch"] = self.collapses.found[-1]["back_to"]
        if (kept := self.alpha.kept_limit()) is not None:
            record["resource"] = kept
            if "note" in kept:
                self.stage.progress.warn(kept["note"])
        return record

    def _own_state(self) -> dict[str, Any]:
        return {**super().state(), "alpha_optimiser": self.alpha.optimiser.state_dict()}

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        cost, collapses = self.alpha.cost, self.collapses
        return {
            **self._own_state(),
            "healthy": [] if collapses is None else collapses.healthy,
            "collapses": [] if collapses is None else collapses.found,
            "cost": None if cost is None else {"fixed": cost.fixed, "operations": cost.operations},
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._go_back(state)
        if self.collapses is not None:
            self.collapses.healthy, self.collapses.found = state["healthy"], state["collapses"]
        self.alpha.cost = None if state["cost"] is None else Cost(self.mixtures.space, **state["cost"])

    def _go_back(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        self.alpha.optimiser.load_state_dict(state["alpha_optimiser"])
