import dataclasses

import pytest
import torch
from torch.nn import functional as F

from robust_nas import datasets
from robust_nas.attacks.pgd import PGD
from robust_nas.core.errors import InputError
from robust_nas.core.seeds import seed_at, seeded
from robust_nas.relaxations.softmax import SoftmaxRelaxation
from robust_nas.runtime.distributed import World
from robust_nas.runtime.progress import Progress
from robust_nas.runtime.stages import Stage
from robust_nas.searches._smoothness import Smoothness
from robust_nas.searches.darts import DARTS
from robust_nas.threat import ThreatModel
from robust_nas.training import Batch, Memory


def _batch(seed=0, count=4):
    torch.manual_seed(0)
    images, labels = torch.rand(count, 1, 3, 3), torch.arange(count) % 3
    return Batch(
        images=images,
        labels=labels,
        targets=labels,
        threat=ThreatModel(epsilon=0.1),
        seed=seed,
        ids=labels,
        places=labels,
        num_samples=count,
        batch_size=count,
        memory=Memory(),
    )


def test_the_jacobian_of_a_linear_map_is_its_matrix():
    torch.manual_seed(1)
    weight = torch.randn(3, 9)
    estimates = [
        float(Smoothness(kind="jacobian", weight=2.0).penalty(lambda x: x.flatten(1) @ weight.T, _batch(seed)))
        for seed in range(400)
    ]
    assert sum(estimates) / 400 == pytest.approx(2 * float(weight.square().sum()), rel=0.05)


def test_the_curvature_is_the_change_of_the_gradient_of_every_images_own_loss():
    torch.manual_seed(1)
    weight, batch = torch.randn(3, 9), _batch()

    def forward(x):
        return torch.tanh(x.flatten(1)) @ weight.T

    total = 0.0
    for image, label in zip(batch.images, batch.labels, strict=True):

        def gradient(at, label=label):
            return torch.autograd.functional.jacobian(lambda x: F.cross_entropy(forward(x[None]), label[None]), at)

        here = gradient(image)
        total += float((gradient(image + 0.1 * here.sign()) - here).square().sum()) / len(batch.labels)
    assert float(Smoothness(weight=3.0).penalty(forward, batch).detach()) == pytest.approx(3 * total, rel=1e-4)


def test_a_loss_that_is_linear_in_the_images_has_no_curvature_where_the_margin_is_constant():
    # With equal rows the logits of all classes move alike: the loss does not depend on the images at all.
    assert float(Smoothness(weight=1.0).penalty(lambda x: x.flatten(1) @ torch.ones(9, 3), _batch())) < 1e-10


def _searched(data, space, smoothness):
    stage = Stage("search", 0, World(), Progress(quiet=True))
    quick = {"epochs": 1, "batch_size": 16, "validation_attack": PGD(steps=0), "alpha_learning_rate": 0.01}
    return DARTS(**quick, smoothness=smoothness).search(space, data, ThreatModel(epsilon=0.1), stage)


@pytest.fixture(scope="module")
def data():
    digits = datasets.load("digits")
    return dataclasses.replace(digits, train=digits.train[:16], validation=digits.validation[:16], test=None)


def test_where_it_outweighs_everything_alpha_moves_down_the_curvature(data, space):
    # Adam's first step goes against the gradient's sign, which finite differences of the penalty tell.
    found = _searched(data, space, Smoothness(weight=1e6))
    with seeded(0, "search", "weights"):
        supernet = space.supernet(data).double().train()
    images, labels = data.validation.images.double(), data.validation.labels
    batch = dataclasses.replace(_batch(), images=images, labels=labels, threat=ThreatModel(epsilon=0.1))
    start = SoftmaxRelaxation(6, 5, seed=seed_at(0, "search")).alpha.detach().double()

    def penalty(alpha):
        mixture = alpha.softmax(-1)
        return float(Smoothness(weight=1.0).penalty(lambda x: supernet(x, mixture), batch))

    row = found.record["trajectory"][-1]["mixture"]
    moved = torch.tensor(row, dtype=torch.float64).log() - start.softmax(-1).log()
    for edge in (0, 3, 5):
        slopes = []
        for operation in range(5):
            step = torch.zeros_like(start)
            step[edge, operation] = 1e-5
            slopes.append(penalty(start + step) - penalty(start - step))
        # Within an edge, an operation with the steepest slope up loses against that with the steepest slope down.
        assert moved[edge, slopes.index(max(slopes))] < moved[edge, slopes.index(min(slopes))] - 0.01


def test_a_search_feels_the_jacobian(data, space):
    assert _searched(data, space, Smoothness(kind="jacobian", weight=10.0)).probabilities != (
        _searched(data, space, None).probabilities
    )


def test_a_weight_that_does_nothing_is_refused():
    with pytest.raises(InputError, match="must be above 0, but got 0"):
        Smoothness(weight=0)


def test_the_second_order_is_refused_with_it():
    with pytest.raises(InputError, match=r"set search\.order to 'first'"):
        DARTS(order="second", smoothness=Smoothness(weight=1.0))
