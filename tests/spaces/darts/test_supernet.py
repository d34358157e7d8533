import copy
import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from robust_nas import spaces
from robust_nas.architectures.genotype import edges_of
from robust_nas.core.errors import InputError
from robust_nas.datasets import Dataset, ImageSet
from robust_nas.spaces.darts.supernet import MixedDartsOperation


@pytest.fixture(scope="module")
def data() -> Dataset:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8, generator=generator)
    part = ImageSet(pixels, torch.arange(6) % 4)
    return Dataset("noise", ("a", "b", "c", "d"), part, part, part)


@pytest.fixture(scope="module")
def space():
    return spaces.load("darts", channels=4, num_cells=4)


def _supernet(space, data, **options):
    torch.manual_seed(0)
    supernet = space.supernet(data, **options)
    for name, buffer in supernet.named_buffers():
        if name.endswith("running_mean"):
            buffer.uniform_(-0.5, 0.5)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
    return supernet.eval()


def _drawn(space, seed: int):
    generator = random.Random(seed)
    return space.decided([generator.choice(values) for values in space.decisions.values()])


def _mixture(space, seed: int = 0) -> torch.Tensor:
    return torch.rand(28, 8, generator=torch.Generator().manual_seed(seed)).softmax(-1)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_mixed_operation_is_the_weighted_sum_of_its_operations(stride):
    torch.manual_seed(0)
    names = spaces.load("darts").operations
    mixed, x = MixedDartsOperation(names, 4, stride=stride).eval(), torch.randn(2, 4, 6, 6)
    weights = torch.rand(8)
    expected = sum(weights[place] * mixed.operations[name](x) for place, name in enumerate(names) if name != "none")
    torch.testing.assert_close(mixed(x, list(weights.unbind())), expected)
    only_none = mixed(x, [torch.tensor(1.0), *[None] * 7])
    assert only_none.shape == expected.shape and not only_none.any()


@pytest.mark.parametrize("stride", [1, 2])
def test_the_channels_that_operations_do_not_see_pass_by(stride):
    torch.manual_seed(0)
    mixed = MixedDartsOperation(("skip_connect", "sep_conv_3x3"), 8, partial=4, stride=stride).eval()
    x, weights = torch.randn(2, 8, 6, 6), list(torch.tensor([0.3, 0.7]).unbind())
    passed = x if stride == 1 else F.max_pool2d(x, 2)
    own = x[:, :2]
    expected = 0.3 * mixed.operations["skip_connect"](own) + 0.7 * mixed.operations["sep_conv_3x3"](own)
    torch.testing.assert_close(mixed(x, weights), nn.ChannelShuffle(4)(torch.cat([expected, passed[:, 2:]], 1)))


@pytest.mark.parametrize("stride", [1, 2])
def test_widening_changes_nothing_until_the_new_channels_cease_to_pass_by(stride):
    torch.manual_seed(0)
    x, weights = torch.randn(3, 24, 6, 6), list(torch.rand(8).unbind())
    narrow = MixedDartsOperation(spaces.load("darts").operations, 24, partial=6, stride=stride)
    narrow(x, weights)  # running statistics that are not those of the start
    # DrNAS's steps on CIFAR-10, of which the first is to no multiple of the channels there were, and one more.
    for partial in (4, 2):
        wide = copy.deepcopy(narrow)
        wide.widen(partial, x)
        assert wide.width == 24 // partial
        for training in (True, False):
            before, after = (copy.deepcopy(one).train(training)(x, weights) for one in (narrow, wide))
            torch.testing.assert_close(after, before)
        # Where the new channels are among six shuffled blocks of four.
        new = [channel % 4 * 6 + channel // 4 for channel in range(narrow.width, wide.width)]
        passed = wide.eval()(x, weights)[:, new]
        wide.passing = 0.5
        halfway = wide(x, weights)
        wide.passing = 0.0
        mixed = wide(x, weights)
        torch.testing.assert_close(halfway[:, new], (passed + mixed[:, new]) / 2)
        assert bool(((mixed[:, new] - passed).abs().mean((0, 2, 3)) > 0.01).all())
        # What was there sees none of it.
        old = [channel for channel in range(24) if channel not in new]
        torch.testing.assert_close(mixed[:, old], narrow.eval()(x, weights)[:, old])
        narrow = wide.train()


def test_a_widened_supernet_computes_what_it_did_and_says_where_its_weights_came_from(data):
    space = spaces.load("darts", channels=12, num_cells=4)
    supernet, mixture, images = _supernet(space, data, partial=6), _mixture(space), data.train.images
    for partial in (4, 2):
        expected = supernet(images, mixture)
        old = {id(parameter) for parameter in supernet.parameters()}
        places = supernet.widen(partial)
        torch.testing.assert_close(supernet(images, mixture), expected)
        assert {id(parameter) for parameter in supernet.parameters()} - old == {id(new) for new in places}
        for new, before in places.items():
            rows, columns = before.shape[:2]
            assert torch.equal(new[:rows, :columns], before)
        supernet.pass_by(0.0)
    # Another one of its form, read from a file, takes its weights.
    other = space.supernet(data, partial=6).eval()
    other.load_structure(supernet.structure)
    other.load_state_dict(supernet.state_dict())
    assert torch.equal(other(images, mixture), supernet(images, mixture))


@pytest.mark.parametrize("seed", range(3))
def test_one_hot_rows_are_the_genotypes_network(space, data, seed):
    supernet, genotype = _supernet(space, data), _drawn(space, seed)
    torch.manual_seed(1)
    network = space.network(genotype, data, affine=False).eval()
    # In a mixture pools have a batch norm, which the discrete network has not: as it is here, it does nothing.
    for module in supernet.modules():
        if isinstance(module, nn.Sequential) and len(module) == 2 and "Pool" in type(module[0]).__name__:
            nn.init.zeros_(module[1].running_mean)
            nn.init.constant_(module[1].running_var, 1 - module[1].eps)
    pairs = edges_of(4)
    for number, cell in enumerate(network.cells):
        chosen = genotype.reduce if number in network.reductions else genotype.normal
        mixed = supernet.cells[number]
        cell.inputs.load_state_dict(mixed.inputs.state_dict())
        for place, (name, source) in enumerate(chosen):
            own = mixed.edges[pairs.index((source, 2 + place // 2))].operations[name]
            if cell.operations[place].state_dict():
                cell.operations[place].load_state_dict(own.state_dict())
    for part in ("stem", "classifier"):
        getattr(network, part).load_state_dict(getattr(supernet, part).state_dict())
    images = data.test.images
    torch.testing.assert_close(supernet.choose(genotype)(images), network(images))


def test_the_first_half_of_the_rows_is_of_the_normal_cells(space, data):
    supernet, images = _supernet(space, data), data.test.images
    mixture, outputs = _mixture(space), {}
    for number, cell in enumerate(supernet.cells):
        cell.register_forward_hook(lambda _, inputs, __, number=number: outputs.update({number: inputs[2]}))
    supernet(images, mixture)
    assert supernet.reductions == (1, 2)
    for number, rows in outputs.items():
        expected = mixture[14:] if number in (1, 2) else mixture[:14]
        torch.testing.assert_close(torch.stack([torch.stack(list(row)) for row in rows]), expected)


def test_the_gradient_reaches_every_row_and_zeros_are_not_computed(space, data):
    supernet, images = _supernet(space, data), data.test.images
    mixture = _mixture(space).requires_grad_()
    supernet(images, mixture).square().sum().backward()
    assert mixture.grad is not None
    assert bool((mixture.grad[:, 1:] != 0).all()) and not mixture.grad[:, 0].any()
    seen = []
    for edge, mixed in supernet.mixed_operations:
        for name, operation in mixed.operations.items():
            operation.register_forward_hook(lambda *_, edge=edge, name=name: seen.append((edge, name)))
    genotype = _drawn(space, 0)
    rows = torch.zeros(28, 8)
    for edge, place in enumerate(space.indices_of(genotype)):
        if place is not None:
            rows[edge, place] = 1
    supernet(images, rows)
    used = {(edge, space.operations[place]) for edge, place in enumerate(rows.argmax(1).tolist()) if rows[edge].any()}
    assert set(seen) == used and len(used) == 16


def test_operations_that_are_left_out_are_gone_and_their_absence_is_named(space, data):
    supernet, images = _supernet(space, data), data.test.images
    mixture = _mixture(space)
    active = torch.ones(28, 8, dtype=torch.bool)
    active[3, 5:] = False
    active[20, :2] = False
    masked = mixture * active
    before = supernet(images, masked)
    smaller = copy.deepcopy(supernet)
    smaller.keep(active)
    torch.testing.assert_close(smaller(images, masked), before)
    with pytest.raises(InputError, match="has left out sep_conv_5x5"):
        smaller.mixed_operations[3][1].keep([5])
    again = space.supernet(data)
    again.load_structure(smaller.structure)
    again.load_state_dict(smaller.state_dict())
    torch.testing.assert_close(again.eval()(images, masked), before)


def test_an_auxiliary_skip_adds_the_input(space, data):
    mixed, x = MixedDartsOperation(("none", "skip_connect"), 4), torch.randn(2, 4, 6, 6)
    mixed.auxiliary = 0.5
    weights = [None, torch.tensor(0.25)]
    torch.testing.assert_close(mixed(x, weights), 0.75 * x)


def test_the_imagenet_skeleton_has_a_supernet_too():
    pixels = torch.zeros(2, 3, 40, 40, dtype=torch.uint8)
    part = ImageSet(pixels, torch.arange(2))
    space = spaces.load("darts-7", channels=4, num_cells=3, skeleton="imagenet")
    supernet = _supernet(space, Dataset("noise", ("a", "b"), part, part, part))
    mixture = torch.full((28, 7), 1 / 7)
    assert supernet(part.images, mixture).shape == (2, 2)
    assert supernet.choose(_drawn(space, 0))(part.images).shape == (2, 2)


@pytest.mark.parametrize("partial", [3, 4])
def test_partial_channels_that_do_not_fit_are_named(space, data, partial):
    with pytest.raises(InputError, match=f"Partial channels of 1/{partial} must divide"):
        space.supernet(data, partial=partial)


def test_the_supernet_of_the_papers_search_has_the_weights_of_every_operation_on_every_edge():
    pixels = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    part = ImageSet(pixels, torch.arange(2))
    data = Dataset("noise", tuple("0123456789"), part, part, part)
    supernet = spaces.load("darts").supernet(data)
    total, channels, before, last = 27 * 48, 16, 48, 48
    for number in range(8):
        reduces = number in (2, 5)
        channels *= 2 if reduces else 1
        squares, singles = 2 + 2 + 1 + 1, 2 * 9 + 2 * 25 + 9 + 25  # 1x1 and depthwise convolutions of the four kinds
        total += before * channels + last * channels
        total += 14 * (squares * channels**2 + singles * channels)
        # In a reduction cell, skips from the inputs, two into each of four nodes, are 1x1 convolutions too.
        total += 8 * channels**2 if reduces else 0
        before, last = last, 4 * channels
    total += last * 10 + 10
    assert sum(parameter.numel() for parameter in supernet.parameters()) == total == 1_930_522
