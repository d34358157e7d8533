import dataclasses

import pytest
import torch

from robust_nas import datasets
from robust_nas.attacks.pgd import PGD
from robust_nas.core.errors import InputError
from robust_nas.runtime.distributed import World
from robust_nas.runtime.progress import Progress
from robust_nas.runtime.stages import Stage
from robust_nas.searches._differentiable import DifferentiableSearch
from robust_nas.searches._stability import CollapseMonitor, dominance, largest_eigenvalue
from robust_nas.searches.darts import DARTS
from robust_nas.threat import ThreatModel
from robust_nas.training.cat import CAT

QUICK = {"batch_size": 16, "validation_attack": PGD(steps=0), "alpha_learning_rate": 0.1}


@pytest.fixture(scope="module")
def data():
    digits = datasets.load("digits")
    return dataclasses.replace(digits, train=digits.train[:32], validation=digits.validation[:32], test=None)


def _stage(folder=None) -> Stage:
    if folder is not None:
        (folder / "checkpoints").mkdir(exist_ok=True)
    return Stage("search", 0, World(), Progress(quiet=True), folder)


def test_the_eigenvalue_of_a_quadratic_is_its_matrixs_largest():
    torch.manual_seed(0)
    root = torch.randn(12, 12)
    matrix = root + root.T  # of both signs
    found = largest_eigenvalue(lambda a: 0.5 * a.flatten() @ matrix @ a.flatten(), torch.randn(3, 4))
    assert found == pytest.approx(float(torch.linalg.eigvalsh(matrix)[-1]), rel=1e-3)


def test_the_eigenvalue_of_a_loss_is_that_of_the_hessian_at_the_point():
    torch.manual_seed(0)
    at, weight = torch.randn(2, 3), 0.3 * torch.randn(6, 4)

    def loss(a):
        return torch.tanh(a.flatten() @ weight).square().sum()

    hessian = torch.autograd.functional.hessian(loss, at).view(6, 6)
    assert largest_eigenvalue(loss, at) == pytest.approx(float(torch.linalg.eigvalsh(hessian)[-1]), rel=1e-3)


def test_edges_that_prefer_what_learns_nothing_are_counted():
    operations = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
    rows = torch.tensor([[0, 9, 1, 1, 1], [0, 1, 9, 1, 1], [9, 1, 1, 1, 1], [0, 1, 1, 9, 1.0]])
    assert dominance(rows, operations) == 0.5


@pytest.mark.parametrize(
    ("eigenvalues", "dominances", "collapsed"),
    [
        ([1.0] * 10, [0.0] * 10, False),
        ([1.0] * 5 + [1.3] * 5, [0.0] * 10, False),
        ([1.0] * 5 + [1.4] * 5, [0.0] * 10, True),
        ([None] * 3 + [1.0] * 5 + [9.0] * 4, [0.0] * 12, False),  # too few to compare
        ([1.0] * 10, [0.0] * 6 + [1.0] * 4, False),
        ([1.0] * 10, [0.0] * 5 + [1.0] * 5, True),
        ([None] * 10, [None] * 10, False),  # alpha has not learned yet
        ([None] * 5 + [1.0] * 5, [None] * 5 + [1.0] * 5, True),
        ([None] * 10, [None] * 5 + [1.0] * 5, True),  # eigenvalues are not looked at
    ],
)
def test_a_collapse_is_a_growing_eigenvalue_or_edges_that_stay_without_parameters(eigenvalues, dominances, collapsed):
    assert (CollapseMonitor().has_collapsed(eigenvalues, dominances) is not None) == collapsed


def _watched(monkeypatch, collapse_in, **options):
    """A search that is said to collapse after given epochs."""
    calls = []

    def says(self, eigenvalues, dominances):
        calls.append(len(eigenvalues))
        return "so it is" if len(calls) in collapse_in else None

    monkeypatch.setattr(CollapseMonitor, "has_collapsed", says)
    return DARTS(epochs=6, watch=CollapseMonitor(window=2, growth=0, **options), **QUICK), calls


def test_a_search_that_collapses_ends_at_its_last_healthy_state(space, data, monkeypatch):
    search, _ = _watched(monkeypatch, {5})
    found = search.search(space, data, ThreatModel(epsilon=0.1), _stage())
    trajectory = found.record["trajectory"]
    assert [row["epoch"] for row in trajectory] == [0, 1, 2, 3, 4, 5]
    assert found.record["collapses"] == [{"epoch": 5, "reason": "so it is", "back_to": 3}]
    assert found.probabilities == trajectory[3]["mixture"] != trajectory[5]["mixture"]
    assert found.record["epoch"] == trajectory[3]["epoch"]


def test_a_search_that_goes_back_in_its_last_epoch_ends_at_the_state_that_it_went_back_to(space, data, monkeypatch):
    search, _ = _watched(monkeypatch, {6}, restarts=1)
    found = search.search(space, data, ThreatModel(epsilon=0.1), _stage())
    assert found.record["collapses"] == [{"epoch": 6, "reason": "so it is", "back_to": 4}]
    assert found.record["epoch"] == 4
    assert found.probabilities == found.record["trajectory"][4]["mixture"]


def test_a_search_that_collapses_leaves_no_auxiliary_skip_in_its_supernet(space, data, monkeypatch):
    search, _ = _watched(monkeypatch, {2})
    found = dataclasses.replace(search, auxiliary_skip=0.5).search(space, data, ThreatModel(epsilon=0.1), _stage())
    assert all(mixed.auxiliary == 0 for _, mixed in found.supernet.mixed_operations)


def test_a_search_goes_back_and_on_with_a_stronger_anchor(space, data, monkeypatch):
    anchors = []
    anchored = DifferentiableSearch.anchored
    monkeypatch.setattr(
        DifferentiableSearch, "anchored", lambda self, r: anchors.append(r.alpha.detach().clone()) or anchored(self, r)
    )
    search, calls = _watched(monkeypatch, {4}, restarts=1)
    found = search.search(space, data, ThreatModel(epsilon=0.1), _stage())
    assert [row["epoch"] for row in found.record["trajectory"]] == list(range(7))
    assert found.record["collapses"][0]["back_to"] == 2
    # The fifth epoch begins where the second ended: two steps of alpha in an epoch.
    assert torch.equal(anchors[8], anchors[4])
    # What is looked at afterwards begins anew.
    assert calls == [1, 2, 3, 4, 1, 2]


def test_a_second_collapse_goes_back_to_what_the_first_went_back_to(space, data, monkeypatch):
    search, _ = _watched(monkeypatch, {3, 4}, restarts=2)
    found = search.search(space, data, ThreatModel(epsilon=0.1), _stage())
    # Nothing of the collapsed search is healthy: the fourth epoch went on from the first, and goes back to it.
    assert [(item["epoch"], item["back_to"]) for item in found.record["collapses"]] == [(3, 1), (4, 1)]


def test_edges_without_parameters_are_watched_without_eigenvalues_once_alpha_learns(space, data):
    watch = CollapseMonitor(growth=0, dominance=0.0, window=1)
    found = DARTS(epochs=4, watch=watch, alpha_frozen=0.5, **QUICK).search(
        space, data, ThreatModel(epsilon=0.1), _stage()
    )
    assert [row["dominance"] is None for row in found.record["trajectory"]] == [True, True, True, False]
    assert found.record["collapses"][0]["epoch"] == 3


def test_a_stage_is_not_compared_with_the_one_before(space, data, monkeypatch):
    search, calls = _watched(monkeypatch, set())
    dataclasses.replace(search, kept_operations=(5, 3)).search(space, data, ThreatModel(epsilon=0.1), _stage())
    assert calls == [1, 2, 3, 1, 2, 3]


def test_watching_leaves_what_the_objective_remembers_as_it_is(space, data):
    small = dataclasses.replace(data, validation=data.validation[:16])  # its rows are not those of the training split
    options = {"epochs": 2, "objective": CAT(attack=PGD(steps=1)), **QUICK}
    plain = DARTS(**options).search(space, small, ThreatModel(epsilon=0.1), _stage())
    watched = DARTS(**options, watch=CollapseMonitor(images=8)).search(space, small, ThreatModel(epsilon=0.1), _stage())
    assert watched.probabilities == plain.probabilities
    DARTS(**options, order="second").search(space, small, ThreatModel(epsilon=0.1), _stage())


def test_a_watched_search_resumes_to_the_same_result(space, data, tmp_path, monkeypatch):
    search = DARTS(epochs=4, watch=CollapseMonitor(window=1, growth=0.5, restarts=1, images=16), **QUICK)
    whole = search.search(space, data, ThreatModel(epsilon=0.1), _stage())
    eigenvalues = [row["eigenvalue"] for row in whole.record["trajectory"]]
    assert eigenvalues[0] is None and all(isinstance(value, float) for value in eigenvalues[1:])
    save = Stage.save

    def killed(self, done, state):
        save(self, done, state)
        if done == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Stage, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        search.search(space, data, ThreatModel(epsilon=0.1), _stage(tmp_path))
    monkeypatch.undo()
    resumed = search.search(space, data, ThreatModel(epsilon=0.1), _stage(tmp_path))
    assert resumed.probabilities == whole.probabilities
    assert resumed.record["collapses"] == whole.record["collapses"]


def test_watching_changes_nothing_in_a_search_that_does_not_collapse(space, data):
    plain = DARTS(epochs=3, **QUICK).search(space, data, ThreatModel(epsilon=0.1), _stage())
    watched = DARTS(epochs=3, watch=CollapseMonitor(images=16), **QUICK).search(
        space, data, ThreatModel(epsilon=0.1), _stage()
    )
    assert watched.probabilities == plain.probabilities
    for one, other in zip(plain.supernet.state_dict().values(), watched.supernet.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_a_watch_that_sees_nothing_is_refused():
    with pytest.raises(InputError, match=r"search\.watch\.window must be at least 1, but got 0"):
        CollapseMonitor(window=0)
