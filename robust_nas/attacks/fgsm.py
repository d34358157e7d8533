"""The fast gradient sign method, plain (arXiv:1412.6572) and from a random start (FGSM-RS, arXiv:2001.03994)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from robust_nas.attacks import Attack
from robust_nas.attacks._draws import Draws
from robust_nas.core.checks import check_choice
from robust_nas.core.pixels import unit_images_and_labels
from robust_nas.models.frozen import BatchNorm, frozen
from robust_nas.models.losses import cross_entropy
from robust_nas.models.scores import check_finite, input_gradient
from robust_nas.threat import Pixels, ThreatModel, check_pixels


@dataclass(frozen=True, kw_only=True)
class FGSM(Attack):
    """One step of steepest ascent on the cross-entropy.

    From the image itself the step is epsilon long (Goodfellow et al. 2015, arXiv:1412.6572, section 4). From a
    uniformly random point of the ball it is 1.25 epsilon long and ends with a projection (Wong et al. 2020,
    arXiv:2001.03994, algorithm 3).

    Args:
        random_start: whether to start at a random point of the ball.
        step_size: step length in pixel units of [0, 1], instead of the published multiple of epsilon.
        batch_norm: "running" or "batch" statistics while attacking.

    Raises:
        InputError: if `step_size` is outside (0, 1].
    """

    random_start: bool = False
    step_size: Pixels | None = None
    batch_norm: BatchNorm = "running"

    def __post_init__(self) -> None:
        if self.step_size is not None:
            object.__setattr__(self, "step_size", check_pixels("FGSM.step_size", self.step_size))
        check_choice("FGSM.batch_norm", self.batch_norm, BatchNorm)

    def perturb(
        self, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, *, seed: int = 0
    ) -> Tensor:
        """Return adversarial images [B, C, H, W], detached, inside `threat` around `images`."""
        images, labels = unit_images_and_labels(images, labels)
        if len(images) == 0:
            return images.clone()
        ball = threat.around(images)
        start = ball.at(Draws(images, seed).uniform(images[0].numel() + 1, 0)) if self.random_start else images
        step_size = self.step_size or threat.epsilon * (1.25 if self.random_start else 1.0)
        with frozen(model, self.batch_norm):
            logits, _, gradient = input_gradient(model, start, labels, cross_entropy)
        points = ball.ascend(start, gradient, step_size)
        check_finite(self, logits, points)
        return points
