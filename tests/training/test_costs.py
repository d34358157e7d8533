"""The cost of a step, counted by torch's own formulas."""

import pytest
import torch
from torch import nn

from robust_nas import datasets, spaces, training
from robust_nas.attacks.fgsm import FGSM
from robust_nas.attacks.pgd import PGD
from robust_nas.threat import ThreatModel
from robust_nas.training import Batch, Memory, Training
from robust_nas.training._costs import forward_equivalents, operations
from robust_nas.training.pgd_at import PGDAT
from robust_nas.training.standard import Standard

CELL = "|nor_conv_3x3~0|+|skip_connect~0|nor_conv_3x3~1|+|nor_conv_1x1~0|avg_pool_3x3~1|nor_conv_3x3~2|"


def _network() -> nn.Module:
    space = spaces.load("nasbench201", channels=8, cells_per_stage=1)
    return space.network(space.parse(CELL), datasets.load("digits")).train()


def _batch() -> Batch:
    part, places = datasets.load("digits").train[:16], torch.arange(16)
    return Batch(part.images, part.labels, part.labels, ThreatModel(epsilon=0.1), 0, places, places, 16, 16, Memory())


def _first_layer() -> float:
    """The share of the first layer, whose images' gradient a step on the weights does not need."""
    model, images = _network(), _batch().images
    with torch.no_grad():
        return operations(lambda: model.stem(images)) / operations(lambda: model(images))


def test_operations_are_those_that_the_shapes_say():
    # 2 x 16 output channels x 8 input channels x 9 x 5 x 5 places, and 2 x 3 x 4 x 7.
    images, weight = torch.rand(1, 8, 7, 7), torch.rand(16, 8, 3, 3)
    assert operations(lambda: nn.functional.conv2d(images, weight)) == 2 * 16 * 8 * 9 * 25
    assert operations(lambda: torch.rand(3, 4) @ torch.rand(4, 7)) == 2 * 3 * 4 * 7


def test_standard_training_costs_three_passes():
    cost = forward_equivalents(Training(method=Standard()), _network(), _batch())
    assert cost == pytest.approx(3 - _first_layer(), rel=1e-6)


@pytest.mark.parametrize("steps", [1, 7])
@pytest.mark.parametrize("batch_norm", ["running", "batch"])
def test_pgd_k_costs_2k_plus_3_passes(steps, batch_norm):
    method = PGDAT(attack=PGD(steps=steps, batch_norm=batch_norm))
    cost = forward_equivalents(Training(method=method), _network(), _batch())
    assert cost == pytest.approx(2 * steps + 3 - _first_layer(), rel=1e-6)


def test_fgsm_training_costs_five_passes():
    cost = forward_equivalents(Training(method=PGDAT(attack=FGSM())), _network(), _batch())
    assert cost == pytest.approx(5 - _first_layer(), rel=1e-6)


def test_free_training_costs_three_passes_a_replay_with_the_images_gradient_for_nothing():
    cost = forward_equivalents(Training(method=training.get("free")()), _network(), _batch())
    assert cost == pytest.approx(3, rel=1e-6)


def test_what_is_added_costs_its_own_passes_only():
    free = forward_equivalents(Training(method=Standard(), clean_weight=1.0, pairing=0.5), _network(), _batch())
    assert free == pytest.approx(3 - _first_layer(), rel=1e-6)  # the clean logits are there already
    clean = forward_equivalents(
        Training(method=PGDAT(attack=PGD(steps=2)), clean_weight=1.0, pairing=0.5), _network(), _batch()
    )
    assert clean == pytest.approx(4 + 2 * (3 - _first_layer()), rel=1e-6)
    # AWP: one more pass, and its backward to the weights.
    awp = forward_equivalents(Training(method=Standard(), awp=0.01), _network(), _batch())
    assert awp == pytest.approx(2 * (3 - _first_layer()), rel=1e-6)
