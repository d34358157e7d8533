"""A step of alpha: Adam on the objective, on a validation batch, with the terms of alpha's loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from robust_nas.core.errors import InputError
from robust_nas.searches import SearchResult

if TYPE_CHECKING:
    from robust_nas.relaxations.relaxation import Relaxation
    from robust_nas.searches._mixtures import Mixtures, Step
    from robust_nas.searches._resources import Cost
    from robust_nas.searches._settings import BilevelSettings
    from robust_nas.searches._weight_step import WeightStep


class AlphaStep:
    """The optimiser of alpha, and its steps.

    Args:
        weights: the other level, of which a second-order gradient looks one step ahead.
        cost: the cost of the space's networks, where there is a limit.
        anchor: the anchor of the mixtures to their start.
    """

    def __init__(
        self,
        settings: BilevelSettings,
        mixtures: Mixtures,
        weights: WeightStep,
        cost: Cost | None,
        anchor: Callable[[Relaxation], Tensor],
    ) -> None:
        self._settings, self._mixtures, self._weights, self._anchor = settings, mixtures, weights, anchor
        self.cost = cost
        self.optimiser = torch.optim.Adam([mixtures.relaxation.alpha], settings.alpha_learning_rate, betas=(0.5, 0.999))

    @property
    def has_begun(self) -> bool:
        """Whether there has been a step."""
        return bool(self.optimiser.state)

    def is_due(self, of_stage: float, iteration: int) -> bool:
        """Whether there is a step in an iteration, of which a share of its stage is over."""
        return of_stage >= self._settings.alpha_frozen and iteration % self._settings.alpha_interval == 0

    def kept_limit(self) -> dict[str, Any] | None:
        """The outcome of the limit on the networks' cost, for search.json; None without one."""
        resource, relaxation = self._settings.resource, self._mixtures.relaxation
        if resource is None or self.cost is None:
            return None
        best = SearchResult(self._mixtures.space, relaxation.mean().tolist(), None, {}).best
        return resource.outcome(self.cost, relaxation.expected().detach(), best)

    def take(self, step: Step, train: Tensor, validation: Tensor, *, collapses: int = 0) -> None:
        """Move alpha along the gradient of the objective on a validation batch.

        Args:
            train: indices of the training batch that comes next.
            validation: indices of the validation batch.
            collapses: of the search so far, each of which makes the anchor ten times as strong.
        """
        settings, relaxation, world = self._settings, self._mixtures.relaxation, self._mixtures.world
        loss = self._validation_loss(step, train, validation)
        if settings.resource is not None and self.cost is not None:
            loss = loss + settings.resource.penalty(self.cost, relaxation.expected()).to(loss)
        anchor_scale = settings.anchor_scale * 10**collapses
        loss = loss + anchor_scale * self._anchor(relaxation).to(loss)
        # Only alpha's gradient is computed here; the weights and their clip never see it.
        (gradient,) = torch.autograd.grad(loss, [relaxation.alpha], allow_unused=True, materialize_grads=True)
        relaxation.alpha.grad = world.mean(gradient.to(world.device)).cpu()
        if not bool(relaxation.alpha.grad.isfinite().all()):
            raise InputError(
                f"The gradient of the search's alpha is not finite in epoch {step.place[0] + 1}; set "
                f"search.learning_rate lower than {settings.learning_rate}, or search.alpha_learning_rate lower than "
                f"{settings.alpha_learning_rate}."
            )
        self.optimiser.step()
        self.keep_to_limit()

    def _validation_loss(self, step: Step, train: Tensor, validation: Tensor) -> Tensor:
        mixtures, settings = self._mixtures, self._settings
        moved = self._weights.virtual(step, train) if settings.order == "second" else None
        # Validation examples are crafted against the weights before the step.
        mixture, batch, crafted = mixtures.crafted(step, "alpha", mixtures.data.validation, validation)
        network = mixtures.supernet.at(mixture)
        loss = mixtures.loss(network, crafted, batch, None if moved is None else moved(mixture))
        return loss if settings.smoothness is None else loss + settings.smoothness.penalty(network, batch)

    def keep_to_limit(self) -> None:
        """Move alpha to where the expected network keeps to a hard limit."""
        resource = self._settings.resource
        if resource is not None and resource.hard and self.cost is not None:
            resource.keep(self.cost, self._mixtures.relaxation)
