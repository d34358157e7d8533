"""The scores of the loss's gradient against finite differences, and the others against hand-made networks."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robust_nas.proxies.croze import CRoZe
from robust_nas.proxies.grad_norm import GradNorm
from robust_nas.proxies.jacob_cov import JacobCov, correlations
from robust_nas.proxies.num_params import NumParams
from robust_nas.proxies.snip import SNIP
from robust_nas.proxies.synflow import Synflow
from robust_nas.proxies.zen import Zen
from robust_nas.threat import ThreatModel

THREAT = ThreatModel(norm="linf", epsilon=0.1)


def network() -> nn.Module:
    """Return a smooth network in float64, so that differences are exact, with batch norm and a bias."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(
            nn.Conv2d(1, 2, 3, padding=1, bias=False), nn.BatchNorm2d(2), nn.Tanh(), nn.Flatten(), nn.Linear(32, 3)
        ).double()


def batch(count: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 1, 4, 4, generator=generator, dtype=torch.float64), torch.arange(count) % 3


def by_differences(of_layer: Callable[[Tensor, Tensor], float]) -> float:
    """Return a sum over layers of a function of weights and gradient; the latter from finite differences."""
    images, labels = batch()
    model = network().train()  # batch norm takes the batch's statistics
    total, step = 0.0, 1e-5
    for layer in (model[0], model[4]):
        flat = layer.weight.data.view(-1)
        gradient = torch.empty_like(flat)
        for place in range(len(flat)):
            own, losses = flat[place].clone(), []
            for sign in (1, -1):
                flat[place] = own + sign * step
                losses.append(F.cross_entropy(model(images), labels).item())
            flat[place] = own
            gradient[place] = (losses[0] - losses[1]) / (2 * step)
        total += of_layer(flat, gradient)
    return total


def test_snip_sums_what_the_loss_changes_by_with_each_weight() -> None:
    wanted = by_differences(lambda weight, gradient: float((weight * gradient).abs().sum()))
    assert SNIP().score(network(), *batch(), THREAT) == pytest.approx(wanted, rel=1e-6)


def test_grad_norm_sums_the_layers_norms() -> None:
    wanted = by_differences(lambda _, gradient: float(gradient.norm()))
    assert GradNorm().score(network(), *batch(), THREAT) == pytest.approx(wanted, rel=1e-6)


def test_synflow_of_two_linear_layers_is_twice_the_product_of_absolute_weights() -> None:
    first, second = nn.Linear(4, 2, bias=False), nn.Linear(2, 3, bias=False)
    first.weight.data = torch.tensor([[1.0, -2.0, 0.0, 3.0], [-1.0, 0.0, 0.0, 1.0]])
    second.weight.data = torch.tensor([[1.0, 0.0], [-2.0, 1.0], [0.0, -5.0]])
    model = nn.Sequential(nn.Flatten(), first, nn.BatchNorm1d(2), nn.ReLU(), second)
    # |W1| 1 = (6, 2); |W2| (6, 2) = (6, 14, 10), R = 30. R is linear in each layer: sum of w dR/dw is R for each.
    assert Synflow().score(model, torch.rand(3, 1, 2, 2), torch.arange(3), THREAT) == 60.0


def jacob_score(eigenvalues: list[float]) -> float:
    return -sum(math.log(value + 1e-5) + 1 / (value + 1e-5) for value in eigenvalues)


def test_jacob_cov_of_a_linear_model_is_that_of_equal_gradients() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).double()
    # All images have one gradient: correlations of 1, eigenvalues N and 0.
    assert JacobCov().score(model, *batch(), THREAT) == pytest.approx(jacob_score([5, 0, 0, 0, 0]), rel=1e-3)


def test_jacob_cov_is_the_formula_of_the_gradients_correlations() -> None:
    class Square(nn.Module):
        """Logits whose sum has the image itself as its gradient."""

        def forward(self, images: Tensor) -> Tensor:
            energy = (images**2).flatten(1).sum(1) / 4
            return torch.stack([energy, energy], 1)

    images, labels = batch()
    wanted = np.linalg.eigvalsh(np.corrcoef(images.flatten(1).numpy()))
    assert JacobCov().score(Square(), images, labels, THREAT) == pytest.approx(jacob_score(wanted.tolist()), rel=1e-9)


def test_an_image_without_a_gradient_is_correlated_with_all_others() -> None:
    rows = torch.tensor([[1.0, 0.0, -1.0], [0.0, 0.0, 0.0], [-1.0, 0.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(correlations(rows), torch.tensor([[1.0, 1, -1], [1, 1, 1], [-1, 1, 1]]).double())


@pytest.mark.parametrize("norm", [False, True])
def test_zen_measures_the_change_of_the_last_map_and_batch_norm_takes_nothing_away(norm: bool) -> None:
    middle = nn.BatchNorm2d(64) if norm else nn.Identity()
    model = nn.Sequential(
        nn.Conv2d(1, 64, 1, bias=False), middle, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 2)
    )
    model[0].weight.data.fill_(7.0)  # is not looked at
    # F(x + alpha e) - F(x) = alpha w e, with |w| = sqrt(64) and |e| = sqrt(1024) up to a few percent; batch norm
    # divides each channel by |w_c|, and the root mean square of w, 1 up to a few percent, comes back.
    images, labels = torch.rand(16, 1, 32, 32), torch.zeros(16)
    found = Zen(alpha=0.01).score(model, images, labels, THREAT)
    assert found == pytest.approx(math.log(0.01 * 8 * 32), abs=0.2)
    assert Zen(alpha=0.02).score(model, images, labels, THREAT) - found == pytest.approx(math.log(2), abs=1e-4)


def test_zen_counts_what_a_convolution_before_batch_norm_multiplies_by() -> None:
    def network(width: int) -> nn.Module:
        convolution = nn.Conv2d(width, width, 1, bias=False)
        return nn.Sequential(
            convolution, nn.BatchNorm2d(width), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 2)
        )

    # Standard Gaussian weights multiply a deviation by sqrt(width), and the map of width channels is sqrt(width) long.
    one, other = (
        Zen().score(network(width), torch.rand(8, width, 16, 16), torch.zeros(8), THREAT) for width in (16, 64)
    )
    assert other - one == pytest.approx(math.log(4), abs=0.2)


def test_num_params_counts_what_is_trained() -> None:
    model = network()
    assert NumParams().score(model, *batch(), THREAT) == 18 + 4 + 96 + 3
    model[4].bias.requires_grad_(False)
    assert NumParams().score(model, *batch(), THREAT) == 18 + 4 + 96


def test_croze_of_a_network_that_hardly_moves_is_four_for_each_layer() -> None:
    found = CRoZe(shift=1e-9).score(network(), *batch(), ThreatModel(norm="linf", epsilon=1e-9))
    assert found == pytest.approx(4 * 2, rel=1e-6)


def test_croze_is_its_equations_step_by_step_on_two_copies() -> None:
    images, labels = batch()
    clean = network().train()

    def gradients_of(model: nn.Module, at: Tensor) -> list[Tensor]:
        found = torch.autograd.grad(F.cross_entropy(model(at), labels), [model[0].weight, model[4].weight])
        return list(found)

    robust, before = copy.deepcopy(clean), gradients_of(clean, images)
    for layer, gradient in zip((robust[0], robust[4]), before, strict=True):
        layer.weight.data += 0.1 * layer.weight.data.norm() * gradient / gradient.norm()
    points = images.clone().requires_grad_()
    (slope,) = torch.autograd.grad(F.cross_entropy(robust(points), labels), points)
    attacked = (images + 0.1 * slope.sign()).clamp(0, 1)
    after = gradients_of(robust, attacked)

    def cosine(one: Tensor, other: Tensor) -> float:
        return F.cosine_similarity(one.flatten(), other.flatten(), dim=0).item()

    wanted = 0.0
    for place, index in enumerate((0, 4)):
        outputs = [model[: index + 1](at) for model, at in ((clean, images), (robust, attacked))]
        stepped = [model[index].weight - 0.5 * found[place] for model, found in ((clean, before), (robust, after))]
        wanted += (1 + cosine(*outputs)) * (1 + cosine(*stepped)) * abs(cosine(before[place], after[place]))
    found = CRoZe(shift=0.1, learning_rate=0.5).score(network(), images, labels, THREAT)
    assert found == pytest.approx(wanted, rel=1e-6)
