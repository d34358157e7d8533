import pytest
import torch
from torch import nn

from robust_nas import bounds, proxies, spaces
from robust_nas.core.errors import InputError
from robust_nas.datasets import DataForm
from robust_nas.models.complexity import count_parameters
from robust_nas.spaces.size.network import make_widening
from robust_nas.threat import ThreatModel

SPACE = spaces.load("nasbench201-size")
SMALL = spaces.load("nasbench201-size", channels=(2, 3, 4))


def _form(size: int = 8, classes: int = 10) -> DataForm:
    return DataForm("noise", tuple(str(number) for number in range(classes)), (3, size, size))


def _network(space, text, size: int = 8):
    torch.manual_seed(0)
    return space.network(space.parse(text), _form(size))


def _counted(a: int, b: int, c: int, d: int, e: int) -> int:
    """Count the weights by hand: five convolutions in the benchmark's cell, of which two are on its input."""

    def cell(before, after):
        skip = before * after + 2 * after if before != after else 0
        return 2 * 9 * before * after + 3 * 9 * after**2 + 5 * 2 * after + skip

    def reduction(before, after):
        return 9 * before * after + 9 * after**2 + 4 * after + before * after

    stem, classifier = 27 * a + 2 * a, 2 * e + 10 * e + 10
    return stem + cell(a, a) + reduction(a, b) + cell(b, c) + reduction(c, d) + cell(d, e) + classifier


@pytest.mark.parametrize(
    ("text", "published"),
    # What the benchmark says of CIFAR-10's networks, in millions: 0.011714, 0.107826 and 0.713674.
    [("8:8:8:8:8", 11_714), ("8:8:16:40:40", 107_826), ("64:64:64:64:64", 713_674)],
)
def test_networks_have_the_benchmark_s_number_of_parameters(text, published):
    found = count_parameters(_network(SPACE, text, 32))
    assert found == _counted(*map(int, text.split(":"))) == published


def test_cells_of_one_size_are_those_of_the_cell_space():
    # Without a reduction, the skeleton is NAS-Bench-201's own.
    one = spaces.load("nasbench201-size", channels=(4,), stages=1, cells_per_stage=2)
    other = spaces.load("nasbench201", channels=4, stages=1, cells_per_stage=2)
    network, own = _network(one, "4:4").eval(), other.network(other.parse(one.cell), _form()).eval()
    own.load_state_dict(network.state_dict())
    images = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(network(images), own(images))


@pytest.mark.parametrize("name", ["none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3"])
def test_an_operation_widens_where_the_channels_change_and_else_is_the_cell_s(name):
    x = torch.rand(2, 3, 5, 5)
    if name != "none":
        assert make_widening(name, 3, 6, True)(x).shape == (2, 6, 5, 5)
    same = make_widening(name, 3, 3, True)
    assert same(x).shape == x.shape
    assert name != "skip_connect" or isinstance(same, nn.Identity)


@pytest.mark.parametrize("kind", ["interval", "crown"])
def test_no_sampled_point_leaves_the_certified_bounds(kind):
    network = _network(SMALL, "2:4:3:3:2").eval()
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(3, 3, 8, 8, generator=generator)
    labels, threat = network(images).argmax(1), ThreatModel(epsilon=1e-3)
    lower = bounds.get(kind)().margins(network, images, labels, threat).lower(threat)
    others = torch.arange(10) != labels.unsqueeze(1)
    assert bool(lower[others].isfinite().all())
    for _ in range(10):
        moved = images + 1e-3 * (2 * torch.rand(images.shape, generator=generator) - 1)
        logits = network(moved.clamp(0, 1)).double().detach()
        margins = logits.gather(1, labels.unsqueeze(1)) - logits
        assert bool((lower <= margins + 1e-5)[others].all())


@pytest.mark.parametrize("name", proxies.names())
def test_untrained_networks_are_scored(name):
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand(8, 3, 8, 8, generator=generator), torch.arange(8)
    score = proxies.get(name)().score(_network(SMALL, "2:4:3:3:2"), images, labels, ThreatModel(epsilon=0.1))
    assert score == score and abs(score) < float("inf")


def test_images_too_small_for_the_stages_are_named():
    with pytest.raises(InputError, match="3 stages need images of at least 4 pixels a side, but noise has 2 x 2"):
        _network(SMALL, "2:4:3:3:2", 2)
