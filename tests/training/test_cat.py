"""Customised adversarial training: which radii grow, how far, and how soft the labels are."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robust_nas.attacks.apgd import APGD
from robust_nas.attacks.pgd import PGD
from robust_nas.core.errors import InputError
from robust_nas.core.seeds import seeded
from robust_nas.threat import ThreatModel
from robust_nas.training import Batch, Memory
from robust_nas.training.cat import CAT


class Threshold(nn.Module):
    """Two classes: whether the mean of the four pixels is above one half; logits 8 times the distance from it."""

    def forward(self, images: Tensor) -> Tensor:
        score = 8 * (images.flatten(1).mean(1) - 0.5)
        return torch.stack([-score, score], 1)


def _batch(images: Tensor, labels: Tensor, memory: Memory, epsilon: float = 0.2, ids: list[int] | None = None) -> Batch:
    rows = torch.arange(len(images)) if ids is None else torch.tensor(ids)
    return Batch(
        images=images,
        labels=labels,
        targets=labels,
        threat=ThreatModel(epsilon=epsilon),
        seed=5,
        ids=rows,
        places=torch.arange(len(images)),
        num_samples=10,
        batch_size=len(images),
        memory=memory,
    )


def _at(means: list[float]) -> Tensor:
    return torch.tensor(means).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).clone()


def _network() -> nn.Module:
    with seeded(0, "model"):
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).train()


def _random_batch(memory: Memory, epsilon: float = 0.2) -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(8, 1, 6, 6, generator=generator).mul(0.4).add(0.5).clamp(0, 1)
    return _batch(images, torch.randint(0, 3, (8,), generator=generator), memory, epsilon)


def test_a_radius_grows_to_the_last_multiple_of_eta_before_the_boundary() -> None:
    # The distance of an image from the boundary is that of its mean from one half; the threat ends at 0.2. The fourth
    # image is misclassified as it is.
    means = [0.5 + 0.031, 0.5 - 0.067, 0.5 + 0.3, 0.5 - 0.05]
    labels, memory, model = torch.tensor([1, 0, 1, 1]), Memory(), Threshold()
    method = CAT(eta=0.01)
    seen = []
    for _ in range(30):
        method.craft(model, _batch(_at(means), labels, memory))
        seen.append(memory.tables["radii"][:4].clone())
    assert torch.allclose(seen[-1], torch.tensor([0.03, 0.06, 0.2, 0.0]), atol=1e-6)
    # As long as an image survives, its radius grows by eta each time that it is seen.
    assert torch.allclose(seen[4], torch.tensor([0.03, 0.05, 0.05, 0.0]), atol=1e-6)


def test_an_attack_on_a_soft_label_leads_a_surer_model_away_from_the_boundary() -> None:
    # The model gives class 1 a probability of 0.998; the softened label gives it 0.7 and a part of the other 0.3.
    for soft, expected in ((True, 0.94), (False, 0.86)):
        memory = Memory()
        batch = _batch(_at([0.9]), torch.tensor([1]), memory)
        memory.table("radii", (10,))
        memory.write("radii", batch.ids, torch.tensor([0.03]))
        crafted = CAT(eta=0.01, soft_attack=soft).craft(Threshold(), batch)
        assert torch.allclose(crafted, torch.full_like(crafted, expected), atol=1e-6)


@pytest.mark.parametrize("scale", [1, 4])
def test_the_published_pace_and_labels_scale_with_the_threats_radius(scale: int) -> None:
    # Published at 8/255: radii grow by 0.005, and 10 x 8/255 of a label is drawn at the full radius.
    memory, epsilon = Memory(), scale * 8 / 255
    batch = _batch(_at([0.9]), torch.tensor([1]), memory, epsilon)
    method = CAT(concentration=1e8)
    method.craft(Threshold(), batch)
    assert float(memory.tables["radii"][0]) == pytest.approx(0.005 * scale)
    memory.write("radii", batch.ids, torch.tensor([epsilon]))
    logits = torch.tensor([[0.0, 1.0]])
    share = 10 * 8 / 255
    expected = F.cross_entropy(logits, torch.tensor([[share / 2, 1 - share / 2]]))
    torch.testing.assert_close(method.loss(lambda _: logits, batch.images, batch), expected)


def test_an_image_that_falls_is_trained_on_where_it_fell() -> None:
    memory, model = Memory(), Threshold()
    method, batch = CAT(eta=0.05), _batch(_at([0.53]), torch.tensor([1]), memory)
    crafted = method.craft(model, batch)
    assert torch.allclose(crafted, torch.full_like(crafted, 0.48), atol=1e-6)
    assert float(memory.tables["radii"][0]) == 0.0


def test_a_radius_stays_under_its_own_limit_and_the_threats() -> None:
    images, labels, model = _at([0.9]), torch.tensor([1]), Threshold()
    for limit, epsilon, end in ((0.07, 0.2, 0.07), (0.3, 0.2, 0.2), (None, 0.2, 0.2)):
        memory = Memory()
        for _ in range(15):
            batch = _batch(images, labels, memory, epsilon)
            crafted = CAT(eta=0.02, epsilon_max=limit).craft(model, batch)
            assert bool(ThreatModel(epsilon=end).around(images).contains(crafted).all())
        assert math.isclose(float(memory.tables["radii"][0]), end, abs_tol=1e-7)
    # A threat model whose epsilon is smaller than a radius already is.
    CAT().craft(model, _batch(images, labels, memory, 0.01))
    assert float(memory.tables["radii"][0]) <= 0.01


@pytest.mark.parametrize("step_size", [0.02, None])
def test_each_image_is_attacked_as_pgd_does_at_its_own_radius(step_size: float | None) -> None:
    memory, model = Memory(), _network()
    batch = _random_batch(memory)
    radii = torch.linspace(0.0, 0.15, 8)
    memory.table("radii", (10,))
    memory.write("radii", batch.ids, radii)
    attack = PGD(steps=4, step_size=step_size, random_start=False)
    crafted = CAT(attack=attack, eta=0.01, c=0.0).craft(model, batch)
    for place, radius in enumerate(radii.tolist()):
        one = slice(place, place + 1)
        expected = attack.perturb(model, batch.images[one], batch.labels[one], ThreatModel(epsilon=radius + 0.01))
        assert torch.allclose(crafted[one], expected, atol=1e-6)


def test_a_random_start_is_in_the_images_own_ball() -> None:
    memory = Memory()
    batch = _random_batch(memory)
    attack = PGD(steps=0, step_size=0.02, random_start=True)
    distances = (CAT(attack=attack, eta=0.01).craft(_network(), batch) - batch.images).abs().flatten(1).amax(1)
    assert bool((distances <= 0.01 + 1e-7).all())
    assert bool((distances > 0.005).all())


def test_radii_follow_their_images_through_another_order() -> None:
    memory, model = Memory(), Threshold()
    means = torch.tensor([0.6, 0.51, 0.55])
    for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0], [0, 2, 1]):
        batch = _batch(_at(means[order].tolist()), torch.ones(3, dtype=torch.long), memory, ids=order)
        CAT(eta=0.02).craft(model, batch)
    assert torch.allclose(memory.tables["radii"][:3], torch.tensor([0.08, 0.0, 0.04]), atol=1e-6)


@pytest.mark.parametrize(("radius", "share"), [(0.0, 0.0), (8 / 255, 80 / 255), (0.05, 0.5), (0.15, 1.0)])
def test_the_label_is_softened_in_proportion_to_the_radius(radius: float, share: float) -> None:
    # A Dirichlet distribution this concentrated draws uniform labels: ordinary label smoothing.
    memory, model = Memory(), _network().eval()
    batch = _random_batch(memory)
    memory.table("radii", (10,))
    memory.write("radii", batch.ids, torch.full((8,), radius))
    with torch.no_grad():
        loss = CAT(concentration=1e8, c=10.0).loss(model, batch.images, batch)
        expected = F.cross_entropy(model(batch.images), batch.labels, label_smoothing=share)
    assert float(loss) == pytest.approx(float(expected), abs=2e-4)


def test_the_drawn_part_of_a_label_is_uniform_on_the_simplex() -> None:
    # The share is 1, so that the gradient of the loss in the logits is softmax minus the drawn label.
    count, memory = 4000, Memory()
    logits = torch.zeros(count, 3, requires_grad=True)
    batch = _batch(torch.rand(count, 1, 1, 1), torch.zeros(count, dtype=torch.long), memory)
    object.__setattr__(batch, "num_samples", count)
    memory.table("radii", (count,))
    memory.write("radii", batch.ids, torch.full((count,), 0.2))
    (gradient,) = torch.autograd.grad(CAT(c=10.0).loss(lambda _: logits, batch.images, batch), logits)
    drawn = 1 / 3 - count * gradient
    assert torch.allclose(drawn.sum(1), torch.ones(count), atol=1e-3)
    # Mean 1/3 and variance 2/9 / 4 in every class.
    assert torch.allclose(drawn.mean(0), torch.full((3,), 1 / 3), atol=0.02)
    assert torch.allclose(drawn.var(0), torch.full((3,), 1 / 18), atol=0.005)


def test_the_margin_loss_widens_the_margin_up_to_kappa_and_no_further() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0], [12.5, 1.0, 0.0], [0.0, 3.0, 1.0]], requires_grad=True)
    batch = _batch(torch.rand(3, 1, 2, 2), torch.zeros(3, dtype=torch.long), Memory())
    both = CAT(objective="margin").loss(lambda _: logits, batch.images, batch)
    alone = CAT().loss(lambda _: logits, batch.images, batch)
    # Margins of 1 and of -3, and one beyond kappa = 10.
    assert float((both - alone).detach()) == pytest.approx((-1 - 10 + 3) / 3, abs=1e-5)
    (gradient,) = torch.autograd.grad(both - alone, logits)
    expected = torch.tensor([[-1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [-1.0, 1.0, 0.0]]) / 3
    assert torch.allclose(gradient, expected, atol=1e-5)


def test_a_sure_model_is_attacked_all_the_same() -> None:
    # At a margin of 40 the usual cross-entropy has no gradient in float32, and the image would seem to survive.
    class Sure(Threshold):
        def forward(self, images: Tensor) -> Tensor:
            return 100 * super().forward(images)

    memory = Memory()
    batch = _batch(_at([0.53]), torch.tensor([1]), memory)
    CAT(eta=0.05).craft(Sure(), batch)
    assert float(memory.tables["radii"][0]) == 0.0


def test_what_cat_is_not_for_is_named() -> None:
    batch = _random_batch(Memory())
    object.__setattr__(batch, "threat", ThreatModel(norm="l2", epsilon=0.5))
    with pytest.raises(InputError, match="linf"):
        CAT().craft(_network(), batch)
    for attack in (APGD(), PGD(restarts=2), PGD(momentum=0.9), PGD(loss="margin")):
        with pytest.raises(InputError, match="steps, step_size, random_start and batch_norm"):
            CAT(attack=attack)
    with pytest.raises(InputError, match="objective"):
        CAT(objective="mix")
    with pytest.raises(InputError, match="concentration"):
        CAT(concentration=0.0)
