"""Every way to search works in the DARTS space, or says why it does not."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from robust_nas import datasets, derivation, spaces
from robust_nas.architectures.genotype import Genotype
from robust_nas.attacks.fgsm import FGSM
from robust_nas.attacks.pgd import PGD
from robust_nas.core.errors import InputError
from robust_nas.datasets import Dataset
from robust_nas.derivation import Derivation
from robust_nas.proxies.num_params import NumParams
from robust_nas.runtime.distributed import World
from robust_nas.runtime.progress import Progress
from robust_nas.runtime.stages import Stage
from robust_nas.samplers.evolution import Evolution
from robust_nas.samplers.local import Local
from robust_nas.samplers.nsga2 import NSGA2
from robust_nas.samplers.predictor import Predictor
from robust_nas.samplers.random import Random
from robust_nas.samplers.tpe import TPE
from robust_nas.searches import SearchResult
from robust_nas.searches._prior import Prior
from robust_nas.searches._resources import Resource
from robust_nas.searches.darts import DARTS
from robust_nas.searches.dirichlet import Dirichlet
from robust_nas.searches.gumbel import Gumbel
from robust_nas.searches.random_sharing import RandomSharing
from robust_nas.searches.sampled import TrialSearch
from robust_nas.spaces.darts import DartsSpace
from robust_nas.threat import ThreatModel
from robust_nas.training.ibp import IBP
from robust_nas.training.standard import Standard

THREAT = ThreatModel(epsilon=0.02)
OPERATIONS = ("none", "max_pool_3x3", "skip_connect", "dil_conv_3x3")
QUICK = {"epochs": 1, "batch_size": 16, "validation_attack": PGD(steps=0), "alpha_learning_rate": 0.1}
SHARING = RandomSharing(epochs=1, batch_size=16, validation_attack=FGSM())


@pytest.fixture(scope="module")
def space() -> DartsSpace:
    return spaces.load("darts", channels=4, num_cells=3, num_nodes=3, operations=OPERATIONS)


@pytest.fixture(scope="module")
def data() -> Dataset:
    digits = datasets.load("digits")
    return dataclasses.replace(digits, train=digits.train[:32], validation=digits.validation[:16], test=None)  # type: ignore[arg-type]


def _stage(folder=None) -> Stage:
    if folder is not None:
        (folder / "checkpoints").mkdir(exist_ok=True)
    return Stage("search", 0, World(), Progress(quiet=True), folder)


@pytest.mark.parametrize(
    "search",
    [
        Dirichlet(**QUICK),
        DARTS(**QUICK, order="second"),
        Gumbel(**QUICK, single_path=True, auxiliary_skip=0.5),
        Dirichlet(**QUICK, objective=IBP(), partial_channels=(2,)),
        DARTS(**QUICK, objective=Standard(), prior=Prior(proxy=NumParams(), architectures=4, batch_size=4)),
    ],
    ids=["dirichlet", "second order", "one path", "certified", "prior"],
)
def test_differentiable_searches_move_the_rows_of_both_cells(space, data, search):
    found = search.search(space, data, THREAT, _stage())
    first, last = (
        torch.tensor(row["mixture"]) for row in (found.record["trajectory"][0], found.record["trajectory"][-1])
    )
    assert last.shape == (18, 4) and torch.allclose(last.sum(1), torch.ones(18))
    moved = (first - last).abs().amax(1)
    assert bool((moved > 1e-4).all())
    assert isinstance(found.best, Genotype) and space.parse(str(found.best)) == found.best


def test_a_progressive_search_with_partial_channels_resumes_to_the_same_result(space, data, tmp_path, monkeypatch):
    stages = {"epochs": 4, "kept_operations": (4, 2), "partial_channels": (2, 1)}
    search = Dirichlet(**{**QUICK, **stages})
    whole = search.search(space, data, THREAT, _stage())
    assert [sum(weight > 0 for weight in row) for row in whole.probabilities] == [2] * 18
    assert {mixed.width for _, mixed in whole.supernet.mixed_operations} == {4, 8, 16}
    save = Stage.save

    def killed(self, done, state):
        save(self, done, state)
        if done == 3:  # in the second stage
            raise KeyboardInterrupt

    monkeypatch.setattr(Stage, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        search.search(space, data, THREAT, _stage(tmp_path))
    monkeypatch.undo()
    resumed = search.search(space, data, THREAT, _stage(tmp_path))
    assert resumed.probabilities == whole.probabilities
    states = [result.supernet.state_dict() for result in (resumed, whole)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def _derive(found, space, data, **options):
    plan = Derivation(attack=FGSM(), calibration_batches=1, batch_size=16, count=2, pool=3, **options)
    return derivation.derive(found, space, data, THREAT, plan, _stage())


@pytest.mark.parametrize("method", ["argmax", "samples", "perturbation"])
def test_genotypes_are_derived_by_every_method(data, method):
    space = spaces.load(
        "darts", channels=2, num_cells=3, num_nodes=2, operations=("none", "skip_connect", "max_pool_3x3")
    )
    found = DARTS(**QUICK).search(space, data, THREAT, _stage())
    pool = _derive(found, space, data, method=method)
    assert len({candidate.architecture.canonical for candidate in pool}) == 3
    assert all(0 <= candidate.validation_robust <= 1 for candidate in pool)
    if method == "argmax":
        assert pool[0].architecture == found.best


def test_perturbation_keeps_the_operations_and_the_edges_that_the_supernet_can_least_do_without(data, monkeypatch):
    space = spaces.load("darts", channels=2, num_cells=3, num_nodes=2, operations=OPERATIONS)
    generator = torch.Generator().manual_seed(0)
    worth, value = torch.rand(10, generator=generator), torch.rand(10, 4, generator=generator)

    def evaluated(network, *_, **__):
        # What an operation is worth, times its edge, as far as it is there; `none` would be worth the most.
        value[:, 0] = 10
        there = (network.mixture > 0) * value * worth.unsqueeze(1) if hasattr(network, "mixture") else torch.zeros(1)
        accuracy = float(there.sum()) / 1000
        return SimpleNamespace(robust_accuracy=accuracy, clean_accuracy=accuracy)

    monkeypatch.setattr(derivation, "evaluate", evaluated)
    monkeypatch.setattr(Derivation, "calibrated", lambda self, network, *_: network)
    found = SearchResult(space, torch.full((10, 4), 0.25).tolist(), space.supernet(data), {})
    best = _derive(found, space, data, method="perturbation")[0].architecture
    operations = value[:, 1:].argmax(1) + 1
    weights = worth * value[torch.arange(10), operations]
    expected, edge = [], 0
    for target in (2, 3, 2, 3):
        sources = sorted(weights[edge : edge + target].topk(2).indices.tolist())
        expected += [(OPERATIONS[operations[edge + source]], source) for source in sources]
        edge += target
    assert best == Genotype(tuple(expected[:4]), tuple(expected[4:]))


@pytest.mark.parametrize(
    "sampler",
    [Random(), Evolution(population_size=2, sample_size=1), TPE(random_starts=2), Local()],
    ids=["random", "evolution", "tpe", "local"],
)
def test_samplers_search_genotypes_with_a_supernets_weights(space, data, sampler):
    found = TrialSearch(sampler=sampler, trials=4, sharing=SHARING, attack=FGSM()).search(space, data, THREAT, _stage())
    measured = found.record["measured"]
    assert len({space.parse(text).canonical for text in measured}) == 4
    assert str(found.best) == measured[0]
    assert all(0 <= sum(row) <= 1 + 1e-9 for row in found.probabilities)


def test_several_objectives_of_untrained_genotypes_are_searched_together(space, data):
    search = TrialSearch(
        sampler=NSGA2(population_size=3), trials=5, objectives=("score", "parameters"), proxy=NumParams()
    )
    trials = search.search(space, data, THREAT, _stage()).record["trials"]
    assert len(trials) == 5 and all(score == -cost for score, cost in (trial["values"] for trial in trials))


def test_a_mutation_changes_one_operation_or_the_sources_of_one_node(space):
    from robust_nas.samplers._cells import neighbours

    genotype = space.decided([values[0] for values in space.decisions.values()])
    found = neighbours(space, genotype)
    # Three choices of operations, of which two are others, on 12 edges; 0, 2 and 5 other pairs of sources, twice.
    assert len(set(found)) == len(found) == 12 * 2 + 2 * (0 + 2 + 5)
    for other in found:
        before, after = space.decisions_of(genotype), space.decisions_of(other)
        assert sum(a != b for a, b in zip(before, after, strict=True)) == 1


@pytest.mark.parametrize(
    ("search", "sentence"),
    [
        (Dirichlet(**{**QUICK, "epochs": 2}, partial_channels=(4, 3)), "Partial channels of 1/3 must divide"),
        (Dirichlet(**{**QUICK, "epochs": 2}, kept_operations=(5, 2)), "begin with all 4 operations"),
        (Dirichlet(**{**QUICK, "epochs": 2}, kept_operations=(4, 1)), "must leave 2 operations or more"),
        (Dirichlet(**QUICK, resource=Resource(limit=1.0, hard=True)), "the least that a network of darts costs"),
        (TrialSearch(sampler=Predictor(), trials=2, sharing=SHARING), "use another one, such as evolution or tpe"),
    ],
)
def test_what_the_space_does_not_have_is_said_before_the_search(space, data, search, sentence):
    space = dataclasses.replace(space, channels=8)
    with pytest.raises(InputError) as error:
        search.search(space, data, THREAT, _stage())
    assert sentence in str(error.value)
