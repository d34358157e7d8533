"""The robust neural tangent kernels (Wu et al. 2024, arXiv:2403.13134, theorems 1 and 2)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn

from robust_nas.attacks import Attack
from robust_nas.attacks.pgd import PGD
from robust_nas.core.checks import check_at_least, check_choice
from robust_nas.core.errors import InputError
from robust_nas.core.seeds import seed_at
from robust_nas.proxies._kernel import Gradients, Measure, gradients, kernel, spectrum_score
from robust_nas.proxies._networks import depends_on, held_still
from robust_nas.threat import ThreatModel

Error = Literal["clean", "robust"]


@dataclass(frozen=True, kw_only=True)
class RobustNTK:
    """The spectrum of the kernel that governs an error after training with the loss (1 - b) clean + b robust.

    The larger the least eigenvalue, the smaller the bound on that error. Clean error: K_all of K, K_eps, K~_eps;
    robust error: K_all of K~_eps, K_2eps, K~_2eps, where 2 eps is the attack applied twice in sequence, the second
    time around what the first one found. f and batch norm are as in `ntk`; the statistics are those of the clean batch.

    Args:
        error: the error of the kernel: "robust" or "clean".
        b: the weight of the robust loss, in [0, 1]. With 0, "clean" is `ntk`, and "robust" its kernel of attacked
            images.
        attack: the attack that makes the adversarial images.
        measure: "min_eigenvalue", or "condition_number": its reciprocal, so that larger is better.
        chunk_size: images that are differentiated together: memory, not the result.

    Raises:
        InputError: for a value outside its range.
    """

    error: Error = "robust"
    b: float = 0.5
    attack: Attack = field(default_factory=lambda: PGD(steps=5))
    measure: Measure = "min_eigenvalue"
    chunk_size: int = 16

    def __post_init__(self) -> None:
        check_choice("RobustNTK.error", self.error, Error)
        check_choice("RobustNTK.measure", self.measure, Measure)
        check_at_least("RobustNTK.chunk_size", self.chunk_size, 1)
        if not 0 <= self.b <= 1:
            raise InputError(f"RobustNTK.b, the weight of the robust loss, must be in [0, 1], but got {self.b}.")

    def score(self, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, *, seed: int = 0) -> float:
        """Return the score of `model` under `threat`."""
        with held_still(model, images, "running"):
            before, after = images, self._attacked(model, images, labels, threat, seed)
            if self.error == "robust":
                before, after = after, self._attacked(model, after, labels, threat, seed_at(seed, "twice"))
            plain, perturbed = (gradients(model, batch, self.chunk_size) for batch in (before, after))
        return spectrum_score(k_all(plain, perturbed, self.b), self.measure)

    def _attacked(self, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, seed: int) -> Tensor:
        if not depends_on(model, images):
            return images
        return self.attack.perturb(model, images, labels, threat, seed=seed)


def k_all(plain: Gradients, perturbed: Gradients, b: float) -> Tensor:
    """Return (1 - b)^2 K + b (1 - b) (K_eps + K_eps^T) + b^2 K~_eps, [B, B].

    Args:
        plain: the gradients at x for the clean error, at A(x) for the robust one.
        perturbed: those at A(x), or at A(A(x)).
        b: the weight of the robust loss.
    """
    k, k_eps, k_tilde = kernel(plain, plain), kernel(plain, perturbed), kernel(perturbed, perturbed)
    return (1 - b) ** 2 * k + b * (1 - b) * (k_eps + k_eps.T) + b**2 * k_tilde
