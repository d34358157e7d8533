"""A step of the supernet's weights: SGD on the objective, on a training batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable

    from robust_nas.searches._mixtures import Mixtures, Step
    from robust_nas.searches._settings import WeightSettings

MOMENTUM = 0.9


class WeightStep:
    """The optimiser of the supernet's weights, and its steps."""

    def __init__(self, settings: WeightSettings, mixtures: Mixtures) -> None:
        self._settings, self._mixtures = settings, mixtures
        self.optimiser = self._new_optimiser()

    def _new_optimiser(self) -> torch.optim.SGD:
        settings, parameters = self._settings, self._mixtures.supernet.parameters()
        return torch.optim.SGD(parameters, settings.learning_rate, MOMENTUM, weight_decay=settings.weight_decay)

    def follow(self, places: Mapping[Tensor, Tensor]) -> None:
        """Take the supernet as it is after it has changed; momentum goes on where a weight does.

        Args:
            places: weights of the supernet as it was, by those that continue them and are larger.
        """
        before, self.optimiser = self.optimiser, self._new_optimiser()
        for parameter in self._mixtures.supernet.parameters():
            old = places.get(parameter, parameter)
            if old in before.state:
                momentum = torch.zeros_like(parameter)
                kept = before.state[old]["momentum_buffer"]
                momentum[tuple(slice(size) for size in kept.shape)] = kept
                self.optimiser.state[parameter]["momentum_buffer"] = momentum

    def go_to(self, progress: float) -> None:
        """Set the learning rate to that of a share of the search."""
        for group in self.optimiser.param_groups:
            group["lr"] = self._settings.learning_rate_at(progress)

    def take(self, step: Step, indices: Tensor) -> Tensor:
        """Move the weights along the gradient of the objective on a training batch; return the loss, detached."""
        mixtures, supernet = self._mixtures, self._mixtures.supernet
        mixture, batch, crafted = mixtures.crafted(step, "weights", mixtures.data.train, indices)
        mixture = mixture.detach()
        loss = mixtures.loss(supernet.at(mixture), crafted, batch, lambda images: supernet(images, mixture))
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        mixtures.world.mean_gradients(supernet)  # a mixture may leave out operations
        nn.utils.clip_grad_norm_(supernet.parameters(), self._settings.gradient_clip)
        self.optimiser.step()
        return loss.detach()

    def virtual(self, step: Step, indices: Tensor) -> Callable[[Tensor], Callable[[Tensor], Tensor]]:
        """Return the supernet as it would be after a step on a training batch: a forward pass for each mixture.

        It is differentiable in alpha. The step is the optimiser's own, momentum and decay included, but for the clip;
        its gradient is differentiated, not approximated by differences. The statistics of batch norm are left as they
        are.
        """
        mixtures, supernet, group = self._mixtures, self._mixtures.supernet, self.optimiser.param_groups[0]
        mixture, batch, crafted = mixtures.crafted(step, "virtual", mixtures.data.train, indices)
        parameters = dict(supernet.named_parameters())
        statistics = {name: buffer.clone() for name, buffer in supernet.named_buffers()}

        def forward(weights: Mapping[str, Tensor], mixture: Tensor) -> Callable[[Tensor], Tensor]:
            return lambda images: torch.func.functional_call(supernet, {**weights, **statistics}, (images, mixture))

        loss = mixtures.loss(supernet.at(mixture), crafted, batch, forward(parameters, mixture))
        gradients = torch.autograd.grad(
            loss, list(parameters.values()), create_graph=True, allow_unused=True, materialize_grads=True
        )
        # One message for all of them.
        averaged = mixtures.world.mean_through(torch.cat([gradient.flatten() for gradient in gradients]))
        sizes, moved = [parameter.numel() for parameter in parameters.values()], {}
        for (name, parameter), gradient in zip(parameters.items(), averaged.split(sizes), strict=True):
            momentum = self.optimiser.state[parameter].get("momentum_buffer")
            update = group["weight_decay"] * parameter.detach() + gradient.view_as(parameter)
            update = update if momentum is None else update + group["momentum"] * momentum
            moved[name] = parameter.detach() - group["lr"] * update
        return lambda mixture: forward(moved, mixture)
