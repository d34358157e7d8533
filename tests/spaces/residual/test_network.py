import math

import pytest
import torch
from torch import nn

from robust_nas import bounds, proxies, spaces
from robust_nas.architectures.residual import CHOICES, ResidualArchitecture
from robust_nas.core.errors import InputError
from robust_nas.datasets import DataForm
from robust_nas.models.complexity import count_multiply_adds, count_parameters
from robust_nas.spaces.residual.network import ResidualBlock, ResidualNetwork, SqueezeExcitation, make_norm
from robust_nas.threat import ThreatModel

WIDE = "depths=4-4-4 widths=160-320-640 kernel=3 activation=relu norm=batch se=none block=basic stem=16"
SMALL = "depths=1-2 widths=4-8 kernel=3 activation=relu norm=batch se=none block=basic stem=4"


def _form(size: int = 8, classes: int = 10, channels: int = 3) -> DataForm:
    return DataForm("noise", tuple(str(number) for number in range(classes)), (channels, size, size))


def _network(text: str = SMALL, size: int = 8, reduction: int = 16, **changed: str) -> ResidualNetwork:
    parts = {**ResidualArchitecture.parse(text).parts, **changed}
    torch.manual_seed(0)
    form = ResidualArchitecture.parse(" ".join(f"{key}={value}" for key, value in parts.items()))
    return ResidualNetwork(form, _form(size), reduction)


def _wide(blocks: int, factor: int) -> int:
    """Count the weights of WRN-(6 blocks + 4)-factor by hand: stem, blocks, the last norm, classifier."""
    total, before = 27 * 16, 16
    for width in (16 * factor, 32 * factor, 64 * factor):
        total += 2 * before + 2 * width + 9 * before * width + 9 * width**2 + before * width
        total += (blocks - 1) * (4 * width + 18 * width**2)
        before = width
    return total + 2 * before + 10 * before + 10


@pytest.mark.parametrize(("blocks", "factor", "published"), [(4, 10, 36.5), (5, 10, None)])
def test_wide_residual_networks_have_the_published_number_of_parameters(blocks, factor, published):
    # arXiv:1605.07146, table 4: WRN-28-10 has 36.5 M.
    widths = "-".join(str(number * factor) for number in (16, 32, 64))
    with torch.device("meta"):
        network = _network(WIDE, 32, depths="-".join([str(blocks)] * 3), widths=widths)
    found = count_parameters(network)
    assert found == _wide(blocks, factor)
    if published is not None:
        assert round(found / 1e6, 1) == published


def test_a_bottleneck_s_weights_and_those_of_squeeze_and_excitation_are_counted_by_hand():
    found = count_parameters(_network(block="bottleneck", se="relu", kernel="5", reduction=2))
    total, before = 27 * 4, 4
    for width, depth in ((4, 1), (8, 2)):
        for _ in range(depth):
            middle, between = width // 4, width // 2
            total += 2 * (before + middle + middle)
            total += before * middle + 25 * middle**2 + middle * width
            total += before * width if before != width else 0
            total += width * between + between + between * width + width
            before = width
    assert found == total + 2 * before + 10 * before + 10


def test_multiply_adds_are_counted_by_hand_with_the_resolution_halved_once():
    # At 8 x 8: stem, the first block; at 4 x 4: two blocks, the first with a shortcut from 8 x 8 to 4 x 4.
    at_8 = 64 * (27 * 4 + 2 * 9 * 16)
    at_4 = 16 * (9 * 4 * 8 + 4 * 8 + 3 * 9 * 64)
    assert count_multiply_adds(_network(), (3, 8, 8)) == at_8 + at_4 + 80


def test_a_block_of_equal_channels_adds_to_its_input_and_another_to_a_projection_of_its_activation():
    form = ResidualArchitecture.parse(SMALL)
    x = torch.randn(2, 4, 6, 6)
    same = ResidualBlock(4, 4, 1, form, 16, True).eval()
    nn.init.zeros_(same.convolutions[-1].weight)
    torch.testing.assert_close(same(x), x)
    other = ResidualBlock(4, 8, 2, form, 16, True).eval()
    nn.init.zeros_(other.convolutions[-1].weight)
    activated = x.clamp_min(0) / (1 + 1e-5) ** 0.5  # batch norm at its start, then ReLU
    projected = torch.einsum("oc,bchw->bohw", other.shortcut.weight[..., 0, 0], activated[:, :, ::2, ::2])
    torch.testing.assert_close(other(x), projected)


def test_squeeze_and_excitation_of_equal_weights_is_a_closed_form():
    excitation = SqueezeExcitation(4, 2)
    for parameter in excitation.parameters():
        nn.init.constant_(parameter, 0.5)
    x = torch.rand(3, 4, 5, 5)
    inner = 0.5 * x.mean(dim=(2, 3)).sum(1) + 0.5
    gate = 1 / (1 + torch.exp(-(2 * 0.5 * inner + 0.5)))
    torch.testing.assert_close(excitation(x), x * gate.view(3, 1, 1, 1))


@pytest.mark.parametrize(("channels", "groups"), [(16, 1), (64, 4), (8, 1), (24, 3), (1, 1)])
def test_groups_have_sixteen_channels_or_the_largest_number_that_divides_both(channels, groups):
    norm = make_norm("group", channels)
    assert norm.num_groups == groups and channels // groups == math.gcd(channels, 16)


@pytest.mark.parametrize("norm", CHOICES["norm"])
def test_features_keep_their_size_through_many_blocks_at_the_start(norm):
    network = _network(depths="6-6", widths="16-16", norm=norm).train()
    x = network.stem(torch.randn(8, 3, 8, 8))
    before = float(x.detach().var())
    for block in network.blocks:
        x = block(x)
    # With a norm, a block adds about as much again; without one, all 12 together what they had: e times, at most.
    most = 3.5 if norm == "none" else 3.0 * 12
    assert 0.3 < float(x.detach().var()) / before < most


@pytest.mark.parametrize("block", CHOICES["block"])
@pytest.mark.parametrize("norm", CHOICES["norm"])
def test_an_image_s_logits_are_its_own_in_evaluation(norm, block):
    network = _network(norm=norm, block=block, se="relu", activation="gelu").eval()
    images = torch.rand(3, 3, 8, 8)
    logits = network(images)
    assert logits.shape == (3, 10)
    torch.testing.assert_close(network(images[:1]), logits[:1], rtol=1e-4, atol=1e-5)


def test_images_too_small_for_the_stages_are_named():
    with pytest.raises(InputError, match="3 stages needs images of at least 8 pixels a side, but noise has 4 x 4"):
        _network(depths="1-1-1", widths="4-4-4", size=4)


@pytest.mark.parametrize("kind", ["interval", "crown"])
@pytest.mark.parametrize(
    "changed",
    [
        {"norm": "batch"},
        {"norm": "none"},
        {"se": "relu"},
        {"block": "bottleneck"},
        {"activation": "silu"},
        {"activation": "gelu"},
        {"activation": "softplus"},
    ],
)
def test_no_sampled_point_leaves_the_certified_bounds(kind, changed):
    network = _network(**changed).eval()
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


@pytest.mark.parametrize(
    ("changed", "operation"),
    [
        ({"norm": "group"}, "group_norm"),
        ({"norm": "instance"}, "instance_norm"),
    ],
)
def test_a_network_without_sound_bounds_is_refused_by_what_it_has(changed, operation):
    network, image = _network(**changed).eval(), torch.rand(1, 3, 8, 8)
    with pytest.raises(InputError, match=f"no sound rule for .*{operation}"):
        bounds.get("interval")().margins(network, image, torch.tensor([0]), ThreatModel(epsilon=1e-3))


@pytest.mark.parametrize("name", proxies.names())
def test_untrained_networks_are_scored(name):
    network = _network(activation="softplus", norm="group", se="relu")
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand(8, 3, 8, 8, generator=generator), torch.arange(8)
    score = proxies.get(name)().score(network, images, labels, ThreatModel(epsilon=0.1))
    assert math.isfinite(score)


def test_a_network_says_what_it_was_built_from():
    space = spaces.load("robust-resnet-small")
    architecture = space.decided([values[0] for values in space.decisions.values()])
    network = space.network(architecture, _form(8))
    assert network.built_from.architecture == architecture
    again = network.built_from.space.network(network.built_from.architecture, network.built_from.data)
    again.load_state_dict(network.state_dict())
