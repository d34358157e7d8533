"""The cost of attacks, in forward and backward passes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robust_nas.attacks import Attack
from robust_nas.attacks.apgd import APGD
from robust_nas.attacks.fab import FAB
from robust_nas.attacks.fgsm import FGSM
from robust_nas.attacks.pgd import PGD
from robust_nas.attacks.square import Square
from robust_nas.threat import Norm, ThreatModel

THREAT = ThreatModel(epsilon=0.1)


class Counting(nn.Module):
    """A linear model that counts forward passes, backward passes, and the images of the forward passes."""

    def __init__(self, bias: float) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 2)
        nn.init.constant_(self.linear.weight[0], 0.1)  # type: ignore[arg-type]
        nn.init.constant_(self.linear.weight[1], -0.1)  # type: ignore[arg-type]
        nn.init.zeros_(self.linear.bias)
        self.bias = torch.tensor([bias, 0.0])
        self.forwards = self.backwards = self.images = 0

    def forward(self, images: Tensor) -> Tensor:
        self.forwards, self.images = self.forwards + 1, self.images + len(images)
        logits: Tensor = self.linear(images.flatten(1)) + self.bias
        if logits.requires_grad:
            logits.register_hook(self._count)
        return logits

    def _count(self, _: Tensor) -> None:
        self.backwards += 1


@pytest.mark.parametrize(
    ("attack", "forwards", "backwards"),
    [
        (FGSM(), 1, 1),
        (FGSM(random_start=True), 1, 1),
        (PGD(steps=7), 7, 7),
        (PGD(steps=7, random_start=False, loss="margin", batch_norm="batch"), 7, 7),
        (PGD(steps=0), 0, 0),
        (PGD(steps=7, restarts=3), 24, 21),
        (PGD(steps=7, momentum=1.0, schedule="cosine", early_stop=True), 7, 7),
        (PGD(steps=7, targets=9), 8, 7),  # of two classes, one can be a target
        (PGD(steps=7, loss="kl", restarts=2), 17, 14),
        (APGD(steps=10), 11, 11),
        (APGD(steps=10, targets=1, restarts=2, early_stop=True), 23, 22),
        # The clean logits, then in every step one pass with and one without a gradient, and the search at the end.
        (FAB(steps=10), 1 + 2 * 10 + 5, 10),
    ],
    ids=repr,
)
def test_an_attack_that_fails_costs_its_stated_passes(attack: Attack, forwards: int, backwards: int) -> None:
    model = Counting(bias=100.0)
    attack.perturb(model, torch.rand(4, 1, 4, 4), torch.zeros(4, dtype=torch.int64), THREAT)
    assert (model.forwards, model.backwards) == (forwards, backwards)


def test_square_costs_one_pass_per_query_where_images_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    model, queries = Counting(bias=100.0), 13
    attacked = torch.rand(4, 1, 4, 4), torch.zeros(4, dtype=torch.int64)
    Square(queries=queries).perturb(model, *attacked, THREAT)
    assert model.forwards < queries  # several proposals in one pass, where that is cheap
    one_by_one(monkeypatch)
    model.forwards = model.images = 0
    Square(queries=queries).perturb(model, *attacked, THREAT)
    assert (model.forwards, model.images) == (queries, 4 * queries)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize(
    "attack",
    [
        APGD(steps=10, loss="dlr", targets=4),
        APGD(steps=10, loss="dlr", targets=4, restarts=2, early_stop=True),
        PGD(steps=10, targets=4, early_stop=True),
        FAB(steps=20, targets=4, restarts=2),
        Square(queries=200),
    ],
    ids=repr,
)
def test_what_shares_a_pass_is_found_as_if_one_came_after_the_other(
    attack: Attack, norm: Norm, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        # In double precision, in which the batch's size does not show in the sign of a gradient.
        model = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.ReLU(), nn.Linear(16, 6)).double()
        images = torch.rand(40, 1, 6, 6).double()
        labels = model(images).argmax(1)
    threat = ThreatModel(norm=norm, epsilon={"linf": 0.08, "l2": 0.5, "l1": 1.6}[norm])
    together = attack.perturb(model, images, labels, threat, seed=3)
    one_by_one(monkeypatch)
    expected = attack.perturb(model, images, labels, threat, seed=3)
    assert torch.allclose(together, expected, atol=1e-6)
    fooled = (model(together).argmax(1) != labels).sum()
    assert 2 < fooled < 38  # some leave, some stay


def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every image be taken for a costly one."""
    for module in ("_leaving", "square"):
        monkeypatch.setattr(f"robust_nas.attacks.{module}.cheap_batch", lambda images: 1)


@pytest.mark.parametrize(
    "attack",
    [
        PGD(steps=2, restarts=5),
        PGD(steps=9, step_size=0.1, early_stop=True),
        APGD(steps=2, restarts=5),
        APGD(steps=9, early_stop=True),
        FAB(steps=9),
        Square(queries=50),
    ],
    ids=repr,
)
def test_a_fooled_image_leaves_the_batch(attack: Attack) -> None:
    # The sum of the pixels decides; the first two images lie close enough to the boundary, the others far from it.
    images = torch.cat([torch.full((2, 1, 4, 4), 0.51), torch.full((2, 1, 4, 4), 0.9)])
    model = Counting(bias=-2 * 0.1 * 16 * 0.5)
    labels = torch.zeros(4, dtype=torch.int64)
    found = attack.perturb(model, images, labels, THREAT)
    assert (model(found).argmax(1) != labels).tolist() == [True, True, False, False]
    model.images = 0
    attack.perturb(model, images, labels, THREAT)
    fooled_early = model.images
    model.images = 0
    attack.perturb(model, images[[2, 3, 2, 3]], labels, THREAT)
    assert fooled_early < 0.85 * model.images
