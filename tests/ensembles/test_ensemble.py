import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from robust_nas import datasets, spaces
from robust_nas.bounds import LinearMargins
from robust_nas.bounds.interval import Interval
from robust_nas.core.errors import InputError
from robust_nas.ensembles import Ensemble, joint_margins
from robust_nas.ensembles.robboost import RobBoost
from robust_nas.models.complexity import count_parameters
from robust_nas.threat import ThreatModel


def networks(num: int) -> list[nn.Module]:
    torch.manual_seed(0)
    return [nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).eval() for _ in range(num)]


def test_an_ensemble_is_the_weighted_sum_of_its_members_logits_over_their_scales() -> None:
    first, second, third = networks(3)
    images = torch.rand(4, 1, 2, 3)
    ensemble = Ensemble([first, second, third], [0.25, 0.75, 0.0], torch.tensor([2.0, 0.5, 1.0]))
    total = 0.25 / 2 + 0.75 / 0.5
    torch.testing.assert_close(ensemble(images), (0.25 / 2 * first(images) + 0.75 / 0.5 * second(images)) / total)
    assert ensemble(images).dtype == torch.float32 and len(ensemble.members) == 3


def test_a_member_alone_keeps_its_logits_whatever_its_scale() -> None:
    # On logits many times smaller, attacks on the cross-entropy would be weaker.
    member, images = networks(1)[0], torch.rand(4, 1, 2, 3)
    torch.testing.assert_close(Ensemble([member], [0.3], [50.0])(images), member(images))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_joint_bound_is_at_least_the_weighted_sum_of_the_single_ones(norm: str) -> None:
    generator = torch.Generator().manual_seed(0)
    threat = ThreatModel(norm=norm, epsilon=0.3)
    bounds = [
        LinearMargins(torch.randn(5, 3, generator=generator), torch.randn(5, 3, 7, generator=generator))
        for _ in range(3)
    ]
    weights, scales = [0.5, 0.2, 0.3], [1.0, 2.0, 0.7]
    joint = joint_margins(bounds, weights, scales).lower(threat)
    total = 0.5 + 0.1 + 0.3 / 0.7
    single = sum(w / z / total * b.lower(threat) for w, z, b in zip(weights, scales, bounds, strict=True))
    assert (joint >= single - 1e-6).all() and (joint > single + 0.1).any()


def test_linear_members_joint_bound_is_the_least_margin_over_all_corners() -> None:
    # A linear network's own margins are linear: slopes W_y - W_j, offsets the clean margins.
    torch.manual_seed(0)
    threat, images, labels = ThreatModel(epsilon=0.1), 0.3 + 0.4 * torch.rand(4, 6).double(), torch.tensor([0, 1, 2, 0])
    members = [nn.Linear(6, 3).double() for _ in range(3)]
    bounds = []
    for member in members:
        rows = (member.weight[labels][:, None] - member.weight).detach()
        logits = member(images).detach()
        bounds.append(LinearMargins(logits.gather(1, labels[:, None]) - logits, rows))
    ensemble = Ensemble(members, [0.2, 0.5, 0.3], [1.0, 0.5, 2.0])
    corners = torch.tensor(list(itertools.product((-0.1, 0.1), repeat=6)), dtype=torch.float64)
    logits = ensemble(images[:, None] + corners).detach()
    expected = (logits.gather(2, labels.view(-1, 1, 1).expand(-1, len(corners), 1)) - logits).amin(1)
    joint = joint_margins(bounds, [0.2, 0.5, 0.3], [1.0, 0.5, 2.0])
    torch.testing.assert_close(joint.lower(threat), expected, atol=1e-12, rtol=0)


def test_no_perturbed_point_leaves_the_joint_bound_of_a_fitted_ensemble() -> None:
    members, threat = networks(3), ThreatModel(epsilon=0.05)
    images, labels = torch.rand(20, 1, 2, 3), torch.arange(20) % 3
    bounds = [Interval().margins(member, images, labels, threat) for member in members]
    fitted = RobBoost().fit(bounds, threat)
    joint = joint_margins(bounds, fitted.weights, fitted.scales).lower(threat)
    ensemble = Ensemble(members, fitted.weights, fitted.scales).double()
    generator = torch.Generator().manual_seed(1)
    for _ in range(200):
        points = threat.around(images.double()).random(generator)
        with torch.no_grad():
            logits = ensemble(points)
        margins = logits.gather(1, labels[:, None]) - logits
        assert (margins >= joint - 1e-9)[joint.isfinite()].all()


def test_a_member_of_weight_zero_is_left_out_and_one_without_slopes_has_slopes_zero() -> None:
    inf = torch.inf
    with_slopes = LinearMargins(torch.tensor([[inf, 1.0]]), torch.tensor([[[0.0], [2.0]]]))
    without, broken = LinearMargins(torch.tensor([[inf, 3.0]])), LinearMargins(torch.tensor([[inf, torch.nan]]))
    joint = joint_margins([with_slopes, without, broken], [0.5, 0.5, 0.0], [1.0, 1.0, 1.0])
    assert joint.offsets.tolist() == [[inf, 2.0]] and joint.slopes is not None and joint.slopes[0, 1].item() == 1.0
    assert joint_margins([without, broken], [1.0, 0.0], [1.0, 1.0]).slopes is None


@pytest.mark.parametrize(
    ("weights", "scales"),
    [([0.5, -0.5], [1, 1]), ([0, 0], [1, 1]), ([0.5, 0.5], [1, -1]), ([0.5, 0.5], [1, float("nan")]), ([1.0], [1, 1])],
)
def test_weights_and_scales_that_turn_a_member_round_are_refused(weights: list[float], scales: list[float]) -> None:
    bound = LinearMargins(torch.ones(1, 2))
    with pytest.raises(InputError, match="An ensemble"):
        joint_margins([bound, bound], weights, scales)
    with pytest.raises(InputError, match="An ensemble"):
        Ensemble(networks(2), weights, scales)


def _cells() -> tuple[list[nn.Module], datasets.Dataset]:
    digits, space = datasets.load("digits"), spaces.load("nasbench201", channels=2, cells_per_stage=1, stages=1)
    torch.manual_seed(0)
    return [space.network(space.parse(text), digits).eval() for text in ("313131", "000300", "421100")], digits


def test_a_saved_ensemble_is_the_same_function_without_the_members_of_weight_0(tmp_path: Path) -> None:
    cells, digits = _cells()
    ensemble = Ensemble(cells, [0.2, 0.0, 0.8], [2.0, 1.0, 0.5]).eval()
    loaded = Ensemble.load(ensemble.save(tmp_path / "saved"))
    images = digits.test.images[:32]
    with torch.no_grad():
        assert torch.equal(loaded(images), ensemble(images))
    assert len(loaded.members) == 2 and (loaded.weights, loaded.scales) == ([0.2, 0.8], [2.0, 0.5])
    assert {path.name for path in (tmp_path / "saved").iterdir()} == {"config.json", "model.safetensors"}


def test_members_that_no_space_built_are_given_when_their_ensemble_is_loaded(tmp_path: Path) -> None:
    images, saved = torch.rand(4, 1, 2, 3), Ensemble(networks(2), [0.4, 0.6], [1.0, 3.0]).save(tmp_path)
    with pytest.raises(
        InputError, match=r"Member 0 .* cannot be made again: it is a Sequential of torch.*Give all members"
    ):
        Ensemble.load(saved)
    torch.manual_seed(5)
    others = [nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)) for _ in range(2)]
    expected = Ensemble(networks(2), [0.4, 0.6], [1.0, 3.0])(images)
    assert torch.equal(Ensemble.load(saved, others)(images), expected)
    with pytest.raises(InputError, match="do not fit the model"):
        Ensemble.load(saved, [nn.Linear(6, 3), nn.Linear(6, 3)])


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([{"unknown": 1}], "a member has no entry 'data'"),
        ([{"space": "cell", "architecture": "a", "data": {}}], "an entry of another kind than is saved"),
        ([{"normalised": 3, "of": 3}], "an entry of another kind than is saved"),
    ],
)
def test_a_member_of_another_form_is_refused_in_words(tmp_path: Path, members: list[Any], message: str) -> None:
    saved = Ensemble(networks(1)).save(tmp_path)
    table = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**table, "members": members}))
    with pytest.raises(InputError, match=message):
        Ensemble.load(saved)


def test_what_is_no_saved_ensemble_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no config\.json"):
        Ensemble.load(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(InputError, match="no ensemble of version 1"):
        Ensemble.load(tmp_path)
    saved = Ensemble(networks(1)).save(tmp_path)
    whole = (saved / "config.json").read_text()
    (saved / "config.json").write_text(whole.replace('"weights"', '"wieghts"'))
    with pytest.raises(InputError, match="is damaged"):
        Ensemble.load(saved, networks(1))
    Ensemble([nn.Sequential(nn.Flatten(), nn.Linear(6, 3))]).save(saved)
    (saved / "config.json").write_text(whole)  # as if it had been interrupted between its two files
    with pytest.raises(InputError, match=r"is not what .* was saved with"):
        Ensemble.load(saved, networks(1))
    with pytest.raises(InputError, match="is a file"):
        Ensemble(networks(1)).save(tmp_path / "config.json")


def test_fitted_weights_are_the_rules_own_and_limits_on_costs_hold() -> None:
    cells, digits = _cells()
    images, threat = digits.validation[:12], ThreatModel(epsilon=0.001)
    bounds = [Interval().margins(cell, images.images, images.labels, threat) for cell in cells]
    ensemble = Ensemble(cells).fit(images, threat, bound="interval")
    expected = RobBoost().fit(bounds, threat)
    assert ensemble.weights == expected.weights.tolist() and ensemble.scales == expected.scales.tolist()
    assert ensemble.fitted is not None and ensemble.fitted.objective == expected.objective
    # Of the three, the single convolution of 3 x 3 (36 weights) is not the one with the fewest parameters.
    sizes = [count_parameters(cell) for cell in cells]
    small = Ensemble(cells).fit(images, threat, bound="interval", parameters=min(sizes))
    assert [weight > 0 for weight in small.weights] == [size == min(sizes) for size in sizes]


def test_predictions_are_those_of_evaluation_mode_and_leave_the_mode_as_it_was() -> None:
    cells, digits = _cells()
    ensemble = Ensemble(cells)
    expected = sum(cell(digits.test.images[:9]) for cell in cells).argmax(1)
    cells[0].train()
    assert torch.equal(ensemble.predict(digits.test.images[:9]), expected)
    assert ensemble.training and [member.training for member in ensemble.members] == [True, False, False]


def test_an_ensemble_of_a_space_of_ones_own_is_loaded_where_its_file_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.toml").write_text(
        'kind = "cell"\nnum_nodes = 3\noperations = ["skip_connect", "nor_conv_3x3"]\nchannels = 2\nstages = 1\n'
        "cells_per_stage = 1\n"
    )
    monkeypatch.chdir(tmp_path)
    digits, space = datasets.load("digits"), spaces.load("mine.toml")
    member = space.network(space.parse("101"), digits).eval()
    saved = Ensemble([member]).save(tmp_path / "saved")
    (tmp_path / "mine.toml").unlink()
    with torch.no_grad():
        assert torch.equal(Ensemble.load(saved)(digits.test.images[:4]), member(digits.test.images[:4]))


def test_options_beside_a_rule_that_is_made_already_are_refused() -> None:
    cells, digits = _cells()
    with pytest.raises(InputError, match="Options such as members are for a rule that is given by its name"):
        Ensemble(cells).fit(digits.validation[:4], ThreatModel(epsilon=0.001), rule=RobBoost(), members=1)


@pytest.mark.parametrize("name", ["x" * 300, "file/below"])
def test_a_folder_that_cannot_be_made_is_refused_in_a_sentence(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be made .*give another place"):
        Ensemble([nn.Sequential(nn.Flatten(), nn.Linear(4, 2))]).save(tmp_path / name)
