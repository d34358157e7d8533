"""The number of parameters: what every other score should beat."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from robust_nas.models.complexity import count_parameters
from robust_nas.threat import ThreatModel


@dataclass(frozen=True, kw_only=True)
class NumParams:
    """The number of trainable parameters; the images are not used."""

    def score(self, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, *, seed: int = 0) -> float:
        """Return the number of parameters of `model`."""
        return float(count_parameters(model))
