"""Customised adversarial training (Cheng et al. 2020, arXiv:2002.06789): a radius and a label for each image.

Networks that it trains are prone to mask their gradients: judge them with AutoAttack.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributions import Dirichlet
from torch.nn import functional as F

from robust_nas.attacks import Attack
from robust_nas.attacks.pgd import PGD
from robust_nas.core.checks import check_choice
from robust_nas.core.errors import InputError
from robust_nas.core.seeds import generator_at, seeded
from robust_nas.models.frozen import frozen
from robust_nas.models.losses import cross_entropy, margin, per_sample
from robust_nas.models.scores import check_finite, input_gradient, misclassified, scores
from robust_nas.threat import LinfBall, Pixels, check_pixels
from robust_nas.training import Batch, TrainingMethod

Objective = Literal["cross_entropy", "margin"]

_PUBLISHED_EPSILON = 8 / 255


@dataclass(frozen=True, kw_only=True)
class CAT(TrainingMethod):
    """Adversarial training at radii that grow image by image, for as long as the image is still classified right.

    A radius starts at 0. Each time its image is seen, PGD attacks it at a radius larger by `eta`. The radius stays that
    large if the prediction at the crafted point is right, and keeps its value otherwise; the network trains on the
    crafted point in either case. The larger the radius, the softer the label: (1 - c radius) y + c radius d, with d
    drawn from a Dirichlet distribution. For linf only, and one forward pass dearer than PGD training: it shows which
    images survive.

    Args:
        attack: plain PGD, of which `steps`, `step_size`, `random_start` and `batch_norm` may be set. A step is
            `step_size` long for all images or, if that is not given, 2.5 radius / steps for each.
        eta: growth of a radius at a time, in pixel units of [0, 1]; if not given, the published 0.005 at 8/255, in
            proportion to the threat's epsilon.
        epsilon_max: the largest radius, in pixel units of [0, 1]; the threat's, if not given or larger than that.
        c: the share of the label that is drawn, per unit of the radius in [0, 1]; the share is at most 1. If not given,
            the published 10 at 8/255, in inverse proportion to the threat's epsilon: at epsilon, the share is 0.31.
        concentration: of the symmetric Dirichlet distribution; at 1 it is uniform.
        objective: "cross_entropy" with the soft label, or "margin", which adds max(max_{j != y} z_j - z_y, -kappa).
        kappa: the margin of the logits from which on "margin" adds no more pressure.
        soft_attack: whether the attack raises the loss of the softened label, as in the implementations that are
            public. Where the model is surer than that label, this leads away from the decision boundary: the image
            seems to survive, its radius grows, and gradients are masked. Otherwise the attack raises the loss of the
            label as it is.

    Raises:
        InputError: for a value outside its range, or another attack.
    """

    attack: Attack = field(default_factory=lambda: PGD(steps=10, random_start=False))
    eta: Pixels | None = None
    epsilon_max: Pixels | None = None
    c: float | None = None
    concentration: float = 1.0
    objective: Objective = "cross_entropy"
    kappa: float = 10.0
    soft_attack: bool = False

    def __post_init__(self) -> None:
        self._plain_attack()
        if self.eta is not None:
            object.__setattr__(self, "eta", check_pixels("CAT.eta", self.eta))
        if self.epsilon_max is not None:
            object.__setattr__(self, "epsilon_max", check_pixels("CAT.epsilon_max", self.epsilon_max))
        check_choice("CAT.objective", self.objective, Objective)
        for name, value in (("c", self.c), ("kappa", self.kappa)):
            if value is not None and not value >= 0:
                raise InputError(f"CAT.{name} must be at least 0, but got {value}.")
        if not self.concentration > 0:
            raise InputError(f"CAT.concentration must be above 0, but got {self.concentration}.")

    def craft(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the last points of PGD in balls of the images' own radii, and move those radii.

        Raises:
            InputError: if the threat model is not in linf.
        """
        if batch.threat.norm != "linf":
            raise InputError(f"CAT is for linf, but got an {batch.threat.norm} threat model; use pgd_at instead.")
        attack, images, labels = self._plain_attack(), batch.images.detach(), batch.labels
        limit = min(self.epsilon_max or batch.threat.epsilon, batch.threat.epsilon)
        radii = self._radii(batch)
        # Try a larger radius.
        eta = self.eta or 0.005 / _PUBLISHED_EPSILON * batch.threat.epsilon
        tried = (radii + eta).clamp(max=limit)
        ball = LinfBall(images, per_sample(tried))  # type: ignore[arg-type]  # broadcasts as a number does
        step_size = attack.step_size or per_sample(2.5 * tried / max(attack.steps, 1)).to(images.dtype)

        # Public implementations attack the softened label; see `soft_attack` for why that is not the default.
        share = self._share(batch) if self.soft_attack else torch.zeros_like(radii)

        @cache
        def drawn(num_classes: int) -> Tensor:
            return self._drawn(batch, num_classes, "attacked labels")

        def losses(logits: Tensor, labels: Tensor) -> Tensor:
            # Not PyTorch's cross-entropy: a sure model rounds its gradient to zero.
            own = cross_entropy(logits, labels)
            return self._losses(own, logits, labels, share, drawn(logits.shape[1]))

        points = ball.at(self._uniform(batch)).to(images.dtype) if attack.random_start else images
        with frozen(model, attack.batch_norm):
            for _ in range(attack.steps):
                points = ball.ascend(points, input_gradient(model, points, labels, losses)[2], step_size)
        with frozen(model, attack.batch_norm, fold=False):
            logits = scores(model, points)
        check_finite(self, logits, points)
        # Keep it where the image survives.
        grown = torch.where(misclassified(logits, labels), radii.clamp(max=limit), tried)
        batch.memory.write("radii", batch.ids, grown.float())
        return points

    def loss(self, forward: Callable[[Tensor], Tensor], crafted: Tensor, batch: Batch) -> Tensor:
        """Return the mean loss at the crafted images, with labels as soft as their radii are large."""
        logits = forward(crafted)
        own = F.cross_entropy(logits, batch.targets, reduction="none")
        drawn = self._drawn(batch, logits.shape[1], "labels")
        return self._losses(own, logits, batch.labels, self._share(batch), drawn).mean()

    def _share(self, batch: Batch) -> Tensor:
        """Return the drawn share of each image's label, [B]."""
        c = 10.0 * _PUBLISHED_EPSILON / batch.threat.epsilon if self.c is None else self.c
        return (c * self._radii(batch)).clamp(0, 1)

    def _losses(self, own: Tensor, logits: Tensor, labels: Tensor, share: Tensor, drawn: Tensor) -> Tensor:
        """Return the losses [B] of labels of which a share is drawn, given the losses of the labels as they are.

        The cross-entropy is linear in the label: softening the label mixes the losses.
        """
        share = share.to(logits.dtype)
        losses = (1 - share) * own + share * F.cross_entropy(logits, drawn, reduction="none")
        if self.objective == "margin":
            losses = losses + margin(logits, labels).clamp_min(-self.kappa)
        return losses

    def _radii(self, batch: Batch) -> Tensor:
        """Return the images' radii [B], in double precision: epsilon in float32 can be larger than epsilon."""
        return batch.memory.table("radii", (batch.num_samples,), batch.images.device)[batch.ids].double()

    def _uniform(self, batch: Batch) -> Tensor:
        """Return the numbers [B, C * H * W + 1] that the starts are made of."""
        device, size = batch.images.device, batch.images[0].numel() + 1
        generator = generator_at(device, batch.seed, "start")
        return batch.drawn(lambda count: torch.rand((count, size), device=device, generator=generator))

    def _drawn(self, batch: Batch, num_classes: int, what: str) -> Tensor:
        """Return one Dirichlet draw per image, [B, K]."""
        dirichlet = Dirichlet(torch.full((num_classes,), self.concentration))
        with seeded(batch.seed, what):
            draws = batch.drawn(lambda count: dirichlet.sample((count,)))
        return draws.to(batch.images)

    def _plain_attack(self) -> PGD:
        """Return the attack, of which nothing is set but what is used here.

        Raises:
            InputError: if more is set, or it is not PGD.
        """
        attack = self.attack
        if isinstance(attack, PGD):
            used = {name: getattr(attack, name) for name in ("steps", "step_size", "random_start", "batch_norm")}
            if attack == PGD(**used):
                return attack
        raise InputError(
            "CAT.attack must be pgd with nothing set but steps, step_size, random_start and batch_norm (its radii "
            f"differ from image to image), but got {attack}."
        )
