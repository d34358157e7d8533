"""The elastic search: the sandwich rule, distillation, limits, and resuming; expected values by hand."""

from __future__ import annotations

import random

import pytest
import torch
from torch.nn import functional as F

from robust_nas import derivation, spaces
from robust_nas.attacks.fgsm import FGSM
from robust_nas.core.config import build
from robust_nas.core.errors import InputError
from robust_nas.core.seeds import seeded
from robust_nas.datasets import DataForm
from robust_nas.derivation import Derivation
from robust_nas.models.complexity import count_multiply_adds, count_parameters
from robust_nas.runtime.distributed import World
from robust_nas.runtime.progress import Progress
from robust_nas.runtime.stages import Stage, read_metrics
from robust_nas.samplers import Questions, draw
from robust_nas.samplers.evolution import Evolution
from robust_nas.samplers.tpe import TPE
from robust_nas.searches._limited import Limit, LimitedSpace
from robust_nas.searches._subnetworks import SubnetworkTrainer
from robust_nas.searches.elastic import Elastic
from robust_nas.spaces import ElasticSupernet
from robust_nas.threat import ThreatModel

THREAT = ThreatModel(epsilon=0.1)
QUICK = {"epochs": 2, "batch_size": 32, "validation_attack": FGSM(), "validation_images": 8}
SMALL = {"stage_depths": [[1, 2], [1, 2], [1]], "stage_widths": [[0.25, 0.5]] * 3}


@pytest.fixture(scope="module")
def space():
    return spaces.load("elastic-resnet-small", **SMALL)


def _stage(folder=None) -> Stage:
    if folder is not None:
        (folder / "checkpoints").mkdir(exist_ok=True)
    return Stage("search", 0, World(), Progress(quiet=True), folder)


def _trainer(settings: Elastic, space, data) -> SubnetworkTrainer:
    within = LimitedSpace(space, DataForm.of(data), settings.resource)
    with seeded(0, "test"):
        supernet = ElasticSupernet(space, data, {name: within.decisions[name] for name in space.sizes})
    return SubnetworkTrainer(settings, supernet.train(), within, data, THREAT, _stage())


@pytest.mark.parametrize("distillation", [False, True])
def test_a_step_goes_along_the_sum_of_the_gradients_of_largest_smallest_and_random(space, data, distillation):
    settings = Elastic(**QUICK, num_random=1, distillation=distillation, gradient_clip=1e9, weight_decay=0.0)
    trainer, indices = _trainer(settings, space, data), torch.arange(16)
    supernet, parameters = trainer.supernet, dict(trainer.supernet.named_parameters())
    drawn = trainer.networks(0, 3)[2][1]
    expected = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    for role, architecture in [("largest", supernet.largest), ("smallest", supernet.smallest), ("random 0", drawn)]:
        batch = trainer.batch(role, 0, 3, indices, 1.0)
        # Without running statistics to choose, an attack has the batch's.
        images = FGSM(random_start=True).perturb(
            supernet.at(architecture), batch.images, batch.labels, THREAT, seed=batch.seed
        )
        target = F.one_hot(batch.labels, 10).float()
        if distillation and role != "largest":
            target = torch.softmax(supernet(images, supernet.largest), 1).detach()
        loss = -(target * torch.log_softmax(supernet(images, architecture), 1)).sum(1).mean()
        found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        for name, gradient in zip(parameters, found, strict=True):
            expected[name] += 0 if gradient is None else gradient
    trainer.take(0, 3, indices, 1.0)
    for name, parameter in parameters.items():
        assert torch.allclose(parameter.grad, expected[name], rtol=1e-4, atol=1e-6), name


def test_no_gradient_of_a_distilled_network_goes_into_its_teacher(space, data):
    trainer = _trainer(Elastic(**QUICK), space, data)
    smallest = trainer.supernet.smallest
    trainer.loss("smallest", smallest, trainer.batch("smallest", 0, 0, torch.arange(8), 1.0)).backward()
    for name, parameter in trainer.supernet.shared.named_parameters():
        if ".1." in name and name.startswith("layer") and "downsample" not in name:  # the second blocks
            assert parameter.grad is None
        elif parameter.dim() == 4:
            assert parameter.grad[: len(parameter) // 2].any() and not parameter.grad[len(parameter) // 2 :].any()


def test_without_the_sandwich_rule_only_random_networks_learn(space, data):
    trainer = _trainer(Elastic(**QUICK, sandwich=False, distillation=False, num_random=2), space, data)
    assert [role for role, _ in trainer.networks(1, 2)] == ["random 0", "random 1"]
    assert len({str(network) for step in range(20) for _, network in trainer.networks(0, step)}) > 10


@pytest.mark.parametrize("quantity", ["multiply_adds", "parameters"])
def test_whatever_is_drawn_or_asked_for_keeps_to_the_limit(space, data, quantity):
    count = {"multiply_adds": lambda net: count_multiply_adds(net, data.image_shape), "parameters": count_parameters}
    costs = [count[quantity](space.network(draw(space, random.Random(seed)), data)) for seed in range(10)]
    limit = Limit(quantity=quantity, limit=sorted(costs)[7])
    within = LimitedSpace(space, DataForm.of(data), limit)
    found = [draw(within, random.Random(seed)) for seed in range(10)]
    for sampler in (Evolution(population_size=3, sample_size=2), TPE()):
        questions = Questions(sampler, within)
        for _ in range(5):
            found.append(questions.ask())
            questions.answer([0.5])
    for architecture in found:
        assert count[quantity](space.network(architecture, data)) <= limit.limit
    # Where the limit lets it, what is decided is what comes.
    allowed = [draw(space, random.Random(seed)) for seed in range(10) if costs[seed] <= limit.limit]
    values = [space.decisions_of(architecture) for architecture in allowed]
    inside = [row for row in values if all(v in o for v, o in zip(row, within.decisions.values(), strict=True))]
    assert [within.decided(row) for row in inside] == allowed and len(found) == 20


def test_options_that_no_network_within_the_limit_has_are_not_in_the_supernet(data):
    space = spaces.load("elastic-resnet-small")
    smallest = space.decided([values[0] for values in space.decisions.values()])
    least = count_multiply_adds(space.network(smallest, data), data.image_shape)
    trainer = _trainer(Elastic(**QUICK, resource=Limit(quantity="multiply_adds", limit=1.5 * least)), space, data)
    for name, values in trainer.supernet.options.items():
        for value in space.decisions[name]:
            own = dict(zip(space.decisions, space.decisions_of(smallest), strict=True)) | {name: value}
            network = space.network(space.decided(list(own.values())), data)
            assert (value in values) == (count_multiply_adds(network, data.image_shape) <= 1.5 * least)
    assert count_parameters(trainer.supernet) < count_parameters(space.network(space.parse("cifar-resnet-20"), data))


def test_a_limit_below_the_smallest_network_is_refused_with_its_name_and_size(space, data):
    search = Elastic(**QUICK, resource=Limit(quantity="multiply_adds", limit=1000))
    smallest = space.parse("cifar-resnet-8 width=0.25")
    least = count_multiply_adds(space.network(smallest, data), data.image_shape)
    with pytest.raises(InputError, match=f"1000 multiply-adds, but .*'{smallest}', has {least}; set it higher"):
        search.rehearse(space, data)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"sandwich": False}, "search.distillation has the largest network as its teacher"),
        ({"sandwich": False, "distillation": False, "num_random": 0}, "search.num_random must be at least 1"),
        ({"objective": "ibp"}, "search.objective 'ibp' bounds the network"),
        ({"trials": 0}, "search.trials must be at least 1"),
        ({"resource": {"limit": 0}}, "search.resource.limit must be above 0"),
        ({"epsilon_warm_up": 0.6, "epsilon_ramp": 0.6}, "at most 1 together"),
    ],
)
def test_settings_that_do_not_fit_are_refused(given, words):
    with pytest.raises(InputError, match=words):
        build(Elastic, given, "search")


@pytest.mark.parametrize("objective", [{"name": "trades", "attack": "fgsm"}, "fast"], ids=["trades", "fast"])
def test_any_objective_of_a_search_trains_a_supernet(space, data, objective):
    search = build(
        Elastic,
        {"epochs": 1, "batch_size": 32, "validation_attack": "fgsm", "objective": objective, "attack": "fgsm"}
        | {"validation_images": 4, "num_images": 4}
        | {"distillation": False, "trials": 1, "num_random": 0},
        "search",
    )
    before = _trainer(search, space, data).supernet.state_dict()
    found = search.search(space, data, THREAT, _stage())
    after = found.supernet.state_dict()
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert {name for name, _ in found.supernet.named_parameters()} <= moved


@pytest.fixture(scope="module")
def search() -> Elastic:
    sampler = Evolution(population_size=2, sample_size=1)
    return Elastic(**QUICK, trials=4, attack=FGSM(), sampler=sampler, resource=Limit(limit=15_000), num_images=8)


@pytest.fixture(scope="module")
def whole(search, space, data):
    return search.search(space, data, THREAT, _stage())


@pytest.mark.parametrize("killed_after", [("epochs", 1), ("trials", 2)])
def test_an_interrupted_search_resumes_to_the_same_result(
    search, whole, space, data, tmp_path, monkeypatch, killed_after
):
    save, (kind, number) = Stage.save, killed_after

    def killed(self, done, state):
        save(self, done, state)
        if kind in state and done >= number:
            raise KeyboardInterrupt

    monkeypatch.setattr(Stage, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        search.search(space, data, THREAT, _stage(tmp_path))
    monkeypatch.undo()
    resumed = search.search(space, data, THREAT, _stage(tmp_path))
    assert resumed.record["trials"] == whole.record["trials"] and len(whole.record["trials"]) == 4
    states = [found.supernet.state_dict() for found in (whole, resumed)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [(row["stage"], row["step"]) for row in rows] == [
        *(("search", number) for number in (1, 2)),
        *(("search-trials", number) for number in range(1, 5)),
    ]


def test_derivation_ranks_the_best_of_the_measured_ones_with_the_shared_weights(whole, space, data):
    found = whole
    trials = {trial["architecture"]: trial["values"][0] for trial in found.record["trials"]}
    assert found.best == space.parse(max(trials, key=lambda text: trials[text])) or len(set(trials.values())) < 4
    plan = Derivation(count=2, pool=3, attack=FGSM(), calibration_batches=1, num_images=8)
    stage = Stage("derive", 0, World(), Progress(quiet=True))
    pool = derivation.derive(found, space, data, THREAT, plan, stage)
    assert {str(one.architecture) for one in pool} == set(found.measured[:3])
    assert all(one.validation_robust is not None for one in pool)
    for method in ("samples", "perturbation"):
        with pytest.raises(InputError, match=f"derive.method '{method}' is for mixtures of operations"):
            derivation.derive(found, space, data, THREAT, Derivation(method=method), stage)
