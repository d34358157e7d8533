import pytest
import torch
from torch.nn import functional as F

from robust_nas import datasets, spaces
from robust_nas.architecture import Architecture
from robust_nas.datasets import Dataset, ImageSet
from robust_nas.models.cells import inherit
from robust_nas.supernet import MixedOperation

CODES = ["323133", "012340", "444444", "111111", "203142"]


def _colour_data() -> Dataset:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (12, 3, 9, 12), dtype=torch.uint8, generator=generator)
    part = ImageSet(pixels, torch.arange(12) % 4)
    return Dataset("noise", ("a", "b", "c", "d"), part, part, part)


@pytest.fixture(scope="module")
def space():
    return spaces.load("nasbench201", channels=4, cells_per_stage=2)


@pytest.fixture(scope="module")
def data():
    return _colour_data()


def _one_hot(space, architecture: Architecture) -> torch.Tensor:
    rows = [space.operations.index(name) for name in architecture.operations]
    return F.one_hot(torch.tensor(rows), len(space.operations)).float()


def test_a_mixed_operation_is_the_weighted_sum_of_its_operations():
    torch.manual_seed(0)
    mixed = MixedOperation(("none", "skip_connect", "nor_conv_3x3", "avg_pool_3x3"), 3).eval()
    x, weights = torch.randn(2, 3, 5, 5), torch.tensor([0.1, 0.2, 0.3, 0.4])
    relu_conv = mixed.operations["nor_conv_3x3"]
    ones = torch.ones(1, 1, 5, 5)
    counted = F.avg_pool2d(ones, 3, 1, 1)  # padding counted as zero: the share of real pixels
    expected = 0.2 * x + 0.3 * relu_conv(x) + 0.4 * F.avg_pool2d(x, 3, 1, 1) / counted
    torch.testing.assert_close(mixed(x, weights), expected)


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("training", [False, True], ids=["running statistics", "batch statistics"])
def test_one_hot_weights_select_one_operation(space, data, code, training):
    torch.manual_seed(0)
    supernet, architecture = space.supernet(data), Architecture.parse(code)
    for name, buffer in supernet.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 1.5)
    discrete = space.network(architecture, data, affine=False)
    inherit(discrete, supernet, architecture)
    images = data.train.images
    supernet.train(training)
    discrete.train(training)
    torch.testing.assert_close(supernet(images, _one_hot(space, architecture)), discrete(images))


def test_the_supernet_at_a_mixture_is_a_plain_network(space, data):
    supernet = space.supernet(data).eval()
    mixture = torch.full((6, 5), 0.2)
    assert torch.equal(supernet.at(mixture)(data.train.images), supernet(data.train.images, mixture))


def test_the_skeleton_has_the_published_shapes():
    digits = datasets.load("digits")
    space = spaces.load("nasbench201")
    network = space.network(Architecture.parse("333333"), digits)

    # C=16, N=5: a ReLU-Conv3x3-BN edge has 9 C^2 weights and 2 C of batch norm; 15 cells of 6 edges, two reductions.
    def edge(c: int) -> int:
        return 9 * c * c + 2 * c

    def reduction(c: int) -> int:
        return 9 * c * 2 * c + 4 * c + 9 * 4 * c * c + 4 * c + 2 * c * c

    stem, last = 9 * 16 + 32, 2 * 64 + 64 * 10 + 10
    expected = stem + 5 * 6 * (edge(16) + edge(32) + edge(64)) + reduction(16) + reduction(32) + last
    assert sum(p.numel() for p in network.parameters()) == expected


def test_the_published_size_of_a_cifar10_network_is_met():
    # NAS-Bench-201 lists the all-3x3 network for CIFAR-10 with 1.531546 M parameters.
    part = ImageSet(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.tensor([0, 1]))
    data = Dataset("cifar10", tuple("abcdefghij"), part, part, part)
    network = spaces.load("nasbench201").network(Architecture.parse("333333"), data)
    assert sum(p.numel() for p in network.parameters()) == 1_531_546


def test_images_too_small_for_the_stages_are_refused():
    part = ImageSet(torch.zeros(2, 1, 3, 3, dtype=torch.uint8), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="at least 4 pixels a side"):
        spaces.load("nasbench201").supernet(Dataset("tiny", ("a", "b"), part, part, part))
