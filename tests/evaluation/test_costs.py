"""The expected cost of an evaluation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robust_nas.attacks.pgd import PGD
from robust_nas.datasets import ImageSet
from robust_nas.evaluation import EvaluationPlan, calibration_images, costs_text, estimate_cost, evaluate
from robust_nas.runtime.distributed import World
from robust_nas.threat import ThreatModel


class Counting(nn.Module):
    """A linear model of two classes that counts the images it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.images = nn.Linear(16, 2), 0

    def forward(self, images: Tensor) -> Tensor:
        self.images += len(images)
        logits: Tensor = self.linear(images.flatten(1))
        return logits


@pytest.fixture
def data() -> ImageSet:
    pixels = torch.randint(0, 256, (400, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    return ImageSet(pixels.to(torch.uint8), torch.zeros(400, dtype=torch.int64))


def test_the_expected_forward_passes_of_an_attack_without_early_stop_are_those_that_it_takes(data: ImageSet) -> None:
    model = Counting()
    with torch.no_grad():
        model.linear.bias.copy_(torch.tensor([100.0, -100.0]))  # nothing falls, so that all images cost the same
    threat, attack = ThreatModel(epsilon=0.1), PGD(steps=7)
    cost = estimate_cost(
        "pgd", model, calibration_images(data, 0), 400, lambda part: evaluate(model, part, threat, [attack])
    )
    model.images = 0
    evaluate(model, data, threat, [attack])
    # One pass of each clean image, seven steps, one to judge.
    assert cost.forwards == model.images == 400 * 9


def test_expected_costs_grow_with_the_images_and_shrink_with_the_processes(data: ImageSet) -> None:
    model, sample = Counting(), calibration_images(data, 0)

    def work(part: ImageSet) -> None:
        for _ in range(200):
            model(part.images)

    one, many = (estimate_cost("", model, sample, count, work) for count in (32, 3200))
    assert many.forwards == 100 * one.forwards == 200 * 3200
    shared = estimate_cost("", model, sample, 3200, work, 50)
    assert shared.forwards == many.forwards and shared.seconds < many.seconds / 5


def test_calibration_images_are_random_ones_of_the_set_and_the_same_for_a_seed(data: ImageSet) -> None:
    one, same, other = (calibration_images(data, seed) for seed in (0, 0, 1))
    assert len(one) == 32 and torch.equal(one.pixels, same.pixels) and not torch.equal(one.pixels, other.pixels)
    known = {tuple(image.flatten().tolist()) for image in data.pixels}
    assert all(tuple(image.flatten().tolist()) in known for image in one.pixels)


def test_a_plans_costs_name_every_part_of_it_and_their_sum(data: ImageSet) -> None:
    plan = EvaluationPlan(attacks=(PGD(steps=2),), strongest=(), curve_attack=PGD(steps=2), masking_images=4)
    threats = [ThreatModel(epsilon=0.1), ThreatModel(norm="l2", epsilon=0.5)]
    costs = plan.costs(Counting(), data, threats, World(), 0)
    assert [cost.label for cost in costs] == [
        "pgd, linf 0.1",
        "pgd, l2 0.5",
        "pgd at 7 radii, linf 0.1",
        "pgd at 7 radii, l2 0.5",
        "checks for gradient masking, linf 0.1",
        "checks for gradient masking, l2 0.5",
    ]
    text = costs_text("net", costs, len(data), World()).splitlines()
    assert text[0].startswith("expected for net on 400 images, in 1 process,")
    assert text[-1].split()[:2] == ["all", f"{sum(cost.forwards for cost in costs):,.0f}"]
