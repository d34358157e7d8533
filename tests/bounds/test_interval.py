import contextlib
import copy
import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust_nas.bounds import Box, LinearMargins
from robust_nas.bounds.interval import Interval
from robust_nas.core.errors import InputError
from robust_nas.ensembles import Ensemble, joint_margins
from robust_nas.threat import ThreatModel

THREAT = ThreatModel(norm="linf", epsilon=0.05)


@pytest.fixture(autouse=True)
def _fixed_weights() -> None:
    torch.manual_seed(0)


def random_statistics(model: nn.Module) -> nn.Module:
    """Give batch norm what training would: statistics and weights of either sign that are not 0 and 1."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.2, 1.5)
            if module.affine:
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
    return model.eval()


class Everything(nn.Module):
    """A network with every operation that has a rule and that our networks use, on 2 x 7 x 7 images and 5 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.grouped = nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=3, bias=False)
        self.inside = nn.AvgPool2d(3, 1, 1, count_include_pad=False)
        self.padded = nn.AvgPool2d(3, 1, 1, count_include_pad=True)
        self.shrink = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)
        self.largest = nn.MaxPool2d(2, 2, ceil_mode=True)
        self.strided = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(6, 6, 3, 2, 1), nn.BatchNorm2d(6, affine=False))
        self.last = nn.Sequential(nn.BatchNorm2d(12), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout())
        self.hidden, self.classifier = nn.Linear(12, 8), nn.Linear(8, 5)
        self.register_buffer("mean", torch.tensor([0.4, 0.6]).view(1, 2, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem((images - self.mean) / 0.3)
        total = sum([self.inside(x), -0.5 * self.padded(x), 1 - self.grouped(x), torch.zeros_like(x), 0 * x])
        total = total + torch.tanh(x) * torch.sigmoid(x[:, torch.arange(5, -1, -1)])
        total += x.clamp(-0.5, 0.5)
        x = torch.cat([self.shrink(total) - self.largest(total), self.strided(total)], 1)
        x = F.leaky_relu(self.hidden(self.last(x) * 3), 0.1)
        return self.classifier(x.view(len(images), -1))


def corners(images: Tensor, epsilon: float) -> Tensor:
    """Return all corners [N, 2^D, C, H, W] of the boxes around images, cut with [0, 1]."""
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=images[0].numel())), dtype=torch.float64)
    signs = signs.view(1, -1, *images.shape[1:])
    return (images.double()[:, None] + epsilon * signs).clamp(0, 1)


def sampled(images: Tensor, epsilon: float, count: int) -> Tensor:
    """Return points [N, count, C, H, W] of the boxes around images: half anywhere inside, half corners."""
    noise = torch.rand(len(images), count, *images.shape[1:], dtype=torch.float64) * 2 - 1
    noise[:, ::2] = noise[:, ::2].sign()
    return (images.double()[:, None] + epsilon * noise).clamp(0, 1)


def true_margins(model: nn.Module, points: Tensor, labels: Tensor) -> Tensor:
    """Return f_y - f_j [N, P, K] in float64 at points [N, P, C, H, W]."""
    with torch.no_grad():
        logits = copy.deepcopy(model).double().eval()(points.flatten(0, 1)).unflatten(0, points.shape[:2])
    own = labels.view(-1, 1, 1).expand(*logits.shape[:2], 1)
    return logits.gather(2, own) - logits


def test_margins_of_a_linear_model_are_the_least_over_all_corners_of_the_box_cut_with_valid_images() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(8, 4))
    images, labels = torch.rand(5, 2, 2, 2), torch.tensor([0, 1, 2, 3, 1])
    images[0, 0, 0], images[1, 1, 1] = 0.0, 1.0
    expected = true_margins(model, corners(images, 0.3), labels).amin(1).scatter(1, labels[:, None], torch.inf)
    found = Interval().margins(model, images, labels, ThreatModel(epsilon=0.3)).offsets
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_margins_of_a_linear_model_inside_valid_images_are_the_closed_form() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).double()
    images, labels = 0.4 + 0.2 * torch.rand(4, 3, 2, 2), torch.tensor([0, 1, 2, 0])
    weight, bias = model[1].weight.detach(), model[1].bias.detach()
    offsets = Interval().margins(model, images, labels, ThreatModel(epsilon=0.1)).offsets
    for n, y in enumerate(labels):
        for j in range(3):
            if j != y:
                row = weight[y] - weight[j]
                expected = row @ images[n].flatten().double() + bias[y] - bias[j] - 0.1 * row.abs().sum()
                assert offsets[n, j] == pytest.approx(float(expected), abs=1e-12)


def test_margins_of_one_convolution_with_disjoint_patches_and_relu_are_tight() -> None:
    # Every hidden unit reads its own pixels, so that all reach their worst values at once.
    model = nn.Sequential(nn.Conv2d(1, 1, 2, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(4, 3))
    images, labels = torch.rand(3, 1, 4, 4), torch.tensor([2, 0, 1])
    found = Interval().margins(model, images, labels, ThreatModel(epsilon=0.2)).offsets
    expected = true_margins(model, corners(images, 0.2), labels).amin(1)
    wrong = found.isfinite()
    torch.testing.assert_close(found[wrong], expected[wrong], atol=1e-12, rtol=0)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_no_sampled_point_of_the_ball_leaves_the_certified_bounds(norm: str) -> None:
    model = random_statistics(Everything())
    images, labels = torch.rand(3, 2, 7, 7), torch.tensor([0, 3, 4])
    threat = ThreatModel(norm=norm, epsilon=0.02)
    offsets = Interval().margins(model, images, labels, threat).offsets
    points = sampled(images, {"linf": 0.02, "l2": 0.02 / 98**0.5, "l1": 0.02 / 98}[norm], 1500)
    slack = true_margins(model, points, labels).amin(1) - offsets
    assert (slack[offsets.isfinite()] >= 0).all()
    assert offsets.isfinite().sum() == 3 * 4


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_linear_bounds_margin_is_the_least_over_the_ball(norm: str) -> None:
    slopes = torch.tensor([[[3.0, -4.0, 0.5]]])
    bound = LinearMargins(torch.tensor([[1.0]]), slopes, torch.tensor([[1.0]]))
    lower = bound.lower(ThreatModel(norm=norm, epsilon=0.1))
    # The point of the ball that lowers it the most, by hand.
    worst = {
        "linf": [-0.1, 0.1, -0.1],
        "l2": [-0.1 * 3 / 25.25**0.5, 0.1 * 4 / 25.25**0.5, -0.1 * 0.5 / 25.25**0.5],
        "l1": [0.0, 0.1, 0.0],
    }[norm]
    assert float(lower) == pytest.approx(1 + float(slopes[0, 0] @ torch.tensor(worst)))


def test_no_sampled_value_leaves_the_box_of_any_layer_output() -> None:
    model = random_statistics(Everything()).double()
    images = torch.rand(1, 2, 7, 7, dtype=torch.float64)
    outputs: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        module.register_forward_hook(lambda module, inputs, output, name=name: outputs.__setitem__(name, output))
    with torch.no_grad():
        model(Box((images - 0.1).clamp(0, 1), (images + 0.1).clamp(0, 1)))
        # ReLU in place: what its box holds when the forward is over is what it held when the hook saw it.
        boxes = dict(outputs)
        model(sampled(images, 0.1, 2000)[0])
    for name, box in boxes.items():
        assert isinstance(box, Box) and (box.lower <= box.upper).all()
        assert (outputs[name] >= box.lower - 1e-12).all() and (outputs[name] <= box.upper + 1e-12).all(), name


def test_a_box_without_width_gives_the_network_itself() -> None:
    model = random_statistics(Everything()).double()
    images = torch.rand(4, 2, 7, 7, dtype=torch.float64)
    with torch.no_grad():
        box = model(Box(images, images))
        torch.testing.assert_close(box.lower, model(images), atol=1e-11, rtol=0)
        torch.testing.assert_close(box.upper, model(images), atol=1e-11, rtol=0)


@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize(("kernel", "stride", "padding", "ceil"), [(3, 1, 1, False), (2, 2, 0, True), (3, 2, 1, True)])
def test_average_pooling_has_exact_bounds_under_both_padding_conventions(
    include: bool, kernel: int, stride: int, padding: int, ceil: bool
) -> None:
    lower = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    upper = lower + torch.rand_like(lower)
    pool = nn.AvgPool2d(kernel, stride, padding, ceil, include)
    # The pooling's weights as a matrix, read off from unit images.
    matrix = pool(torch.eye(25, dtype=torch.float64).view(25, 1, 5, 5)).flatten(1)
    box = pool(Box(lower, upper))
    torch.testing.assert_close(box.lower.flatten(2), lower.flatten(2) @ matrix)
    torch.testing.assert_close(box.upper.flatten(2), upper.flatten(2) @ matrix)


CONSTANT = torch.tensor([[-2.0, 0.0], [0.5, 3.0]], dtype=torch.float64)
ARITHMETIC = {
    "x + y": lambda x, y: x + y,
    "x - y": lambda x, y: x - y,
    "x * y": lambda x, y: x * y,
    "-x": lambda x, y: -x,
    "constant + x": lambda x, y: CONSTANT + x,
    "constant - x": lambda x, y: CONSTANT - x,
    "1 - x": lambda x, y: 1 - x,
    "constant * x": lambda x, y: CONSTANT * x,
    "x * -2": lambda x, y: x * -2,
    "x / -2": lambda x, y: x / -2,
    "x / constant": lambda x, y: x / (CONSTANT - 1),
    "add with alpha": lambda x, y: torch.add(x, y, alpha=-3),
    "subtract with alpha": lambda x, y: torch.sub(x, CONSTANT, alpha=2),
    "subtract a box from a constant with alpha": lambda x, y: torch.sub(CONSTANT, x, alpha=-2),
    "sum": lambda x, y: sum([x, y, CONSTANT]),
    "stack": lambda x, y: torch.stack([x, CONSTANT.expand(30, 2, 2), -y], 1),
    "clamp": lambda x, y: x.clamp(-0.3, 0.4),
    "clamp between tensors": lambda x, y: torch.clamp(x, min=CONSTANT - 1, max=CONSTANT),
    "leaky relu": lambda x, y: F.leaky_relu(x, 0.2),
    "transposed mean": lambda x, y: x.transpose(-1, -2).mean(-1, keepdim=True),
}


@pytest.mark.parametrize("named", ARITHMETIC)
def test_each_operation_has_the_exact_range_of_its_values_over_boxes_of_either_sign(named: str) -> None:
    function = ARITHMETIC[named]
    lower, width = torch.randn(2, 30, 2, 2, dtype=torch.float64), torch.rand(2, 30, 2, 2, dtype=torch.float64)
    upper = lower + 2 * width
    box = function(Box(lower[0], upper[0]), Box(lower[1], upper[1]))
    # All of these reach their least and greatest value when every x is at one end of its range, and every y at one.
    ends = [function(x, y) for x in (lower[0], upper[0]) for y in (lower[1], upper[1])]
    torch.testing.assert_close(box.lower, torch.stack(ends).amin(0))
    torch.testing.assert_close(box.upper, torch.stack(ends).amax(0))


@pytest.mark.parametrize("function", [F.silu, F.gelu, F.softplus])
def test_smooth_activations_have_the_exact_range_of_their_values(function: Callable[[Tensor], Tensor]) -> None:
    lower = 3 * torch.randn(500, dtype=torch.float64)
    upper = lower + 3 * torch.rand(500, dtype=torch.float64)
    box = function(Box(lower, upper))
    points = lower + (upper - lower) * torch.linspace(0, 1, 4001, dtype=torch.float64).unsqueeze(1)
    values = function(torch.minimum(points, upper))
    # GELU itself is computed with such an error where it is almost 0.
    assert bool((box.lower <= values.amin(0) + 1e-14).all()) and bool((box.upper >= values.amax(0) - 1e-14).all())
    torch.testing.assert_close(box.lower, values.amin(0), rtol=0, atol=1e-6)
    torch.testing.assert_close(box.upper, values.amax(0), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("beta", "threshold"), [(1.0, 1.0), (2.0, 0.5), (0.5, 0.0)])
def test_the_step_down_of_softplus_at_a_low_threshold_is_within_its_bounds(beta: float, threshold: float) -> None:
    lower = torch.randn(500, dtype=torch.float64)
    upper = lower + torch.rand(500, dtype=torch.float64)
    box = F.softplus(Box(lower, upper), beta, threshold)
    points = lower + (upper - lower) * torch.linspace(0, 1, 4001, dtype=torch.float64).unsqueeze(1)
    values = F.softplus(torch.minimum(points, upper), beta, threshold)
    assert bool((box.lower <= values.amin(0)).all()) and bool((box.upper >= values.amax(0)).all())
    torch.testing.assert_close(box.lower, values.amin(0), rtol=0, atol=1e-3)
    torch.testing.assert_close(box.upper, values.amax(0), rtol=0, atol=1e-3)


@pytest.mark.parametrize("options", [{"beta": -1.0}, {"beta": 0.0}, {"threshold": -1.0}])
def test_a_softplus_that_nothing_is_known_of_is_refused(options: dict[str, float]) -> None:
    box = Box(torch.zeros(1), torch.ones(1))
    with pytest.raises(InputError, match="softplus"):
        F.softplus(box, **options)


def test_the_last_layer_merged_with_the_margins_is_tighter_than_differences_of_logits() -> None:
    body = nn.Sequential(nn.Flatten(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    images, labels = torch.rand(6, 2, 2, 2), torch.tensor([0, 1, 2, 0, 1, 2])
    merged = Interval().margins(body, images, labels, THREAT).offsets
    with torch.no_grad():
        box = body.double()(Box((images.double() - 0.05).clamp(0, 1), (images.double() + 0.05).clamp(0, 1)))
    differences = box.lower.gather(1, labels[:, None]) - box.upper
    gain = (merged - differences)[merged.isfinite()]
    # No gain only where two rows' weights have opposite signs throughout.
    assert (gain >= -1e-12).all() and (gain > 1e-3).double().mean() > 0.5


def test_a_shift_and_a_scale_of_the_logits_shift_and_scale_the_margins() -> None:
    class Changed(nn.Module):
        def __init__(self, body: nn.Module) -> None:
            super().__init__()
            self.body = body
            self.register_buffer("shift", torch.tensor([1.0, -2.0, 0.5]))

        def forward(self, images: Tensor) -> Tensor:
            return (3 - -2 * self.body(images)) / 4 + self.shift

    body = nn.Sequential(nn.Flatten(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    images, labels = torch.rand(3, 2, 2, 2), torch.tensor([0, 1, 2])
    plain = Interval().margins(body, images, labels, THREAT).offsets
    shift = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    expected = plain / 2 + shift[labels][:, None] - shift
    torch.testing.assert_close(Interval().margins(Changed(body), images, labels, THREAT).offsets, expected)


def test_an_ensemble_has_the_weighted_sum_of_its_members_margins() -> None:
    members = [nn.Sequential(nn.Flatten(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)) for _ in range(3)]
    images, labels = torch.rand(4, 2, 2, 2), torch.tensor([0, 1, 2, 0])
    weights, scales = [0.5, 0.2, 0.3], [2.0, 0.5, 1.5]
    expected = joint_margins([Interval().margins(m, images, labels, THREAT) for m in members], weights, scales)
    found = Interval().margins(Ensemble(members, weights, scales), images, labels, THREAT)
    torch.testing.assert_close(found.offsets, expected.offsets)


def test_bounds_of_a_cell_network_hold_at_sampled_points() -> None:
    datasets, spaces = pytest.importorskip("robust_nas.datasets"), pytest.importorskip("robust_nas.spaces")
    space, data = spaces.load("nasbench201"), datasets.load("digits")
    text = "|nor_conv_3x3~0|+|avg_pool_3x3~0|nor_conv_1x1~1|+|skip_connect~0|none~1|nor_conv_3x3~2|"
    model = random_statistics(space.network(space.parse(text), data))
    images, labels = data.test.images[:2], data.test.labels[:2]
    # The box is tiny, and so is the slack: at this size a wrong rule (an average pool's padding) shows.
    epsilon = 1e-6
    offsets = Interval().margins(model, images, labels, ThreatModel(epsilon=epsilon)).offsets
    slack = true_margins(model, sampled(images, epsilon, 30), labels).amin(1) - offsets
    wrong = offsets.isfinite()
    assert (slack[wrong] >= 0).all() and wrong.sum() == 2 * 9


class Unruly(nn.Module):
    """A model around one function, with logits [B, 4] of images 4 x 1 x 1."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.norm = nn.BatchNorm2d(4, track_running_stats=False)
        self.register_parameter("gain", nn.Parameter(torch.ones(4)))

    def forward(self, images: Tensor) -> Tensor:
        return self.function(self, images).flatten(1)


def write(tensor: Tensor) -> Tensor:
    tensor[0] = 0
    return tensor


def add_to_constant(x: Tensor) -> Tensor:
    total = torch.zeros(len(x), 4, 1, 1, dtype=torch.float64)
    total += x
    return total


REFUSED = {
    "mish": lambda self, x: F.mish(x),
    "gelu with approximate": lambda self, x: F.gelu(x, approximate="tanh"),
    "silu in place": lambda self, x: F.silu(x, inplace=True),
    "softmax": lambda self, x: x.softmax(1),
    "abs": lambda self, x: x.abs(),
    "__rtruediv__|__rdiv__": lambda self, x: 1 / (x + 1),
    "perturbed divisor": lambda self, x: x / (x + 1),
    "matmul": lambda self, x: x.flatten(1) @ torch.eye(4, dtype=x.dtype),
    "batch statistics": lambda self, x: self.norm(x),
    "dropout in training": lambda self, x: F.dropout(x, 0.5, True),
    "negative slope": lambda self, x: F.leaky_relu(x, -0.1),
    "negative divisor": lambda self, x: F.avg_pool2d(x, 1, divisor_override=-1),
    "conversion": lambda self, x: x.to(torch.float16).to(torch.float64),
    "Tensor.float": lambda self, x: x.float(),
    "dtype or out": lambda self, x: x.sum((2, 3), dtype=torch.float32),
    "view with dtype": lambda self, x: x.view(torch.int64),
    "__bool__": lambda self, x: x if x.sum() else -x,
    r"\.gt": lambda self, x: torch.where(x > 0, x, 0),
    "item": lambda self, x: x * x.sum().item(),
    "numpy": lambda self, x: torch.from_numpy(x.numpy()),
    "data": lambda self, x: x.data,
    "__setitem__": lambda self, x: write(x),
    "perturbed parameter": lambda self, x: F.conv2d(torch.ones(1, 4, 1, 1, dtype=x.dtype), x),
    "in place on a constant": lambda self, x: add_to_constant(x),
    "tensor that has views": lambda self, x: x.view(-1).relu_().view(-1, 4),
    "aten": lambda self, x: torch.ops.aten.silu(x),
    "return_indices|max_pool2d_with_indices": lambda self, x: F.max_pool2d(x, 1, return_indices=True)[0],
}


@pytest.mark.parametrize("named", REFUSED)
def test_an_operation_without_a_sound_rule_is_refused_by_name(named: str) -> None:
    images, labels = torch.rand(2, 4, 1, 1), torch.tensor([0, 1])
    with pytest.raises(InputError, match=named) as error:
        Interval().margins(Unruly(REFUSED[named]), images, labels, THREAT)
    assert "no sound rule" in str(error.value)


def test_batch_norm_in_training_mode_is_refused() -> None:
    with pytest.raises(InputError, match="batch statistics"):
        nn.BatchNorm2d(2)(Box(torch.zeros(1, 2, 2, 2), torch.ones(1, 2, 2, 2)))


def test_operations_in_place_change_every_name_of_their_tensor() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        x = x - 0.5
        kept = x
        x += 0.1
        F.relu(x, inplace=True)
        x.mul_(2)
        return kept

    images, labels = torch.rand(3, 4, 1, 1), torch.tensor([0, 1, 2])
    model = Unruly(forward)
    offsets = Interval().margins(model, images, labels, THREAT).offsets
    expected = true_margins(model, corners(images, 0.05), labels).amin(1)
    wrong = offsets.isfinite()
    torch.testing.assert_close(offsets[wrong], expected[wrong], atol=1e-12, rtol=0)


def test_logits_changed_after_the_last_layer_are_not_taken_for_its_output() -> None:
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, images: Tensor) -> Tensor:
            hidden = self.first(images.flatten(1))
            logits = self.second(hidden)
            hidden.relu_()
            logits.relu_()
            return logits

    model, images, labels = Late(), torch.rand(50, 4, 1, 1), torch.arange(50) % 3
    offsets = Interval().margins(model, images, labels, THREAT).offsets
    slack = true_margins(model, corners(images, 0.05), labels).amin(1) - offsets
    assert (slack[offsets.isfinite()] >= -1e-12).all()


def test_a_network_that_ignores_its_input_has_its_own_margins() -> None:
    model = Unruly(lambda self, x: self.gain.cumsum(0).expand(len(x), 4))
    offsets = Interval().margins(model, torch.rand(1, 4, 1, 1), torch.tensor([2]), THREAT).offsets
    assert offsets.tolist() == [[2.0, 1.0, torch.inf, -1.0]]


def test_a_network_with_nan_has_no_certified_margin() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    with torch.no_grad():
        model[1].weight[0, 0] = torch.nan
    offsets = Interval().margins(model, torch.rand(1, 4, 1, 1), torch.tensor([1]), THREAT).offsets
    assert not offsets.amin() > -torch.inf


def test_wrong_arguments_are_refused() -> None:
    model, images = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), torch.rand(2, 4, 1, 1)
    with pytest.raises(InputError, match="from 0 to 2"):
        Interval().margins(model, images, torch.tensor([0, 3]), THREAT)
    with pytest.raises(InputError, match="one for each of 2 images"):
        Interval().margins(model, images, torch.tensor([0]), THREAT)
    with pytest.raises(InputError, match=r"logits \[B, K\]"):
        Interval().margins(nn.Identity(), images, torch.tensor([0, 1]), THREAT)
    with pytest.raises(InputError, match=r"Interval\.dtype"):
        Interval(dtype="float16")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"Interval\.batch_size"):
        Interval(batch_size=0)
    compiled = torch.jit.trace(model.eval(), images)
    with pytest.raises(InputError, match=r"torch\.jit"):
        Interval().margins(compiled, images, torch.tensor([0, 1]), THREAT)


class _Counting(nn.Module):
    """A network with a weight that two layers share, which gives its buffer another tensor at each call."""

    calls: Tensor

    def __init__(self, refused: bool) -> None:
        super().__init__()
        self.first, self.second, self.refused = nn.Linear(4, 4), nn.Linear(4, 4), refused
        self.second.weight = self.first.weight
        self.register_buffer("calls", torch.zeros(()))
        self.seen: list[torch.dtype] = []

    def forward(self, x: Tensor) -> Tensor:
        assert self.first.weight is self.second.weight
        self.seen.append(self.first.weight.dtype)
        self.calls = self.calls + 1
        x = self.second(self.first(x.flatten(1)).relu())
        return x.softmax(1) if self.refused else x


@pytest.mark.parametrize("refused", [False, True])
def test_a_model_has_its_own_tensors_and_mode_again_whether_it_was_bounded_or_refused(refused: bool) -> None:
    model = _Counting(refused)
    model.second.eval()
    weight, calls, modes = model.first.weight, model.calls, [module.training for module in model.modules()]
    with contextlib.suppress(InputError):
        Interval().margins(model, torch.rand(2, 4, 1, 1), torch.tensor([0, 1]), THREAT)
    assert set(model.seen) == {torch.float64}
    assert model.first.weight is model.second.weight is weight and weight.requires_grad and model.calls is calls
    assert [module.training for module in model.modules()] == modes
