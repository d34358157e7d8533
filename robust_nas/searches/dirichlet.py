"""DrNAS with adversarial training: a Dirichlet-relaxed supernet, both levels trained on adversarial examples.

Per iteration (DrNAS, arXiv:2006.10355, section 3 and its first-order bilevel scheme): one step of alpha on a validation
batch, then one step of the weights on a training batch, each on examples crafted against the sampled supernet.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from robust_nas.attacks import Attack
from robust_nas.attacks.fgsm import FGSM
from robust_nas.attacks.pgd import PGD
from robust_nas.certification import certify
from robust_nas.datasets._batches import epoch_batches
from robust_nas.errors import InputError
from robust_nas.evaluation import evaluate
from robust_nas.registry import name_of
from robust_nas.searches import SearchResult
from robust_nas.seeds import seed_at, seeded
from robust_nas.supernet.dirichlet import DirichletRelaxation
from robust_nas.threat import growth_at
from robust_nas.training import Batch, Memory, Method
from robust_nas.training._options import Forward
from robust_nas.training.pgd_at import PGDAT

if TYPE_CHECKING:
    from robust_nas.datasets import Dataset, ImageSet, TrainingImages
    from robust_nas.run_dir import Stage
    from robust_nas.spaces import Space
    from robust_nas.supernet import Supernet
    from robust_nas.threat import ThreatModel


@dataclass(frozen=True, kw_only=True)
class Dirichlet:
    """Search with one Dirichlet distribution per edge.

    Args:
        epochs: passes over the training split.
        batch_size: global batch of either level.
        objective: what both levels minimise: a training method, with its examples and its loss. `standard` searches on
            clean images, `pgd_at` on adversarial ones, `ibp` on a bound of the loss over the ball.
        hold_sample: whether the loss uses the Dirichlet sample that its examples were crafted against, or a fresh one.
        learning_rate: of the weights (SGD, momentum 0.9), falling to `final_learning_rate` along a cosine.
        final_learning_rate: where the cosine ends.
        weight_decay: of the weights.
        gradient_clip: largest norm of the weights' gradient; alpha's gradient has no part in it.
        alpha_learning_rate: of alpha (Adam, betas 0.5 and 0.999).
        anchor: "l2" holds alpha near 0, "kl" holds each edge's distribution near the uniform one.
        anchor_scale: the anchor's weight.
        alpha_frozen: share of the iterations, from the start, in which only the weights learn.
        epsilon_warm_up: share of the iterations, from the start, in which epsilon is almost 0.
        epsilon_ramp: share of the iterations after that, over which epsilon grows linearly to its full size.
        validation_attack: attacks the supernet at the Dirichlet mean after each epoch.

    Raises:
        InputError: for a value outside its range.
    """

    epochs: int = 50
    batch_size: int = 64
    objective: Method = field(default_factory=lambda: PGDAT(attack=FGSM(random_start=True, batch_norm="batch")))
    hold_sample: bool = True
    learning_rate: float = 0.025
    final_learning_rate: float = 0.001
    weight_decay: float = 3e-4
    gradient_clip: float = 5.0
    alpha_learning_rate: float = 3e-4
    anchor: Literal["l2", "kl"] = "l2"
    anchor_scale: float = 1e-3
    alpha_frozen: float = 0.0
    epsilon_warm_up: float = 0.0
    epsilon_ramp: float = 0.0
    validation_attack: Attack = field(default_factory=lambda: PGD(steps=10))

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"search.{name} must be at least 1, but got {getattr(self, name)}.")
        for name in ("alpha_frozen", "epsilon_warm_up", "epsilon_ramp"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"search.{name} is a share and must be in [0, 1], but got {getattr(self, name)}.")
        if self.epsilon_warm_up + self.epsilon_ramp > 1:
            raise InputError(
                f"search.epsilon_warm_up and search.epsilon_ramp must be at most 1 together, but got "
                f"{self.epsilon_warm_up} and {self.epsilon_ramp}; epsilon would not reach its full size."
            )
        for name in ("final_learning_rate", "weight_decay", "anchor_scale"):
            if getattr(self, name) < 0:
                raise InputError(f"search.{name} must not be negative, but got {getattr(self, name)}.")
        for name in ("learning_rate", "alpha_learning_rate", "gradient_clip"):
            if not getattr(self, name) > 0:
                raise InputError(f"search.{name} must be above 0, but got {getattr(self, name)}.")
        for name in ("replays", "norm"):
            if hasattr(self.objective, name):
                raise InputError(
                    f"search.objective cannot be '{name_of(self.objective)}': replayed batches and mixtures of batch "
                    "norms are for trainings; take another method, such as pgd_at."
                )

    def search(self, space: Space, data: Dataset, threat: ThreatModel, stage: Stage) -> SearchResult:
        """Search `space`; see `Search.search`.

        Raises:
            InputError: if a batch does not fit, or the loss is no longer a number.
        """
        world, started = stage.world, time.monotonic()
        with seeded(stage.seed, "search", "weights"):
            supernet = space.supernet(data).to(world.device)
        if (prepare := getattr(self.objective, "prepare", None)) is not None:
            prepare(supernet, seed_at(stage.seed, "search", "prepare"))
        wrapped = world.wrap(supernet)
        relaxation = DirichletRelaxation(len(space.edges), len(space.operations), seed=seed_at(stage.seed, "search"))
        weight_optimiser = torch.optim.SGD(
            supernet.parameters(), self.learning_rate, 0.9, weight_decay=self.weight_decay
        )
        alpha_optimiser = torch.optim.Adam([relaxation.alpha], self.alpha_learning_rate, betas=(0.5, 0.999))

        done, state = stage.resume()
        memory = {"alpha": Memory(), "weights": Memory()}
        seconds, trajectory = 0.0, []
        if state is None:
            trajectory = [self._snapshot(0, supernet, relaxation, data.validation, threat, stage)]
        else:
            supernet.load_state_dict(state["supernet"])
            relaxation.alpha.data.copy_(state["alpha"])
            weight_optimiser.load_state_dict(state["weight_optimiser"])
            alpha_optimiser.load_state_dict(state["alpha_optimiser"])
            for level, kept in state["memory"].items():
                memory[level].load_state(kept, world.device)
            seconds, trajectory = state["seconds"], state["trajectory"]

        for epoch in stage.progress.steps(range(done, self.epochs), "search", total=self.epochs, done=done):
            supernet.train()
            train = epoch_batches(len(data.train), self.batch_size, world, stage.seed, "search", "train", epoch)
            losses = []
            for iteration, indices in enumerate(train):
                share = (epoch + iteration / len(train)) / self.epochs
                growth = growth_at(share, self.epsilon_warm_up, self.epsilon_ramp)
                for group in weight_optimiser.param_groups:
                    group["lr"] = self._learning_rate(share)
                place = (epoch, iteration)
                step = _Step(supernet, relaxation, threat.grown(growth), growth, stage, place)
                if share >= self.alpha_frozen:
                    chosen = self._validation_batch(len(data.validation), stage, epoch, iteration)
                    loss = self._loss(step, "alpha", supernet, data.validation, chosen, memory["alpha"])
                    loss = loss + self.anchor_scale * relaxation.anchor(self.anchor).to(loss)
                    # Only alpha's gradient is computed here; the weights and their clip never see it.
                    (gradient,) = torch.autograd.grad(loss, [relaxation.alpha])
                    relaxation.alpha.grad = world.mean(gradient.to(world.device)).cpu()
                    alpha_optimiser.step()
                loss = self._loss(step, "weights", wrapped, data.train, indices, memory["weights"])
                weight_optimiser.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(supernet.parameters(), self.gradient_clip)
                weight_optimiser.step()
                losses.append(loss.detach())
            world.mean_buffers(supernet)
            for kept in memory.values():
                kept.merge(world)
            mean_loss = float(world.mean(torch.stack(losses).mean()))
            if not math.isfinite(mean_loss):
                raise InputError(
                    f"The search's loss is {mean_loss} in epoch {epoch + 1}; set search.learning_rate lower "
                    f"than {self.learning_rate}."
                )
            trajectory.append(
                {**self._snapshot(epoch + 1, supernet, relaxation, data.validation, threat, stage), "loss": mean_loss}
            )
            seconds, started = seconds + time.monotonic() - started, time.monotonic()
            stage.log(epoch + 1, **trajectory[-1], seconds=seconds)
            stage.save(
                epoch + 1,
                {
                    "supernet": supernet.state_dict(),
                    "alpha": relaxation.alpha,
                    "weight_optimiser": weight_optimiser.state_dict(),
                    "alpha_optimiser": alpha_optimiser.state_dict(),
                    "memory": {level: kept.state() for level, kept in memory.items()},
                    "seconds": seconds,
                    "trajectory": trajectory,
                },
            )
        record = {"trajectory": trajectory, "seconds": seconds, "hold_sample": self.hold_sample}
        return SearchResult(space.operations, relaxation.mean().tolist(), supernet, record)

    def _learning_rate(self, share: float) -> float:
        low, high = self.final_learning_rate, self.learning_rate
        return low + (high - low) * (1 + math.cos(math.pi * share)) / 2

    def _validation_batch(self, count: int, stage: Stage, epoch: int, iteration: int) -> Tensor:
        """Return this rank's validation indices; a split smaller than the training one is gone through again."""
        size = min(self.batch_size, count - count % stage.world.size)
        per_pass = count // size
        number, place = divmod(iteration, per_pass)
        return epoch_batches(count, size, stage.world, stage.seed, "search", "alpha", epoch, number)[place]

    def _loss(
        self, step: _Step, level: str, forward: nn.Module, data: TrainingImages, indices: Tensor, memory: Memory
    ) -> Tensor:
        """Return the objective on a batch, of the sampled supernet."""
        world, seed = step.stage.world, step.stage.seed
        place = ("search", level, *step.place)
        mixture = step.relaxation.sample(seed_at(seed, *place)).to(world.device)
        batch = Batch(
            images=(chosen := data[indices]).images,
            labels=chosen.labels,
            targets=chosen.labels,
            threat=step.threat,
            seed=seed_at(seed, *place, "rank", world.rank),
            ids=indices.to(world.device),
            places=torch.arange(world.rank, len(indices) * world.size, world.size, device=world.device),
            num_samples=len(data),
            batch_size=len(indices) * world.size,
            memory=memory,
            mean=world.mean,
            growth=step.growth,
        )
        crafted = self.objective.craft(step.supernet.at(mixture.detach()), batch)
        if not self.hold_sample:
            mixture = step.relaxation.sample(seed_at(seed, *place, "loss")).to(world.device)
        if level == "weights":
            mixture = mixture.detach()
        sampled = Forward(
            step.supernet.at(mixture), lambda images: forward(images, mixture), batch.images, torch.contiguous_format
        )
        return self.objective.loss(sampled, crafted, batch)

    def _snapshot(
        self,
        epoch: int,
        supernet: Supernet,
        relaxation: DirichletRelaxation,
        validation: ImageSet,
        threat: ThreatModel,
        stage: Stage,
    ) -> dict[str, Any]:
        """Return the concentrations and the validation accuracies at the Dirichlet mean, where nothing is drawn."""
        network = supernet.at(relaxation.mean().to(stage.world.device))
        within = stage.within("validation")
        result = evaluate(network, validation, threat, [self.validation_attack], stage=within)
        accuracies = {"clean": result.clean_accuracy, "robust": result.robust_accuracy}
        if getattr(self.objective, "bounds_network", False):
            accuracies["certified"] = certify(network, validation, threat, bound="interval", stage=within)[0].accuracy
        return {
            "epoch": epoch,
            "concentration": relaxation.concentration.tolist(),
            "entropy": relaxation.entropy(),
            "validation": accuracies,
        }


@dataclass(frozen=True)
class _Step:
    """What both levels of an iteration share; `place` is (epoch, iteration)."""

    supernet: Supernet
    relaxation: DirichletRelaxation
    threat: ThreatModel
    growth: float
    stage: Stage
    place: tuple[int, int]
