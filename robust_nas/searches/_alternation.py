"""Differentiable search at work: alpha and a supernet's weights learn by turns, in stages of progressive shrinking.

Per iteration (DARTS, arXiv:1806.09055, algorithm 1): one step of alpha on a validation batch, then one step of the
weights on a training batch, each on examples crafted against the mixed network. `Bilevel` says how.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from robust_nas.certification import certify
from robust_nas.datasets._batches import epoch_batches
from robust_nas.errors import InputError
from robust_nas.evaluation import evaluate
from robust_nas.registry import name_of
from robust_nas.searches._resources import Cost
from robust_nas.searches._stability import dominance, largest_eigenvalue
from robust_nas.seeds import seed_at, seeded
from robust_nas.spaces import mixed
from robust_nas.supernet._relaxation import drawn_by
from robust_nas.threat import growth_at
from robust_nas.training import Batch, Memory
from robust_nas.training._options import Forward

if TYPE_CHECKING:
    from robust_nas.datasets import Dataset, TrainingImages
    from robust_nas.run_dir import Stage
    from robust_nas.searches._bilevel import Bilevel
    from robust_nas.spaces import Space
    from robust_nas.threat import ThreatModel

DRAWS = 1000
"""Draws after which a search is said to have come to constant architectures alone."""

_SPLIT = {"virtual": "weights", "stability": "alpha"}
"""The level whose images these are of."""


class Alternation:
    """The supernet, the relaxation, and what trains them."""

    def __init__(self, plan: Bilevel, space: Space, data: Dataset, threat: ThreatModel, stage: Stage) -> None:
        self.plan, self.data, self.threat = plan, data, threat
        self.space = space = mixed(space, name_of(plan))
        self.stage, self.world = stage, stage.world
        if len(data.validation) < self.world.size:
            raise InputError(
                f"A search needs a validation image for each of {self.world.size} processes, but the validation split "
                f"of {data.name} has {len(data.validation)}; set data.validation_size higher."
            )
        plan.check(space)
        with seeded(stage.seed, "search", "weights"):
            self.supernet = plan.make_supernet(space, data).to(self.world.device)
        plan.objective.prepare(self.supernet, seed_at(stage.seed, "search", "prepare"))
        seed = seed_at(stage.seed, "search")
        self.relaxation = plan.relaxation(len(space.edges), len(space.operations), seed)
        if plan.prior is not None:
            self.relaxation.alpha.data += plan.prior.alpha(space, data, threat, stage)
        self.alpha_optimiser = torch.optim.Adam([self.relaxation.alpha], plan.alpha_learning_rate, betas=(0.5, 0.999))
        self.cost = None
        if plan.resource is not None:
            # One process's: a latency is not measured twice alike, and all have to keep the same alpha.
            self.cost = self.world.broadcast(plan.resource.cost(self.space, data, self.world.device))
        self.of_stage = 0.0
        """How much of the stage of progressive shrinking is over."""
        self.memory = {"alpha": Memory(), "weights": Memory()}
        self.healthy: list[dict[str, Any]] = []
        """States after the last epochs, oldest first, if the search is watched."""
        self.number = -1
        self.weight_optimiser = self._optimiser()
        self._begin(0)
        self.collapses: list[dict[str, Any]] = []

    def _optimiser(self) -> torch.optim.SGD:
        plan = self.plan
        return torch.optim.SGD(self.supernet.parameters(), plan.learning_rate, 0.9, weight_decay=plan.weight_decay)

    def _begin(self, number: int, active: Tensor | None = None) -> None:
        """Begin a stage of progressive shrinking: fewer operations, more channels; the optimiser goes on.

        Which operations are `active` [E, O] is decided by alpha, if it is not given.
        """
        plan, world = self.plan, self.world
        self.number = number
        places: dict[Tensor, Tensor] = {}
        if number and plan.partial_channels and plan.partial_channels[number] < plan.partial_channels[number - 1]:
            with seeded(self.stage.seed, "search", "widen", number):
                places = self.supernet.widen(plan.partial_channels[number])
        if active is not None:
            self.relaxation.active.copy_(active)
        elif plan.kept_operations:
            self.relaxation.keep(plan.kept_operations[number])
        self.supernet.keep(self.relaxation.active)
        self.healthy = []  # of other sizes
        before, self.weight_optimiser = self.weight_optimiser, self._optimiser()
        for parameter in self.supernet.parameters():
            old = places.get(parameter, parameter)
            if old in before.state:
                momentum = torch.zeros_like(parameter)
                kept = before.state[old]["momentum_buffer"]
                momentum[tuple(slice(size) for size in kept.shape)] = kept
                self.weight_optimiser.state[parameter]["momentum_buffer"] = momentum
        self._keep_to_limit()
        self.forward = world.wrap(self.supernet, partly_used=True)

    def _keep_to_limit(self) -> None:
        """Move alpha to where the expected network keeps to a hard limit."""
        if self.plan.resource is not None and self.plan.resource.hard and self.cost is not None:
            self.plan.resource.keep(self.cost, self.relaxation)

    def epochs(self, done: int) -> Iterator[int]:
        """Yield the epochs that are left, until the search has collapsed once more than it may."""
        for epoch in range(done, self.plan.epochs):
            if self.plan.watch is not None and len(self.collapses) > self.plan.watch.restarts:
                return
            yield epoch

    def watch(self, trajectory: list[dict[str, Any]]) -> None:
        """Go back to the last healthy state, if the search has collapsed, and say so."""
        watch = self.plan.watch
        if watch is None:
            return
        # Another stage's mixtures are of other operations, and its eigenvalues of another network.
        since = max(self.plan.first_epoch(self.number), self.collapses[-1]["epoch"] if self.collapses else 0)
        rows = [row for row in trajectory if row["epoch"] > since]
        reason = watch.has_collapsed([row["eigenvalue"] for row in rows], [row["dominance"] for row in rows])
        epoch = trajectory[-1]["epoch"]
        if reason is None:
            self.healthy = [*self.healthy, copy.deepcopy({"epoch": epoch, **self._state()})][-watch.window :]
            return
        back_to = epoch
        if self.healthy:
            # Those after it are of the search that collapsed.
            self.healthy = self.healthy[:1]
            back_to = self.healthy[0]["epoch"]
            self._go_back(self.healthy[0])
        self.collapses.append({"epoch": epoch, "reason": reason, "back_to": back_to})
        ends = len(self.collapses) > watch.restarts or epoch == self.plan.epochs
        then = "ends at" if ends else "goes on, with ten times the anchor, from"
        self.stage.progress.say(f"search: collapsed in epoch {epoch}: {reason}; it {then} the state of epoch {back_to}")

    def learn(self, epoch: int) -> float:
        """Go through the training split once; return the weights' mean loss."""
        plan, world, seed = self.plan, self.world, self.stage.seed
        while self.number + 1 < plan.num_stages and epoch >= plan.first_epoch(self.number + 1):
            self._begin(self.number + 1)
        self.supernet.train()
        train = epoch_batches(len(self.data.train), plan.batch_size, world, seed, "search", "train", epoch)
        losses = []
        for iteration, indices in enumerate(train):
            share = (epoch + iteration / len(train)) / plan.epochs
            growth = growth_at(share, plan.epsilon_warm_up, plan.epsilon_ramp)
            step = _Step(self.threat.grown(growth), growth, (epoch, iteration))
            self._go_to(share)
            for group in self.weight_optimiser.param_groups:
                group["lr"] = plan.learning_rate_at(share)
            if self.of_stage >= plan.alpha_frozen and iteration % plan.alpha_interval == 0:
                self._step_of_alpha(step, indices)
            losses.append(self._step_of_weights(step, indices))
        world.mean_buffers(self.supernet)
        for kept in self.memory.values():
            kept.merge(world)
        return float(world.mean(torch.stack(losses).mean()))

    def _go_to(self, share: float) -> None:
        """Set what follows how much of the search, and of its stage, is over."""
        plan, first = self.plan, self.plan.first_epoch(self.number)
        self.of_stage = (share * plan.epochs - first) / (plan.first_epoch(self.number + 1) - first)
        self.relaxation.share = share
        self.supernet.add_skip(plan.auxiliary_skip * (1 - share))
        if self.number and plan.partial_channels:
            self.supernet.pass_by(max(0.0, 1 - self.of_stage / plan.widening) if plan.widening else 0.0)

    def _step_of_alpha(self, step: _Step, train: Tensor) -> None:
        """Move alpha along the gradient of the objective on a validation batch."""
        plan, relaxation = self.plan, self.relaxation
        chosen = self._validation_batch(*step.place)
        if plan.order == "second":
            loss = self._loss_after_a_step(step, train, chosen)
        else:
            mixture, batch, crafted = self._crafted(step, "alpha", self.data.validation, chosen)
            loss = self._objective(self.supernet.at(mixture), crafted, batch)
            if plan.smoothness is not None:
                loss = loss + plan.smoothness.penalty(self.supernet.at(mixture), batch)
        if plan.resource is not None and self.cost is not None:
            loss = loss + plan.resource.penalty(self.cost, relaxation.expected()).to(loss)
        anchor_scale = plan.anchor_scale * 10 ** len(self.collapses)
        loss = loss + anchor_scale * plan.anchored(relaxation).to(loss)
        # Only alpha's gradient is computed here; the weights and their clip never see it.
        (gradient,) = torch.autograd.grad(loss, [relaxation.alpha], allow_unused=True, materialize_grads=True)
        relaxation.alpha.grad = self.world.mean(gradient.to(self.world.device)).cpu()
        if not bool(relaxation.alpha.grad.isfinite().all()):
            raise InputError(
                f"The gradient of the search's alpha is not finite in epoch {step.place[0] + 1}; set "
                f"search.learning_rate lower than {plan.learning_rate}, or search.alpha_learning_rate lower than "
                f"{plan.alpha_learning_rate}."
            )
        self.alpha_optimiser.step()
        self._keep_to_limit()

    def _step_of_weights(self, step: _Step, indices: Tensor) -> Tensor:
        """Move the weights along the gradient of the objective on a training batch; return the loss, detached."""
        mixture, batch, crafted = self._crafted(step, "weights", self.data.train, indices)
        mixture = mixture.detach()
        loss = self._objective(self.supernet.at(mixture), crafted, batch, lambda x: self.forward(x, mixture))
        self.weight_optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.supernet.parameters(), self.plan.gradient_clip)
        self.weight_optimiser.step()
        return loss.detach()

    def _loss_after_a_step(self, step: _Step, train: Tensor, validation: Tensor) -> Tensor:
        """Return the validation loss at the weights after a step on a training batch, as a function of alpha.

        The step is the optimiser's own, momentum and decay included, but for the clip; its gradient is differentiated,
        not approximated by differences. Validation examples are crafted against the weights before the step. The
        statistics of batch norm are left as they are.
        """
        supernet, group = self.supernet, self.weight_optimiser.param_groups[0]
        mixture, batch, crafted = self._crafted(step, "virtual", self.data.train, train)
        parameters = dict(supernet.named_parameters())
        statistics = {name: buffer.clone() for name, buffer in supernet.named_buffers()}

        def forward(weights: Mapping[str, Tensor], mixture: Tensor) -> Callable[[Tensor], Tensor]:
            return lambda images: torch.func.functional_call(supernet, {**weights, **statistics}, (images, mixture))

        loss = self._objective(supernet.at(mixture), crafted, batch, forward(parameters, mixture))
        gradients = torch.autograd.grad(
            loss, list(parameters.values()), create_graph=True, allow_unused=True, materialize_grads=True
        )
        # One message for all of them.
        averaged = self.world.mean_through(torch.cat([gradient.flatten() for gradient in gradients]))
        sizes, moved = [parameter.numel() for parameter in parameters.values()], {}
        for (name, parameter), gradient in zip(parameters.items(), averaged.split(sizes), strict=True):
            momentum = self.weight_optimiser.state[parameter].get("momentum_buffer")
            update = group["weight_decay"] * parameter.detach() + gradient.view_as(parameter)
            update = update if momentum is None else update + group["momentum"] * momentum
            moved[name] = parameter.detach() - group["lr"] * update
        mixture, batch, crafted = self._crafted(step, "alpha", self.data.validation, validation)
        return self._objective(supernet.at(mixture), crafted, batch, forward(moved, mixture))

    def _crafted(self, step: _Step, level: str, data: TrainingImages, indices: Tensor) -> tuple[Tensor, Batch, Tensor]:
        """Return a mixture, differentiable in alpha, a batch, and its examples, crafted against a sampled supernet."""
        world, seed = self.world, self.stage.seed
        place = ("search", level, *step.place)
        mixture = self._sample(*place)
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
            # What is looked at beside the steps of the search leaves no trace in what it remembers.
            memory=self.memory[level] if level in self.memory else copy.deepcopy(self.memory[_SPLIT[level]]),
            mean=world.mean,
            growth=step.growth,
        )
        crafted = self.plan.objective.craft(self.supernet.at(mixture.detach()), batch)
        if not self.plan.hold_sample:
            mixture = self._sample(*place, "loss")
        return mixture, batch, crafted

    def _sample(self, *place: str | int) -> Tensor:
        """Return a mixture [E, O]; a single architecture whose output does not depend on its input is drawn again.

        Raises:
            InputError: if there are hardly any others.
        """
        for attempt in range(DRAWS):
            seed = seed_at(self.stage.seed, *place, *[attempt] * (attempt > 0))
            mixture = self.relaxation.sample(seed)
            if self.plan.single_path and "weights" in place:
                mixture = drawn_by(mixture.detach(), seed)
            weights, chosen = mixture.detach().max(-1)
            if bool((weights < 1).any()) or self.space.is_connected(chosen.tolist()):
                return mixture.to(self.world.device)
        raise InputError(
            f"The search has come to architectures whose output does not depend on their input, {DRAWS} draws in a "
            f"row; set search.alpha_learning_rate lower than {self.plan.alpha_learning_rate}, or keep more operations."
        )

    def _objective(
        self, model: nn.Module, crafted: Tensor, batch: Batch, forward: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """Return the objective on a batch; `forward` computes what `model` does."""
        passed = Forward(model, model if forward is None else forward, batch.images, torch.contiguous_format)
        return self.plan.objective.loss(passed, crafted, batch)

    def _validation_batch(self, epoch: int, iteration: int) -> Tensor:
        """Return this rank's validation indices; a split smaller than the training one is gone through again."""
        count, world = len(self.data.validation), self.world
        size = min(self.plan.batch_size, count - count % world.size)
        number, place = divmod(iteration, count // size)
        return epoch_batches(count, size, world, self.stage.seed, "search", "alpha", epoch, number)[place]

    def snapshot(self, epoch: int) -> dict[str, Any]:
        """Return the mean mixture and the validation accuracies at it, where nothing is drawn."""
        plan, relaxation = self.plan, self.relaxation
        self._go_to(epoch / plan.epochs)
        mean, images = relaxation.mean(), self.data.validation[: plan.validation_images]
        network = self.supernet.at(mean.to(self.world.device))
        within = self.stage.within("validation")
        result = evaluate(network, images, self.threat, [plan.validation_attack], stage=within)
        accuracies = {"clean": result.clean_accuracy, "robust": result.robust_accuracy}
        if plan.objective.bounds_network:
            accuracies["certified"] = certify(network, images, self.threat, bound="interval", stage=within)[0].accuracy
        return {
            "epoch": epoch,
            "mixture": mean.tolist(),
            **relaxation.describe(),
            "entropy": relaxation.entropy(),
            **({} if plan.watch is None else self._stability(mean, epoch)),
            **({} if self.cost is None else {"expected_cost": float(self.cost.of(mean))}),
            "validation": accuracies,
        }

    def _stability(self, mean: Tensor, epoch: int) -> dict[str, Any]:
        """Return the share of edges without parameters and the largest eigenvalue; None before alpha learns."""
        found: dict[str, Any] = {"dominance": None, "eigenvalue": None}
        plan, relaxation, supernet = self.plan, self.relaxation, self.supernet
        assert plan.watch is not None
        if not self.alpha_optimiser.state:
            return found
        found["dominance"] = dominance(mean, self.space.operations)
        if not plan.watch.growth:
            return found
        statistics = {name: buffer.clone() for name, buffer in supernet.named_buffers()}
        supernet.train()
        indices = torch.arange(min(plan.watch.images, len(self.data.validation)), device=self.world.device)
        step = _Step(self.threat, 1.0, (epoch, 0))
        _, batch, crafted = self._crafted(step, "stability", self.data.validation, indices)

        def loss(alpha: Tensor) -> Tensor:
            kept, relaxation.alpha = relaxation.alpha, alpha
            mixture = relaxation.expected().to(self.world.device)
            relaxation.alpha = kept
            return self._objective(supernet.at(mixture), crafted, batch)

        # One process's: each has crafted examples of its own, and all have to decide alike.
        found["eigenvalue"] = self.world.broadcast(largest_eigenvalue(loss, relaxation.alpha))
        for name, buffer in supernet.named_buffers():
            buffer.copy_(statistics[name])
        return found

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds."""
        cost = None if self.cost is None else {"fixed": self.cost.fixed, "operations": self.cost.operations}
        return {**self._state(), "healthy": self.healthy, "collapses": self.collapses, "cost": cost}

    def _state(self) -> dict[str, Any]:
        return {
            "supernet": self.supernet.state_dict(),
            "alpha": self.relaxation.alpha,
            "active": self.relaxation.active,
            "number": self.number,
            "share": self.relaxation.share,
            "weight_optimiser": self.weight_optimiser.state_dict(),
            "alpha_optimiser": self.alpha_optimiser.state_dict(),
            "memory": {level: kept.state() for level, kept in self.memory.items()},
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._go_back(state)
        self.healthy, self.collapses = state["healthy"], state["collapses"]
        self.cost = None if state["cost"] is None else Cost(self.space, **state["cost"])

    def _go_back(self, state: dict[str, Any]) -> None:
        """Take up a state: the stages' sizes first, then what is in them."""
        while self.number < state["number"]:
            self._begin(self.number + 1, state["active"])
        self.supernet.load_state_dict(state["supernet"])
        self.relaxation.alpha.data.copy_(state["alpha"])
        self._go_to(state["share"])
        self.weight_optimiser.load_state_dict(state["weight_optimiser"])
        self.alpha_optimiser.load_state_dict(state["alpha_optimiser"])
        for level, kept in state["memory"].items():
            self.memory[level].load_state(kept, self.world.device)


@dataclass(frozen=True)
class _Step:
    """What both levels of an iteration share; `place` is (epoch, iteration)."""

    threat: ThreatModel
    growth: float
    place: tuple[int, int]
