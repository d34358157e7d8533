import dataclasses

import pytest
import torch

from robust_nas import datasets
from robust_nas.attacks.fgsm import FGSM
from robust_nas.attacks.pgd import PGD
from robust_nas.bounds.interval import Interval
from robust_nas.core.errors import InputError
from robust_nas.core.seeds import seeded
from robust_nas.relaxations.dirichlet import DirichletRelaxation
from robust_nas.runtime.distributed import World
from robust_nas.runtime.progress import Progress
from robust_nas.runtime.stages import Stage, read_metrics
from robust_nas.searches.dirichlet import Dirichlet
from robust_nas.threat import ThreatModel
from robust_nas.training._certified import recorded, shared
from robust_nas.training.cat import CAT
from robust_nas.training.free import Free
from robust_nas.training.ibp import IBP
from robust_nas.training.standard import Standard

THREAT = ThreatModel(epsilon=0.1)
SEARCH = Dirichlet(epochs=2, batch_size=16, validation_attack=PGD(steps=1), alpha_learning_rate=0.05)


@pytest.fixture(scope="module")
def data():
    digits = datasets.load("digits")
    return dataclasses.replace(digits, train=digits.train[:64], validation=digits.validation[:32], test=digits.test[:1])


def _stage(folder=None) -> Stage:
    if folder is not None:
        (folder / "checkpoints").mkdir(exist_ok=True)
    return Stage("search", 0, World(), Progress(quiet=True), folder)


def test_equal_seeds_give_equal_searches_bit_by_bit(space, data):
    first, second = (SEARCH.search(space, data, THREAT, _stage()) for _ in range(2))
    assert first.probabilities == second.probabilities
    for one, other in zip(first.supernet.parameters(), second.supernet.parameters(), strict=True):
        assert torch.equal(one, other)
    third = SEARCH.search(space, data, THREAT, dataclasses.replace(_stage(), seed=1))
    assert third.probabilities != first.probabilities


def test_an_interrupted_search_resumes_to_the_same_result(space, data, tmp_path, monkeypatch):
    search = dataclasses.replace(SEARCH, epochs=3)
    whole = search.search(space, data, THREAT, _stage())
    calls = 0
    craft = FGSM.perturb

    def interrupted(self, *arguments, **options):
        nonlocal calls
        calls += 1
        if calls == 18:  # in the middle of the third epoch: 4 iterations of 2 levels each
            raise KeyboardInterrupt
        return craft(self, *arguments, **options)

    monkeypatch.setattr(FGSM, "perturb", interrupted)
    with pytest.raises(KeyboardInterrupt):
        search.search(space, data, THREAT, _stage(tmp_path))
    monkeypatch.undo()
    resumed = search.search(space, data, THREAT, _stage(tmp_path))
    assert resumed.probabilities == whole.probabilities
    for one, other in zip(resumed.supernet.state_dict().values(), whole.supernet.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    ran, expected = (
        [{k: v for k, v in row.items() if k != "seconds"} for row in result.record["trajectory"]]
        for result in (resumed, whole)
    )
    assert ran == expected
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3]


def test_alpha_stays_where_it_started_while_it_is_frozen(space, data):
    frozen = dataclasses.replace(SEARCH, alpha_frozen=1.0).search(space, data, THREAT, _stage())
    start, *later = (row["concentration"] for row in frozen.record["trajectory"])
    assert all(row == start for row in later)
    moved = SEARCH.search(space, data, THREAT, _stage())
    assert moved.record["trajectory"][-1]["concentration"] != start


@pytest.mark.parametrize("hold", [True, False])
def test_the_loss_sees_the_sample_that_was_attacked_exactly_when_it_is_held(space, data, monkeypatch, hold):
    attacked, used = [], []
    craft = FGSM.perturb

    def note_attacked(self, model, *arguments, **options):
        attacked.append(model.mixture.clone())
        return craft(self, model, *arguments, **options)

    from robust_nas.spaces.cell.supernet import CellSupernet

    original = CellSupernet.forward

    def note_used(self, images, mixture):
        if torch.is_grad_enabled() and self.training:
            used.append(mixture.detach().clone())
        return original(self, images, mixture)

    monkeypatch.setattr(FGSM, "perturb", note_attacked)
    monkeypatch.setattr(CellSupernet, "forward", note_used)
    dataclasses.replace(SEARCH, epochs=1, hold_sample=hold, validation_attack=PGD(steps=0)).search(
        space, data, THREAT, _stage()
    )
    assert len(attacked) == 8
    # Every loss's mixture is the last forward of its step; it is the attacked one or it is not.
    final = [mixture for mixture in used if not any(torch.equal(mixture, other) for other in attacked)]
    assert (len(final) == 0) == hold


def test_both_levels_are_trained_on_examples_inside_the_ramped_ball(space, data, monkeypatch):
    radii = []
    craft = FGSM.perturb

    def note(self, model, images, labels, threat, **options):
        adversarial = craft(self, model, images, labels, threat, **options)
        assert not torch.equal(adversarial, images)
        assert bool(threat.around(images).contains(adversarial).all())
        radii.append(threat.epsilon)
        return adversarial

    monkeypatch.setattr(FGSM, "perturb", note)
    search = dataclasses.replace(SEARCH, epochs=2, epsilon_ramp=0.5, validation_attack=PGD(steps=0))
    search.search(space, data, THREAT, _stage())
    assert radii == sorted(radii)
    # The ramp covers the first of two epochs: halfway through it epsilon is half of its full size.
    assert radii[4] == pytest.approx(0.05) and radii[8:] == [0.1] * 8


def test_the_gradient_clip_of_the_weights_knows_nothing_of_alpha(space, data, monkeypatch):
    clipped = []
    clip = torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(
        torch.nn.utils,
        "clip_grad_norm_",
        lambda parameters, *rest: clip(clipped.append(list(parameters)) or clipped[-1], *rest),
    )
    found = dataclasses.replace(SEARCH, epochs=1).search(space, data, THREAT, _stage())
    assert all(parameter.shape != (6, 5) for parameters in clipped for parameter in parameters)
    assert len(clipped[0]) == len(list(found.supernet.parameters()))


def mean(alpha: torch.Tensor) -> torch.Tensor:
    concentration = torch.nn.functional.elu(alpha) + 1
    return concentration / concentration.sum(-1, keepdim=True)


def test_the_first_step_moves_alpha_down_the_validation_loss(space, data, monkeypatch):
    # With the mean in place of a sample and no attack, the loss is a plain function of alpha: finite differences tell
    # its gradient, and Adam's first step is the learning rate against the gradient's sign.
    monkeypatch.setattr(DirichletRelaxation, "sample", lambda self, seed: mean(self.alpha))
    small = dataclasses.replace(data, train=data.train[:16], validation=data.validation[:16])
    search = Dirichlet(
        epochs=1,
        batch_size=16,
        objective=Standard(),
        validation_attack=PGD(steps=0),
        alpha_learning_rate=0.01,
        anchor_scale=1e-9,
    )
    record = search.search(space, small, THREAT, _stage()).record["trajectory"]
    start, end = (torch.tensor(row["concentration"], dtype=torch.float64) for row in record)

    with seeded(0, "search", "weights"):
        supernet = space.supernet(small).double().train()
    labels, images = small.validation.labels, small.validation.images.double()

    def loss(concentration: torch.Tensor) -> float:
        with torch.no_grad():
            return float(torch.nn.functional.cross_entropy(supernet(images, mean(concentration - 1)), labels))

    # Near 0 the concentration is alpha + 1 to first order, so that differences in it have the gradient's sign.
    for edge, operation in ((0, 1), (2, 3), (3, 0), (5, 4)):
        step = torch.zeros_like(start)
        step[edge, operation] = 1e-5
        slope = (loss(start + step) - loss(start - step)) / 2e-5
        moved = float((end - start)[edge, operation])
        assert abs(slope) > 1e-6
        assert moved * slope < 0
        assert abs(moved) == pytest.approx(0.01, rel=0.05)


def test_a_certified_search_moves_alpha_down_a_bound_of_the_loss(space, data, monkeypatch):
    # As above, with the interval bound of the mixed network: the mixture is a constant that scales each operation's
    # box, and finite differences in it are those of a bound that is written down for each mixture on its own.
    monkeypatch.setattr(DirichletRelaxation, "sample", lambda self, seed: mean(self.alpha))
    small = dataclasses.replace(data, train=data.train[:16], validation=data.validation[:16])
    threat = ThreatModel(epsilon=0.01)
    search = Dirichlet(
        epochs=1,
        batch_size=16,
        objective=IBP(kappa=0.0),
        validation_attack=PGD(steps=0),
        alpha_learning_rate=0.01,
        anchor_scale=1e-9,
    )
    found = search.search(space, small, threat, _stage())
    start, end = (torch.tensor(row["concentration"], dtype=torch.float64) for row in found.record["trajectory"])
    assert {"clean", "robust", "certified"} == set(found.record["trajectory"][0]["validation"])

    with seeded(0, "search", "weights"):
        supernet = space.supernet(small).double().train()
    labels, images = small.validation.labels, small.validation.images.double()

    def loss(concentration: torch.Tensor) -> float:
        mixed = supernet.at(mean(concentration - 1).detach())
        with torch.no_grad(), recorded(mixed) as statistics:
            mixed(images)
        with torch.no_grad(), shared(mixed, statistics):
            frozen = mixed(images)  # evaluation mode, at the clean batch's statistics
            margins = Interval().margins(mixed, images, labels, threat).offsets
        assert (margins <= frozen.gather(1, labels[:, None]) - frozen + 1e-9).logical_or(margins.isinf()).all()
        own = torch.nn.functional.one_hot(labels, 10).bool()
        return float((-margins).masked_fill(own, 0.0).logsumexp(1).mean())

    for edge, operation in ((0, 2), (2, 3), (3, 1), (5, 4)):
        step = torch.zeros_like(start)
        step[edge, operation] = 1e-5
        slope = (loss(start + step) - loss(start - step)) / 2e-5
        moved = float((end - start)[edge, operation])
        assert abs(slope) > 1e-6
        assert moved * slope < 0


def test_a_method_that_remembers_resumes_to_the_same_search(space, data, tmp_path, monkeypatch):
    search = dataclasses.replace(SEARCH, epochs=2, objective=CAT(), epsilon_warm_up=0.25)
    whole = search.search(space, data, THREAT, _stage())
    save = Stage.save

    def killed_after(self, done, state):
        save(self, done, state)
        raise KeyboardInterrupt

    monkeypatch.setattr(Stage, "save", killed_after)
    with pytest.raises(KeyboardInterrupt):
        search.search(space, data, THREAT, _stage(tmp_path))
    monkeypatch.undo()
    assert search.search(space, data, THREAT, _stage(tmp_path)).probabilities == whole.probabilities


def test_the_test_split_is_never_looked_at(space, data):
    blind = dataclasses.replace(data, test=None)
    assert (
        SEARCH.search(space, blind, THREAT, _stage()).probabilities
        == SEARCH.search(space, data, THREAT, _stage()).probabilities
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "search.epochs must be at least 1"),
        ({"alpha_frozen": 1.5}, r"must be in \[0, 1\]"),
        ({"learning_rate": 0}, "must be above 0"),
        ({"epsilon_warm_up": -0.1}, r"must be in \[0, 1\]"),
        ({"epsilon_warm_up": 0.8, "epsilon_ramp": 0.3}, "would not reach its full size"),
        ({"objective": Free()}, "search.objective cannot be 'free'"),
    ],
)
def test_a_wrong_setting_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        Dirichlet(**options)


def test_a_diverging_search_stops_with_a_sentence(space, data):
    with pytest.raises(InputError, match=r"learning_rate lower|lower learning rate"):
        dataclasses.replace(SEARCH, learning_rate=1e30, gradient_clip=1e30).search(space, data, THREAT, _stage())
