import pytest
import torch
from torch import nn

from robust_nas import bounds, evaluate, spaces
from robust_nas.architectures.genotype import Genotype
from robust_nas.core.errors import InputError
from robust_nas.datasets import DataForm, ImageSet
from robust_nas.models.complexity import count_parameters
from robust_nas.spaces.darts.network import DartsNetwork, FactorisedReduction, dropped, make_operation
from robust_nas.threat import ThreatModel

DARTS_V2 = Genotype(
    (
        ("sep_conv_3x3", 0), ("sep_conv_3x3", 1), ("sep_conv_3x3", 0), ("sep_conv_3x3", 1),
        ("sep_conv_3x3", 1), ("skip_connect", 0), ("skip_connect", 0), ("dil_conv_3x3", 2),
    ),
    (
        ("max_pool_3x3", 0), ("max_pool_3x3", 1), ("skip_connect", 2), ("max_pool_3x3", 1),
        ("max_pool_3x3", 0), ("skip_connect", 2), ("skip_connect", 2), ("max_pool_3x3", 1),
    ),
)  # fmt: skip


def _form(size: int, classes: int = 10, channels: int = 3) -> DataForm:
    return DataForm("noise", tuple(str(number) for number in range(classes)), (channels, size, size))


def _network(size: int = 8, **options) -> DartsNetwork:
    space = spaces.load("darts", **{"channels": 4, "num_cells": 3, **options})
    torch.manual_seed(0)
    return space.network(DARTS_V2, _form(size))


def _counted(channels: int, num_cells: int, classes: int, *, imagenet: bool = False) -> int:
    """Count the weights of the second order's cells by hand."""

    def projection(before, after):  # a 1x1 convolution and batch norm; a factorised reduction has as many
        return before * after + 2 * after

    normal = {"separable": 5 * 2 * (9 + 2), "dilated": 9 + 2, "squares": 5 * 2 + 1}
    c = channels
    if imagenet:
        total = 27 * (c // 2) + 2 * (c // 2) + 9 * (c // 2) * c + 2 * c + 9 * c * c + 2 * c
        before = last = c
    else:
        total, before, last = 27 * 3 * c + 2 * 3 * c, 3 * c, 3 * c
    for number in range(num_cells):
        reduces = number in (num_cells // 3, 2 * num_cells // 3)
        c *= 2 if reduces else 1
        total += projection(before, c) + projection(last, c)
        if not reduces:  # in a reduction cell, pools and identities alone: its skips are from node 2
            total += (normal["separable"] + normal["dilated"]) * c + normal["squares"] * c * c
        before, last = last, 4 * c
    return total + last * classes + classes


def test_the_published_networks_have_the_published_number_of_parameters():
    # The authors' code prints 3.349342MB for CIFAR-10, and the paper has 4.7 M for ImageNet (table 3).
    space = spaces.load("darts", final_channels=36, final_cells=20)
    small = count_parameters(space.network(DARTS_V2, _form(32)))
    assert small == _counted(36, 20, 10) == 3_349_342
    space = spaces.load("darts-7", final_channels=48, final_cells=14, skeleton="imagenet")
    large = count_parameters(space.network(DARTS_V2, _form(224, 1000)))
    assert large == _counted(48, 14, 1000, imagenet=True) and round(large / 1e6, 1) == 4.7


def test_a_cell_is_what_the_genotype_says():
    network = _network(channels=4).eval()
    cell = network.cells[0]
    x = torch.randn(2, 12, 8, 8)
    nodes = [cell.inputs.first(x), cell.inputs.second(x)]
    operations = cell.operations
    nodes.append(operations[0](nodes[0]) + operations[1](nodes[1]))
    nodes.append(operations[2](nodes[0]) + operations[3](nodes[1]))
    nodes.append(operations[4](nodes[1]) + nodes[0])
    nodes.append(nodes[0] + operations[7](nodes[2]))
    torch.testing.assert_close(cell(x, x), torch.cat(nodes[2:], 1))


@pytest.mark.parametrize("size", [8, 7])
def test_cells_at_a_third_and_two_thirds_halve_the_resolution_and_double_the_channels(size):
    network, shapes = _network(size, num_cells=6), []
    for cell in network.cells:
        cell.register_forward_hook(lambda _, __, output: shapes.append(tuple(output.shape[1:])))
    network(torch.rand(2, 3, size, size))
    half, quarter = -(-size // 2), -(-size // 4)
    assert shapes == [(16, size, size)] * 2 + [(32, half, half)] * 2 + [(64, quarter, quarter)] * 2


def test_the_imagenet_stem_takes_an_eighth_of_the_resolution_and_gives_two_inputs():
    network, shapes = _network(64, skeleton="imagenet"), []
    for part in (network.stem, network.second_stem, network.cells[0]):
        part.register_forward_hook(lambda _, __, output: shapes.append(tuple(output.shape[1:])))
    network(torch.rand(2, 3, 64, 64))
    assert shapes == [(4, 16, 16), (4, 8, 8), (16, 8, 8)]


def test_a_factorised_reduction_looks_at_even_and_at_odd_pixels():
    reduction = FactorisedReduction(1, 2, affine=False).eval()
    nn.init.ones_(reduction.first.weight)
    nn.init.ones_(reduction.second.weight)
    image = torch.arange(16.0).view(1, 1, 4, 4)
    even, odd = image[0, 0, ::2, ::2], image[0, 0, 1::2, 1::2]
    torch.testing.assert_close(reduction(image)[0], torch.stack([even, odd]) / (1 + 1e-5) ** 0.5)
    assert reduction(torch.ones(1, 1, 5, 5)).shape == (1, 2, 3, 3)


@pytest.mark.parametrize("stride", [1, 2])
def test_operations_see_as_far_as_their_names_say(stride):
    reach = {"sep_conv_3x3": 2, "sep_conv_5x5": 4, "dil_conv_3x3": 2, "dil_conv_5x5": 4, "max_pool_3x3": 1}
    reach |= {"avg_pool_3x3": 1}
    for name, pixels in reach.items():
        if name.startswith("sep") and stride == 2:
            pixels = pixels // 2 + pixels  # the second convolution is on the coarser grid
        torch.manual_seed(0)
        operation = make_operation(name, 1, stride, affine=True).eval()
        for weight in operation.parameters():
            nn.init.ones_(weight)
        image = torch.rand(1, 1, 33, 33, requires_grad=True)
        if name == "max_pool_3x3":
            image = torch.zeros(1, 1, 33, 33)
            for far, seen in ((pixels, 1.0), (pixels + 1, 0.0)):
                image[:] = 0
                image[0, 0, 16, 16 + far] = 1
                assert operation(image)[0, 0, 16 // stride, 16 // stride] == seen
            continue
        (gradient,) = torch.autograd.grad(operation(image)[0, 0, 16 // stride, 16 // stride], [image])
        columns = gradient[0, 0].abs().sum(0).nonzero().flatten()
        assert (int(columns.min()), int(columns.max())) == (16 - pixels, 16 + pixels), name


def test_pools_have_batch_norm_in_mixtures_only():
    for name in ("max_pool_3x3", "avg_pool_3x3"):
        kinds = [
            [type(part) for part in make_operation(name, 2, 2, affine=True, normed_pools=normed).modules()]
            for normed in (False, True)
        ]
        assert nn.BatchNorm2d not in kinds[0] and nn.BatchNorm2d in kinds[1]


def test_dropped_paths_are_whole_images_and_keep_the_mean():
    torch.manual_seed(0)
    x = torch.ones(4000, 2, 2, 2)
    kept = dropped(x, 0.25)
    per_image = kept.flatten(1)
    assert bool((per_image == per_image[:, :1]).all())
    assert set(per_image[:, 0].tolist()) == {0.0, torch.tensor(4 / 3).item()}
    assert float(kept.mean()) == pytest.approx(1, abs=0.03)


def test_paths_are_dropped_in_training_alone_and_identities_never():
    network = _network()
    images = torch.rand(3, 3, 8, 8)
    network.drop_path = 1 - 1e-6
    network.eval()
    first = network(images)
    network.drop_path = 0.0
    torch.testing.assert_close(network(images), first)
    network.train()
    network.drop_path = 1 - 1e-6
    cell = network.cells[0]
    x = torch.rand(3, 12, 8, 8)
    nodes = cell(x, x, network.drop_path).chunk(4, 1)
    # The first two nodes are of convolutions alone; what is left of the third and the fourth is the skip from node 0.
    assert not nodes[0].any() and not nodes[1].any()
    torch.testing.assert_close(nodes[2], cell.inputs.first(x))
    torch.testing.assert_close(nodes[3], nodes[2])


def test_images_too_small_for_a_skeleton_are_named():
    with pytest.raises(InputError, match="at least 32 pixels a side, but noise has 8 x 8"):
        _network(8, skeleton="imagenet")


@pytest.mark.parametrize("kind", ["interval", "crown"])
def test_no_sampled_point_leaves_the_certified_bounds(kind):
    network = _network().eval()
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(3, 3, 8, 8, generator=generator)
    labels, threat = network(images).argmax(1), ThreatModel(epsilon=1e-3)
    bound = bounds.get(kind)()
    lower = bound.margins(network, images, labels, threat).lower(threat)
    for _ in range(10):
        moved = images + 1e-3 * (2 * torch.rand(images.shape, generator=generator) - 1)
        logits = network(moved.clamp(0, 1)).double().detach()
        margins = logits.gather(1, labels.unsqueeze(1)) - logits
        others = torch.arange(10) != labels.unsqueeze(1)
        assert bool((lower <= margins + 1e-5)[others].all())
    assert bool(lower[others].isfinite().all())


def test_networks_are_attacked_without_dropped_paths():
    network = _network().train()
    network.drop_path = 0.5
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8, generator=generator)
    images = ImageSet(pixels, network.eval()(pixels / 255).argmax(1))
    found = evaluate(network, images, ThreatModel(epsilon=8 / 255), attacks=["pgd"])
    assert found.robust_accuracy <= found.clean_accuracy == 1.0
