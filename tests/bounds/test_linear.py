"""Linear bounds: exact where the network is linear, sound everywhere, and those of an independent library."""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import robust_nas as rn
from robust_nas import bounds
from robust_nas.attacks.autoattack import AutoAttack
from robust_nas.attacks.pgd import PGD
from robust_nas.bounds import Box
from robust_nas.bounds._box import Trace, tracing
from robust_nas.bounds._graph import Leaf, lower_bound
from robust_nas.bounds._linear import Region
from robust_nas.bounds.alpha_crown import AlphaCROWN
from robust_nas.bounds.crown import CROWN, refined_logits
from robust_nas.bounds.crown_ibp import CROWNIBP, crown_ibp_margins
from robust_nas.bounds.interval import Interval
from robust_nas.core.errors import InputError
from robust_nas.models.average_pool import AveragePool3x3
from robust_nas.threat import ThreatModel

KINDS = [CROWNIBP, CROWN, AlphaCROWN]
THREATS = [
    ThreatModel(norm="linf", epsilon=0.06),
    ThreatModel(norm="l2", epsilon=0.3),
    ThreatModel(norm="l1", epsilon=0.8),
]
CELL = "|nor_conv_3x3~0|+|avg_pool_3x3~0|nor_conv_1x1~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_3x3~2|"


def images(count: int = 4, seed: int = 0, shape: tuple[int, ...] = (1, 8, 8)) -> Tensor:
    return torch.rand(count, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def labels(count: int = 4, classes: int = 3) -> Tensor:
    return torch.arange(count) % classes


def convolutional(seed: int = 0) -> nn.Module:
    """Return a network with branches, a ReLU whose input two branches read, and every pooling convention."""

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
            self.left, self.right = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.Conv2d(4, 4, 1)
            self.down, self.last = nn.Conv2d(8, 6, 3, stride=2, padding=1), nn.Linear(6 * 2 * 2, 3)
            nn.init.uniform_(self.norm.running_mean, -0.3, 0.3)
            nn.init.uniform_(self.norm.running_var, 0.5, 1.5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(self.first((x - 0.4) / 0.3))
            left, right = self.left(F.relu(x)), self.right(F.relu(x))
            joined = torch.cat([left - F.avg_pool2d(x, 3, 1, 1), F.leaky_relu(right, 0.1)], 1)
            joined = self.down(F.relu(joined) + AveragePool3x3()(joined))
            pooled = F.avg_pool2d(F.relu_(joined), 2, 2, count_include_pad=False)
            return self.last(pooled.flatten(1)) * 0.5 + 1

    torch.manual_seed(seed)
    return Network().double().eval()


def cell_network(seed: int = 0, stages: int = 2) -> nn.Module:
    data = rn.datasets.load("digits")
    space = rn.spaces.load("nasbench201", channels=4, cells_per_stage=1, stages=stages)
    torch.manual_seed(seed)
    network = space.network(space.parse(CELL), data).float().train()
    with torch.no_grad():
        network(data.train.images[:64])
    return network.double().eval()


def margins_at(model: nn.Module, points: Tensor, own: Tensor) -> Tensor:
    with torch.no_grad():
        logits = model(points)
    return (logits.gather(1, own[:, None]) - logits).scatter(1, own[:, None], torch.inf)


@pytest.mark.parametrize("threat", THREATS, ids=lambda threat: threat.norm)
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_on_a_linear_network_the_bound_is_the_least_margin(kind: Any, clip: bool, threat: ThreatModel) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Flatten(), nn.Linear(128, 3)).double()
    x, y = images(), labels()
    slopes = torch.stack([torch.autograd.functional.jacobian(lambda v: model(v)[0], one[None])[:, 0] for one in x])
    rows = slopes.flatten(2).gather(1, y.view(-1, 1, 1).expand(-1, 1, 64)) - slopes.flatten(2)
    dual = {"linf": 1.0, "l2": 2.0, "l1": float("inf")}[threat.norm]
    least = threat.around(x).least(rows) if clip else -threat.epsilon * rows.norm(p=dual, dim=2)
    expected = margins_at(model, x, y) + least
    found = kind(clip=clip).margins(model, x, y, threat)
    torch.testing.assert_close(found.lower(threat), expected, atol=1e-10, rtol=0)
    own = F.one_hot(y, 3).bool()
    torch.testing.assert_close(found.slopes[~own], rows[~own], atol=1e-10, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_where_no_relu_changes_its_sign_the_bound_is_the_least_margin(kind: Any) -> None:
    model, x, y = convolutional(), images(), labels()
    # So near that every ReLU of this network keeps its sign.
    threat = ThreatModel(epsilon=1e-6)
    rows = []
    for image, label in zip(x, y, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda v: model(v)[0], image[None]).flatten(1)
        rows.append(jacobian[label] - jacobian)
    least = threat.around(x).least(torch.stack(rows))
    expected = margins_at(model, x, y) + least
    torch.testing.assert_close(kind().margins(model, x, y, threat).lower(threat), expected, atol=1e-13, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_on_a_tiny_network_the_bound_is_just_below_the_least_margin_of_a_fine_grid(kind: Any, seed: int) -> None:
    torch.manual_seed(seed)
    layers = [nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)]
    model = nn.Sequential(nn.Flatten(), *layers).double()
    x, threat = images(1, seed, (1, 1, 2)), ThreatModel(epsilon=0.1)
    ends = [torch.linspace(max(float(v) - 0.1, 0), min(float(v) + 0.1, 1), 201).tolist() for v in x.flatten()]
    grid = torch.tensor(list(itertools.product(*ends)), dtype=torch.float64).view(-1, 1, 1, 2)
    least = margins_at(model, grid, torch.zeros(len(grid), dtype=torch.long)).amin(0)
    found = kind().margins(model, x, torch.zeros(1, dtype=torch.long), threat).lower(threat)[0]
    assert (found <= least + 1e-7)[1:].all()
    assert (found >= least - 0.05)[1:].all()


def sampled(threat: ThreatModel, x: Tensor, count: int) -> Any:
    """Yield points of the ball, half of them at its edge, and the corners that the gradient's signs point to."""
    generator, ball = torch.Generator().manual_seed(1), threat.around(x)
    for number in range(count):
        points = ball.random(generator)
        yield points if number % 2 else ball.project(x + 20 * (points - x))


@pytest.mark.parametrize("threat", THREATS, ids=lambda threat: threat.norm)
@pytest.mark.parametrize("model", [convolutional(), cell_network()], ids=["convolutional", "cells"])
def test_what_is_before_every_relu_stays_in_its_bounds(model: nn.Module, threat: ThreatModel) -> None:
    x, y = images(3), labels(3)
    with torch.no_grad():
        region, logits = refined_logits(model, x, threat, clip=True)
    seen: list[Tensor] = []
    attacked = [
        PGD(steps=10, step_size=threat.epsilon / 4, restarts=2).perturb(model, x, y, threat, seed=seed)
        for seed in range(3)
    ]

    class Recorder(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            name = getattr(func, "__name__", "")
            if name in ("relu", "relu_", "leaky_relu") and not any(args[0] is old for old in seen):
                seen.append(args[0] if name != "relu_" else args[0].clone())
            return func(*args, **(kwargs or {}))

    assert isinstance(logits, Box)
    for points in [*sampled(threat, x, 1000), *attacked]:
        seen.clear()
        with Recorder(), torch.no_grad():
            out = model(points)
        before = [value for value in seen if value.ndim == 4]
        assert len(before) == len(region.relus)
        for value, relu in zip(before, region.relus, strict=True):
            assert (value >= relu.lower - 1e-9).all() and (value <= relu.upper + 1e-9).all()
        assert (out >= logits.lower - 1e-9).all() and (out <= logits.upper + 1e-9).all()


@pytest.mark.parametrize("threat", THREATS, ids=lambda threat: threat.norm)
@pytest.mark.parametrize("kind", KINDS)
def test_no_sampled_or_attacked_margin_is_below_the_bound(kind: Any, threat: ThreatModel) -> None:
    model, x, y = cell_network(), images(3), labels(3, 10)
    found = kind().margins(model, x, y, threat)
    lower, wrong = found.lower(threat), ~F.one_hot(y, 10).bool()
    attacked = PGD(steps=30, step_size=threat.epsilon / 8, loss="margin").perturb(model, x, y, threat)
    for points in [attacked, *sampled(threat, x, 200)]:
        margins = margins_at(model, points, y)
        linear = torch.einsum("bkd,bd->bk", found.slopes, (points - x).flatten(1)) + found.offsets
        assert (margins >= linear - 1e-9)[wrong].all()
        assert (margins >= lower - 1e-9)[wrong].all()


def test_what_is_certified_is_not_broken_by_autoattack_or_corners() -> None:
    data = rn.datasets.load("digits")
    threat = ThreatModel(epsilon=0.01)
    space = rn.spaces.load("nasbench201", channels=4, cells_per_stage=1, stages=2)
    model = rn.train(CELL, data, threat, space=space, epochs=3, batch_size=64)
    part = data.test[:32]
    certified = CROWN().margins(model, part.images, part.labels, threat).lower(threat).amin(1) > 1e-6
    assert certified.sum() >= 5
    attacked = AutoAttack(steps=20, queries=200).perturb(model, part.images, part.labels, threat)
    generator = torch.Generator().manual_seed(0)
    signs = [torch.randn(part.images.shape, generator=generator).sign() for _ in range(100)]
    for points in [attacked, *((part.images + threat.epsilon * sign).clamp(0, 1) for sign in signs)]:
        with torch.no_grad():
            assert (model(points).argmax(1) == part.labels)[certified].all()


def test_tighter_kinds_are_not_looser() -> None:
    model, x, y = cell_network(stages=2), images(6), labels(6, 10)
    threat = ThreatModel(epsilon=0.02)
    least = [kind().margins(model, x, y, threat).lower(threat).amin(1) for kind in (Interval, *KINDS)]
    assert (least[3] >= least[2]).all()
    assert all((tighter > looser).double().mean() > 0.9 for looser, tighter in itertools.pairwise(least))


def test_relus_of_the_same_value_share_their_lines() -> None:
    class Difference(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            z = x.flatten(1) - 0.5
            return torch.stack([F.relu(z).sum(1), torch.relu(z).sum(1)], 1)

    x = torch.full((1, 1, 2, 2), 0.5, dtype=torch.float64)
    threat = ThreatModel(epsilon=0.2)
    found = CROWNIBP().margins(Difference(), x, torch.tensor([0]), threat).lower(threat)
    assert float(found[0, 1]) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("threat", THREATS, ids=lambda threat: threat.norm)
def test_gradients_for_training_are_those_of_finite_differences(threat: ThreatModel) -> None:
    model, x, y = convolutional(), images(2), labels(2)
    weights = [model.first.weight, model.norm.weight, model.left.weight, model.last.bias, model.down.weight]

    def least(*values: Tensor) -> Tensor:
        names = ("first.weight", "norm.weight", "left.weight", "last.bias", "down.weight")
        replaced = dict(zip(names, values, strict=True))

        class Replaced(nn.Module):
            def forward(self, box: Tensor) -> Tensor:
                return torch.func.functional_call(model, replaced, (box,))

        lower = crown_ibp_margins(Replaced(), x, y, threat).lower(threat)
        return lower[lower.isfinite()].sum()

    values = [weight.detach().clone().requires_grad_() for weight in weights]
    gradients = torch.autograd.grad(least(*values), values)
    generator, step = torch.Generator().manual_seed(0), 1e-6
    for place, (value, gradient) in enumerate(zip(values, gradients, strict=True)):
        direction = torch.randn(value.shape, dtype=value.dtype, generator=generator)
        ends = []
        for sign in (1, -1):
            moved = [v.detach() for v in values]
            moved[place] = moved[place] + sign * step * direction
            ends.append(float(least(*moved).detach()))
        expected = (ends[0] - ends[1]) / (2 * step)
        assert float((gradient * direction).sum()) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def ramp(*shape: int) -> Tensor:
    """Return numbers that all differ."""
    return torch.arange(1.0, 1 + torch.Size(shape).numel(), dtype=torch.float64).view(shape) / 7


AFFINE: dict[str, Callable[[Tensor], Tensor]] = {
    "conv2d with stride": lambda x: F.conv2d(x, ramp(3, 2, 3, 3), ramp(3), 2, 1),
    "conv2d with groups": lambda x: F.conv2d(x, ramp(4, 1, 2, 3), None, (1, 2), (1, 0), 1, 2),
    "conv2d with dilation": lambda x: F.conv2d(x, ramp(1, 2, 2, 2), None, 1, 0, 2),
    "conv2d with much padding": lambda x: F.conv2d(x, ramp(1, 2, 1, 1), None, 1, 1),
    "avg_pool2d, padding counted": lambda x: F.avg_pool2d(x, 3, 2, 1),
    "avg_pool2d, padding not counted": lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False),
    "avg_pool2d, rounded up": lambda x: F.avg_pool2d(x, 2, 2, ceil_mode=True, count_include_pad=False),
    "adaptive pooling": lambda x: F.adaptive_avg_pool2d(x, 2),
    "linear": lambda x: F.linear(x, ramp(2, 5), ramp(2)),
    "batch norm": lambda x: F.batch_norm(x, ramp(2), ramp(2), -ramp(2)),
    "batch norm after conv2d": lambda x: F.batch_norm(
        F.conv2d(x, ramp(2, 2, 3, 3), ramp(2), 1, 1), ramp(2), ramp(2), -ramp(2), 2 * ramp(2)
    ),
    "padding with a number": lambda x: F.pad(x, (1, 0, 2, 1), value=3.0),
    "mean": lambda x: x.mean((2, 3)),
    "mean of another shape": lambda x: x.mean((-1, -2), keepdim=True),
    "mean over an axis": lambda x: x.mean(axis=3),  # type: ignore[call-overload]
    "mean over channels": lambda x: x[..., :2].mean((1, 2)),
    "sum": lambda x: x.sum(1, keepdim=True),
    "views": lambda x: x.permute(0, 2, 1, 3).flatten(2).unsqueeze(1).transpose(2, 3)[:, :, 1:],
    "channels shuffled": lambda x: x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2),
    "transposed, counted from the end": lambda x: x.transpose(1, -1),
    "slices": lambda x: x[:, 0, ..., ::2],
    "cat": lambda x: torch.cat([x, 2 * x, ramp(3, 2, 4, 5)], -1),
    "stack": lambda x: torch.stack([x, -x], 2),
    "arithmetic": lambda x: 3 - (x - ramp(5)) / 2 + x * ramp(2, 1, 1),
    "broadcast sum": lambda x: x[:, :1] + x,
    "image by image": lambda x: x * ramp(3, 1, 1, 1),
    "wider by a constant": lambda x: x[:, :1] * ramp(1, 3, 1, 1),
}


@pytest.mark.parametrize("named", AFFINE)
def test_a_function_of_an_affine_operation_is_pulled_back_and_pushed_forward_exactly(named: str) -> None:
    function, x = AFFINE[named], images(3, 1, (2, 4, 5)) - 0.5
    box = Box(x - 0.1, x + 0.2)
    with tracing(Trace()):
        result = function(box)
    value = function(x)
    assert isinstance(result, Box) and isinstance(box.node, Leaf)
    g = torch.randn(4, *value.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    if named == "padding with a number":  # known by its bounds alone
        offset, slopes = lower_bound(result.node, g, box.node)
        assert slopes is None and ((g * value).flatten(2).sum(2) >= offset.T).all()
        return
    offset, slopes = lower_bound(result.node, g, box.node)
    assert slopes is not None
    found = offset.T + torch.einsum("bsd,bd->sb", slopes, x.flatten(1))
    torch.testing.assert_close(found, (g * value).flatten(2).sum(2), atol=1e-10, rtol=0)
    directions = torch.randn(6, *x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def pushed(node: Any) -> Tensor:
        if isinstance(node, Leaf):
            return directions if node is box.node else torch.zeros(6, *node.shape, dtype=torch.float64)
        result: Tensor = node.push([pushed(parent) for parent in node.parents])
        return result

    moved = torch.stack([function(x + direction) - value for direction in directions])
    torch.testing.assert_close(pushed(result.node), moved, atol=1e-9, rtol=0)


@pytest.mark.parametrize("options", [(1, 0, 1, 1), (1, 1, 1, 1), (1, 2, 2, 1), (1, 1, 1, 2), (2, 1, 1, 1)])
def test_a_function_of_a_convolution_is_pulled_back_in_single_precision(options: tuple[int, int, int, int]) -> None:
    x = images(3, 2, (2, 7, 8)).float()
    weight = ramp(4, 2 // options[3], 3, 3).float() - 1
    box = Box(x, x)
    value, result = F.conv2d(x, weight, None, *options), F.conv2d(box, weight, None, *options)
    assert isinstance(result, Box) and isinstance(box.node, Leaf)
    g = torch.randn(4, *value.shape, generator=torch.Generator().manual_seed(0))
    _, slopes = lower_bound(result.node, g, box.node)
    assert slopes is not None and slopes.dtype == torch.float32
    found = torch.einsum("bsd,bd->sb", slopes, x.flatten(1))
    torch.testing.assert_close(found, (g * value).flatten(2).sum(2), atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("named", ["sigmoid", "tanh", "max_pool2d", "clamp"])
def test_an_operation_without_lines_of_its_own_is_bounded_by_its_interval(named: str) -> None:
    functions = {"max_pool2d": lambda x: F.max_pool2d(x, 2), "clamp": lambda x: x.clamp(0.2, 0.7)}
    function: Callable[[Tensor], Tensor] = functions.get(named) or getattr(torch, named)

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(1, 3, 3), nn.LazyLinear(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(function(F.relu(self.first(x))).flatten(1))

    torch.manual_seed(0)
    model, x, y = Network(), images(), labels()
    model(x.float())
    model, threat = model.double(), ThreatModel(epsilon=0.05)
    found = CROWN().margins(model, x, y, threat)
    lower, wrong = found.lower(threat), ~F.one_hot(y, 3).bool()
    for points in sampled(threat, x, 200):
        assert (margins_at(model, points, y) >= lower - 1e-9)[wrong].all()


@pytest.mark.parametrize(
    "mixed", [lambda x: x - x.mean(0, keepdim=True), lambda x: x.flip(0) if not isinstance(x, Box) else x[[1, 0]]]
)
def test_a_network_that_mixes_the_images_of_a_batch_is_refused(mixed: Callable[[Tensor], Tensor]) -> None:
    class Network(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return mixed(x).flatten(1)[:, :3]

    with pytest.raises(InputError, match="mixes"):
        CROWNIBP().margins(Network(), images(2), labels(2), THREATS[0])


def test_images_that_are_mixed_where_only_bounds_are_looked_at_are_refused() -> None:
    # Behind max pooling, margins never meet the mixed values; the bounds before the ReLU do.
    class Network(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            z = F.relu(x - x.flip(0) if not isinstance(x, Box) else x - x[[1, 0]])
            return F.max_pool2d(z, 4).flatten(1)[:, :3]

    with pytest.raises(InputError, match="mixes"):
        CROWN().margins(Network(), images(2), labels(2), THREATS[0])


SLOW = pytest.mark.slow
"""Left out of a run of all tests; `bash scripts/test.sh -m slow` runs them."""


@pytest.mark.parametrize(
    "kind", [Interval, *(pytest.param(kind, marks=[SLOW] * (kind is AlphaCROWN)) for kind in KINDS)]
)
def test_less_memory_gives_the_same_bounds(kind: Any) -> None:
    model, x, y = cell_network(), images(3), labels(3, 10)
    threat = ThreatModel(epsilon=0.01)
    expected = kind(memory=4).margins(model, x, y, threat).lower(threat)
    # One image at a time, and too little for zonotopes: CROWN then substitutes for every neuron.
    substitutes = kind in (CROWN, AlphaCROWN)
    with pytest.warns(UserWarning, match="allow more memory") if substitutes else contextlib.nullcontext():
        found = kind(memory=5e-4).margins(model, x, y, threat).lower(threat)
    torch.testing.assert_close(found, expected, atol=0.01 if substitutes else 1e-9, rtol=0)


def test_zonotopes_that_do_not_all_fit_are_given_up_the_oldest_first() -> None:
    """In a chain of layers each is computed from the one before, so that room for some is room for all."""
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Conv2d(channels, 4, 3, padding=1), nn.ReLU()) for channels in (1, 4, 4, 4, 4, 4)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(144, 3))
    x, y, threat = torch.rand(1, 1, 6, 6), torch.tensor([1]), ThreatModel(epsilon=0.01)
    expected = CROWN().margins(model, x, y, threat).lower(threat)
    # 36 pixels and some undecided neurons, of 144 numbers each: six layers' would be 6 * 144 * 37 numbers and more.
    room = 5 * 144 * (37 + 60) * 8 / 2**30
    found = CROWN(memory=room).margins(model, x, y, threat).lower(threat)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("settings", [{"dtype": "float16"}, {"batch_size": 0}, {"memory": 0}])
@pytest.mark.parametrize("kind", [Interval, *KINDS])
def test_settings_out_of_range_are_refused(kind: Any, settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(settings))):
        kind(**settings)


@pytest.fixture
def double() -> Iterator[None]:
    """Make what auto_LiRPA makes of its own double precision, which it does not everywhere by itself."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.mark.usefixtures("double")
def test_crown_ibp_is_auto_lirpas() -> None:
    lirpa = pytest.importorskip("auto_LiRPA", reason="auto_LiRPA, the independent library, is not installed")
    model, x, y = cell_network(stages=2), images(4), labels(4, 10)
    threat = ThreatModel(epsilon=0.02)
    theirs = copy.deepcopy(model)
    _count_padding(theirs, x)
    with torch.no_grad():
        torch.testing.assert_close(theirs(x), model(x), atol=1e-12, rtol=0)
    rows = F.one_hot(y, 10).unsqueeze(1).double() - torch.eye(10, dtype=torch.float64)
    wrong = ~F.one_hot(y, 10).bool()
    bounded = lirpa.BoundedModule(theirs, torch.zeros_like(x[:1]), bound_opts={"conv_mode": "matrix"}, device="cpu")
    region = Region(x, threat, clip=True).box
    ball = lirpa.PerturbationLpNorm(norm=float("inf"), x_L=region.lower, x_U=region.upper)
    options = {"C": rows[wrong].view(4, 9, 10), "bound_upper": False}
    for method, ours in (("CROWN-IBP", CROWNIBP()), ("CROWN", CROWN())):
        with torch.no_grad():
            expected, _ = bounded.compute_bounds(x=(lirpa.BoundedTensor(x, ball),), method=method, **options)
        found = ours.margins(model, x, y, threat).lower(threat)[wrong].view(4, 9)
        if method == "CROWN-IBP":
            torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)
        else:
            # Ours bound what is before a ReLU by intervals and zonotopes of CROWN's own tighter bounds too.
            assert (found >= expected - 1e-9).double().mean() > 0.9
            torch.testing.assert_close(found, expected, atol=0.1, rtol=0.1)


def _count_padding(model: nn.Module, x: Tensor) -> None:
    """Put pooling that counts the padding, times constant maps, in place of pooling that does not."""

    class Pool(nn.Module):
        def __init__(self, height: int, width: int) -> None:
            super().__init__()
            ones = torch.ones(1, 1, height, width, dtype=torch.float64)
            self.register_buffer("counts", 1 / F.avg_pool2d(ones, 3, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return F.avg_pool2d(x, 3, 1, 1) * self.counts

    sizes: dict[nn.Module, tuple[int, int]] = {}
    pools = [module for module in model.modules() if isinstance(module, AveragePool3x3)]
    hooks = [pool.register_forward_hook(lambda m, i, o: sizes.update({m: tuple(o.shape[2:])})) for pool in pools]
    model(x)
    for hook in hooks:
        hook.remove()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, AveragePool3x3):
                setattr(parent, name, Pool(*sizes[child]))
            elif isinstance(child, nn.AvgPool2d):
                setattr(parent, name, nn.AvgPool2d(2, 2))


@pytest.mark.parametrize("kind", [Interval, CROWNIBP, lambda: CROWNIBP(clip=False)])
def test_margins_are_the_same_after_they_were_sent_to_another_process(kind: Any) -> None:
    model, x, y = convolutional(), images(), labels()
    sent = kind().margins(model, x, y, THREATS[0])
    found = bounds.LinearMargins.unpacked(sent.packed(), x)
    torch.testing.assert_close(found.lower(THREATS[0]), sent.lower(THREATS[0]), atol=0, rtol=0)
    assert found.clean is not None
    torch.testing.assert_close(found.clean, sent.clean, atol=0, rtol=0)
    assert (found.images is None) == (sent.images is None) and (found.slopes is None) == (sent.slopes is None)


class Of(nn.Module):
    """A network of one image of 2 x 2 x 2 numbers: a function, and a linear layer."""

    def __init__(self, function: Callable[[Tensor], Tensor], features: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function, self.last = function, nn.Linear(features, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(x).flatten(1))


def holds(kind: Any, model: nn.Module, x: Tensor) -> None:
    threat, y = ThreatModel(epsilon=0.05), labels(len(x))
    before = x.clone()
    lower, wrong = kind().margins(model, x, y, threat).lower(threat), ~F.one_hot(y, 3).bool()
    assert torch.equal(x, before)
    for points in [x, *sampled(threat, x, 60)]:
        assert (margins_at(model, points.clone(), y) >= lower - 1e-9)[wrong].all()


OF_CONSTANTS: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "along another dimension": (lambda x: torch.stack([x, 2 * x], 1) + ramp(1, 2, 1, 1), 16),
    "of one number": (lambda x: F.relu(x - 0.5) + torch.full((1, 1, 1, 1), 0.3, dtype=torch.float64), 8),
    "in another arithmetic": (lambda x: F.relu(x - torch.tensor([0.5, 0.25]).view(1, 2, 1, 1)), 8),
    "beside it": (lambda x: torch.cat([x, torch.ones(len(x), 1, 2, 2)], 1), 12),
    "cloned": (lambda x: F.relu(x.clone() - 0.4), 8),
}


@pytest.mark.parametrize("kind", [Interval, *KINDS])
@pytest.mark.parametrize("named", OF_CONSTANTS)
def test_constants_of_any_shape_and_arithmetic_are_bounded(kind: Any, named: str) -> None:
    function, features = OF_CONSTANTS[named]
    holds(kind, Of(function, features), images(3, 2, (2, 2, 2)))


@pytest.mark.parametrize("kind", [Interval, *KINDS])
@pytest.mark.parametrize("change", [lambda x: x.clamp_(0.4, 0.6), lambda x: x.sub_(0.5).div_(0.25).relu_()])
def test_a_network_may_change_its_input_in_place(kind: Any, change: Callable[[Tensor], Tensor]) -> None:
    holds(kind, Of(change, 8), images(3, 2, (2, 2, 2)))


@pytest.mark.parametrize("kind", [Interval, *KINDS])
@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_with_copies_is_bounded(kind: Any, mode: str) -> None:
    # After the second shift every ReLU is decided, and nothing is left to substitute.
    for shift in (0.4, -0.4):
        holds(kind, Of(lambda x, s=shift: F.relu(F.pad(x, (1, 0, 1, 1), mode=mode) - s), 24), images(2, 2, (2, 2, 2)))


@pytest.mark.parametrize("kind", KINDS)
def test_padding_with_copies_has_the_bounds_of_the_same_values_put_together(kind: Any) -> None:
    def put_together(x: Tensor) -> Tensor:
        x = torch.cat([x[..., 1:2, :], x, x[..., 1:2, :]], 2)
        return F.relu(torch.cat([x[..., 1:2], x, x[..., 1:2]], 3) - 0.4)

    padded, x = Of(lambda x: F.relu(F.pad(x, (1, 1, 1, 1), mode="reflect") - 0.4), 50), images(2, 2, (2, 3, 3))
    found, expected = (kind().margins(model, x, labels(2), THREATS[0]) for model in (padded, Of(put_together, 50)))
    torch.testing.assert_close(found.lower(THREATS[0]), expected.lower(THREATS[0]), atol=1e-9, rtol=0)


@pytest.mark.parametrize("kind", [Interval, *KINDS])
def test_a_network_that_writes_to_a_constant_after_its_use_is_refused(kind: Any) -> None:
    def function(x: Tensor) -> Tensor:
        offset = torch.zeros(1, dtype=torch.float64)
        x = x + offset
        offset -= 1
        return x

    with pytest.raises(InputError, match="in place"):
        kind().margins(Of(function, 8), images(3, 2, (2, 2, 2)), labels(3), THREATS[0])


def test_a_network_whose_own_output_contradicts_its_bounds_is_refused() -> None:
    with pytest.raises(InputError, match="contradicts"):
        CROWN().margins(
            Of(lambda x: x if isinstance(x, Box) else -30 * x, 8), images(3, 2, (2, 2, 2)), labels(3), THREATS[0]
        )


@pytest.mark.parametrize("kind", [Interval, *KINDS])
def test_an_index_that_is_counted_up_after_its_use_is_read_as_it_was(kind: Any) -> None:
    def counted(x: Tensor) -> Tensor:
        index, taken = torch.tensor([1, 0]), list[Tensor]()
        for _ in range(2):
            taken.append(F.relu(x[:, index] - 0.4))
            index.add_(1).remainder_(2)
        return torch.cat(taken, 1)

    holds(kind, Of(counted, 16), images(3, 2, (2, 2, 2)))


DEPENDENT: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "the other images of its batch": ("other images|image of a batch", lambda x: x - x.mean(0)),
    "noise": ("chance", lambda x: x + 0.05 * torch.randn(x.shape, dtype=x.dtype)),
}


@pytest.mark.parametrize("kind", [Interval, *KINDS, bounds.get("auto")])
@pytest.mark.parametrize("on", DEPENDENT)
def test_a_network_that_is_no_function_of_one_image_is_refused_by_every_kind(kind: Any, on: str) -> None:
    named, function = DEPENDENT[on]
    for count in (1, 3):
        with pytest.raises(InputError, match=named):
            kind().margins(Of(function, 8), images(count, 2, (2, 2, 2)), labels(count), THREATS[0])


def test_slopes_are_chosen_only_where_margins_depend_on_them() -> None:
    def function(x: Tensor) -> Tensor:
        return torch.cat([F.max_pool2d(F.relu(x - 0.5), 2), x[:, :1, :1, :1]], 1)

    holds(AlphaCROWN, Of(function, 3), images(3, 2, (2, 2, 2)))


def test_intervals_bound_an_ensemble_that_is_stacked_in_front_of_the_batch() -> None:
    model = Of(lambda x: torch.stack([x.flatten(1), F.relu(x - 0.5).flatten(1)]).mean(0), 8)
    holds(Interval, model, images(3, 2, (2, 2, 2)))

    class Stacked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([model(x), 2 * model(x)]).mean(0)

    holds(Interval, Stacked(), images(3, 2, (2, 2, 2)))


def test_certificates_are_in_float64() -> None:
    with pytest.raises(InputError, match="float64"):
        bounds.get("auto")(kinds=(CROWN(dtype="float32"),))


class Difference(nn.Module):
    """relu(d) - relu(-d) = d, the difference of two pixels: one number per image, [B]."""

    def forward(self, x: Tensor) -> Tensor:
        difference = x[:, 0, 0, 0] - x[:, 0, 0, 1]
        found = F.relu(difference) - F.relu(-difference)
        return torch.stack([found, torch.zeros_like(found)], 1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_value_of_one_number_per_image_is_bounded(kind: Any) -> None:
    x, threat = torch.tensor([[0.9, 0.2], [0.5, 0.52]]).view(2, 1, 1, 2), ThreatModel(epsilon=0.1)
    found = kind().margins(Difference(), x, torch.zeros(2, dtype=torch.int64), threat).lower(threat)[:, 1]
    # d - 2 * 0.1: also where both ReLUs are unstable, since their difference is linear.
    assert found.tolist() == pytest.approx([0.5, -0.22])


@pytest.mark.slow  # imports torch's compiler
def test_a_compiled_network_is_bounded_as_it_is_written() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))
    compiled = torch.compile(model, backend="eager")
    compiled(torch.zeros(1, 1, 8, 8))
    found, expected = (CROWN().margins(each, images(), labels(), THREATS[0]).offsets for each in (compiled, model))
    assert torch.equal(found, expected)
