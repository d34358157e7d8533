import itertools

import pytest
import torch

from robust_nas.attacks.pgd import PGD
from robust_nas.core.errors import InputError
from robust_nas.proxies.num_params import NumParams
from robust_nas.runtime.distributed import World
from robust_nas.runtime.progress import Progress
from robust_nas.runtime.stages import Stage
from robust_nas.searches._prior import Prior, effects
from robust_nas.searches.dirichlet import Dirichlet
from robust_nas.threat import ThreatModel


def _stage() -> Stage:
    return Stage("search", 0, World(), Progress(quiet=True))


def test_of_a_score_that_adds_up_over_edges_the_effects_are_in_the_order_of_the_terms():
    torch.manual_seed(0)
    terms = torch.rand(6, 5)
    cells = torch.tensor(list(itertools.product(range(5), repeat=6)))
    found = effects(cells, terms[torch.arange(6), cells].sum(1), 5)
    assert torch.equal(found.argsort(1), terms.argsort(1))
    assert found.sum(1).abs().max() < 1e-5
    # Ranks have no unit: a score and its exponential say the same.
    torch.testing.assert_close(effects(cells, terms[torch.arange(6), cells].sum(1).exp(), 5), found)


def test_a_search_that_learns_nothing_ends_at_its_prior(space, data):
    quick = {"epochs": 1, "batch_size": 16, "validation_attack": PGD(steps=0), "alpha_frozen": 1.0}
    threat = ThreatModel(epsilon=0.1)
    prior = Prior(proxy=NumParams(), architectures=200, batch_size=8)
    found = Dirichlet(**quick, prior=prior).search(space, data, threat, _stage())
    # 3 x 3 convolutions have nine times the parameters of the others; the last edges are seldom left out.
    assert found.best.operations[3:] == ("nor_conv_3x3",) * 3
    assert Dirichlet(**quick).search(space, data, threat, _stage()).best != found.best


def test_wrong_settings_are_refused():
    with pytest.raises(InputError, match=r"search\.prior\.architectures must be at least 2, but got 1"):
        Prior(architectures=1)
