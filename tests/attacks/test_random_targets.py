"""PGD towards random targets, and from the images themselves: by chi-square, and by gradients in closed form."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robust_nas.attacks.pgd import PGD
from robust_nas.threat import ThreatModel

THREAT = ThreatModel(epsilon=0.1)
CLASSES = 6


class Linear(nn.Module):
    """Each class has a pixel of its own, which is its logit."""

    passes = 0

    def forward(self, images: Tensor) -> Tensor:
        self.passes += 1
        return images.flatten(1)[:, :CLASSES]


def targets_of(images: Tensor, labels: Tensor, attack: PGD, seed: int) -> Tensor:
    """Return the classes that one step aims at, [B].

    The cross-entropy of target t falls along z_t alone, and rises along all others: one pixel goes up, the rest down.
    """
    points = attack.perturb(Linear(), images, labels, THREAT, seed=seed)
    up = (points - images)[:, 0, 0, :CLASSES] > 0
    assert (up.sum(1) == 1).all()
    return up.long().argmax(1)


def test_the_target_is_any_class_but_the_label_each_as_likely() -> None:
    generator = torch.Generator().manual_seed(0)
    images = 0.4 + 0.2 * torch.rand(3000, 1, 1, 8, generator=generator)
    labels = torch.arange(3000) % CLASSES
    attack = PGD(steps=1, step_size=0.01, random_start=False, random_target=True)
    counts = torch.zeros(CLASSES, CLASSES)
    for seed in range(4):
        found = targets_of(images, labels, attack, seed)
        counts += torch.bincount(labels * CLASSES + found, minlength=CLASSES**2).view(CLASSES, CLASSES)
    assert (counts.diagonal() == 0).all()
    # 2,000 draws a label over 5 classes: the sum of six statistics has 24 degrees of freedom; 99.9 % are below 51.2.
    expected = 2000 / (CLASSES - 1)
    others = counts[~torch.eye(CLASSES, dtype=torch.bool)]
    assert 8 < float(((others - expected) ** 2 / expected).sum()) < 51.2


def test_a_target_is_drawn_by_image_seed_and_start_whatever_the_batch() -> None:
    images = 0.4 + 0.2 * torch.rand(64, 1, 1, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(64, dtype=torch.int64)
    attack = PGD(steps=1, step_size=0.01, random_start=False, random_target=True)
    whole = targets_of(images, labels, attack, 5)
    assert torch.equal(targets_of(images[10:20], labels[10:20], attack, 5), whole[10:20])
    assert not torch.equal(targets_of(images, labels, attack, 6), whole)
    # Of two starts, each aims at one of its own: more classes are tried for an image.
    model = Linear()
    twice = PGD(steps=40, step_size=0.005, restarts=2, random_target=True)
    fooled = model(twice.perturb(model, images, labels, THREAT)).argmax(1) != 0
    once = model(PGD(steps=40, step_size=0.005, random_target=True).perturb(model, images, labels, THREAT)).argmax(1)
    assert bool((fooled | (once == 0)).all())


def test_a_random_target_costs_no_pass_of_its_own() -> None:
    model, images = Linear(), torch.rand(8, 1, 1, 8)
    PGD(steps=3, random_target=True).perturb(model, images, torch.zeros(8, dtype=torch.int64), THREAT)
    assert model.passes == 3
    assert PGD(loss="dlr", random_target=True).classes == 4  # what its ratio compares


def test_the_given_share_of_the_samples_starts_at_the_image_itself() -> None:
    images = torch.rand(4000, 1, 2, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(4000, dtype=torch.int64)
    model, random = Linear(), PGD(steps=0).perturb(Linear(), images, labels, THREAT, seed=1)
    for share in (0.2, 1.0):
        found = PGD(steps=0, clean_start=share).perturb(model, images, labels, THREAT, seed=1)
        clean = (found == images).flatten(1).all(1)
        # Three standard deviations of the share of 4,000.
        assert float(clean.float().mean()) == pytest.approx(share, abs=3 * (share * (1 - share) / 4000) ** 0.5)
        assert torch.equal(found[~clean], random[~clean])  # the others start where they do without
