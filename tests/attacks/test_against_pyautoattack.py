"""Our attacks beside the `pyautoattack` package's, on a small network trained on real digits."""

from __future__ import annotations

import logging

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from robust_nas.attacks.apgd import APGD
from robust_nas.attacks.autoattack_reference import AutoAttackReference
from robust_nas.attacks.fgsm import FGSM
from robust_nas.attacks.pgd import PGD
from robust_nas.attacks.square import Square
from robust_nas.threat import ThreatModel

autopgd = pytest.importorskip("pyautoattack.autopgd_base")
square = pytest.importorskip("pyautoattack.square")

LINF = ThreatModel(norm="linf", epsilon=0.15)
L2 = ThreatModel(norm="l2", epsilon=0.7)
NORMS = {"linf": "Linf", "l2": "L2"}


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, Tensor, Tensor]:
    """Return a network trained with FGSM-RS and 200 images that it classifies correctly."""
    digits = load_digits()
    images = torch.tensor(digits.images / 16, dtype=torch.float32).unsqueeze(1)
    labels = torch.tensor(digits.target)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(256, 10),
        )
        optimiser = torch.optim.Adam(model.parameters(), 3e-3)
        for step in range(200):
            batch = torch.randint(0, 1200, (64,))
            crafted = FGSM(random_start=True).perturb(model, images[batch], labels[batch], LINF, seed=step)
            optimiser.zero_grad()
            F.cross_entropy(model(crafted), labels[batch]).backward()
            optimiser.step()
        images, labels = images[1200:], labels[1200:]
        correct = model(images).argmax(1) == labels
    return model.eval(), images[correct][:200], labels[correct][:200]


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).float().mean())


@pytest.mark.parametrize("threat", [LINF, L2], ids=lambda threat: threat.norm)
@pytest.mark.parametrize(("loss", "theirs"), [("cross_entropy", "ce"), ("dlr", "dlr")])
def test_apgd_leaves_as_much_as_the_packages(
    trained: tuple[nn.Module, Tensor, Tensor], threat: ThreatModel, loss: str, theirs: str
) -> None:
    model, images, labels = trained
    with torch.random.fork_rng():
        reference = autopgd.APGDAttack(
            model,
            n_iter=50,
            norm=NORMS[threat.norm],
            eps=threat.epsilon,
            loss=theirs,
            logger=logging.getLogger("quiet"),
        )
        expected = accuracy(model, reference.perturb(images, labels), labels)
    found = APGD(steps=50, loss=loss).perturb(model, images, labels, threat)  # type: ignore[arg-type]
    assert 0.2 < expected < 0.9
    assert accuracy(model, found, labels) == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("threat", [LINF, L2], ids=lambda threat: threat.norm)
def test_pgd_with_many_steps_leaves_little_more_than_apgd(
    trained: tuple[nn.Module, Tensor, Tensor], threat: ThreatModel
) -> None:
    model, images, labels = trained
    with torch.random.fork_rng():
        reference = autopgd.APGDAttack(model, n_iter=50, norm=NORMS[threat.norm], eps=threat.epsilon)
        expected = accuracy(model, reference.perturb(images, labels), labels)
    found = PGD(steps=50, restarts=2).perturb(model, images, labels, threat)
    assert accuracy(model, found, labels) == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("threat", [LINF, L2], ids=lambda threat: threat.norm)
def test_square_breaks_at_least_what_the_packages_does_with_as_many_queries(
    trained: tuple[nn.Module, Tensor, Tensor], threat: ThreatModel
) -> None:
    model, images, labels = trained
    with torch.random.fork_rng():
        reference = square.SquareAttack(model, norm=NORMS[threat.norm], eps=threat.epsilon, n_queries=300)
        theirs = accuracy(model, reference.perturb(images, labels), labels)
    ours = accuracy(model, Square(queries=300).perturb(model, images, labels, threat), labels)
    # Ours also reaches the last row and column, which count on 8 x 8 images, and proposes nothing twice.
    assert theirs < 1 and theirs - 0.2 < ours <= theirs + 0.02


def test_autoattack_breaks_what_apgd_does_and_survives_batches_of_one_and_of_misclassified_images(
    trained: tuple[nn.Module, Tensor, Tensor],
) -> None:
    model, images, labels = trained
    attack, images, labels = AutoAttackReference(), images[:12], labels[:12]
    threat = LINF.with_epsilon(0.3)
    weaker = accuracy(model, APGD().perturb(model, images, labels, threat), labels)
    found = attack.perturb(model, images, labels, threat)
    assert accuracy(model, found, labels) <= weaker
    assert threat.around(images).contains(found).all()
    # No image is left from the start: all come back as they are.
    assert torch.equal(attack.perturb(model, images, (labels + 1) % 10, threat), images)
    # Only one is left from the start.
    wrong = torch.where(torch.arange(12) == 5, labels, (labels + 1) % 10)
    alone = attack.perturb(model, images, wrong, threat)
    assert torch.equal(alone[torch.arange(12) != 5], images[torch.arange(12) != 5])
    assert threat.around(images).contains(alone).all()
