"""The neural tangent kernel of clean images (Chen et al. 2021, arXiv:2102.11535: TE-NAS, section 3.1.1)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from robust_nas.core.checks import check_at_least, check_choice
from robust_nas.proxies._kernel import Measure, gradients, kernel, spectrum_score
from robust_nas.proxies._networks import held_still
from robust_nas.threat import ThreatModel


@dataclass(frozen=True, kw_only=True)
class NTK:
    """The spectrum of K_ij = <df(x_i)/dW, df(x_j)/dW> over a batch.

    A large least eigenvalue bounds the generalisation error; a small condition number trains fast (arXiv:2102.11535).
    Batch norm has the batch's statistics and does not pass gradients through them, so that an image's gradient is its
    own; TE-NAS's code does.

    Args:
        measure: "min_eigenvalue", or "condition_number": its reciprocal, so that larger is better.
        chunk_size: images that are differentiated together: memory, not the result.

    Raises:
        InputError: for a value outside its range.
    """

    measure: Measure = "min_eigenvalue"
    chunk_size: int = 16

    def __post_init__(self) -> None:
        check_choice("NTK.measure", self.measure, Measure)
        check_at_least("NTK.chunk_size", self.chunk_size, 1)

    def score(self, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, *, seed: int = 0) -> float:
        """Return the score of `model`; labels, threat and seed are not used."""
        with held_still(model, images, "running"):
            clean = gradients(model, images, self.chunk_size)
        return spectrum_score(kernel(clean, clean), self.measure)
