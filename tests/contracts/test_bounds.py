"""The contract of bounds; a new file in robust_nas/bounds is tested without writing a test."""

import copy

import pytest
import torch
from torch import Tensor, nn

from robust_nas import bounds
from robust_nas.bounds import Bound
from robust_nas.core.errors import InputError
from robust_nas.threat import ThreatModel

THREATS = [ThreatModel(norm="linf", epsilon=0.05), ThreatModel(norm="l2", epsilon=0.2)]


@pytest.fixture(params=bounds.names())
def bound(request: pytest.FixtureRequest) -> Bound:
    found: Bound = bounds.get(request.param)()
    return found


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(1)
    network = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.AvgPool2d(3, 2, 1, count_include_pad=False),
        nn.Flatten(),
        nn.Linear(27, 4),
    )
    nn.init.uniform_(network[1].running_mean, -0.5, 0.5)
    nn.init.uniform_(network[1].running_var, 0.5, 1.5)
    return network.eval()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(6, 1, 5, 5, generator=torch.Generator().manual_seed(2))


LABELS = torch.tensor([0, 1, 2, 3, 0, 1])


@pytest.mark.parametrize("threat", THREATS, ids=lambda threat: threat.norm)
def test_no_sampled_point_of_the_ball_leaves_the_bounds(
    bound: Bound, model: nn.Module, images: Tensor, threat: ThreatModel
) -> None:
    found = bound.margins(model, images, LABELS, threat)
    lower, generator = found.lower(threat), torch.Generator().manual_seed(3)
    ball, exact = threat.around(images.double()), copy.deepcopy(model).double()
    for trial in range(300):
        points = ball.random(generator)
        if trial % 2:
            # Towards the ball's edge, where bounds break first.
            points = ball.project(images.double() + 10 * (points - images))
        with torch.no_grad():
            logits = exact(points)
        margins = logits.gather(1, LABELS[:, None]) - logits
        wrong = lower.isfinite()
        assert (margins >= lower - 1e-9)[wrong].all()
        if found.slopes is not None:
            linear = (found.slopes @ (points - images).flatten(1)[..., None].to(found.slopes)).squeeze(
                -1
            ) + found.offsets
            assert (margins >= linear - 1e-9)[wrong].all()


def test_the_own_class_is_bounded_by_infinity_and_the_others_are_finite(
    bound: Bound, model: nn.Module, images: Tensor
) -> None:
    found = bound.margins(model, images, LABELS, THREATS[0])
    own = torch.nn.functional.one_hot(LABELS, 4).bool()
    assert found.offsets.shape == (6, 4)
    assert (found.offsets[own] == torch.inf).all() and found.offsets[~own].isfinite().all()
    assert found.slopes is None or found.slopes.shape == (6, 4, 25)


def test_a_smaller_ball_has_no_smaller_margins_and_a_tiny_one_the_clean_margins(
    bound: Bound, model: nn.Module, images: Tensor
) -> None:
    lower = [
        bound.margins(model, images, LABELS, at).lower(at) for at in map(THREATS[0].with_epsilon, (0.1, 0.01, 1e-9))
    ]
    assert (lower[0] <= lower[1]).all() and (lower[1] <= lower[2]).all()
    logits = copy.deepcopy(model).double()(images.double()).detach()
    clean = (logits.gather(1, LABELS[:, None]) - logits).scatter(1, LABELS[:, None], torch.inf)
    torch.testing.assert_close(lower[2].double(), clean, atol=1e-6, rtol=0)


def test_the_model_is_left_as_it_was_and_used_in_evaluation_mode(
    bound: Bound, model: nn.Module, images: Tensor
) -> None:
    expected = bound.margins(model, images, LABELS, THREATS[0]).offsets
    model.train()
    before = copy.deepcopy(model.state_dict())
    torch.testing.assert_close(bound.margins(model, images, LABELS, THREATS[0]).offsets, expected)
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    for key, value in model.state_dict().items():
        assert value.dtype == before[key].dtype and torch.equal(value, before[key])


def test_an_image_has_the_same_bounds_alone_and_among_others(bound: Bound, model: nn.Module, images: Tensor) -> None:
    together = bound.margins(model, images, LABELS, THREATS[0]).offsets
    alone = [bound.margins(model, images[n : n + 1], LABELS[n : n + 1], THREATS[0]).offsets for n in range(6)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-9, rtol=0)


def test_images_outside_zero_to_one_are_refused(bound: Bound, model: nn.Module, images: Tensor) -> None:
    with pytest.raises(InputError, match="Images must be in"):
        bound.margins(model, 255 * images, LABELS, THREATS[0])


def test_batch_norm_without_running_statistics_is_refused(bound: Bound, images: Tensor) -> None:
    model = nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), nn.Flatten(), nn.Linear(25, 4))
    with pytest.raises(InputError):
        bound.margins(model, images, LABELS, THREATS[0])


def test_a_network_with_nan_proves_nothing(bound: Bound, model: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] = torch.nan
    assert not (bound.margins(model, images, LABELS, THREATS[0]).lower(THREATS[0]).amin(1) > 0).any()
