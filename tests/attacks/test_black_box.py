"""Black-box attacks against distances known by formula or brute force, counted queries, and other kinds of models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robust_nas import attacks, datasets, spaces
from robust_nas.attacks._black_box import Distortion, HardLabelAttack
from robust_nas.attacks.opt import OPT
from robust_nas.attacks.pgd import PGD
from robust_nas.attacks.sign_opt import SignOPT
from robust_nas.attacks.szvr_g import SZVRG, _Ascent
from robust_nas.attacks.transfer import Transfer
from robust_nas.core import config
from robust_nas.core.errors import InputError
from robust_nas.core.writing import write_json
from robust_nas.models.losses import margin
from robust_nas.runtime.states import save_state
from robust_nas.threat import ThreatModel

HARD_LABEL = [OPT(queries=3000), SignOPT(queries=3000, directions=40)]


@pytest.fixture(params=HARD_LABEL, ids=lambda attack: type(attack).__name__)
def attack(request: pytest.FixtureRequest) -> HardLabelAttack:
    found: HardLabelAttack = request.param
    return found


@pytest.fixture
def images() -> Tensor:
    """Return images in the middle of [0, 1], which small perturbations do not take out of it."""
    return 0.4 + 0.2 * torch.rand(6, 2, 4, 4, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def weights() -> Tensor:
    return torch.randn(32, generator=torch.Generator().manual_seed(0))


class Counted:
    """A classifier that counts the images it is asked about, and refuses those outside [0, 1]."""

    def __init__(self, predict: Callable[[Any], Any]) -> None:
        self.predict, self.asked = predict, 0

    def __call__(self, points: Any) -> Any:
        assert points.min() >= 0 and points.max() <= 1
        self.asked += len(points)
        return self.predict(points)


def linear(weights: Tensor, images: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """Return a classifier with a hyperplane near all of `images`, and its labels."""
    offset = (images.flatten(1) @ weights).median()

    def predict(points: Tensor) -> Tensor:
        return (points.flatten(1) @ weights > offset - 0.05).long()

    return predict, predict(images)


@pytest.fixture(scope="module")
def trees() -> tuple[Callable[[np.ndarray], np.ndarray], np.ndarray, np.ndarray]:
    """Return gradient-boosted trees on digits (64 features in [0, 1]), and test images with their labels."""
    from sklearn.datasets import load_digits
    from sklearn.ensemble import GradientBoostingClassifier

    pixels, labels = load_digits(return_X_y=True)
    pixels = (pixels / 16).astype(np.float32)
    model = GradientBoostingClassifier(n_estimators=5, random_state=0).fit(pixels[:600], labels[:600])
    return model.predict, pixels[1500:1512], labels[1500:1512]


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_distance_to_a_hyperplane_is_approached_from_above_and_never_undercut(
    attack: HardLabelAttack, norm: Any, images: Tensor, weights: Tensor
) -> None:
    # In double precision: at the boundary, the label would depend on the batch.
    images, weights = images.double(), weights.double()
    predict, labels = linear(weights, images)
    offset = (images.flatten(1) @ weights).median() - 0.05
    margins = (images.flatten(1) @ weights - offset).abs()
    exact = margins / (weights.norm() if norm == "l2" else weights.abs().sum())
    found = attack.minimise(predict, images, labels, norm=norm)
    assert (predict(found.images) != labels).all()
    assert (found.distances >= exact - 1e-5).all()
    # In linf every pixel must move the right way, those with the smallest weights too.
    assert (found.distances / exact).median() < (1.05 if norm == "l2" else 1.3)
    moved = (found.images - images).flatten(1).norm(p=2 if norm == "l2" else torch.inf, dim=1)
    assert torch.allclose(moved, found.distances)


def test_sign_opt_needs_fewer_queries_than_opt(images: Tensor, weights: Tensor) -> None:
    predict, labels = linear(weights, images)
    opt, sign_opt = (attack.minimise(predict, images, labels) for attack in HARD_LABEL)
    assert sign_opt.after(1000).median() < opt.after(1000).median()


@pytest.mark.parametrize("budget", [1, 2, 50, 101, 333, 1000])
def test_queries_are_counted_exactly_and_never_exceed_the_budget(
    attack: HardLabelAttack, budget: int, images: Tensor, weights: Tensor
) -> None:
    predict, labels = linear(weights, images)
    limited = type(attack)(queries=budget, directions=attack.directions)
    for index in range(3):
        counted, part = Counted(predict), slice(index, index + 1)
        found = limited.minimise(counted, images[part], labels[part])
        assert found.queries.tolist() == [counted.asked] == [budget]
    counted = Counted(predict)
    assert int(limited.minimise(counted, images, labels).queries.sum()) == counted.asked == 6 * budget


def test_gradient_boosted_trees_are_fooled_by_their_answers_alone(attack: HardLabelAttack, trees: Any) -> None:
    predict, images, labels = trees
    attack = type(attack)(queries=1500, directions=attack.directions)
    found = attack.minimise(Counted(predict), images, labels)
    right = predict(images) == labels
    assert right.sum() > len(right) / 2
    assert (predict(found.images.numpy()) != labels).all()
    assert np.array_equal(found.distances.numpy() == 0, ~right)
    # A start is about as far from the image as another image; the boundary of a tree is a threshold away.
    assert found.distances.median() < 0.4 * found.after(100).median()
    assert (found.curve[:, 1:] <= found.curve[:, :-1]).all() and torch.equal(found.curve[:, -1], found.distances)


def test_an_image_is_attacked_alike_in_any_batch_and_by_equal_seeds(attack: HardLabelAttack, trees: Any) -> None:
    predict, images, labels = trees
    attack = type(attack)(queries=600, directions=attack.directions)

    def minimise(part: slice, seed: int) -> Distortion:
        return attack.minimise(predict, images[part], labels[part], seed=seed)

    whole = minimise(slice(None), 3)
    for parts in ([slice(0, 1), slice(1, 12)], [slice(0, 5), slice(5, 12)], [slice(None)]):
        found = [minimise(part, 3) for part in parts]
        for index, values in enumerate(whole):
            assert torch.equal(torch.cat([part[index] for part in found]), values)
    assert not torch.equal(minimise(slice(None), 4).distances, whole.distances)


def test_no_distance_undercuts_a_grid_over_the_box(attack: HardLabelAttack) -> None:
    from sklearn.ensemble import GradientBoostingClassifier

    chance = np.random.default_rng(0)
    points = chance.random((300, 2), dtype=np.float32)
    model = GradientBoostingClassifier(n_estimators=10, random_state=0)
    model.fit(points, (np.sin(7 * points[:, 0]) > 2 * points[:, 1] - 1).astype(int))
    images = points[:10]
    labels = model.predict(images)
    line = np.linspace(0, 1, 401, dtype=np.float32)
    grid = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)
    other = model.predict(grid)[None] != labels[:, None]
    distances = np.linalg.norm(grid[None] - images[:, None], axis=2)
    best = np.where(other, distances, np.inf).min(1)
    attack = type(attack)(queries=1000, directions=attack.directions)
    found = attack.minimise(model.predict, images, labels).distances.numpy()
    spacing = 2**0.5 / 400
    assert (found >= best - spacing).all()
    assert np.median(found - best) < spacing


def test_a_finished_sample_asks_no_more(attack: HardLabelAttack, images: Tensor, weights: Tensor) -> None:
    predict, labels = linear(weights, images)
    found = attack.minimise(predict, images, labels, goal=0.5)
    assert (found.distances <= 0.5).all() and (found.queries < attack.queries).all()
    assert attack.minimise(predict, images, 1 - labels).queries.tolist() == [1] * 6


def test_a_class_that_noise_looks_like_is_left_through_smooth_noise(attack: HardLabelAttack) -> None:
    def predict(points: Tensor) -> Tensor:
        # Class 1 has bright or dark quarters; white noise has none.
        return ((nn.functional.avg_pool2d(points, 8) - 0.5).abs().flatten(1).amax(1) > 0.3).long()

    images = torch.full((2, 1, 16, 16), 0.5)
    found = attack.minimise(predict, images, torch.zeros(2, dtype=torch.int64))
    # The nearest such image moves the 64 pixels of one quarter by 0.3.
    assert found.distances.isfinite().all() and (found.distances >= 8 * 0.3 - 1e-4).all()


class Quadratic(nn.Module):
    """Logits (0, <x, A x> / 2 + <b, x>) in double precision, so that the margin over label 0 is a quadratic."""

    def __init__(self, pixels: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        matrix = torch.randn(pixels, pixels, dtype=torch.float64, generator=generator)
        self.matrix, self.slope = matrix + matrix.T, torch.randn(pixels, dtype=torch.float64, generator=generator)

    def forward(self, images: Tensor) -> Tensor:
        x = images.double().flatten(1)
        value = ((x @ self.matrix) * x).sum(1) / 2 + x @ self.slope
        return torch.stack([torch.zeros_like(value), value], 1)

    def gradient(self, images: Tensor) -> Tensor:
        return images.double().flatten(1) @ self.matrix + self.slope


def ascent(model: nn.Module, images: Tensor, **options: Any) -> _Ascent:
    """Return an ascent for label 0 that stands a little away from the images."""
    attack = SZVRG(queries=10**6, **options)
    labels = torch.zeros(len(images), dtype=torch.int64)
    return _Ascent(attack, model, images, labels, ThreatModel(norm="l2", epsilon=0.3), 0)


@pytest.mark.parametrize("universal", [False, True])
def test_the_estimates_are_unbiased_and_the_corrected_one_varies_less_at_equal_queries(
    universal: bool, images: Tensor
) -> None:
    # The smoothed quadratic differs from the quadratic by a constant, so that its gradient is A x + b.
    images = images.double()
    model, rows = Quadratic(32), torch.arange(len(images))
    run = ascent(model, images, universal=universal, snapshot_directions=40, directions=2, inner_steps=20)
    here = torch.randn(len(run.delta), 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    here = 0.01 * here / here.norm(dim=1, keepdim=True)
    expected = model.gradient(images + here.expand(len(images), -1).view_as(images))
    if universal:
        expected = expected.mean(0, keepdim=True)
    generator = torch.Generator().manual_seed(2)
    plain, corrected = [], []
    for _ in range(400):
        # An epoch asks 41 + 19 x 3 times for an image: 4.9 a step, which also pays for 4 directions at one point.
        directions = torch.randn(4, 32, dtype=torch.float64, generator=generator)
        run.delta = here
        plain.append(run.mean(run.slopes(rows, directions), directions))
        directions = torch.randn(40, 32, dtype=torch.float64, generator=generator)
        run.delta = torch.zeros_like(here)
        snapshot = run.slopes(rows, directions)
        anchor = run.mean(snapshot, directions)
        some = torch.randperm(40, generator=generator)[:2]
        run.delta = here
        corrected.append(run.corrected(rows, directions[some], snapshot[:, some], anchor))
    variances = []
    for estimates in (torch.stack(plain), torch.stack(corrected)):
        error = (estimates.mean(0) - expected) / (estimates.std(0) / len(estimates) ** 0.5)
        # Each of up to 6 x 32 means is within 4.5 of its own standard errors.
        assert error.abs().max() < 4.5
        variances.append(estimates.var(0).sum(-1).mean())
    assert variances[1] < 0.3 * variances[0]


class Linear(nn.Module):
    """Logits (1000, <x, w>), so that the margin over label 0 is linear and nothing is fooled."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights = weights

    def forward(self, images: Tensor) -> Tensor:
        value = images.flatten(1).to(self.weights) @ self.weights
        return torch.stack([torch.full_like(value, 1e3), value], 1)


def test_the_memory_becomes_the_gradient_of_a_linear_model_also_where_the_box_cuts_moves_off(weights: Tensor) -> None:
    weights = weights.double()
    # Two thirds of the pixels can move one way only.
    images = torch.randint(0, 3, (3, 2, 4, 4), generator=torch.Generator().manual_seed(1)) / 2.0
    run, rows = ascent(Linear(weights), images.double()), torch.arange(3)
    generator = torch.Generator().manual_seed(2)
    for _ in range(600):
        run.remembered(rows, torch.randn(5, 32, dtype=torch.float64, generator=generator))
    # The margin is the other logit less a constant.
    assert torch.allclose(run.memory, weights.expand(3, -1), atol=1e-6)


def test_the_memory_moves_by_the_least_that_agrees_with_an_answer(images: Tensor) -> None:
    model, rows = Quadratic(32), torch.arange(len(images))
    run = ascent(model, images.double())
    run.memory = torch.randn(len(images), 32, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    before, direction = run.memory, torch.randn(1, 32, dtype=torch.float64)
    after = run.remembered(rows, direction)
    slopes = run.slopes(rows, direction)
    least = before + (slopes - before @ direction.T) @ torch.linalg.pinv(direction).T
    assert torch.allclose(after, least, atol=1e-6)


@pytest.fixture(scope="module")
def digits() -> tuple[nn.Module, Tensor, Tensor]:
    """Return a trained network, and digits that it gets right, with their labels."""
    data = datasets.load("digits")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(150):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(data.train.images), data.train.labels).backward()
        optimiser.step()
    right = model(data.test.images).argmax(1) == data.test.labels
    model.requires_grad_(False)
    return model, data.test.images[right][:64], data.test.labels[right][:64]


@pytest.mark.parametrize("universal", [False, True])
@pytest.mark.parametrize(
    "threat", [ThreatModel(norm="linf", epsilon=0.1), ThreatModel(norm="l2", epsilon=0.5)], ids=repr
)
def test_szvr_g_beats_the_two_point_estimator_at_its_best_step_size_and_number_of_directions(
    universal: bool, threat: ThreatModel, digits: tuple[nn.Module, Tensor, Tensor]
) -> None:
    model, images, labels = digits
    if universal:
        images, labels = images[:16], labels[:16]

    def reached(**options: Any) -> float:
        # About as many queries as pixels. The directions of a seed are the same for all images.
        attack = SZVRG(queries=60, universal=universal, **options)
        found = [attack.perturb(model, images, labels, threat, seed=seed) for seed in (0, 1)]
        return float(torch.stack([margin(model(points), labels) for points in found]).mean())

    two_point = [
        reached(variance_reduction="none", directions=directions, step_size=share * threat.epsilon)
        for directions in (2, 5, 20)
        for share in (0.1, 0.2, 0.4)
    ]
    assert reached() > max(two_point) + 0.1


@pytest.mark.parametrize("universal", [False, True])
@pytest.mark.parametrize("variance_reduction", ["memory", "snapshot", "none"])
@pytest.mark.parametrize("queries", [150, 1000])
def test_szvr_g_never_asks_more_than_its_budget(
    universal: bool, variance_reduction: Any, queries: int, images: Tensor
) -> None:
    asked = []

    class Unfoolable(Quadratic):
        def forward(self, images: Tensor) -> Tensor:
            assert images.min() >= 0 and images.max() <= 1
            asked.append(len(images))
            return super().forward(images) - torch.tensor([0.0, 1e4])

    attack = SZVRG(queries=queries, universal=universal, variance_reduction=variance_reduction, samples=6)
    attack.perturb(Unfoolable(32), images, torch.zeros(6, dtype=torch.int64), ThreatModel(norm="linf", epsilon=0.2))
    assert 0.8 * 6 * queries < sum(asked) <= 6 * queries


@pytest.mark.parametrize("universal", [False, True])
@pytest.mark.parametrize("variance_reduction", ["memory", "snapshot", "none"])
def test_szvr_g_goes_most_of_the_way_to_the_optimum_of_a_linear_model(
    universal: bool, variance_reduction: Any, images: Tensor, weights: Tensor
) -> None:
    threat, labels = ThreatModel(norm="l2", epsilon=0.3), torch.zeros(6, dtype=torch.int64)
    attack = SZVRG(queries=2000, universal=universal, variance_reduction=variance_reduction)
    found = attack.perturb(Linear(weights), images, labels, threat)
    gained = (found - images).flatten(1) @ weights
    best = 0.3 * weights.norm()
    assert (gained <= best * (1 + 1e-5)).all() and (gained > 0.9 * best).all()


@pytest.mark.parametrize(
    "threat", [ThreatModel(norm="linf", epsilon=0.1), ThreatModel(norm="l2", epsilon=0.3)], ids=repr
)
def test_a_universal_perturbation_is_one_and_inside_the_ball(threat: ThreatModel, images: Tensor) -> None:
    labels = torch.zeros(6, dtype=torch.int64)
    found = SZVRG(queries=300, universal=True).perturb(Quadratic(32), images, labels, threat)
    assert threat.around(images).contains(found).all()
    change = found - images
    assert torch.allclose(change, change[:1].expand_as(change), atol=1e-6) and change.abs().max() > 0.01


def test_an_attack_on_the_mean_of_surrogates_reaches_the_optimum_of_a_target_with_their_weights(
    images: Tensor, weights: Tensor
) -> None:
    def linear_model(offset: Tensor) -> nn.Module:
        model = nn.Sequential(nn.Flatten(), nn.Linear(32, 2))
        with torch.no_grad():
            model[1].weight[:] = torch.stack([weights + offset, -weights - offset])
            model[1].bias[:] = torch.tensor([20.0, -20.0])
        return model

    offset = torch.randn(32, generator=torch.Generator().manual_seed(3))
    threat, labels = ThreatModel(epsilon=0.1), torch.tensor([0, 0, 0, 0, 0, 1])
    attack = Transfer(surrogates=(linear_model(offset).train(), linear_model(-offset)), attack=PGD(steps=10))
    found = attack.perturb(linear_model(torch.zeros(32)), images, labels, threat)
    expected = images - 0.1 * weights.sign().view_as(images[0])
    # The target gets the last image wrong as it is.
    assert torch.allclose(found[:5], expected[:5], atol=1e-6) and torch.equal(found[5], images[5])


def test_surrogates_are_read_from_run_folders_and_named_in_recipes(tmp_path: Path) -> None:
    space, data = spaces.load("nasbench201", channels=4, cells_per_stage=1), datasets.load("digits")
    architecture = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|none~0|none~1|nor_conv_1x1~2|"
    model = space.network(space.parse(architecture), data).eval()
    table = {"data": {"name": "digits"}, "space": {"name": "nasbench201", "channels": 4, "cells_per_stage": 1}}
    (tmp_path / "config.toml").write_text(config.to_toml(table), encoding="utf-8")
    write_json(
        tmp_path / "derive.json", {"chosen": [architecture], "candidates": [], "num_validation": 1, "seconds": 0.0}
    )
    weights = tmp_path / "checkpoints" / "model-0.safetensors"
    save_state(weights, {"weights": model.state_dict()})
    images, labels = data.test.images[:4], data.test.labels[:4]
    threat, pgd = ThreatModel(epsilon=0.2), PGD(steps=3)
    expected = Transfer(surrogates=(model,), attack=pgd).perturb(model, images, labels, threat)
    for place in (tmp_path, weights):
        section = {"surrogates": [str(place)], "attack": {"name": "pgd", "steps": 3}}
        attack = config.build(attacks.get("transfer"), section)
        assert attack == Transfer(surrogates=(str(place),), attack=pgd)
        assert config.to_dict(attack)["surrogates"] == [str(place)]
        assert torch.equal(attack.perturb(model, images, labels, threat), expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OPT(queries=0), "OPT.queries must be a whole number of at least 1"),
        (lambda: SignOPT(directions=0), "SignOPT.directions must be a whole number of at least 1"),
        (lambda: SignOPT(smoothing=0), r"SignOPT.smoothing must be in \(0, 1\]"),
        (lambda: SZVRG(variance_reduction="both"), "must be one of memory, snapshot, none, but got 'both'"),  # type: ignore[arg-type]
        (lambda: SZVRG(directions=200, variance_reduction="snapshot"), "raise snapshot_directions"),
        (lambda: SZVRG(queries=5), "must pay for one estimate of the gradient, 6, but got 5"),
        (lambda: SZVRG(queries=100, variance_reduction="snapshot"), "one estimate of the gradient, 101, but got 100"),
        (lambda: OPT().minimise(len, np.full((1, 2), 3.0), [0]), "divide by 255"),  # type: ignore[arg-type]
        (lambda: OPT().minimise(len, np.zeros((1, 2)), [0], norm="l1"), "is for linf and l2, but got 'l1'"),  # type: ignore[arg-type]
        (lambda: transfer(), "must name at least one other model"),
        (lambda: transfer("nowhere"), "nowhere is neither a run folder"),
        (lambda: transfer(classifier(2)), "know 2 classes, but the model has 3"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_what_to_do(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def classifier(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(36, num_classes))


def transfer(*surrogates: str | nn.Module) -> Tensor:
    images, labels = torch.rand(2, 1, 6, 6), torch.zeros(2, dtype=torch.int64)
    return Transfer(surrogates=surrogates).perturb(classifier(3), images, labels, ThreatModel(epsilon=0.1))
