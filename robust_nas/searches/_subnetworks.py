"""An elastic supernet in training: several of its networks learn in every step."""

from __future__ import annotations

import math
import random
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robust_nas.core.errors import InputError
from robust_nas.core.seeds import seed_at
from robust_nas.datasets import epoch_batches
from robust_nas.evaluation import evaluate
from robust_nas.models.calibration import calibrated
from robust_nas.runtime.progress import accuracies_in_words
from robust_nas.runtime.stepping import Steps, named_buffers
from robust_nas.samplers import draw
from robust_nas.searches._weight_step import MOMENTUM
from robust_nas.training import Batch, Forward, Memory

if TYPE_CHECKING:
    from collections.abc import Sequence

    from robust_nas.architectures import AnyArchitecture
    from robust_nas.attacks import Attack
    from robust_nas.datasets import Dataset, ImageSet
    from robust_nas.runtime.stages import Stage
    from robust_nas.searches._limited import LimitedSpace
    from robust_nas.searches.elastic import Elastic
    from robust_nas.spaces import ElasticSupernet
    from robust_nas.threat import ThreatModel

LARGEST, SMALLEST = "largest", "smallest"


@dataclass(eq=False, repr=False)
class SubnetworkTrainer:
    """The weights of an elastic supernet in training.

    Args:
        within: the architectures that may be drawn.
    """

    settings: Elastic
    supernet: ElasticSupernet
    within: LimitedSpace
    data: Dataset
    threat: ThreatModel
    stage: Stage

    def __post_init__(self) -> None:
        settings, self.world = self.settings, self.stage.world
        self.optimiser = torch.optim.SGD(
            self.supernet.parameters(), settings.learning_rate, MOMENTUM, weight_decay=settings.weight_decay
        )
        self._memory = {role: Memory() for role, _ in self.networks(0, 0)}

    def networks(self, epoch: int, iteration: int) -> list[tuple[str, AnyArchitecture]]:
        """Return the networks that learn in a step, each with its role; all ranks have the same.

        The sandwich rule (US-Nets, arXiv:1903.05134, section 3.2): the largest, the smallest, and random ones between.
        """
        supernet, place = self.supernet, ("search", "networks", epoch, iteration)
        drawn = [
            (f"random {number}", draw(self.within, random.Random(seed_at(self.stage.seed, *place, number))))
            for number in range(self.settings.num_random)
        ]
        return [(LARGEST, supernet.largest), (SMALLEST, supernet.smallest), *drawn] if self.settings.sandwich else drawn

    def loss(self, role: str, architecture: AnyArchitecture, batch: Batch) -> Tensor:
        """Return a network's loss at the examples that are crafted against it.

        The largest network's, and without distillation every one's, is the objective's. With it, all others learn from
        the largest one: the cross-entropy of f_s(x') with the probabilities softmax(f_l(x')), through which no gradient
        goes, at x', the images crafted against f_s (US-Nets, arXiv:1903.05134, section 3.3, where x' are clean).
        """
        objective, network = self.settings.objective, self.supernet.at(architecture)
        crafted = objective.craft(network, batch)
        forward = Forward(network, network, batch.images, torch.contiguous_format)
        if not self.settings.distillation or role == LARGEST:
            return objective.loss(forward, crafted, batch)
        with torch.no_grad():
            taught = self.supernet(crafted, self.supernet.largest).softmax(1)
        return F.cross_entropy(forward(crafted), taught)

    def take(self, epoch: int, iteration: int, indices: Tensor, epsilon_scale: float) -> Tensor:
        """Move the weights along the sum of the networks' gradients on a training batch; return their mean loss."""
        self.optimiser.zero_grad(set_to_none=True)
        losses = []
        for role, architecture in self.networks(epoch, iteration):
            loss = self.loss(role, architecture, self.batch(role, epoch, iteration, indices, epsilon_scale))
            loss.backward()
            losses.append(loss.detach())
        self.world.mean_gradients(self.supernet)  # random networks may leave out blocks
        nn.utils.clip_grad_norm_(self.supernet.parameters(), self.settings.gradient_clip)
        self.optimiser.step()
        return torch.stack(losses).mean()

    def batch(self, role: str, epoch: int, iteration: int, indices: Tensor, epsilon_scale: float) -> Batch:
        """Return this rank's part of a training batch, for the network of a role."""
        world, data = self.world, self.data.train
        return Batch(
            images=(chosen := data[indices]).images,
            labels=chosen.labels,
            targets=chosen.labels,
            threat=self.threat.grown(epsilon_scale),
            seed=seed_at(self.stage.seed, "search", role, epoch, iteration, "rank", world.rank),
            ids=indices.to(world.device),
            places=torch.arange(world.rank, len(indices) * world.size, world.size, device=world.device),
            num_samples=len(data),
            batch_size=len(indices) * world.size,
            memory=self._memory[role],
            mean=world.mean,
            epsilon_scale=epsilon_scale,
        )

    def learn(self, epoch: int, steps: Steps) -> float:
        """Go through what is left of the training split; return the mean loss."""
        settings, world = self.settings, self.world
        self.supernet.train()
        batches = epoch_batches(
            len(self.data.train), settings.batch_size, world, self.stage.seed, "search", "train", epoch
        )
        for iteration, indices in enumerate(batches[steps.done :], steps.done):
            progress = (epoch + iteration / len(batches)) / settings.epochs
            for group in self.optimiser.param_groups:
                group["lr"] = settings.learning_rate_at(progress)
            steps.add(self.take(epoch, iteration, indices, settings.epsilon_scale_at(progress)))
        self.merge()
        return steps.mean_loss()

    def merge(self) -> None:
        """Give every rank what the objective remembers of the others' images."""
        for kept in self._memory.values():
            kept.merge(self.world)

    def measure(self, architecture: AnyArchitecture, images: ImageSet, attack: Attack) -> dict[str, float]:
        """Return the accuracies of an architecture's network with the shared weights and statistics of its own."""
        stage, size = self.stage, self.settings.batch_size
        network = calibrated(self.supernet.choose(architecture), self.data, self.world, stage.seed, batch_size=size)
        found = evaluate(network, images, self.threat, [attack], stage=stage.within("validation"))
        return {"clean": found.clean_accuracy, "robust": found.robust_accuracy}

    def run(self) -> dict[str, Any]:
        """Go through all epochs, or those that an interruption has left; return the course, with its seconds.

        Raises:
            InputError: if the loss is no longer a number.
        """
        settings, stage, started = self.settings, self.stage, time.monotonic()
        images = self.data.validation[: settings.validation_images]
        done, state = stage.resume()
        seconds, epochs = 0.0, []
        if state is not None:
            seconds, epochs = state["seconds"], state["epochs"]
            self.load_state(state)
        left: Sequence[int] = range(done, settings.epochs)
        total, own = len(self.data.train) // settings.batch_size, partial(named_buffers, self.supernet)

        def under_way() -> dict[str, Any]:
            return {**self.state(), "seconds": seconds + time.monotonic() - started, "epochs": epochs}

        for epoch in stage.progress.steps(left, "search", total=settings.epochs, done=done):
            with Steps(stage, epoch, total, under_way, own, self.merge) as steps:
                steps.go_on(state or {})
                state = None
                loss = self.learn(epoch, steps)
            if not math.isfinite(loss):
                raise InputError(
                    f"The search's loss is {loss} in epoch {epoch + 1}; set search.learning_rate lower than "
                    f"{settings.learning_rate}."
                )
            ends = ((LARGEST, self.supernet.largest), (SMALLEST, self.supernet.smallest))
            with steps.kept():
                measured = {role: self.measure(each, images, settings.validation_attack) for role, each in ends}
            seconds, started = seconds + time.monotonic() - started, time.monotonic()
            epochs.append({"epoch": epoch + 1, **measured, "loss": loss, "seconds": seconds})
            stage.progress.note(accuracies_in_words(measured[LARGEST], loss))
            stage.log(**{"step" if key == "epoch" else key: value for key, value in epochs[-1].items()})
            stage.save(epoch + 1, under_way())
        return {
            LARGEST: str(self.supernet.largest),
            SMALLEST: str(self.supernet.smallest),
            "epochs": epochs,
            "seconds": seconds,
        }

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {
            "supernet": self.supernet.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "memory": {role: kept.state() for role, kept in self._memory.items()},
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go to a checkpoint."""
        self.supernet.load_state_dict(state["supernet"])
        self.optimiser.load_state_dict(state["optimiser"])
        for role, kept in state["memory"].items():
            self._memory[role].load_state(kept, self.world.device)
