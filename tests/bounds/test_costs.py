"""The time that bounds by substitution are foretold to take."""

import torch
from torch import nn

from robust_nas.bounds import slow_kind
from robust_nas.bounds._costs import _sample
from robust_nas.bounds._linear import Region
from robust_nas.bounds.alpha_crown import AlphaCROWN
from robust_nas.bounds.auto import Auto
from robust_nas.bounds.crown import CROWN
from robust_nas.bounds.crown_ibp import CROWNIBP
from robust_nas.bounds.interval import Interval
from robust_nas.threat import ThreatModel


def test_what_is_undecided_of_an_affine_layer_is_counted_exactly_from_the_point_alone() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(12, 16).double()
    network = nn.Sequential(nn.Flatten(), layer, nn.ReLU(), nn.Linear(16, 3).double()).requires_grad_(False)
    image = torch.rand(1, 3, 2, 2, dtype=torch.float64)
    region = Region(image, ThreatModel(epsilon=1e-9), clip=True)
    region.logits(network, None)
    sample = _sample(region, 0)
    for epsilon in (0.01, 0.1, 0.3):
        # By hand: the layer at the corners of the ball inside [0, 1] that are least and greatest for each neuron.
        low, high = (image - epsilon).clamp(0, 1).flatten(), (image + epsilon).clamp(0, 1).flatten()
        positive, negative = layer.weight.clamp(min=0), layer.weight.clamp(max=0)
        least = positive @ low + negative @ high + layer.bias
        greatest = positive @ high + negative @ low + layer.bias
        assert sample.undecided(ThreatModel(epsilon=epsilon)) == int(((least < 0) & (greatest > 0)).sum()), epsilon
    assert 0 < sample.undecided(ThreatModel(epsilon=0.1)) < 16


def test_the_kinds_that_substitute_before_each_relu_are_slow_and_found_among_several() -> None:
    assert slow_kind(Interval()) is None and slow_kind(CROWNIBP()) is None
    assert slow_kind(Auto(kinds=(Interval(), CROWNIBP()))) is None
    assert slow_kind(AlphaCROWN()) == AlphaCROWN()
    assert slow_kind(Auto(memory=3.0)) == CROWN(memory=3.0)
