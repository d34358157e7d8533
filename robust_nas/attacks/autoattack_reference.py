"""AutoAttack (Croce and Hein 2020, arXiv:2003.01690), as the `pyautoattack` package runs it."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from robust_nas.attacks import Composed
from robust_nas.core.checks import check_choice
from robust_nas.core.errors import InputError
from robust_nas.core.pixels import unit_images_and_labels
from robust_nas.models.frozen import frozen
from robust_nas.models.scores import check_finite, logits_of, scores
from robust_nas.threat import ThreatModel

Version = Literal["standard", "plus", "rand"]

_CLASSES = {"apgd-dlr": 3, "apgd-t": 4}
"""The number of classes that the losses of the package's attacks compare, where more than 2."""

_PARTS: dict[Version, tuple[str, ...]] = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),
}


@dataclass(frozen=True, kw_only=True)
class AutoAttackReference(Composed):
    """The parameter-free ensemble of attacks that published robust accuracies are measured with.

    "standard" runs, each on what the one before left: APGD on the cross-entropy (100 steps), APGD on the targeted
    difference of logits ratio (9 targets), FAB (9 targets) and Square (5,000 queries). "plus" adds untargeted APGD
    and FAB and restarts; "rand" is for randomised models. With fewer than 10 classes every other class is a target;
    with 2 or 3, attacks whose losses compare more logits are left out, which results say.

    Args:
        version: the ensemble.

    Raises:
        InputError: for an unknown version.
    """

    version: Version = "standard"

    def __post_init__(self) -> None:
        check_choice("AutoAttackReference.version", self.version, Version)

    def check(self, threat: ThreatModel, image_shape: Sequence[int]) -> None:
        """Raise InputError for images that its Square attack cannot take."""
        _, height, width = image_shape
        if threat.norm == "l2" and min(height, width) < 5 and self.version != "rand":
            raise InputError(
                f"AutoAttackReference needs images of at least 5 pixels a side for l2 (its Square attack starts from a "
                f"5 x 5 grid), but got {height} x {width}; use apgd and square instead."
            )

    def left_out(self, num_classes: int) -> tuple[str, ...]:
        """The attacks that a model with so few classes cannot be attacked with, as its authors' code warns."""
        return tuple(name for name in _PARTS[self.version] if _CLASSES.get(name, 2) > num_classes)

    def perturb(
        self, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, *, seed: int = 0
    ) -> Tensor:
        """Return adversarial images [B, C, H, W], detached, inside `threat` around `images`.

        An image that none of the attacks fools is returned as it is.

        Raises:
            InputError: for images smaller than 5 pixels a side under an l2 threat.
        """
        from pyautoattack import AutoAttack

        images, labels = unit_images_and_labels(images, labels)
        if len(images) == 0:
            return images.clone()
        ball = threat.around(images)
        self.check(threat, images.shape[1:])
        with frozen(model), _contained(), torch.no_grad():
            logits = scores(model, images)
            check_finite(self, logits)
            num_classes = logits.shape[1]
            attack = AutoAttack(
                # The package keeps logits and losses in the images' precision.
                lambda points: logits_of(model, points).float(),
                norm=threat.norm.capitalize(),
                eps=threat.epsilon,
                version=self.version,
                seed=seed,
                device=images.device,
            )
            left_out = self.left_out(num_classes)
            attack.attacks_to_run = [name for name in attack.attacks_to_run if name not in left_out]
            # The package takes 9 targets for granted and fails on models with fewer than 10 classes.
            attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = min(9, num_classes - 1)
            found, _ = attack.run_standard_evaluation(images.float(), labels, batch_size=len(images))
        return ball.project(found.to(images.dtype))


@contextlib.contextmanager
def _contained() -> Iterator[None]:
    """Keep the package's logging, its trace function and the global random state from leaking out."""
    logger, tracer = logging.getLogger("auto-attack"), sys.gettrace()
    disabled, logger.disabled = logger.disabled, True
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        logger.disabled = disabled
        sys.settrace(tracer)
