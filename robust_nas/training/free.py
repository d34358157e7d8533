"""Free adversarial training (Shafahi et al. 2019, arXiv:1904.12843): one backward pass for weights and attack."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from robust_nas.core.checks import check_at_least, check_choice
from robust_nas.threat import Pixels, check_pixels
from robust_nas.training import Batch, TrainingMethod

Carry = Literal["batch", "sample"]


@dataclass(frozen=True, kw_only=True)
class Free(TrainingMethod):
    """Free-m: each batch is trained on m times in a row, and every backward pass also moves the perturbation.

    A step costs what a step of standard training does, and the gradient of the first layer's input. To spend what
    standard training spends, divide the number of epochs by `replays`, as published.

    Args:
        replays: number of steps on each batch before the next one (m).
        carry: the perturbation that a step starts from. "batch": the one that the same place of the batch before ended
            with, whatever its image (algorithm 1). "sample": the one that the image itself had when it was last seen;
            it takes as much memory, and room in a checkpoint, as the training images in float32.
        step_size: the perturbation's move in one backward pass, in pixel units of [0, 1]; epsilon, if not given,
            as published.

    Raises:
        InputError: for a value outside its range.
    """

    fixed_size: ClassVar[bool] = True
    fits_searches: ClassVar[bool] = False

    replays: int = 8
    carry: Carry = "batch"
    step_size: Pixels | None = None

    def __post_init__(self) -> None:
        check_at_least("Free.replays", self.replays, 1)
        check_choice("Free.carry", self.carry, Carry)
        if self.step_size is not None:
            object.__setattr__(self, "step_size", check_pixels("Free.step_size", self.step_size))

    def craft(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the images with the carried perturbations, inside the threat model.

        The backward pass through them moves the perturbations.
        """
        points = (
            batch.threat.around(batch.images).project(batch.images + self._carried(batch)).detach().requires_grad_()
        )
        # Only a pass that accumulates into leaves comes by here: the gradient of the weights alone does not.
        points.register_hook(lambda gradient: self._ascend(points.detach(), gradient.detach(), batch))
        return points

    def loss(self, forward: Callable[[Tensor], Tensor], crafted: Tensor, batch: Batch) -> Tensor:
        """Return the mean cross-entropy at the crafted images."""
        return F.cross_entropy(forward(crafted), batch.targets)

    def _ascend(self, points: Tensor, gradient: Tensor, batch: Batch) -> None:
        """Move the carried perturbations by one step from `points`, up the gradient of the loss there."""
        threat, step_size = batch.threat, self.step_size or batch.threat.epsilon
        # An overflow in half precision must not be carried on for ever.
        gradient = gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        if threat.norm == "linf":
            # The perturbation is clipped to the ball and not to [0, 1]: its next image is another one.
            moved = (self._carried(batch) + step_size * gradient.sign()).clamp(-threat.epsilon, threat.epsilon)
        else:
            moved = threat.around(batch.images).ascend(points, gradient, step_size) - batch.images
        batch.memory.write("perturbations", self._rows(batch), moved)

    def _carried(self, batch: Batch) -> Tensor:
        """Return the perturbations [B, C, H, W] that this step starts from, zeros at first."""
        count = batch.batch_size if self.carry == "batch" else batch.num_samples
        shape = (count, *batch.images.shape[1:])
        return batch.memory.table("perturbations", shape, batch.images.device)[self._rows(batch)]

    def _rows(self, batch: Batch) -> Tensor:
        return batch.places if self.carry == "batch" else batch.ids
