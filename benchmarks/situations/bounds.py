"""Bounds: layers, radii, rounding."""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from checks import right_or_refused, same, situation, true
from small_models import answers, attacked, certified, exact_margins, images, linear, small_network, sound
from torch import Tensor, nn

import robust_nas as rn

KIND = "bounds"


@situation(KIND, "Verified-Intelligence/auto_LiRPA#55")
def dropout_is_bounded_as_it_evaluates(_: Path) -> None:
    model, points = small_network(), images()
    labels = answers(model, points)
    dropped = nn.Sequential(*model[:4], nn.Dropout(0.5), model[4]).train()
    for bound in ("interval", "crown_ibp", "crown", "alpha_crown"):
        found, wanted = (certified(each, points, labels, bound=bound) for each in (dropped, model))
        same(found, wanted, f"the margins of {bound}", 1e-9)


@situation(KIND, "Verified-Intelligence/auto_LiRPA#1")
def batch_norm_is_bounded_exactly_where_the_network_is_linear(_: Path) -> None:
    model, points = small_network(), images()
    model[2] = nn.Identity()
    with torch.no_grad():  # one image for each pixel, and none, give the linear function
        offset = model(torch.zeros(1, 1, 4, 4))
        weight = model(torch.eye(16).view(16, 1, 4, 4)) - offset
    plain = linear()
    plain[1].load_state_dict({"weight": weight.T.contiguous(), "bias": offset[0]})
    labels = answers(plain, points)
    wanted = exact_margins(plain, points, labels, 0.05)
    same(certified(model.train(), points, labels, 0.05, bound="crown"), wanted, "the proved margins", 1e-5)


@situation(KIND, "Verified-Intelligence/auto_LiRPA#76")
def overlapping_windows_of_a_max_pool_are_bounded_soundly(_: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1), nn.Flatten(), nn.Linear(16, 3)
    ).eval()
    _bounds_are_sound(model, images())


@situation(KIND, "Verified-Intelligence/auto_LiRPA#90")
def two_max_pools_are_bounded_by_alpha_crown_too(_: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 2, 2, padding=1), nn.MaxPool2d(2), nn.Conv2d(2, 3, 1, padding=1), nn.MaxPool2d(2), nn.Flatten()
    )
    model = nn.Sequential(*model, nn.Linear(12, 3)).eval()
    _bounds_are_sound(model, images())


@situation(KIND, "Verified-Intelligence/auto_LiRPA#61")
def transposed_convolutions_are_bounded_or_refused_by_name(_: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.ConvTranspose2d(1, 3, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(243, 3)).eval()
    _bounds_are_sound(model, images(), "transpose")


def _bounds_are_sound(model: nn.Module, points: Tensor, *words: str) -> None:
    """Raise unless every kind of bound is sound, or refuses the model by these words."""
    labels = answers(model, points)
    for bound in ("interval", "crown_ibp", "crown", "alpha_crown", "auto"):

        def call(bound: str = bound) -> None:
            margins = certified(model, points, labels, 0.05, bound=bound)
            sound(model, points, margins, labels, 0.05)
            tiny = certified(model, points, labels, 1e-7, bound=bound)
            same(tiny, _margins(model, points, labels), f"the margins of {bound} at a tiny radius", 1e-4)

        if words:
            right_or_refused(call, *words)
        else:
            call()


@torch.no_grad()
def _margins(model: nn.Module, points: Tensor, labels: Tensor) -> Tensor:
    logits = model(points).double()
    least: Tensor = (logits.gather(1, labels[:, None]) - logits).scatter(1, labels[:, None], math.inf).amin(1)
    return least


@situation(KIND, "Verified-Intelligence/auto_LiRPA#6")
def bounds_widen_with_the_radius(_: Path) -> None:
    model, points = small_network(), images()
    labels = answers(model, points)
    for bound in ("interval", "crown_ibp", "crown", "alpha_crown"):
        margins = [certified(model, points, labels, epsilon, bound=bound) for epsilon in (0.001, 0.012, 0.1)]
        true((margins[0] > margins[1]).all() and (margins[1] > margins[2]).all(), f"{bound} does not widen")


@situation(KIND, "Verified-Intelligence/auto_LiRPA#32")
def normalisation_by_plain_tensors_inside_the_network_is_bounded(_: Path) -> None:
    class Normalising(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = small_network(channels=2)
            self.means, self.ranges = torch.tensor([0.3, 0.6]).view(2, 1, 1), torch.tensor([0.5, 0.2]).view(2, 1, 1)

        def forward(self, points: Tensor) -> Tensor:
            logits: Tensor = self.model((points - self.means) / self.ranges)
            return logits

    model, points = Normalising().eval(), images(24, (2, 4, 4))
    labels = answers(model, points)
    prepared = rn.intake.prepared(model.model, normalise="0.3,0.6/0.5,0.2")
    for bound in ("interval", "crown"):
        found, wanted = (certified(each, points, labels, 0.01, bound=bound) for each in (model, prepared))
        same(found, wanted, f"the margins of {bound}", 1e-5)


@situation(KIND, "Verified-Intelligence/auto_LiRPA#9")
def adaptive_average_pools_are_bounded_exactly(_: Path) -> None:
    torch.manual_seed(0)
    for size in (1, 2, 3):
        model = nn.Sequential(nn.AdaptiveAvgPool2d(size), nn.Flatten(), nn.Linear(size**2, 3)).eval()
        points = images(24, (1, 5, 4))
        labels = answers(model, points)
        plain = linear(3, (1, 5, 4))
        with torch.no_grad():
            weight = model(torch.eye(20).view(20, 1, 5, 4)) - model(torch.zeros(1, 1, 5, 4))
        plain[1].load_state_dict({"weight": weight.T.contiguous(), "bias": model[-1].bias.detach()})
        wanted = exact_margins(plain, points, labels, 0.05)
        right_or_refused(
            lambda model=model, points=points, labels=labels, wanted=wanted: same(
                certified(model, points, labels, 0.05, bound="crown"), wanted, "the proved margins", 1e-5
            ),
            "adaptive",
        )


@situation(KIND, "Verified-Intelligence/auto_LiRPA#49")
def alpha_crown_inside_no_grad_is_alpha_crown(_: Path) -> None:
    model, points = small_network(), images()
    labels = answers(model, points)
    wanted = certified(model, points, labels, 0.05, bound="alpha_crown")
    with torch.no_grad():
        same(certified(model, points, labels, 0.05, bound="alpha_crown"), wanted, "the proved margins")


@situation(KIND, "Verified-Intelligence/auto_LiRPA#42")
def alpha_crown_is_exact_where_no_relu_is_unstable(_: Path) -> None:
    model, points = small_network(), images()
    labels = answers(model, points)
    with torch.no_grad():
        model[1].bias += 10.0  # every ReLU is active
        offset = model(torch.zeros(1, 1, 4, 4))
        weight = model(torch.eye(16).view(16, 1, 4, 4)) - offset
    plain = linear()
    plain[1].load_state_dict({"weight": weight.T.contiguous(), "bias": offset[0]})
    labels = answers(plain, points)
    wanted = exact_margins(plain, points, labels, 0.05)
    for bound in ("crown", "alpha_crown", "auto"):
        found = certified(model, points, labels, 0.05, bound=bound)
        if bound != "auto":
            same(found, wanted, f"the margins of {bound}", 1e-3)
        same(found > 1e-3, wanted > 1e-3, f"what {bound} proves")


@situation(KIND, "Verified-Intelligence/auto_LiRPA#81")
def strides_that_leave_pixels_over_are_bounded(_: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 2, 7, stride=2, padding=3),
        nn.BatchNorm2d(2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(2, 2, 2, stride=3),
        nn.ReLU(),
        nn.Flatten(),
        nn.LazyLinear(3),
    ).eval()
    points = images(8, (1, 10, 15))
    with torch.no_grad():
        model(points)
    _bounds_are_sound(model, points)


@situation(KIND, "Verified-Intelligence/auto_LiRPA#94")
def a_product_with_a_parameter_is_bounded_or_refused_by_name(_: Path) -> None:
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.second = nn.Parameter(torch.randn(16, 8) / 4), nn.Parameter(torch.randn(8, 3))

        def forward(self, points: Tensor) -> Tensor:
            return torch.matmul(F.relu(points.flatten(1) @ self.first), self.second)

    _bounds_are_sound(Product().eval(), images(), "matmul")


@situation(KIND, "Verified-Intelligence/alpha-beta-CROWN#26")
def bounds_that_overflow_prove_nothing(_: Path) -> None:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Flatten(), nn.Linear(16, 16)]
    for _ in range(6):
        layers += [nn.ReLU(), nn.Linear(16, 16)]
    model, points = nn.Sequential(*layers, nn.ReLU(), nn.Linear(16, 3)).eval(), images()
    with torch.no_grad():
        for layer in model:
            if isinstance(layer, nn.Linear):
                layer.weight *= 1e30
    labels = torch.zeros(24, dtype=torch.int64)
    for bound in ("interval", "crown", "alpha_crown", "auto"):
        right_or_refused(
            lambda bound=bound: true(
                not (certified(model, points, labels, 0.1, bound=bound) > 0).any(), f"{bound} proves something"
            ),
            "",
        )


@situation(KIND, "eth-sri/eran#56")
def no_bound_is_above_the_image_s_own_margin(_: Path) -> None:
    model, points = small_network(4), images(40)
    labels = torch.arange(40) % 4
    for bound in ("interval", "crown_ibp", "crown", "alpha_crown", "auto"):
        for epsilon in (1e-6, 0.01, 0.3, 1.0):
            found = certified(model, points, labels, epsilon, bound=bound)
            true((found <= _margins(model, points, labels) + 1e-5).all(), f"{bound} at {epsilon}")


@situation(KIND, "Verified-Intelligence/alpha-beta-CROWN#83")
def what_an_attack_fools_is_never_certified(_: Path) -> None:
    model, points = small_network(4), images(40)
    labels = answers(model, points)
    for epsilon in (0.01, 0.03, 0.3):
        survives = attacked(model, points, labels, epsilon, attacks=["apgd"])
        for bound in ("interval", "crown", "alpha_crown", "auto"):
            proved = certified(model, points, labels, epsilon, bound=bound) > 1e-6
            true(not (proved & ~survives).any(), f"{bound} proves what is fooled at {epsilon}")


@situation(KIND, "Verified-Intelligence/alpha-beta-CROWN#48")
def a_network_that_can_be_bounded_by_hand_is_bounded_tightly(_: Path) -> None:
    # relu(x) - relu(-x) is x, with x the difference of two pixels; its interval over the ball is known.
    class Difference(nn.Module):
        def forward(self, points: Tensor) -> Tensor:
            value = points[:, 0, 0, 0] - points[:, 0, 0, 1]
            found = F.relu(value) - F.relu(-value)
            return torch.stack([found, torch.zeros_like(found)], 1)

    model, points = Difference().eval(), images(24, (1, 1, 2))
    labels = torch.zeros(24, dtype=torch.int64)
    left, right = points[:, 0, 0, 0], points[:, 0, 0, 1]
    exact = (left - 0.05).clamp_min(0) - (right + 0.05).clamp_max(1)
    for bound in ("crown", "alpha_crown"):
        found = certified(model, points, labels, 0.05, bound=bound)
        true((found <= exact + 1e-6).all(), f"{bound} is above the exact bound")
        stable = (left - right).abs() > 0.1
        same(found[stable], exact[stable], f"the margins of {bound} where no ReLU is unstable", 1e-6)
