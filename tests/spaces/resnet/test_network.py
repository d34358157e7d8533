"""ResNets of any depth: equal to torchvision's and to published counts, block by block to closed forms."""

import math

import pytest
import torch
import torchvision
from torch import nn

from robust_nas import bounds, spaces
from robust_nas.architectures.resnet import ResNetArchitecture
from robust_nas.core.errors import InputError
from robust_nas.datasets import DataForm
from robust_nas.models import mixture_norm
from robust_nas.models.complexity import count_parameters
from robust_nas.spaces.resnet.network import Denoising, PostBlock, ResNet
from robust_nas.threat import ThreatModel


def _network(text, size=32, classes=10):
    torch.manual_seed(0)
    form = DataForm("noise", tuple(map(str, range(classes))), (3, size, size))
    return ResNet(ResNetArchitecture.parse(text), form)


@pytest.mark.parametrize("depth", [18, 50, 101, 152])
def test_torchvision_s_weights_give_torchvision_s_logits(depth):
    with torch.device("meta"):
        theirs, ours = getattr(torchvision.models, f"resnet{depth}")(), _network(f"resnet-{depth}", 64, 1000)
    generator, state = torch.Generator().manual_seed(0), {}
    for name, value in theirs.state_dict().items():
        # Small scales, so that logits stay of the size that trained ones have, through all blocks.
        drawn = torch.rand(value.shape, generator=generator)
        state[name] = drawn.sub(0.5).mul(2 / math.sqrt(max(1, value[:1].numel()))) if value.ndim > 1 else drawn + 0.1
    theirs.load_state_dict(state, assign=True)
    mean, std = torch.full((1, 3, 1, 1), 0.45), torch.full((1, 3, 1, 1), 0.25)
    ours.load_state_dict({**state, "mean": mean, "std": std}, assign=True)
    assert count_parameters(ours) == count_parameters(theirs)
    images = torch.rand(2, 3, 64, 64, generator=generator)
    with torch.no_grad():
        expected, found = theirs.eval()((images - mean) / std), ours.eval()(images)
    assert float(expected.std()) > 0
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        # As the code of Rice et al. 2020 (arXiv:2002.11569) has it, with a norm before the classifier.
        ("preact-resnet-18", 11_172_170),
        ("wrn-28-10", 36_479_194),  # arXiv:1605.07146, table 4: 36.5 M
        ("wrn-34-10", 46_160_474),
        ("wrn-34-20", 184_531_674),
        ("resnet-18 stem=cifar", 11_173_962),
        ("resnet-152", 60_192_808 - 990 * 2049),  # torchvision's for 1,000 classes
    ],
)
def test_networks_have_the_known_number_of_parameters(text, count):
    with torch.device("meta"):
        assert count_parameters(_network(text)) == count


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)])
def test_resnets_for_cifar_have_the_published_size(depth, millions):
    # He et al. 2016, table 6, whose shortcuts have no weights; ours have 2,752, and their norms.
    with torch.device("meta"):
        found = count_parameters(_network(f"cifar-resnet-{depth}")) - 16 * 32 - 32 * 64 - 2 * 96
    assert round(found / 1e6, 1 if depth == 110 else 2) == millions


def test_wide_networks_are_those_of_the_space_of_wide_residual_networks():
    text = "depths=1-1-1 widths=32-64-128 kernel=3 activation=relu norm=batch se=none block=basic stem=16"
    form = DataForm("noise", tuple("0123456789"), (3, 8, 8))
    widths, one = ((32,), (64,), (128,)), ((1,),) * 3
    other = spaces.load("robust-resnet", depths=one, widths=widths, stems=(16,))
    torch.manual_seed(0)
    theirs, ours = other.network(other.parse(text), form), _network("wrn-10-2", 8)
    for mine, given in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        mine.copy_(given)
    images = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(ours.eval()(images), theirs.eval()(images))


def test_the_deepest_network_has_212_bottlenecks():
    with torch.device("meta"):
        deepest = _network("resnet-638", 224, 1000)
    blocks = [module for module in deepest.modules() if isinstance(module, PostBlock)]
    assert len(blocks) == 212 and {block.count for block in blocks} == {3}
    # Stem, three convolutions in each block, classifier; shortcuts are beside the path.
    shortcuts = sum(block.downsample is not None for block in blocks)
    assert sum(isinstance(module, nn.Conv2d | nn.Linear) for module in deepest.modules()) - shortcuts == 638


@pytest.mark.parametrize("kind", ["gaussian", "dot"])
@pytest.mark.parametrize("size", [2, 4])  # fewer pixels than channels, and more: of dot, both orders
def test_denoising_is_the_mean_over_all_pixels_by_the_weights_of_the_paper(kind, size):
    torch.manual_seed(0)
    block = Denoising(6, kind).double().eval()
    x = torch.randn(2, 6, size, size, dtype=torch.float64)
    pixels = x.flatten(2)
    expected = torch.empty_like(pixels)
    for image in range(2):
        for i in range(size**2):
            weights = []
            for j in range(size**2):
                one, other = pixels[image, :, i], pixels[image, :, j]
                if kind == "gaussian":
                    theta, phi = block.theta.weight[..., 0, 0], block.phi.weight[..., 0, 0]
                    weights.append(torch.exp((theta @ one) @ (phi @ other) / math.sqrt(3)))
                else:
                    weights.append(one @ other)
            total = sum(weights) if kind == "gaussian" else size**2
            expected[image, :, i] = sum(w * pixels[image, :, j] for j, w in enumerate(weights)) / total
    torch.testing.assert_close(block.means(x), expected.view_as(x))
    nn.init.ones_(block.norm.weight)
    projected = torch.einsum("oc,bchw->bohw", block.conv.weight[..., 0, 0], expected.view_as(x))
    torch.testing.assert_close(block(x), x + projected / math.sqrt(1 + 1e-5))


@pytest.mark.parametrize("denoise", ["gaussian", "dot"])
def test_denoising_after_every_stage_begins_as_the_identity(denoise):
    with_it, without = _network(f"cifar-resnet-8 denoise={denoise}", 8).eval(), _network("cifar-resnet-8", 8).eval()
    assert sum(isinstance(module, Denoising) for module in with_it.modules()) == 3
    images = torch.rand(2, 3, 8, 8)
    without.load_state_dict({key: value for key, value in with_it.state_dict().items() if key in without.state_dict()})
    torch.testing.assert_close(with_it(images), without(images))


@pytest.mark.parametrize("text", ["resnet-26", "preact-resnet-50 norm=group", "wrn-10-1 norm=group:8"])
def test_groups_activation_and_excitation_are_in_every_block(text):
    network, form = _network(f"{text} stem=cifar activation=silu se=relu", 8).eval(), ResNetArchitecture.parse(text)
    kinds = [type(module).__name__ for module in network.modules()]
    assert "ReLU" not in {type(m).__name__ for name, m in network.named_modules() if "weigh" not in name}
    assert kinds.count("SqueezeExcitation") == sum(form.stages)
    assert {m.num_groups for m in network.modules() if isinstance(m, nn.GroupNorm)} == (
        set() if form.groups is None else {form.groups}
    )
    assert ("BatchNorm2d" in kinds) == (form.groups is None)
    images = torch.rand(3, 3, 8, 8)
    logits = network(images)
    assert logits.shape == (3, 10)
    torch.testing.assert_close(network(images[:1]), logits[:1], rtol=1e-4, atol=1e-5)


def test_every_batch_norm_becomes_a_mixture_where_the_training_asks_for_it():
    network = _network("cifar-resnet-8 denoise=dot", 8)
    norms = 1 + 3 * 2 + 2 + 3  # stem, blocks, shortcuts, denoising
    assert mixture_norm.mix(network) == norms


@pytest.mark.parametrize("text", ["cifar-resnet-8 width=0.25 se=relu", "preact-resnet-10 width=0.0625 activation=silu"])
def test_no_sampled_point_leaves_the_certified_bounds(text):
    network = _network(text, 8).eval()
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(3, 3, 8, 8, generator=generator)
    labels, threat = network(images).argmax(1), ThreatModel(epsilon=1e-3)
    lower = bounds.get("crown")().margins(network, images, labels, threat).lower(threat)
    others = torch.arange(10) != labels.unsqueeze(1)
    assert bool(lower[others].isfinite().all())
    for _ in range(10):
        moved = images + 1e-3 * (2 * torch.rand(images.shape, generator=generator) - 1)
        logits = network(moved.clamp(0, 1)).double().detach()
        assert bool((lower <= logits.gather(1, labels.unsqueeze(1)) - logits + 1e-5)[others].all())


@pytest.mark.parametrize(
    ("option", "operation"), [("norm=group:4", "group_norm"), ("denoise=gaussian", "matmul"), ("denoise=dot", "matmul")]
)
def test_a_network_without_sound_bounds_is_refused_by_what_it_has(option, operation):
    network, image = _network(f"cifar-resnet-8 {option}", 8).eval(), torch.rand(1, 3, 8, 8)
    with pytest.raises(InputError, match=f"no sound rule for .*{operation}"):
        bounds.get("interval")().margins(network, image, torch.tensor([0]), ThreatModel(epsilon=1e-3))


@pytest.mark.parametrize(
    ("text", "remedy"), [("resnet-18", "32 pixels.*stem=cifar"), ("resnet-18 stem=cifar", "8 pix")]
)
def test_images_too_small_are_named_with_the_remedy(text, remedy):
    with pytest.raises(InputError, match=remedy):
        _network(text, 7)
