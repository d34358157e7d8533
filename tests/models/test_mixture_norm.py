import copy

import pytest
import torch
from torch import nn

from robust_nas.models.mixture_norm import MixtureBatchNorm2d, mix, plain_state, through, unmix


def _model() -> nn.Module:
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
    return nn.Sequential(inner, nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 5))


def _train(model: nn.Module, steps: int, branches: tuple[str, ...] = ("adversarial",)) -> None:
    generator = torch.Generator().manual_seed(1)
    optimiser = torch.optim.SGD(model.parameters(), 0.1, 0.9)
    for _ in range(steps):
        for branch in branches:
            images = torch.rand(8, 3, 8, 8, generator=generator)
            with through(model, branch):
                loss = model(images).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()


@pytest.mark.parametrize("branch", ["clean", "adversarial"])
def test_a_mixture_of_which_one_branch_is_used_trains_to_the_bits_of_plain_batch_norm(branch):
    plain, mixture = _model(), _model()
    mix(mixture)
    _train(plain, 5)
    _train(mixture, 5, (branch,))
    unmix(mixture, branch)
    assert mixture.state_dict().keys() == plain.state_dict().keys()
    assert all(torch.equal(value, mixture.state_dict()[key]) for key, value in plain.state_dict().items())


def test_each_branch_has_the_statistics_of_its_own_images_only():
    mixture = MixtureBatchNorm2d(nn.BatchNorm2d(1, momentum=1.0))
    clean, adversarial = torch.full((2, 1, 2, 2), 3.0), torch.full((2, 1, 2, 2), 7.0)
    with through(mixture, "clean"):
        mixture(clean)
    with through(mixture, "adversarial"):
        mixture(adversarial)
    assert float(mixture.clean.running_mean) == 3.0
    assert float(mixture.adversarial.running_mean) == 7.0


def test_the_plain_state_of_a_branch_is_the_network_that_the_branch_makes():
    mixture = _model()
    mix(mixture)
    _train(mixture, 3, ("clean", "adversarial"))
    images = torch.rand(4, 3, 8, 8)
    for branch in ("clean", "adversarial"):
        plain = _model()
        plain.load_state_dict(plain_state(mixture, branch))
        with through(mixture.eval(), branch):
            assert torch.equal(plain.eval()(images), mixture(images))
    served = copy.deepcopy(mixture)
    unmix(served, "clean")
    assert all(torch.equal(value, plain_state(mixture, "clean")[key]) for key, value in served.state_dict().items())


def test_the_branch_is_put_back_after_an_error():
    mixture = _model()
    mix(mixture)
    with pytest.raises(RuntimeError, match="stop"), through(mixture, "clean"):
        raise RuntimeError("stop")
    assert mixture[1].branch == "adversarial"


def test_attacks_see_a_folded_mixture_as_they_see_an_unfolded_one():
    from robust_nas.models.frozen import frozen

    mixture, images = _model(), torch.rand(4, 3, 8, 8)
    mix(mixture)
    _train(mixture, 3, ("clean", "adversarial"))
    for branch in ("clean", "adversarial"):
        with through(mixture, branch):
            with frozen(mixture, fold=False):
                expected = mixture(images)
            with frozen(mixture):
                found = mixture(images)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        assert not torch.equal(found, expected)  # equal but for rounding: it was folded
