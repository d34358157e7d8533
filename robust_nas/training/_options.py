"""The options of every training method: its forward pass, added losses, moved and averaged weights."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robust_nas.core.errors import InputError
from robust_nas.core.seeds import seeded
from robust_nas.models import OffersAuxiliaryHead
from robust_nas.models.mixture_norm import is_mixed, through
from robust_nas.models.scores import logits_of
from robust_nas.training import Batch

if TYPE_CHECKING:
    from robust_nas.runtime.distributed import World
    from robust_nas.training._plan import Training


class Forward:
    """The forward pass of one step; logits are remembered by the tensor that they are of.

    Clean images go through a mixture's clean batch norm, all others through its adversarial one.

    Args:
        model: what `through` finds the mixtures in.
        wrapped: the model as it is called: compiled, or averaging gradients over ranks.
        clean: the batch's own images.
        tapped: a part of the model whose outputs are remembered too.
    """

    def __init__(
        self,
        model: nn.Module,
        wrapped: Callable[[Tensor], Tensor],
        clean: Tensor,
        memory_format: torch.memory_format,
        tapped: nn.Module | None = None,
    ) -> None:
        self.model, self._wrapped, self._clean, self._format = model, wrapped, clean, memory_format
        self._tapped = tapped
        self._known: list[tuple[Tensor, Tensor]] = []
        self._features: list[tuple[Tensor, Tensor]] = []

    def __call__(self, images: Tensor) -> Tensor:
        """Return the logits [B, K], float32, of images [B, C, H, W].

        Raises:
            InputError: if the model returns something else, as some do in training mode only.
        """
        for known, logits in self._known:
            if known is images:
                return logits
        # Also a detached clean image is clean.
        clean = images.data_ptr() == self._clean.data_ptr()
        with through(self.model, "clean" if clean else "adversarial"), self._noted(images):
            found: Any = logits_of(self._wrapped, images.contiguous(memory_format=self._format))
        if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(images):
            got = list(found.shape) if isinstance(found, Tensor) else f"one {type(found).__name__}"
            raise InputError(
                f"The model must return logits [B, K] in training mode too, but for a batch of {len(images)} it "
                f"returned {got}; leave out auxiliary classifiers (aux_logits=False), or wrap it so that it does."
            )
        logits = found.float()
        self._known.append((images, logits))
        return logits

    def together(self, crafted: Tensor, clean: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of adversarial images and of clean ones that go in with them, some of the batch's.

        In one pass, in which plain batch norms take the statistics of both together; where clean images have statistics
        of their own, in two.
        """
        if is_mixed(self.model):
            return self(crafted), self(clean)
        both, sizes = torch.cat([crafted, clean]), [len(crafted), len(clean)]
        of_crafted, of_clean = self(both).split(sizes)
        self._known += [(crafted, of_crafted), (clean, of_clean)]
        for features in [features for images, features in self._features if images is both]:
            self._features += zip((crafted, clean), features.split(sizes), strict=True)
        return of_crafted, of_clean

    def features(self, images: Tensor) -> Tensor:
        """Return the tapped part's output [B, C, H, W] in the pass of these images."""
        self(images)
        (found,) = (features for known, features in self._features if known is images)
        return found

    @contextlib.contextmanager
    def _noted(self, images: Tensor) -> Iterator[None]:
        if self._tapped is None:
            yield
            return
        hook = self._tapped.register_forward_hook(lambda _, __, output: self._features.append((images, output)))
        try:
            yield
        finally:
            hook.remove()


def added_losses(training: Training, forward: Callable[[Tensor], Tensor], crafted: Tensor, batch: Batch) -> Tensor:
    """Return the losses that clean images and logit pairing add to a method's loss."""
    loss = torch.zeros((), device=crafted.device)
    if training.clean_weight:
        loss = loss + training.clean_weight * F.cross_entropy(forward(batch.images), batch.targets)
    if training.pairing:
        loss = loss + training.pairing * F.mse_loss(forward(crafted), forward(batch.images))
    return loss


def auxiliary_head(model: nn.Module, training: Training, world: World, seed: int) -> nn.Module | None:
    """Return a new auxiliary head for the network, if there is to be one."""
    if not training.auxiliary:
        return None
    if not isinstance(model, OffersAuxiliaryHead):
        raise InputError(
            "train.auxiliary is for networks with an auxiliary head, such as those of the DARTS space; set it to 0."
        )
    with seeded(seed):
        head = model.auxiliary_head()
    return head.to(world.device).train()


@contextlib.contextmanager
def moved_weights(
    model: nn.Module, gamma: float, losses: Sequence[Callable[[], Tensor]], mean: Callable[[Tensor], Tensor]
) -> Iterator[None]:
    """Move the weights up the loss by gamma of their norm, and put them back (AWP, arXiv:2004.05884, equations 8, 9).

    Only weights of more than one dimension move. The loss that they are moved along leaves the buffers as they were.

    Args:
        gamma: the size of the move; 0 for none.
        losses: the terms of the loss at the present weights; not for what is averaged over ranks in backward.
        mean: the mean over ranks, so that all move alike.
    """
    if not gamma:
        yield
        return
    weights = [weight for weight in model.parameters() if weight.dim() > 1 and weight.requires_grad]
    kept = [weight.detach().clone() for weight in weights]
    buffers = [buffer.clone() for buffer in model.buffers()]
    gradients: list[Tensor] = []
    for loss in losses:
        found = torch.autograd.grad(loss(), weights, allow_unused=True, materialize_grads=True)
        gradients = [one + other for one, other in zip(gradients, found, strict=True)] if gradients else list(found)
    with torch.no_grad():
        # One message for all of them.
        averaged = mean(torch.cat([gradient.flatten() for gradient in gradients]))
        for buffer, value in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(value)
        for weight, gradient in zip(weights, averaged.split([weight.numel() for weight in weights]), strict=True):
            weight.add_(gradient.view_as(weight) * (gamma * weight.norm() / gradient.norm().clamp_min(1e-20)))
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, value in zip(weights, kept, strict=True):
                weight.copy_(value)


def parts_of_a_step(module: nn.Module, shares: Sequence[float]) -> Iterator[float]:
    """Give the parts' shares of the batch, one by one; every part begins with the buffers as they were.

    Afterwards floating point buffers are the mean, by shares, of what the parts have left behind, and the others what
    the last one has: running statistics move once, towards the mean of the parts' statistics, as those of several
    ranks do.
    """
    buffers = list(module.buffers()) if len(shares) > 1 else []
    starts = [buffer.clone() for buffer in buffers]
    means = [torch.zeros_like(buffer) if buffer.is_floating_point() else buffer for buffer in buffers]
    for share in shares:
        with torch.no_grad():
            for buffer, start in zip(buffers, starts, strict=True):
                buffer.copy_(start)
        yield share
        with torch.no_grad():
            for buffer, mean in zip(buffers, means, strict=True):
                if mean is not buffer:
                    mean.add_(buffer, alpha=share)
    with torch.no_grad():
        for buffer, mean in zip(buffers, means, strict=True):
            buffer.copy_(mean)


class Average:
    """The running mean of a model's parameters and buffers, with decay min(largest, (t + 1) / (t + 10)) after t steps.

    Args:
        model: whose; the mean begins as it is.
        largest: decay; 0 keeps no mean, and `held` is then the model itself.
    """

    def __init__(self, model: nn.Module, largest: float) -> None:
        self._model, self._largest, self.steps = model, largest, 0
        self.values = {name: value.clone() for name, value in model.state_dict().items()} if largest else {}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the model as it is after a step."""
        decay = min(self._largest, (self.steps + 1) / (self.steps + 10))
        self.steps += 1
        for name, value in self._model.state_dict().items() if self._largest else ():
            if value.is_floating_point():
                self.values[name].lerp_(value, 1 - decay)
            else:
                self.values[name].copy_(value)

    @torch.no_grad()
    def agree(self, mean: Callable[[Tensor], Tensor]) -> None:
        """Replace the means of floating point buffers by their mean over ranks."""
        for value in self.buffers.values():
            if value.is_floating_point():
                value.copy_(mean(value))

    @property
    def buffers(self) -> dict[str, Tensor]:
        """The means of buffers, by name."""
        return {name: self.values[name] for name, _ in self._model.named_buffers() if name in self.values}

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Give the model the mean, and its own values back afterwards."""
        if not self._largest:
            yield
            return
        own = {name: value.clone() for name, value in self._model.state_dict().items()}
        self._model.load_state_dict(self.values)
        try:
            yield
        finally:
            self._model.load_state_dict(own)
