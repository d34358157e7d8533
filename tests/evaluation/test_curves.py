"""Accuracy over epsilon: radii with a warm start, and the distances of the nearest adversarial examples."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from robust_nas.attacks import Continuing
from robust_nas.attacks.apgd import APGD
from robust_nas.attacks.fab import FAB
from robust_nas.attacks.pgd import PGD
from robust_nas.attacks.sign_opt import SignOPT
from robust_nas.core.errors import InputError
from robust_nas.datasets import ImageSet
from robust_nas.evaluation import Distortions, minimal_distortions, robustness_curve
from robust_nas.records.evaluation import Point
from robust_nas.runtime.distributed import World
from robust_nas.runtime.progress import Progress
from robust_nas.runtime.stages import Stage
from robust_nas.threat import ThreatModel

LINF = ThreatModel(epsilon=0.1)


class Linear(nn.Module):
    """Two classes apart by a plane: the distance of an image is |w x + b| over the dual norm of w."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.w = nn.Parameter(torch.randn(12, generator=generator))
        self.b = nn.Parameter(-self.w.detach().sum() / 2)  # the plane goes through the centre of the box

    def forward(self, images: Tensor) -> Tensor:
        f = images.flatten(1) @ self.w + self.b
        return torch.stack([-f, f], dim=1)


@pytest.fixture(scope="module")
def model() -> Linear:
    return Linear()


@pytest.fixture(scope="module")
def data(model: Linear) -> ImageSet:
    """Return grey images around the centre of the box, where its walls are too far to matter, with right labels."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(110, 146, (40, 1, 3, 4), generator=generator)
    labels = model(pixels / 255).argmax(1)
    labels[:3] = 1 - labels[:3]  # three are wrong from the start
    return ImageSet(pixels.to(torch.uint8), labels)


def distance(model: Linear, data: ImageSet, norm: str) -> Tensor:
    f = data.images.flatten(1) @ model.w + model.b
    dual = {"linf": 1, "l2": 2, "l1": math.inf}[norm]
    right = (f > 0).long() == data.labels
    return torch.where(right, f.abs() / model.w.norm(p=dual), torch.zeros_like(f)).detach().double()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("attack", [PGD(steps=20), APGD(steps=20)], ids=["pgd", "apgd"])
def test_the_curve_of_a_linear_model_is_that_of_its_distances(
    model: Linear, data: ImageSet, norm: str, attack: PGD | APGD
) -> None:
    exact = distance(model, data, norm)
    threat = ThreatModel(norm=norm, epsilon=1.0)  # type: ignore[arg-type]
    # In the middle between two distances, so that rounding does not decide.
    ordered = exact[exact > 0].sort().values
    radii = [float(ordered[place : place + 2].mean()) for place in (3, 15, 30)]
    curve = robustness_curve(model, data, threat, [0.0, *radii], attack, batch_size=16).points()
    assert [point.epsilon for point in curve] == [0.0, *radii]
    assert [point.accuracy for point in curve] == [float((exact > radius).double().mean()) for radius in [0, *radii]]
    assert all(point.low <= point.accuracy <= point.high and point.count == 40 for point in curve)
    assert {point.norm for point in curve} == {norm}


class Bends(nn.Module):
    """A network on which few steps from a random start find less than the same steps from a good point."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(36, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
            self.last = nn.Linear(64, 4)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.last(self.net(4 * images))
        return logits


def test_over_all_radii_a_warm_start_finds_more_than_the_same_steps_from_cold() -> None:
    model = Bends()
    images = torch.randint(0, 256, (200, 1, 6, 6), generator=torch.Generator().manual_seed(0))
    data = ImageSet(images.to(torch.uint8), model(images / 255).argmax(1))
    radii = [0.02, 0.04, 0.06, 0.08]
    attack = PGD(steps=3)
    assert isinstance(attack, Continuing)
    for seed in range(3):
        warm = [point.accuracy for point in robustness_curve(model, data, LINF, radii, attack, seed=seed).points()]
        cold = [
            robustness_curve(model, data, LINF, [radius], attack, seed=seed).points()[0].accuracy for radius in radii
        ]
        assert warm[0] == cold[0] and sum(warm) < sum(cold) - 0.02


def test_an_attack_continues_from_the_points_it_is_given(model: Linear, data: ImageSet) -> None:
    images, labels = data.images, data.labels
    points = LINF.around(images).project(images + 0.05)
    assert torch.equal(PGD(steps=0).continue_from(model, points, images, labels, LINF), points)
    # Of two restarts, the first begins there, and the second at random.
    both = PGD(steps=0, restarts=2).continue_from(model, points, images, labels, LINF)
    assert not torch.equal(both, points) and (both == points).flatten(1).all(1).any()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_distortions_on_a_linear_model_are_the_distances_to_its_plane(model: Linear, data: ImageSet, norm: str) -> None:
    exact = distance(model, data, norm)
    found = minimal_distortions(model, data, ThreatModel(norm=norm, epsilon=0.5))  # type: ignore[arg-type]
    assert (found.attack, found.norm) == ("fab", norm)
    assert torch.equal(found.distances == 0, exact == 0)
    # FAB's points are a thousandth beyond the boundary, and at most a hundredth.
    assert (found.distances >= exact * (1 - 1e-6)).all() and (found.distances <= exact * 1.011).all()
    for share in (0.25, 0.5, 0.9):
        expected = exact.sort().values[math.ceil(share * 40) - 1]
        assert found.quantile(share) == pytest.approx(float(expected), rel=0.011)


def test_a_hard_label_attack_gives_distortions_too(model: Linear, data: ImageSet) -> None:
    exact = distance(model, data, "l2")
    l2 = ThreatModel(norm="l2", epsilon=1.0)
    found = minimal_distortions(model, data, l2, SignOPT(queries=1500), batch_size=20).distances
    assert torch.equal(found == 0, exact == 0) and (found >= exact * (1 - 1e-6)).all()
    assert float((found[exact > 0] / exact[exact > 0]).median()) < 1.2


def test_quantiles_are_order_statistics_and_null_where_too_little_was_found() -> None:
    found = Distortions(
        "fab", "l2", torch.tensor([3.0, 0.0, math.inf, 1.0, 2.0], dtype=torch.float64), torch.zeros(5).long()
    )
    assert [found.quantile(share) for share in (0.2, 0.21, 0.6, 0.8)] == [0.0, 1.0, 2.0, 3.0]
    assert found.quantile(1) == math.inf and found.accuracy(1.5) == 0.6 and found.accuracy(3.0) == 0.2
    summary = found.summary()
    assert summary.quantiles == {"0.1": 0.0, "0.25": 1.0, "0.5": 2.0, "0.75": 3.0, "0.9": None}
    assert (summary.count, summary.found) == (5, 4)
    with pytest.raises(InputError, match="share must be in"):
        found.quantile(0)


def test_an_attack_that_does_not_minimise_is_refused(model: Linear, data: ImageSet) -> None:
    with pytest.raises(InputError, match="pgd looks for no smallest change; choose fab"):
        minimal_distortions(model, data, LINF, "pgd")


def test_a_killed_curve_continues_to_the_same_numbers(model: Linear, data: ImageSet, tmp_path: Path) -> None:
    class Killed(PGD):
        calls = 0

        def perturb(self, *args: object, **kwargs: object) -> Tensor:
            Killed.calls += 1
            if Killed.calls == 3:
                raise KeyboardInterrupt
            return super().perturb(*args, **kwargs)  # type: ignore[arg-type]

    def curve(folder: Path | None) -> tuple[Point, ...]:
        stage = Stage("curve", 0, World(), Progress(quiet=True), folder)
        curve = robustness_curve(model, data, LINF, [0.02, 0.05], Killed(steps=2), batch_size=10, stage=stage)
        return curve.points()

    with pytest.raises(KeyboardInterrupt):
        curve(tmp_path)
    again, calls = curve(tmp_path), Killed.calls
    assert calls == 5  # four chunks, one of them begun twice
    assert again == curve(None)


def test_fab_is_not_stopped_at_the_threats_radius(model: Linear, data: ImageSet) -> None:
    small = minimal_distortions(model, data, ThreatModel(epsilon=0.001), FAB(targets=1))
    assert float(small.distances.max()) > 0.005
