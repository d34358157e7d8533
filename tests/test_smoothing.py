"""Randomised smoothing: exact bounds of probabilities, radii against closed forms, the same rows in every way."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import robust_nas as rn
from robust_nas.certification.plan import CertificationPlan, SmoothingPlan, plan_with
from robust_nas.certification.smoothing import (
    ABSTAIN,
    SmoothedCertification,
    SmoothedClassifier,
    Smoothing,
    lower_bound,
)
from robust_nas.core.config import to_dict
from robust_nas.core.errors import InputError
from robust_nas.datasets import ImageSet
from robust_nas.evaluation import wilson_interval
from robust_nas.runtime.distributed import World
from robust_nas.runtime.progress import Progress
from robust_nas.runtime.stages import Stage

QUICK = Smoothing(sigma=0.25, num_samples=400)


def at_least(k: int, n: int, p: float) -> float:
    """Return P(X >= k) of a binomial X, summed term by term."""
    return math.fsum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k, n + 1))


def inverted(k: int, n: int, failure: float) -> float:
    """Return the p at which k or more of n are seen with probability `failure`, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if at_least(k, n, middle) < failure else (low, middle)
    return low


@pytest.mark.parametrize("failure", [0.05, 0.001])
def test_the_lower_bound_is_where_the_binomial_tail_has_the_probability_of_failure(failure: float) -> None:
    for n in (1, 2, 7, 100):
        counts = range(0, n + 1, max(1, n // 7))
        expected = [0.0 if k == 0 else inverted(k, n, failure) for k in counts]
        np.testing.assert_allclose(lower_bound(np.array(counts), n, failure), expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("n", [1, 10, 1000, 100_000])
def test_the_lower_bound_of_all_and_of_none_are_closed_forms(n: int) -> None:
    # All agree with probability p^n.
    np.testing.assert_allclose(lower_bound(np.array([0, n]), n, 0.001), [0.0, 0.001 ** (1 / n)], rtol=1e-12)


def test_the_lower_bound_fails_no_more_often_than_it_may_whatever_the_probability_is() -> None:
    n, failure = 60, 0.05
    bounds = lower_bound(np.arange(n + 1), n, failure)
    assert (np.diff(bounds) > 0).all()
    for p in np.linspace(0.01, 0.99, 50):
        wrong = math.fsum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1) if bounds[k] > p)
        assert wrong <= failure


def test_the_radius_is_sigma_times_the_quantile_and_an_image_without_a_majority_has_none() -> None:
    smoothing = Smoothing(sigma=0.5, num_samples=1000)
    p = inverted(1000 - 1, 1000, 0.001)
    # 549 of 1000 are not yet significantly more than half of them, 550 are.
    assert at_least(549, 1000, 0.5) > 0.001 > at_least(550, 1000, 0.5)
    radius = smoothing.radius(np.array([0, 500, 549, 550, 999, 1000]))
    assert (radius[:3] == 0).all() and radius[3] > 0
    assert radius[4] == pytest.approx(0.5 * NormalDist().inv_cdf(p), rel=1e-9)
    # The paper, section 3.2.2: with n samples that all agree, sigma Phi^-1(alpha^(1/n)).
    assert radius[5] == smoothing.largest_radius == pytest.approx(0.5 * NormalDist().inv_cdf(0.001 ** (1 / 1000)))


class Halves(nn.Module):
    """Class 1 where <w, x> is above b, of images with two pixels; f and g have the same hyperplane as boundary."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.tensor([3.0, -4.0]))

    def forward(self, images: Tensor) -> Tensor:
        above = images.flatten(1) @ self.weight - 0.5
        return torch.stack([-above, above], 1)


def pairs(count: int, seed: int = 0) -> ImageSet:
    """Return images of two pixels with the labels that `Halves` gives them."""
    images = torch.rand((count, 1, 1, 2), generator=torch.Generator().manual_seed(seed))
    return ImageSet.of(images, Halves()(images).argmax(1))


def distances(data: ImageSet) -> Tensor:
    """Return the distances to the hyperplane 3 x - 4 y = 1/2."""
    return (data.images.flatten(1).double() @ torch.tensor([3.0, -4.0]).double() - 0.5).abs() / 5


def test_the_radius_of_a_linear_classifier_is_below_the_distance_to_the_hyperplane_and_close_to_it() -> None:
    data = pairs(60)
    found = rn.smooth(Halves(), sigma=0.25, num_samples=20_000, batch_size=5000).certify(data)
    true = distances(data)
    assert (found.radius <= true).all()  # 60 times, each wrong with probability 0.001; with this seed none is
    # Phi(d / sigma) is known to 4 standard deviations of its estimate, or better.
    near = true < 0.5
    p = 0.5 * (1 + torch.erf(true / 0.25 / math.sqrt(2)))
    density = torch.exp(-((true / 0.25) ** 2) / 2) / math.sqrt(2 * math.pi)
    slack = 0.25 / density * (8 * (p * (1 - p) / 20_000).sqrt() + 8 / 20_000)
    assert near.sum() > 40 and (found.radius >= true - slack)[near].all()
    assert float((true - found.radius)[near].median()) < 0.02
    assert (found.predictions[~found.abstained] == data.labels[~found.abstained]).all()
    assert found.abstained.tolist() == (found.radius == 0).tolist()


class Coin(nn.Module):
    """Either class with probability 1/2, by the sign of one pixel's noise: images have 0 there."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([images[:, 0, 0, 0], -images[:, 0, 0, 0]], 1)


def test_a_coin_flip_is_answered_no_more_often_than_the_failure_says() -> None:
    count, failure = 500, 0.05
    data = ImageSet.of(torch.zeros((count, 1, 1, 1)), torch.zeros(count, dtype=torch.int64))
    smoothed = rn.smooth(Coin(), sigma=1.0, num_selection=5, num_samples=101, failure=failure)
    # The exact probabilities of an answer: 60 or more for the chosen class; 61 or more for one of both, two-sided.
    assert at_least(60, 101, 0.5) < failure < at_least(59, 101, 0.5)
    assert 2 * at_least(61, 101, 0.5) < failure < 2 * at_least(60, 101, 0.5)
    for answered, probability in (
        (int((~smoothed.certify(data).abstained).sum()), at_least(60, 101, 0.5)),
        (int((smoothed.predict(data.images) != ABSTAIN).sum()), 2 * at_least(61, 101, 0.5)),
    ):
        assert abs(answered - count * probability) < 4 * math.sqrt(count * probability)
        assert probability < failure


def test_a_prediction_is_the_class_that_the_network_gives_most_often() -> None:
    # The nearest hyperplane decides under noise, as it does without.
    data = pairs(20)
    answers = rn.smooth(Halves(), sigma=0.1, num_samples=2000).predict(data.images)
    clear = distances(data) > 0.02
    assert (answers == data.labels)[clear].all() and set(answers.tolist()) <= {0, 1, ABSTAIN}


LOOKING = 6
"""Passes that look at the model before an image is certified."""


class Watched(nn.Module):
    """Remembers what it is given, and stops before the pass number `stop`."""

    def __init__(self, stop: int | None = None) -> None:
        super().__init__()
        self.linear, self.seen, self.stop = nn.Linear(2, 3), list[Tensor](), stop
        with torch.no_grad():
            self.linear.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.7, 0.7]]))
            self.linear.bias.copy_(torch.tensor([0.0, 0.0, -0.3]))

    def __deepcopy__(self, memo: object) -> Watched:
        return self

    def forward(self, images: Tensor) -> Tensor:
        if len(self.seen) == self.stop:
            raise KeyboardInterrupt
        self.seen.append(images.detach())
        return self.linear(images.flatten(1))


def test_the_noise_is_gaussian_of_the_right_size_and_not_clipped() -> None:
    model = Watched()
    image = torch.tensor([0.1, 0.9]).view(1, 1, 1, 2)
    SmoothedClassifier(model, Smoothing(sigma=0.5, num_samples=20_000, batch_size=8000)).predict(image)
    noisy = torch.cat([seen for seen in model.seen if len(seen) > 2])
    assert [len(seen) for seen in model.seen][-3:] == [8000, 8000, 4000]
    noise = ((noisy - image) / 0.5).flatten().double()
    assert float(noisy.min()) < -1 and float(noisy.max()) > 2
    # 40,000 numbers: the mean to 5 standard errors, the variance and the shares of a normal distribution too.
    assert abs(float(noise.mean())) < 5 / 200 and abs(float(noise.var()) - 1) < 5 * math.sqrt(2) / 200
    for threshold in (-1.0, 0.0, 2.0):
        share = NormalDist().cdf(threshold)
        assert abs(float((noise < threshold).double().mean()) - share) < 5 * math.sqrt(share * (1 - share)) / 200
    assert len(noise.unique()) > 0.99 * len(noise)


def test_the_samples_that_count_are_not_those_that_chose() -> None:
    model, data = Watched(), pairs(2)
    SmoothedClassifier(model, QUICK).certify(data)
    passes = [seen for seen in model.seen if len(seen) > 2]
    assert [len(seen) for seen in passes] == [100, 400] * 2
    assert not torch.equal(passes[0], passes[1][:100])
    # Another image has noise of its own.
    assert not torch.allclose(passes[0] - data.images[0], passes[2] - data.images[1], atol=1e-3)


def stage(folder: Path | None = None, world: World | None = None, seed: int = 0) -> Stage:
    return Stage("certify", seed, world or World(), Progress(quiet=True), folder)


def found_in(certification: SmoothedCertification) -> list[dict[str, object]]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in certification.rows()]


@pytest.fixture(name="whole", scope="module")
def certified_at_once() -> list[dict[str, object]]:
    return found_in(SmoothedClassifier(Watched(), QUICK).certify(pairs(9)))


@pytest.mark.parametrize("chunk_size", [1, 2, 100])
@pytest.mark.parametrize("workers", [1, 2])
def test_chunks_and_workers_change_no_row(whole: list[dict[str, object]], chunk_size: int, workers: int) -> None:
    own = stage(world=World(workers=workers))
    assert found_in(SmoothedClassifier(Watched(), QUICK).certify(pairs(9), stage=own, chunk_size=chunk_size)) == whole


def test_fewer_images_or_an_image_of_another_label_change_nothing_of_the_others(
    whole: list[dict[str, object]],
) -> None:
    assert found_in(SmoothedClassifier(Watched(), QUICK).certify(pairs(9)[:4])) == whole[:4]
    assert found_in(SmoothedClassifier(Watched(), QUICK).certify(pairs(9), seed=1)) != whole


def test_an_interrupted_stage_goes_on_with_the_next_image_to_the_same_rows(
    whole: list[dict[str, object]], tmp_path: Path
) -> None:
    data = pairs(9)
    # Two passes of each image: stops in the fifth, of which nothing is kept.
    interrupted = Watched(stop=LOOKING + 2 * 4 + 1)
    with pytest.raises(KeyboardInterrupt):
        SmoothedClassifier(interrupted, QUICK).certify(data, stage=stage(tmp_path), chunk_size=2)
    rest = Watched()
    found = SmoothedClassifier(rest, QUICK).certify(data, stage=stage(tmp_path), chunk_size=3)
    assert len(rest.seen) == LOOKING + 2 * 5
    assert found_in(found) == whole
    for other, given, seed in (
        (dataclasses.replace(QUICK, sigma=0.3), data, 0),
        (QUICK, data[:8], 0),
        (QUICK, data, 1),
    ):
        with pytest.raises(InputError, match="other settings"):
            SmoothedClassifier(rest, other).certify(given, stage=stage(tmp_path, seed=seed))


def test_processes_share_the_images_and_get_the_rows_of_one(
    whole: list[dict[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, theirs = pairs(9), list[Tensor]()
    from robust_nas.certification.smoothing import _Sampler

    sampler = _Sampler(Watched(), QUICK, data[:1].images, 0)

    def gather(self: World, value: list[Tensor]) -> list[list[Tensor]]:
        return [value, [theirs.pop(0)] if theirs else []]

    # What the second process would send: chunks of two images, of which it has every second.
    theirs += [sampler.certify(data, range(start, start + 2)) for start in (2, 6)]
    monkeypatch.setattr(World, "gather", gather)
    monkeypatch.setattr(World, "barrier", lambda self: None)
    own = stage(world=World(rank=0, size=2))
    model = Watched()
    assert found_in(SmoothedClassifier(model, QUICK).certify(data, stage=own, chunk_size=2)) == whole
    assert len(model.seen) == LOOKING + 2 * 5


def test_certified_accuracy_counts_right_answers_whose_radius_is_larger() -> None:
    smoothing = Smoothing(sigma=0.25, num_samples=1000)
    found = SmoothedCertification(
        smoothing=smoothing,
        labels=torch.tensor([0, 1, 2, 0]),
        selected=torch.tensor([0, 1, 1, 0]),
        counts=torch.tensor([1000, 700, 1000, 500]),
        seconds=torch.tensor([1.0, 2.0, 3.0, 4.0]).double(),
    )
    assert found.predictions.tolist() == [0, 1, 1, ABSTAIN] and found.correct.tolist() == [True, True, False, False]
    middle, largest = found.radius[1].item(), smoothing.largest_radius
    assert found.certified(middle).tolist() == [True, False, False, False]
    assert [found.accuracy(epsilon) for epsilon in (0.0, middle * 0.99, largest * 0.99, largest)] == [0.5, 0.5, 0.25, 0]
    summary = found.summary(0.01)
    assert (summary.low, summary.high) == wilson_interval(2, 4)
    assert summary.average_radius == pytest.approx((largest + middle) / 4)
    assert (summary.certified, summary.correct, summary.abstained) == (0.5, 0.5, 0.25)
    assert (summary.seconds, summary.count, summary.epsilon) == (10.0, 4, 0.01)
    rows = found.rows()
    assert rows[3] == {
        "method": "smoothing", "norm": "l2", "sigma": 0.25, "num_samples": 1000, "failure": 0.001, "image": 3,
        "label": 0, "prediction": ABSTAIN, "abstained": True, "correct": False, "radius": 0.0, "selected": 0,
        "agreeing": 500, "seconds": 4.0,
    }  # fmt: skip
    assert SmoothedCertification.of_rows(smoothing, rows[::-1]).rows() == rows


class Undecided(nn.Module):
    """Gives NaN where the first pixel is above `limit`."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, images: Tensor) -> Tensor:
        first = images[:, 0, 0, :1]
        return torch.where(first > self.limit, torch.nan, torch.cat([0 * first, 0 * first + 1], 1))


def test_a_network_of_nan_is_of_no_class() -> None:
    data = ImageSet.of(torch.full((1, 1, 1, 2), 0.5), torch.tensor([1]))
    for limit, certified in ((-9.0, False), (0.5, False), (9.0, True)):
        smoothed = rn.smooth(Undecided(limit), sigma=0.5, num_samples=200)
        assert smoothed.certify(data).correct.tolist() == [certified]
        assert smoothed.predict(data.images).tolist() == [1 if certified else ABSTAIN]


def test_the_model_is_used_in_evaluation_mode_and_left_as_it_was() -> None:
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(2, 2)).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    first, second = (rn.smooth(model, sigma=0.25, num_samples=200).certify(pairs(3)) for _ in range(2))
    assert found_in(first) == found_in(second) and all(module.training for module in model.modules())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_a_network_whose_answer_depends_on_the_batch_is_refused() -> None:
    mixed = nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), nn.Flatten(), nn.Linear(2, 2))
    with pytest.raises(
        InputError, match=r"depend on the other images of its batch.*No single image can be certified\."
    ):
        rn.smooth(mixed, sigma=0.25).certify(pairs(2))


def test_an_image_without_a_class_is_refused_and_not_right_where_the_classifier_abstains() -> None:
    data = pairs(3)
    for label in (-1, 2):
        others = ImageSet.unchecked(data.pixels, torch.tensor([0, label, 1]), data.max_value)
        with pytest.raises(InputError, match=r"The labels are .*, but the model has 2 classes"):
            rn.smooth(Halves(), sigma=0.25).certify(others)
    found = SmoothedCertification(
        smoothing=Smoothing(sigma=0.25, num_samples=100),
        labels=torch.tensor([ABSTAIN]),
        selected=torch.tensor([0]),
        counts=torch.tensor([50]),
        seconds=torch.zeros(1),
    )
    assert found.predictions.tolist() == [ABSTAIN] and found.correct.tolist() == [False]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sigma": 0.0}, r"sigma must be in \(0, 10\], but got 0"),
        ({"sigma": -0.1}, "sigma must be"),
        ({"sigma": "much"}, "a fraction such as '8/255', but got 'much'"),
        ({"num_samples": 0}, "num_samples must be a whole number of at least 1, but got 0"),
        ({"num_selection": 0}, "num_selection must be a whole number of at least 1"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1"),
        ({"failure": 0.0}, "failure must be a probability above 0 and below 1, but got 0"),
        ({"failure": 1.0}, "failure must be a probability"),
        ({"num_samples": 9}, "certify nothing at a failure of 0.001, even if all agree; set it to 10 or more"),
        ({"samples": 9}, "no key 'samples'"),
    ],
)
def test_a_wrong_setting_is_said_in_a_sentence(settings: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        rn.smooth(Halves(), **{"sigma": 0.25, **settings})


def test_ten_samples_are_the_fewest_that_certify_something() -> None:
    assert Smoothing(sigma=1.0, num_samples=10).largest_radius > 0
    assert Smoothing(sigma="64/255", num_samples=2, failure=0.25 + 1e-9).largest_radius > 0


@pytest.mark.parametrize("images", [torch.full((2, 1, 1, 2), 200.0), torch.zeros((0, 1, 1, 2))])
def test_images_outside_zero_to_one_and_none_at_all_are_refused(images: Tensor) -> None:
    with pytest.raises(InputError, match=r"Images must be in \[0, 1\]|at least one image"):
        rn.smooth(Halves(), sigma=0.25).predict(images)
    with pytest.raises(InputError, match="at least one image"):
        rn.smooth(Halves(), sigma=0.25).certify(pairs(2)[:0])


def plan(**options: object) -> SmoothingPlan:
    made = plan_with(CertificationPlan(num_images=7), **options)  # type: ignore[arg-type]
    assert isinstance(made, SmoothingPlan)
    return made


def test_the_command_line_names_smoothing_with_its_settings_and_radii() -> None:
    made = plan(method="smoothing[sigma=64/255,num_samples=1000]", epsilons=["0.5", "64/255"], images=3)
    assert made.smoothing == Smoothing(sigma=64 / 255, num_samples=1000)
    assert (made.radii, made.num_images) == ((64 / 255, 0.5), 3)
    # The run's own radii are of another norm, and of the network.
    without = plan(method="smoothing[sigma=0.25]")
    assert (without.radii, without.num_images) == ((0.125, 0.25, 0.5), 7)
    assert isinstance(plan_with(CertificationPlan(), method="crown"), CertificationPlan)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "smoothing"}, "must have the key 'sigma'"),
        ({"method": "smoothing[sigma=0.25,samples=3]"}, "no key 'samples'"),
        ({"method": "smoothing[sigma=0.25]", "memory": 2.0}, "--memory is what bounds may take"),
        ({"method": "smoothing[sigma=0.25]", "epsilons": ["-1"]}, r"must be in \(0, 100\], but got -1"),
        ({"method": "smoothing[sigma=0.25]", "images": 0}, "num_images must be a whole number of at least 1"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        plan(**options)


def test_smoothing_is_no_kind_of_bound_and_auto_does_not_have_it() -> None:
    assert "smoothing" not in rn.bounds.names()
    with pytest.raises(InputError, match="has no 'smoothing'"):
        rn.certify(Halves(), pairs(2), rn.ThreatModel(norm="l2", epsilon=0.1), bound="smoothing")
    assert "smoothing" not in str(to_dict(rn.bounds.get("auto")()))


def test_so_few_samples_that_it_would_always_abstain_are_refused() -> None:
    constant = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    nn.init.zeros_(constant[1].weight)
    images, answer = torch.rand(2, 1, 2, 2), int(constant[1].bias.argmax())
    # Of 10 samples that agree, the two-sided test has 2 / 2 ** 10, and of 11, 1 / 2 ** 10 = 0.00098.
    with pytest.raises(InputError, match=r"10 give no answer at a failure of 0\.001, .* set it to 11 or more"):
        rn.smooth(constant, sigma=0.5, num_samples=10).predict(images)
    assert rn.smooth(constant, sigma=0.5, num_samples=11).predict(images).tolist() == [answer, answer]
