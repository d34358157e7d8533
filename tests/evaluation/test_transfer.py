"""Which adversarial examples two networks share, where it is known by construction."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from robust_nas.attacks.fgsm import FGSM
from robust_nas.attacks.pgd import PGD
from robust_nas.datasets import ImageSet
from robust_nas.evaluation import transfers
from robust_nas.runtime.distributed import World
from robust_nas.runtime.progress import Progress
from robust_nas.runtime.stages import Stage
from robust_nas.threat import ThreatModel

STAGE = Stage("derive", 0, World(), Progress(quiet=True))
THREAT = ThreatModel(epsilon=0.1)


class Linear(nn.Module):
    """Class 1 where the weights' scalar product with two pixels, each less 1/2, is positive."""

    def __init__(self, weights: Sequence[float]) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor(weights))

    def forward(self, images: Tensor) -> Tensor:
        f = 10 * (images.flatten(1) - 0.5) @ self.weights
        return torch.stack([-f, f], dim=1)


@pytest.fixture
def images() -> ImageSet:
    """Four hundred images of two pixels, of which the first one says the class."""
    pixels = torch.rand(400, 1, 1, 2, generator=torch.Generator().manual_seed(1))
    return ImageSet.of(pixels, (pixels[:, 0, 0, 0] > 0.5).long())


def test_all_examples_transfer_between_equal_classifiers_and_none_between_those_of_different_pixels(
    images: ImageSet,
) -> None:
    networks = [Linear([1.0, 0.0]), Linear([2.0, 0.0]), Linear([0.0, 1.0])]
    examples, fooled = transfers(networks, images, THREAT, PGD(steps=3, random_start=False), STAGE)
    assert examples[0, 1] == examples[1, 0] == fooled[0, 1] == fooled[1, 0] > 20
    assert examples[0, 2] > 10
    assert examples[2, 0] > 10
    assert fooled[0, 2] == fooled[2, 0] == 0


def test_counts_are_those_of_the_closed_form_at_linear_classifiers(images: ImageSet) -> None:
    # FGSM moves each pixel by epsilon against the class, along the signs of the weights.
    weights = torch.tensor([[1.0, 0.3], [1.0, -0.6], [0.4, 1.0]])
    examples, fooled = transfers([Linear(row.tolist()) for row in weights], images, THREAT, FGSM(), STAGE)
    x, y = images.images.flatten(1) - 0.5, 2 * images.labels - 1

    def right(points: Tensor, row: Tensor) -> Tensor:
        return (points @ row) * y > 0

    for a, source in enumerate(weights):
        moved = (x - 0.1 * y[:, None] * source.sign()).clamp(-0.5, 0.5)
        for b, target in enumerate(weights):
            shared = right(x, source) & right(x, target) & ~right(moved, source)
            assert examples[a, b] == shared.sum()
            assert fooled[a, b] == (shared & ~right(moved, target)).sum()
    assert 0 < fooled[0, 2] < examples[0, 2]
    assert (examples.diagonal() == fooled.diagonal()).all()


def test_there_are_no_examples_of_a_network_that_is_never_right_or_never_fooled(images: ImageSet) -> None:
    networks = [Linear([-1.0, 0.0]), Linear([1.0, 0.0])]
    examples, fooled = transfers(networks, images, THREAT, FGSM(), STAGE)
    assert examples.tolist() == [[0, 0], [0, examples[1, 1]]]
    assert fooled[1, 0] == 0
    none = transfers([Linear([1.0, 0.0])] * 2, images, ThreatModel(epsilon=1e-9), FGSM(), STAGE)
    assert [counts.sum() for counts in none] == [0, 0]


def test_chunks_that_workers_share_out_give_the_counts_of_one_process(images: ImageSet) -> None:
    networks = [Linear([1.0, 0.3]), Linear([1.0, -0.6])]
    forked = Stage("derive", 0, World(workers=2), Progress(quiet=True))
    found, expected = (transfers(networks, images, THREAT, PGD(steps=2), stage) for stage in (forked, STAGE))
    assert [counts.tolist() for counts in found] == [counts.tolist() for counts in expected]
