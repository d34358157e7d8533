"""The options that compose with every method: closed forms and brute force."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from robust_nas.core.config import build
from robust_nas.core.errors import InputError
from robust_nas.threat import ThreatModel
from robust_nas.training import Batch, Forward, Memory, Training
from robust_nas.training._batches import _smoothed
from robust_nas.training._optimisers import make_optimiser
from robust_nas.training._options import Average, added_losses, moved_weights
from robust_nas.training._plan import Knot, Phase
from robust_nas.training.fast import Fast
from robust_nas.training.free import Free


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))


def _batch() -> Batch:
    images, labels, places = torch.rand(6, 1, 8, 8), torch.arange(6), torch.arange(6)
    return Batch(images, labels, labels, ThreatModel(epsilon=0.1), 0, places, places, 6, 6, Memory())


def _forward(model: nn.Module, batch: Batch) -> Forward:
    return Forward(model, model, batch.images, torch.contiguous_format)


def test_a_forward_pass_is_made_once_for_each_tensor():
    model, batch = _model().train(), _batch()
    calls: list[int] = []
    model.register_forward_hook(lambda *_: calls.append(1))
    forward, other = _forward(model, batch), batch.images.clone()
    assert forward(batch.images) is forward(batch.images)
    assert forward(other) is not forward(batch.images)
    assert len(calls) == 2


def test_clean_weight_and_pairing_add_their_closed_forms():
    model, batch = _model().eval(), _batch()
    crafted = (batch.images + 0.1).clamp(0, 1)
    clean, adversarial = model(batch.images), model(crafted)
    found = added_losses(Training(clean_weight=0.7, pairing=0.5), _forward(model, batch), crafted, batch)
    expected = 0.7 * F.cross_entropy(clean, batch.labels) + 0.5 * (adversarial - clean).square().mean()
    torch.testing.assert_close(found, expected)


def test_nothing_is_added_where_nothing_is_asked_for():
    batch = _batch()
    assert float(added_losses(Training(), lambda _: pytest.fail("no pass is needed"), batch.images, batch)) == 0


def test_smoothed_labels_give_the_cross_entropy_of_torchs_label_smoothing():
    logits, labels = torch.randn(5, 10), torch.randint(0, 10, (5,))
    expected = F.cross_entropy(logits, labels, label_smoothing=0.1)
    torch.testing.assert_close(F.cross_entropy(logits, _smoothed(labels, 10, 0.1)), expected)


def test_moved_weights_are_a_share_of_their_norm_away_up_the_loss_and_come_back_to_the_bit():
    model, batch = _model().train(), _batch()
    before = copy.deepcopy(model.state_dict())

    def loss() -> torch.Tensor:
        return F.cross_entropy(model(batch.images), batch.labels)

    weights = [model[0].weight, model[4].weight]
    gradients = torch.autograd.grad(loss(), weights)
    model.load_state_dict(before)
    low = float(loss().detach())
    model.load_state_dict(before)
    with moved_weights(model, 0.01, [loss], lambda value: value):
        for weight, gradient, key in zip(weights, gradients, ("0.weight", "4.weight"), strict=True):
            expected = before[key] + 0.01 * before[key].norm() * gradient / gradient.norm()
            torch.testing.assert_close(weight.detach(), expected)
        for key in ("0.bias", "1.weight", "1.running_mean", "1.num_batches_tracked", "4.bias"):
            assert torch.equal(model.state_dict()[key], before[key])
        assert float(loss().detach()) > low
    for key, value in before.items():
        if "running" not in key and "num_batches" not in key:
            assert torch.equal(model.state_dict()[key], value)


def test_weights_come_back_after_an_error_too():
    model, batch = _model(), _batch()
    before = model[0].weight.detach().clone()
    with (
        pytest.raises(RuntimeError, match="stop"),
        moved_weights(model, 0.1, [lambda: model(batch.images).sum()], lambda value: value),
    ):
        assert not torch.equal(model[0].weight, before)
        raise RuntimeError("stop")
    assert torch.equal(model[0].weight, before)


def test_the_average_is_the_closed_sum_of_all_weights_and_buffers():
    model = _model().double()
    average = Average(model, 0.6)
    seen = [copy.deepcopy(model.state_dict())]
    for step in range(8):
        with torch.no_grad():
            for number, value in enumerate(model.state_dict().values()):
                if value.is_floating_point():
                    value.add_(torch.sin(torch.tensor(step + number + 1.0)))
        average.update()
        seen.append(copy.deepcopy(model.state_dict()))
    decays = [min(0.6, (t + 1) / (t + 10)) for t in range(8)]
    # Weight of what was seen at step t: (1 - d_t) times every later decay; of the start: all decays.
    shares = [1.0, *(1 - decay for decay in decays)]
    for t in range(9):
        for decay in decays[t:]:
            shares[t] *= decay
    assert sum(shares) == pytest.approx(1)
    for key in ("0.weight", "1.running_var", "4.bias"):
        expected = sum(share * state[key] for share, state in zip(shares, seen, strict=True))
        torch.testing.assert_close(average.values[key], expected)


def test_the_model_gets_its_own_weights_back_after_it_held_the_average():
    model = _model()
    average = Average(model, 0.9)
    with torch.no_grad():
        model[0].weight.add_(1)
    own = copy.deepcopy(model.state_dict())
    with average.held():
        assert not torch.equal(model[0].weight, own["0.weight"])
    assert all(torch.equal(value, own[key]) for key, value in model.state_dict().items())


def test_phases_follow_one_another():
    plan = Training(epochs=5, batch_size=64, phases=(Phase(epochs=2, size=16), Phase(epochs=3, batch_size=32)))
    found = [(plan.phase_at(epoch).size, plan.phase_at(epoch).batch_size) for epoch in range(5)]
    assert found == [(16, 64), (16, 64), (None, 32), (None, 32), (None, 32)]
    assert plan.batch_sizes == [64, 32]


def test_the_linear_schedule_joins_the_published_knots_of_fast_imagenet():
    # Rates 0 to 0.4 to 0.04 in epochs 0 to 6, to 0.004 at 12, to 0.0004 at 15 (arXiv:2001.03994).
    knots = tuple(
        Knot(epoch=epoch, learning_rate=rate) for epoch, rate in ((0, 0), (1, 0.4), (6, 0.04), (12, 0.004), (15, 4e-4))
    )
    plan = Training(epochs=15, schedule="linear", knots=knots)
    for epoch, rate in ((0, 0), (0.5, 0.2), (1, 0.4), (3.5, 0.22), (6, 0.04), (9, 0.022), (15, 4e-4)):
        assert plan.learning_rate_at(epoch / 15) == pytest.approx(rate)


def test_one_cycle_lr_is_the_schedule_of_torch():
    plan = Training(schedule="one_cycle_lr", learning_rate=0.1)
    optimiser = torch.optim.SGD(nn.Linear(1, 1).parameters(), 0.1, 0.9)
    steps = 10_000
    reference = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.1, total_steps=steps)
    for step in range(steps):
        group, share = optimiser.param_groups[0], step / (steps - 1)
        if step % 500 == 0 or step == steps - 1:
            # As close as one step: torch's peak is a step before 0.3 of them.
            assert plan.learning_rate_at(share) == pytest.approx(group["lr"], abs=0.1 * 1e-3)
            assert plan.momentum_at(share) == pytest.approx(group["momentum"], abs=1e-3)
        optimiser.step()
        if step < steps - 1:
            reference.step()


def test_a_cycle_rises_as_long_as_it_falls():
    plan = Training(schedule="cyclic", learning_rate=0.2, cycles=2)
    shares = (0, 0.125, 0.25, 0.375, 0.75)
    assert [plan.learning_rate_at(share) for share in shares] == pytest.approx([0, 0.1, 0.2, 0.1, 0.2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"phases": (Phase(epochs=2),), "epochs": 3}, "phases have 2 epochs together, but train.epochs is 3"),
        ({"schedule": "linear"}, "knots of the linear schedule must have rising epochs from 0 to 50"),
        ({"serve": "clean"}, "set train.norm to 'mixture'"),
        ({"ema": 1.0}, r"train.ema must be in \[0, 1\)"),
        ({"awp": -0.1}, "train.awp must not be negative"),
        ({"optimiser": "adam"}, "train.optimiser must be one of sgd, adamw, lars, lamb"),
        ({"milestones": (5,), "schedule": "piecewise"}, "milestones are shares of the epochs"),
        ({"milestones": (0.5,)}, "milestones is of the schedule 'piecewise', but train.schedule is 'one_cycle'"),
        (
            {"schedule": "linear", "knots": (Knot(epoch=0, learning_rate=0.1), Knot(epoch=50, learning_rate=-0.1))},
            "knots must have learning rates of at least 0",
        ),
        (
            {"method": Free(), "epochs": 2, "phases": (Phase(epochs=1, size=8), Phase(epochs=1))},
            "what this method carries from batch to batch has one size",
        ),
        ({"method": Fast(grad_align=0.2), "compile": True}, "train.compile cannot be"),
        ({"norm": "none"}, "train.norm must be one of batch, mixture"),
    ],
)
def test_a_wrong_option_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        Training(**options)


def _one_step(optimiser: str, weight_decay: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return a weight before, its gradient, and the weight after one step."""
    model = nn.Linear(4, 3)
    plan = Training(optimiser=optimiser, learning_rate=0.1, weight_decay=weight_decay)
    chosen, before = make_optimiser(model, plan), model.weight.detach().clone()
    model(torch.rand(5, 4)).square().mean().backward()
    gradient = model.weight.grad.clone()
    chosen.step()
    return before, gradient, model.weight.detach()


def test_a_step_of_lars_has_the_published_length():
    # You et al. 2017, equation 6: lr * 0.001 |w| / (|g| + wd |w|) * (g + wd w), Nesterov's (1 + m) at the first step.
    before, gradient, after = _one_step("lars", 0.01)
    rate = 0.001 * before.norm() / (gradient.norm() + 0.01 * before.norm())
    torch.testing.assert_close(after, before - 0.1 * 1.9 * rate * (gradient + 0.01 * before))


def test_a_step_of_lamb_is_the_learning_rate_times_the_weights_norm():
    # You et al. 2020, algorithm 2: the update (here without decay) is rescaled to the norm of the weights.
    before, _, after = _one_step("lamb", 0.0)
    torch.testing.assert_close((after - before).norm(), 0.1 * before.norm(), rtol=1e-3, atol=0)


def _lamb_of(plain: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return two steps' movement of a weight and a bias, and the movement by the published formulas."""
    torch.manual_seed(0)
    layer = nn.Linear(40, 30)
    with torch.no_grad():
        layer.weight.mul_(40)  # of a norm above 10
    rate, decay, state = 0.01, 0.1, {}
    chosen = make_optimiser(
        layer, Training(optimiser="lamb", learning_rate=rate, weight_decay=decay, plain_vectors=plain)
    )
    expected = [layer.weight.detach().clone(), layer.bias.detach().clone()]
    for step in range(2):
        gradients = [torch.randn(value.shape, generator=torch.Generator().manual_seed(step)) for value in expected]
        layer.weight.grad, layer.bias.grad = (gradient.clone() for gradient in gradients)
        chosen.step()
        for place, gradient in enumerate(gradients):
            first, second = state.get(place, (0.0, 0.0))
            first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
            state[place], is_plain = (first, second), plain and place == 1
            update = first / (second.sqrt() + 1e-6) + (0 if is_plain else decay) * expected[place]
            ratio = 1 if is_plain else expected[place].norm().clamp(0, 10) / update.norm()
            expected[place] = expected[place] - rate * ratio * update
    return layer.weight.detach(), expected[0], layer.bias.detach(), expected[1]


@pytest.mark.parametrize("plain", [False, True])
def test_lamb_has_dats_trust_ratio_and_plain_vectors_have_none_and_no_decay(plain):
    # The authors' code: m / (sqrt(v) + 1e-6) + decay w, times clamp(|w|, 0, 10) over its norm; no bias correction.
    weight, expected, bias, expected_bias = _lamb_of(plain)
    torch.testing.assert_close(weight, expected, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(bias, expected_bias, atol=1e-6, rtol=1e-4)


def test_lars_leaves_biases_plain():
    torch.manual_seed(0)
    layer = nn.Linear(4, 3)
    before, gradient = layer.bias.detach().clone(), torch.randn(3)
    layer.weight.grad, layer.bias.grad = torch.randn(3, 4), gradient.clone()
    make_optimiser(layer, Training(optimiser="lars", learning_rate=0.1, weight_decay=0.5, nesterov=False)).step()
    torch.testing.assert_close(layer.bias.detach(), before - 0.1 * gradient)


def test_the_learning_rate_grows_with_the_batch_and_over_whole_epochs():
    plan = Training(
        epochs=105,
        batch_size=2048,
        base_batch=512,
        learning_rate=0.01,
        schedule="piecewise",
        milestones=(80 / 105, 95 / 105),
        warm_up_epochs=5,
    )
    rates = [plan.learning_rate_at(epoch / 105) for epoch in (0, 1, 2.5, 5, 79.9, 80.1, 95.1)]
    assert rates == pytest.approx([0, 0.008, 0.02, 0.04, 0.04, 0.004, 0.0004])
    cosine = Training(epochs=20, warm_up_epochs=5, schedule="cosine")
    share = Training(epochs=20, warm_up=0.25, schedule="cosine")
    assert [cosine.learning_rate_at(i / 40) for i in range(41)] == [share.learning_rate_at(i / 40) for i in range(41)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base_batch": 0}, "base_batch"),
        ({"base_batch": 64, "epochs": 2, "phases": ({"epochs": 1}, {"epochs": 1, "batch_size": 8})}, "phases"),
        ({"warm_up_epochs": 50.0}, "below train.epochs"),
        ({"warm_up_epochs": 1.0, "schedule": "cyclic"}, "cyclic"),
    ],
)
def test_a_wrong_scaling_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        build(Training, options, "train")
