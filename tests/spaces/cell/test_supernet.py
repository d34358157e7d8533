import copy
import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from robust_nas import bounds, datasets, spaces
from robust_nas.architectures.cell import Architecture
from robust_nas.core.errors import InputError
from robust_nas.datasets import Dataset, ImageSet
from robust_nas.spaces.cell.supernet import MixedCell, MixedOperation
from robust_nas.threat import ThreatModel

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


def _copy_weights(discrete: nn.Module, supernet: nn.Module, architecture: Architecture) -> None:
    weights = supernet.state_dict()

    def source(key: str) -> str:
        if ".edges." not in key:
            return key
        head, tail = key.split(".edges.")
        edge, rest = tail.split(".", 1)
        return f"{head}.edges.{edge}.operations.{architecture.operations[int(edge)]}.{rest}"

    discrete.load_state_dict({key: weights[source(key)] for key in discrete.state_dict()})


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("training", [False, True], ids=["running statistics", "batch statistics"])
def test_one_hot_weights_select_one_operation(space, data, code, training):
    torch.manual_seed(0)
    supernet, architecture = space.supernet(data), Architecture.parse(code)
    for name, buffer in supernet.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 1.5)
    discrete = space.network(architecture, data, affine=False)
    _copy_weights(discrete, supernet, architecture)
    images = data.train.images
    supernet.train(training)
    discrete.train(training)
    expected = discrete(images)
    torch.testing.assert_close(supernet.choose(architecture)(images), expected)
    torch.testing.assert_close(supernet(images, _one_hot(space, architecture)), expected)
    # With a gradient to the mixture every operation is computed, and nothing else is different.
    mixture = _one_hot(space, architecture).requires_grad_()
    torch.testing.assert_close(supernet(images, mixture), expected)


def test_what_is_chosen_is_a_copy_that_holds_nothing_else(space, data):
    supernet, architecture = space.supernet(data), Architecture.parse("323133")
    chosen = supernet.choose(architecture)
    before = {name: value.clone() for name, value in supernet.state_dict().items()}
    chosen.train()(data.train.images).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in supernet.state_dict().items())
    assert all(parameter.grad is None for parameter in supernet.parameters())
    discrete = space.network(architecture, data, affine=False)
    assert sum(p.numel() for p in chosen.parameters()) == sum(p.numel() for p in discrete.parameters())


@pytest.mark.parametrize("partial", [1, 2])
@pytest.mark.parametrize("training", [False, True], ids=["running statistics", "batch statistics"])
def test_a_mixed_cell_is_what_the_sum_over_edges_and_operations_says(training, partial):
    torch.manual_seed(0)
    space = spaces.load("nasbench201", channels=4)
    cell, mixture = MixedCell(space, 4, partial).double().train(training), torch.rand(6, 5).double()
    if partial > 1:  # and some operations are left out, others on every edge
        active = torch.rand(6, 5) > 0.4
        for edge, row in zip(cell.edges, active, strict=True):
            edge.keep(row.nonzero().flatten().tolist())
        mixture *= active
    mixture.requires_grad_()
    for name, buffer in cell.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 1.5)
    again = copy.deepcopy(cell)
    x = torch.randn(2, 4, 6, 6).double().requires_grad_()
    one_by_one = _one_by_one(again, space.operations, x, mixture)
    together = cell(x, [list(row.unbind()) for row in mixture])
    torch.testing.assert_close(together, one_by_one)
    # Convolutions of a node are computed together; gradients and what batch norms remember are theirs all the same.
    wanted = torch.autograd.grad(one_by_one.square().sum(), [x, mixture, *again.parameters()])
    got = torch.autograd.grad(together.square().sum(), [x, mixture, *cell.parameters()])
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(cell.state_dict(), again.state_dict())


def _one_by_one(cell: MixedCell, operations: tuple[str, ...], x: torch.Tensor, mixture: torch.Tensor) -> torch.Tensor:
    nodes, edge = [x], 0
    for target in range(1, 4):
        total = torch.zeros_like(x)
        for source in range(target):
            mixed, width = cell.edges[edge], cell.edges[edge].width
            seen, passed = nodes[source].split([width, x.shape[1] - width], 1)
            terms = [
                weight * mixed.operations[name](seen)
                for weight, name in zip(mixture[edge], operations, strict=True)
                if name in mixed.operations
            ]
            joined = torch.cat([sum(terms, torch.zeros_like(seen)), passed], 1)
            total = total + nn.ChannelShuffle(mixed.groups)(joined)
            edge += 1
        nodes.append(total)
    return nodes[-1]


def test_convolutions_that_are_watched_are_called_one_by_one():
    cell, seen = MixedCell(spaces.load("nasbench201", channels=4), 4), []
    for edge in cell.edges:
        edge.operations["nor_conv_3x3"].norm.register_forward_pre_hook(lambda norm, _: seen.append(norm))
    cell(torch.randn(2, 4, 6, 6), [list(row.unbind()) for row in torch.rand(6, 5)])
    assert len(set(seen)) == len(seen) == 6


def test_an_auxiliary_skip_adds_a_share_of_the_input_to_every_mixed_operation(space, data):
    torch.manual_seed(0)
    supernet, x = space.supernet(data).eval(), torch.randn(2, 4, 6, 6)
    (_, mixed), weights = supernet.mixed_operations[0], torch.rand(5)
    before = mixed(x, weights)
    supernet.add_skip(0.25)
    torch.testing.assert_close(mixed(x, weights), before + 0.25 * x)


def test_operations_without_weight_are_not_computed(space, data, monkeypatch):
    computed = []
    forward = nn.Conv2d.forward
    monkeypatch.setattr(nn.Conv2d, "forward", lambda self, x: computed.append(self) or forward(self, x))
    supernet = space.supernet(data).eval()
    supernet(data.train.images, _one_hot(space, Architecture.parse("311111")))
    # The stem, two reductions of three convolutions each, and one edge of six cells.
    assert len(computed) == 1 + 2 * 3 + 6


def test_partial_channels_pass_by_and_the_others_are_mixed_before_all_are_shuffled():
    torch.manual_seed(0)
    names = ("none", "skip_connect", "nor_conv_3x3", "avg_pool_3x3")
    x, weights = torch.randn(2, 8, 5, 5), torch.tensor([0.1, 0.2, 0.3, 0.4])
    mixed = MixedOperation(names, 8, partial=4).eval()
    out = mixed(x, weights)
    whole = MixedOperation(names, 2).eval()
    whole.load_state_dict(mixed.state_dict())
    torch.testing.assert_close(out, nn.ChannelShuffle(4)(torch.cat([whole(x[:, :2], weights), x[:, 2:]], 1)))


@pytest.mark.parametrize("bound", ["interval", "crown_ibp"])
def test_bounds_hold_where_some_channels_pass_by(space, data, bound):
    torch.manual_seed(0)
    supernet = space.supernet(data, partial=4).double()
    supernet(data.train.images.double(), torch.rand(6, 5).double())
    supernet.widen(2)
    supernet.pass_by(0.3)
    network, threat = supernet.eval().at(torch.rand(6, 5).double()), ThreatModel(epsilon=0.02)
    images, labels = data.train.images[:2].double(), data.train.labels[:2]
    lower = bounds.get(bound)().margins(network, images, labels, threat).lower(threat)
    for _ in range(20):
        logits = network((images + 0.02 * torch.randn_like(images).sign()).clamp(0, 1))
        margins = logits.gather(1, labels[:, None]) - logits
        assert bool((margins >= lower - 1e-9)[lower < torch.inf].all())


def test_channels_meet_in_a_cell_whose_operations_see_a_quarter_of_them(space, data):
    cell = MixedCell(space, 16, partial=4).eval()
    convolution = F.one_hot(torch.tensor(space.operations.index("nor_conv_3x3")), 5).float()
    x = torch.randn(1, 16, 3, 3, requires_grad=True)
    out = cell(x, [list(convolution.unbind())] * 6)
    gradients = [torch.autograd.grad(channel.sum(), x, retain_graph=True)[0][0] for channel in out[0]]
    seen_by_each = [int((gradient.abs().amax((1, 2)) > 0).sum()) for gradient in gradients]
    assert max(seen_by_each) > 16 // 4


def test_widening_changes_nothing_until_the_new_channels_cease_to_pass_by():
    torch.manual_seed(0)
    names = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
    x, weights = torch.randn(3, 8, 5, 5), torch.rand(5)
    mixed = MixedOperation(names, 8, partial=4)
    mixed(x, weights)  # running statistics that are not those of the start
    for training in (True, False):
        narrow = copy.deepcopy(mixed).train(training)
        wide = copy.deepcopy(narrow)
        wide.widen(2, x)
        torch.testing.assert_close(wide(x, weights), narrow(x, weights))
    wide.passing = 0.5
    halfway = wide(x, weights)
    wide.passing = 0.0
    # A share of the way in between, and in the end the plain mixture of half of the channels.
    torch.testing.assert_close(halfway, (wide(x, weights) + narrow(x, weights)) / 2)
    plain = MixedOperation(names, 8, partial=2).eval()
    plain.load_state_dict(wide.state_dict())
    plain.groups = 4  # the shuffle is that of the start
    torch.testing.assert_close(wide(x, weights), plain(x, weights))


def test_a_widened_supernet_computes_what_it_did_and_says_where_its_weights_came_from(space, data):
    torch.manual_seed(0)
    supernet, mixture = space.supernet(data, partial=4), torch.rand(6, 5)
    expected = supernet(data.train.images, mixture)
    old = {id(parameter) for parameter in supernet.parameters()}
    places = supernet.widen(2)
    torch.testing.assert_close(supernet(data.train.images, mixture), expected)
    assert {id(p) for p in supernet.parameters()} - old == {id(p) for p in places}
    for new, before in places.items():
        size = len(before)
        assert len(new) == 2 * size
        assert torch.equal(new[:size, :size], before)


def test_an_operation_that_was_left_out_is_gone(space, data):
    supernet = space.supernet(data)
    active = torch.tensor([[False, True, False, True, False]] * 6)
    mixture = torch.rand(6, 5) * active
    expected = supernet(data.train.images, mixture)
    supernet.keep(active)
    torch.testing.assert_close(supernet(data.train.images, mixture), expected)
    assert not any("nor_conv_1x1" in name for name in supernet.state_dict())
    with pytest.raises(InputError, match="has left out nor_conv_1x1"):
        supernet.choose(Architecture.parse("222222"))


@pytest.mark.parametrize("passing", [0.0, 0.5])
def test_another_supernet_of_its_form_takes_its_weights_and_computes_the_same(space, data, passing):
    torch.manual_seed(0)
    supernet = space.supernet(data, partial=4)
    supernet.widen(2)
    supernet.widen(1)
    supernet.pass_by(passing)
    active = torch.rand(6, 5) > 0.5
    active[:, 0] = torch.tensor([True, False] * 3)
    supernet.keep(active)
    other = space.supernet(data, partial=4)
    other.load_structure(json.loads(json.dumps(supernet.structure)))
    other.load_state_dict(supernet.state_dict())
    mixture = torch.rand(6, 5) * active
    assert torch.equal(other(data.train.images, mixture), supernet(data.train.images, mixture))


def test_the_chosen_network_of_edges_without_output_needs_no_operation_that_was_left_out(space, data):
    # 0-1 leads to nodes that nothing follows: it is built as `none`, which the search has left out there.
    architecture = Architecture.parse("|nor_conv_3x3~0|+|none~0|none~1|+|skip_connect~0|none~1|none~2|")
    supernet = space.supernet(data)
    names = list(space.operations)
    active = torch.ones(6, 5, dtype=torch.bool)
    active[0, names.index("none")] = False
    supernet.keep(active)
    plain = torch.zeros(6, 5)
    plain[:, names.index("none")] = 1
    plain[3] = torch.eye(5)[names.index("skip_connect")]
    expected = space.supernet(data)
    expected.load_state_dict(supernet.state_dict())
    images = data.train.images
    torch.testing.assert_close(supernet.choose(architecture)(images), expected(images, plain))


def test_channels_that_cannot_be_shared_out_are_refused(data):
    with pytest.raises(InputError, match=r"must divide space\.channels, but got 6"):
        spaces.load("nasbench201", channels=6).supernet(data, partial=4)


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
