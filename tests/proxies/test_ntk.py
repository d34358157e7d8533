"""Tangent kernels against closed forms, a loop of autograd, and the theorems' formulas."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robust_nas.attacks import Attack
from robust_nas.attacks.pgd import PGD
from robust_nas.core.errors import InputError
from robust_nas.core.seeds import seeded
from robust_nas.datasets import DataForm
from robust_nas.proxies._kernel import gradients, kernel, spectrum_score
from robust_nas.proxies._networks import held_still
from robust_nas.proxies.ntk import NTK
from robust_nas.proxies.robust_ntk import RobustNTK
from robust_nas.spaces import load
from robust_nas.threat import ThreatModel

THREAT = ThreatModel(norm="linf", epsilon=0.1)


def batch(count: int = 6, channels: int = 1, side: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, channels, side, side, generator=generator), torch.arange(count) % 3


def cell_network() -> nn.Module:
    space = load("nasbench201", channels=3, cells_per_stage=1)
    with seeded(0, "test"):
        return space.network(space.parse("323143"), DataForm("d", ("a", "b", "c"), (1, 8, 8)))


class Linear(nn.Module):
    """x -> W x, K = 3 classes, without bias: each image's gradient is the image itself, K times."""

    def __init__(self, bias: bool = False) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 3, bias=bias)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layer(images.flatten(1))
        return logits


@pytest.mark.parametrize("bias", [False, True])
def test_the_kernel_of_a_linear_model_is_that_of_its_images(bias: bool) -> None:
    # df/dW = x / sqrt(K) for each of K rows: <., .> is x . x', and the bias adds K * (1 / sqrt(K))^2 = 1.
    images, labels = batch()
    rows = images.flatten(1).double().numpy()
    wanted = np.linalg.eigvalsh(rows @ rows.T + bias)
    model = Linear(bias)
    assert NTK().score(model, images, labels, THREAT) == pytest.approx(wanted[0], rel=1e-4)
    ratio = NTK(measure="condition_number").score(model, images, labels, THREAT)
    assert ratio == pytest.approx(1 / np.linalg.cond(rows @ rows.T + bias), rel=1e-4)


def test_gradients_are_those_of_a_loop_of_autograd_over_single_images() -> None:
    images, _ = batch()
    model = cell_network()
    with held_still(model, images, "running"):
        found = gradients(model, images, chunk_size=4)
        parameters = dict(model.named_parameters())
        for parameter in parameters.values():
            parameter.requires_grad_()
        for row, image in enumerate(images):
            f = model(image.unsqueeze(0)).sum() / 3**0.5
            for name, gradient in zip(parameters, torch.autograd.grad(f, list(parameters.values())), strict=True):
                torch.testing.assert_close(found[name][row], gradient, rtol=1e-3, atol=1e-5)
    flat = torch.cat([found[name].flatten(1) for name in found], 1).double()
    torch.testing.assert_close(kernel(found, found), flat @ flat.T)


def test_batch_norm_has_the_statistics_of_the_batch_while_an_image_is_differentiated_alone() -> None:
    images, _ = batch(count=32)
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2, eps=1e-12))
    maps = model[0](images)
    deviation, mean = torch.std_mean(maps, dim=(0, 2, 3), keepdim=True)
    with held_still(model, images, "running"):
        for image, alone in zip(images, maps, strict=True):
            wanted = (alone.unsqueeze(0) - mean) / deviation
            torch.testing.assert_close(model(image.unsqueeze(0)), wanted.detach(), rtol=1e-4, atol=1e-4)


@dataclass(frozen=True, kw_only=True)
class Halving(Attack):
    """An attack of which everybody knows what it gives; it notes what it was given."""

    seen: list[tuple[Tensor, int]] = field(default_factory=list)

    def perturb(
        self, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, *, seed: int = 0
    ) -> Tensor:
        self.seen.append((images, seed))
        return images**2 / 2


@pytest.mark.parametrize("b", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("error", ["clean", "robust"])
def test_the_kernels_of_a_linear_model_are_the_theorem_s(b: float, error: str) -> None:
    images, labels = batch()
    # The attack applied twice in sequence is what "2 eps" means.
    points = [images.double().flatten(1).numpy()]
    for _ in range(2):
        points.append(points[-1] ** 2 / 2)
    x, a = (points[0], points[1]) if error == "clean" else (points[1], points[2])
    k, k_eps, k_tilde = x @ x.T, x @ a.T, a @ a.T
    k_all = (1 - b) ** 2 * k + b * (1 - b) * (k_eps + k_eps.T) + b**2 * k_tilde
    found = RobustNTK(error=error, b=b, attack=Halving()).score(Linear(), images, labels, THREAT)  # type: ignore[arg-type]
    assert found == pytest.approx(np.linalg.eigvalsh(k_all)[0], rel=1e-3)
    # The same again: K_all is the kernel of (1 - b) f + b f(A(.)), so it has no negative eigenvalue.
    mixed = (1 - b) * x + b * a
    assert found == pytest.approx(np.linalg.eigvalsh(mixed @ mixed.T)[0], rel=1e-3)


def test_the_second_attack_begins_at_what_the_first_one_found_and_draws_anew() -> None:
    images, labels = batch()
    attack = Halving()
    RobustNTK(attack=attack).score(Linear(), images, labels, THREAT, seed=3)
    (first, seed), (second, other) = attack.seen
    assert torch.equal(first, images) and torch.equal(second, images**2 / 2) and seed != other
    attack.seen.clear()
    RobustNTK(error="clean", attack=attack).score(Linear(), images, labels, THREAT)
    assert len(attack.seen) == 1


def test_without_weight_on_the_robust_loss_the_clean_error_s_kernel_is_the_clean_one() -> None:
    images, labels = batch()
    model = cell_network()
    clean = NTK().score(model, images, labels, THREAT)
    assert RobustNTK(error="clean", b=0.0).score(model, images, labels, THREAT) == pytest.approx(clean, rel=1e-6)
    assert RobustNTK(error="robust").score(model, images, labels, THREAT) != pytest.approx(clean, rel=1e-3)


def test_a_real_attack_reaches_the_second_ball() -> None:
    images, labels = batch()
    found: list[Tensor] = []

    @dataclass(frozen=True, kw_only=True)
    class Noted(PGD):
        def perturb(
            self, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, *, seed: int = 0
        ) -> Tensor:
            found.append(super().perturb(model, images, labels, threat, seed=seed))
            return found[-1]

    RobustNTK(attack=Noted(steps=3)).score(cell_network(), images, labels, THREAT)
    once, twice = found
    assert float((once - images).abs().max()) < 0.1001 < float((twice - images).abs().max()) < 0.2001


def test_two_equal_images_make_a_kernel_singular() -> None:
    images, labels = batch()
    images[1] = images[0]
    score = NTK().score(cell_network(), images, labels, THREAT)
    other = NTK().score(cell_network(), *batch(), THREAT)
    assert 0 <= score < 1e-6 * other


def test_a_spectrum_s_scores() -> None:
    matrix = torch.diag(torch.tensor([4.0, 1.0, 2.0], dtype=torch.float64))
    assert spectrum_score(matrix, "min_eigenvalue") == 1.0
    assert spectrum_score(matrix, "condition_number") == 0.25
    assert spectrum_score(0 * matrix, "condition_number") == 0.0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"b": 1.5}, "must be in \\[0, 1\\], but got 1.5"),
        ({"error": "dirty"}, "RobustNTK.error must be one of clean, robust"),
        ({"measure": "trace"}, "RobustNTK.measure must be one of min_eigenvalue, condition_number"),
        ({"chunk_size": 0}, "RobustNTK.chunk_size must be a whole number of at least 1"),
    ],
)
def test_wrong_options_are_named(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        RobustNTK(**wrong)  # type: ignore[arg-type]
