"""Transfer: adversarial examples of other models, sent to this one (Papernot et al. 2016, arXiv:1605.07277)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from pydantic import InstanceOf
from torch import Tensor, nn

from robust_nas.attacks import Attack, check_data
from robust_nas.attacks._surrogates import load_surrogates
from robust_nas.attacks.pgd import PGD
from robust_nas.core.errors import InputError
from robust_nas.core.pixels import unit_images_and_labels
from robust_nas.core.registry import ModelName
from robust_nas.models.frozen import frozen
from robust_nas.models.scores import check_finite, logits_of, misclassified, scores
from robust_nas.threat import ThreatModel


@dataclass(frozen=True, kw_only=True)
class Transfer(Attack):
    """An attack on the mean of surrogates' logits, whose result is sent to the model (arXiv:1611.02770).

    The model itself is asked once: an image that it gets wrong is returned as it is, and needs no attack.

    Args:
        surrogates: the other models, [0, 1] images to logits. In a recipe, what `intake.load_models` takes: run folders
            of ours (all their trained models), single weights in one, such as
            "runs/2026-01-31-digits-4f2a/checkpoints/model-1.safetensors", and the names of other models.
        attack: the attack on them; one that needs gradients may, as theirs are known.
    """

    surrogates: tuple[ModelName | InstanceOf[nn.Module], ...] = ()
    attack: Attack = field(default_factory=PGD)

    @property
    def classes(self) -> int:
        """The number of classes that the attack on the surrogates needs."""
        return self.attack.classes

    def check(self, threat: ThreatModel, image_shape: Sequence[int]) -> None:
        """Raise InputError for surrogates that are not there, or an attack on them that is not for such images."""
        self._check_surrogates()
        load_surrogates(self.surrogates, torch.device("cpu"))
        check_data(self.attack, threat, (image_shape[0], image_shape[1], image_shape[2]), self.classes)

    def _check_surrogates(self) -> None:
        if not self.surrogates:
            raise InputError("Transfer.surrogates must name at least one other model or run folder, but got none.")

    def perturb(
        self, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, *, seed: int = 0
    ) -> Tensor:
        """Return adversarial images [B, C, H, W], detached, inside `threat` around `images`.

        Raises:
            InputError: without surrogates, for a run folder without trained models, or for surrogates that know fewer
                classes than the model.
        """
        self._check_surrogates()
        images, labels = unit_images_and_labels(images, labels)
        if len(images) == 0:
            return images.clone()
        source = _MeanLogits(load_surrogates(self.surrogates, images.device))
        with frozen(model, fold=False):
            logits = scores(model, images)
            check_finite(self, logits)
        with frozen(source, fold=False):
            known = scores(source, images[:1]).shape[1]
        if known < logits.shape[1]:
            raise InputError(
                f"Transfer's surrogates know {known} classes, but the model has {logits.shape[1]}; "
                "name surrogates that were trained on the same data set."
            )
        found = self.attack.perturb(source, images, labels, threat, seed=seed)
        return torch.where(misclassified(logits, labels).view(-1, 1, 1, 1), images, found)


class _MeanLogits(nn.Module):
    def __init__(self, models: list[nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([logits_of(model, images) for model in self.models]).mean(0)
