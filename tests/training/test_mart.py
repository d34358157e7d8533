"""MART: the loss by formula in double precision, its gradient by finite differences, and where it weighs more."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robust_nas.attacks.pgd import PGD
from robust_nas.core.errors import InputError
from robust_nas.threat import ThreatModel
from robust_nas.training import Batch, Memory
from robust_nas.training.mart import MART

LABELS = [0, 3, 1, 2]


class Given(nn.Module):
    """Logits that are looked up: the first pixel says in which row."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, images: Tensor) -> Tensor:
        return self.logits[images[:, 0, 0, 0].long()]


def rows(count: int) -> tuple[Tensor, Batch]:
    """Return crafted images that look up the rows from `count` on, and a batch whose images look up those before."""
    clean, crafted = (torch.arange(start, start + float(count)).view(-1, 1, 1, 1) for start in (0, count))
    labels, places = torch.tensor(LABELS[:count]), torch.arange(count)
    return crafted, Batch(clean, labels, labels, ThreatModel(), 0, places, places, count, count, Memory())


def by_hand(logits: list[list[float]], weight: float, count: int = 4) -> float:
    """Return the paper's loss, image by image; the first half of the rows are clean predictions."""
    total = 0.0
    for image, y in enumerate(LABELS[:count]):
        p, q = ([math.exp(z) / sum(map(math.exp, logits[i])) for z in logits[i]] for i in (image, image + count))
        bce = -math.log(q[y]) - math.log(1 - max(value for k, value in enumerate(q) if k != y))
        divergence = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        total += bce + weight * divergence * (1 - p[y])
    return total / count


@pytest.fixture
def logits() -> Tensor:
    return 1.5 * torch.randn(8, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("weight", [0.0, 1.0, 6.0])
def test_the_loss_is_that_of_the_formula_image_by_image(logits: Tensor, weight: float) -> None:
    crafted, batch = rows(4)
    loss = MART(weight=weight).loss(Given(logits), crafted, batch)
    assert loss.item() == pytest.approx(by_hand(logits.tolist(), weight), rel=1e-12)


def test_the_gradient_is_that_of_finite_differences_in_every_logit(logits: Tensor) -> None:
    crafted, batch = rows(4)
    model = Given(logits)
    MART().loss(model, crafted, batch).backward()
    for row in range(8):
        for column in range(5):
            up, down = logits.tolist(), logits.tolist()
            up[row][column] += 1e-6
            down[row][column] -= 1e-6
            expected = (by_hand(up, 6.0) - by_hand(down, 6.0)) / 2e-6
            assert float(model.logits.grad[row, column]) == pytest.approx(expected, rel=1e-5, abs=1e-8)


def test_a_misclassified_image_weighs_more() -> None:
    # The same divergence (clean and adversarial predictions change places by a permutation), another label.
    crafted, batch = rows(1)
    right = torch.tensor([[4.0, 0.0, 1.0, 0.0], [3.0, 1.0, 0.0, 0.0]], dtype=torch.float64)
    wrong = right[:, [1, 0, 2, 3]]  # the label's class, 0, now has the small probability
    parts = []
    for logits in (right, wrong):
        model = Given(logits)
        weighted, plain = (MART(weight=weight).loss(model, crafted, batch) for weight in (1.0, 0.0))
        parts.append((weighted - plain).item())
    p = right[0].softmax(0)
    assert parts[1] / parts[0] == pytest.approx(float((1 - p[1]) / (1 - p[0])), rel=1e-9)
    assert parts[1] > 10 * parts[0]


def test_a_sure_model_has_a_finite_loss_and_gradient_in_single_precision() -> None:
    # Surely right, surely wrong, and turned around by the attack: margins of 200, where softmax is exactly 0 or 1.
    crafted, batch = rows(3)
    sure = torch.zeros(6, 5)
    for row, winner in enumerate([0, 0, 1, 0, 0, 4]):
        sure[row, winner] = 200.0
    model = Given(sure)
    boosted = MART(weight=0.0).loss(model, crafted, batch)
    # Right: 0. Wrong: -log p_y = 200, and -log(1 - p_0) = 200 - log 4, as 4 classes share what is left. So twice.
    assert boosted.item() == pytest.approx(2 * (400 - math.log(4)) / 3, rel=1e-6)
    loss = MART().loss(model, crafted, batch)
    loss.backward()
    assert bool(loss.isfinite()) and bool(model.logits.grad.isfinite().all())
    # From a label's class lower than another's, both parts of the boosted cross-entropy lift it.
    assert float(model.logits.grad[4, 3]) < -0.33 and float(model.logits.grad[4, 0]) > 0.33


def test_with_two_classes_and_no_divergence_it_is_twice_the_cross_entropy() -> None:
    # 1 - p_k = p_y if there is one other class.
    logits = torch.randn(4, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    crafted, batch = rows(2)
    labels = torch.tensor([0, 1])
    loss = MART(weight=0.0).loss(Given(logits), crafted, replace(batch, labels=labels, targets=labels))
    torch.testing.assert_close(loss, 2 * F.cross_entropy(logits[2:], labels))


def test_the_examples_are_those_of_the_attack() -> None:
    generator = torch.Generator().manual_seed(2)
    images, labels, places = torch.rand(4, 1, 4, 4, generator=generator), torch.tensor(LABELS), torch.arange(4)
    threat = ThreatModel(epsilon=0.1)
    batch = Batch(images, labels, labels, threat, 5, places, places, 4, 4, Memory())
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 5))
    attack = PGD(steps=3, step_size=0.05)
    expected = attack.perturb(model, images, labels, threat, seed=5)
    assert torch.equal(MART(attack=attack).craft(model, batch), expected)


def test_a_negative_weight_is_refused() -> None:
    with pytest.raises(InputError, match=r"MART.weight must be at least 0, but got -1"):
        MART(weight=-1.0)
