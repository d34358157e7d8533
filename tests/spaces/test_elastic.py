"""Elastic supernets: parts of shared weights, cut here by hand from the architectures' channels and blocks."""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn

from robust_nas import spaces
from robust_nas.core.errors import InputError
from robust_nas.datasets import DataForm
from robust_nas.models.complexity import count_multiply_adds, count_parameters
from robust_nas.samplers import draw
from robust_nas.spaces import ElasticCosts, ElasticSupernet

FORM = DataForm("images", tuple("01234"), (3, 8, 8))
STAGES = {"stage_depths": [[1, 2, 3]] * 3, "stage_widths": [[0.25, 0.5, 1]] * 3}


def _space(**given):
    return spaces.described({"kind": "resnet", "name": "own", "net": "cifar-resnet", **STAGES, **given})


def _supernet(space):
    torch.manual_seed(0)
    return ElasticSupernet(space, FORM, {name: space.decisions[name] for name in space.sizes}).double()


def _cut(whole: nn.Module, architecture, data=FORM) -> dict[str, torch.Tensor]:
    """Return the weights of a basic ResNet for CIFAR, one by one from the largest one's."""
    weights, found, channels = dict(whole.named_parameters()), {}, architecture.channels
    found["conv1.weight"] = weights["conv1.weight"][: channels[0]]
    before = channels[0]
    norms = {"bn1": channels[0]}
    for stage, (blocks, own) in enumerate(zip(architecture.stages, channels, strict=True), start=1):
        for place in range(blocks):
            block = f"layer{stage}.{place}"
            found[f"{block}.conv1.weight"] = weights[f"{block}.conv1.weight"][:own, :before]
            found[f"{block}.conv2.weight"] = weights[f"{block}.conv2.weight"][:own, :own]
            norms |= {f"{block}.bn1": own, f"{block}.bn2": own}
            if place == 0 and stage > 1:
                found[f"{block}.downsample.0.weight"] = weights[f"{block}.downsample.0.weight"][:own, :before]
                norms[f"{block}.downsample.1"] = own
            before = own
    for name, own in norms.items():
        for part in ("weight", "bias"):
            found[f"{name}.{part}"] = weights[f"{name}.{part}"][:own]
    found["fc.weight"], found["fc.bias"] = weights["fc.weight"][:, :before], weights["fc.bias"]
    return found


@pytest.mark.parametrize("given", [{}, {"norms": ["group:2"]}, {"activations": ["silu"]}])
def test_a_sub_network_has_the_logits_of_the_network_alone_with_the_first_blocks_and_channels(given):
    space = _space(**given)
    supernet, images = _supernet(space), torch.rand(4, 3, 8, 8, dtype=torch.float64)
    whole = supernet.choose(supernet.largest)
    for seed in range(3):
        architecture = draw(space, random.Random(seed))
        alone = space.network(architecture, FORM).double()
        cut = _cut(whole, architecture)
        assert cut.keys() == dict(alone.named_parameters()).keys()
        alone.load_state_dict(cut, strict=False)
        expected = alone.train()(images)
        assert torch.allclose(supernet(images, architecture), expected, rtol=0, atol=1e-12)
        assert torch.allclose(supernet.choose(architecture).train()(images), expected, rtol=0, atol=1e-12)


def test_the_largest_network_has_all_weights():
    space = _space(se=["relu"], denoise=["dot"])
    supernet, images = _supernet(space), torch.rand(4, 3, 8, 8, dtype=torch.float64)
    alone = space.network(supernet.largest, FORM).double()
    assert count_parameters(supernet) == count_parameters(alone)
    # Denoising is behind the last block of each stage: layer1.3 here, and at another place in a less deep network.
    shared = {name.removeprefix("shared."): value for name, value in supernet.state_dict().items()}
    shared = {name.replace("denoising", "3"): value for name, value in shared.items()}
    assert not alone.load_state_dict(shared, strict=False).unexpected_keys
    assert torch.equal(supernet(images, supernet.largest), alone.train()(images))


OTHERS = {
    "wide, and a shortcut in the narrow one alone": {
        "kind": "resnet",
        "net": "wrn",
        "depths": [10, 16],
        "widths": [0.5, 1],
    },
    "bottlenecks": {"kind": "resnet", "net": "preact-resnet", "depths": [50, 53], "widths": [0.125, 0.25]},
    "residual": {"kind": "residual", "depths": [[1, 2], [1, 3]], "widths": [[4, 8], [8, 16]], "stems": [8]},
    "size": {"kind": "size", "cell": "323133", "channels": [4, 8], "stages": 2},
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_kinds_of_space_share_weights_too(name):
    space = spaces.described({"name": "own", **OTHERS[name]})
    supernet, images = _supernet(space), torch.rand(2, 3, 8, 8, dtype=torch.float64)
    architectures = [supernet.largest, supernet.smallest, *(draw(space, random.Random(seed)) for seed in range(2))]
    for architecture in architectures:
        alone = space.network(architecture, FORM).double()
        parts = supernet.weights_of(architecture)
        assert parts.keys() >= dict(alone.named_parameters()).keys()
        alone.load_state_dict({key: value for key, value in parts.items()}, strict=False)
        assert torch.allclose(supernet(images, architecture), alone.train()(images), rtol=0, atol=1e-10)
    assert ElasticCosts(space, FORM).of(architectures[-1])["multiply_adds"] == count_multiply_adds(
        space.network(architectures[-1], FORM), FORM.image_shape
    )


def test_gradients_reach_only_the_first_channels_of_the_first_blocks():
    supernet = _supernet(_space())
    architecture = supernet.space.parse("cifar-resnet-10 split=1-2-1 width=0.5-1-0.25")
    supernet(torch.rand(4, 3, 8, 8, dtype=torch.float64), architecture).square().sum().backward()
    reached = _cut(supernet.choose(supernet.largest), architecture)
    for name, parameter in supernet.shared.named_parameters():
        if name not in reached:  # a block that it has not
            assert parameter.grad is None and name.split(".")[1] in ("1", "2")
            continue
        outside = torch.ones_like(parameter, dtype=torch.bool)
        outside[tuple(slice(size) for size in reached[name].shape)] = False
        assert not parameter.grad[outside].any()
        # Batch norm makes the weights before it matter; biases of the last layer, too.
        assert parameter.grad[~outside].abs().max() > 0


def test_costs_are_those_that_are_counted_of_the_network_alone():
    space = _space(se=["relu"], denoise=["gaussian"])
    costs = ElasticCosts(space, FORM)
    for seed in range(3):
        architecture = draw(space, random.Random(seed))
        network = space.network(architecture, FORM)
        expected = {
            "parameters": count_parameters(network),
            "multiply_adds": count_multiply_adds(network, FORM.image_shape),
        }
        assert costs.of(architecture) == expected


def test_global_random_numbers_and_the_supernet_are_left_alone_by_what_is_chosen():
    supernet = _supernet(_space())
    before, state = {name: value.clone() for name, value in supernet.state_dict().items()}, torch.get_rng_state()
    chosen = supernet.choose(supernet.smallest)
    with torch.no_grad():
        for parameter in chosen.parameters():
            parameter.zero_()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in supernet.state_dict().items())
    assert chosen.built_from.architecture == supernet.smallest


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("resnet-depth-small", {}, 'space.norms=["batch"] space.activations=["relu"] space.se=["none"]'),
        ("resnet-depth", {"stems": ["cifar"]}, "several options of space.blocks, space.norms"),
        ("robust-resnet-small", {}, "space.kernels=[3]"),
        ("nasbench201", {}, "decides neither"),
        ("elastic-resnet-small", {"stage_depths": [[1]] * 3, "stage_widths": [[1]] * 3}, "decides neither"),
    ],
)
def test_a_space_whose_networks_share_no_weights_is_refused_with_what_to_set(name, given, words):
    with pytest.raises(InputError) as caught:
        spaces.elastic(spaces.load(name, **given), "elastic")
    assert words in str(caught.value)
    assert "elastic-resnet-small" in spaces.names()
