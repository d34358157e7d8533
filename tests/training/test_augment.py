"""Augmentation: every image of a batch gets a draw of its own, with the distribution that the papers state."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch.nn import functional as F

from robust_nas.training._augment import crop_and_flip, cutout, mix_up


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_every_crop_is_a_window_of_the_padded_image_and_all_windows_occur_equally_often() -> None:
    image = torch.arange(1, 10, dtype=torch.float32).view(1, 1, 3, 3) / 10
    many = crop_and_flip(image.expand(9000, -1, -1, -1), 1, False, generator())
    padded = F.pad(image, (1, 1, 1, 1))[0, 0]
    windows = {tuple(padded[r : r + 3, c : c + 3].flatten().tolist()): 0 for r in range(3) for c in range(3)}
    for crop in many:
        windows[tuple(crop.flatten().tolist())] += 1
    assert len(windows) == 9
    # Each of 9 windows is expected 1,000 times with deviation sqrt(9000 * 1/9 * 8/9) = 29.8.
    assert all(abs(count - 1000) < 5 * math.sqrt(9000 * 8 / 81) for count in windows.values())


def test_half_of_the_images_are_mirrored_and_the_rest_left_alone() -> None:
    image = torch.tensor([[[[0.1, 0.2, 0.3]]]])
    many = crop_and_flip(image.expand(4000, -1, -1, -1), 0, True, generator())
    mirrored = (many == image.flip(3)).all(dim=(1, 2, 3))
    kept = (many == image).all(dim=(1, 2, 3))
    assert bool((mirrored ^ kept).all())
    assert abs(int(mirrored.sum()) - 2000) < 5 * math.sqrt(1000)


def holes_at(side: int, length: int) -> torch.Tensor:
    """Return for each centre [S] whether each place [S] is in the hole, by the definition, one place at a time."""
    rows = [
        [centre - length // 2 <= place <= centre - length // 2 + length - 1 for place in range(side)]
        for centre in range(side)
    ]
    return torch.tensor(rows)


@pytest.mark.parametrize(("height", "width", "length"), [(5, 4, 2), (4, 6, 3), (3, 3, 8), (6, 6, 1)])
def test_every_hole_is_a_square_around_a_pixel_and_all_pixels_are_centres_equally_often(
    height: int, width: int, length: int
) -> None:
    count = 500 * height * width
    holes = cutout(torch.ones(count, 2, height, width), length, generator()) == 0
    assert torch.equal(holes[:, 0], holes[:, 1])
    expected: dict[tuple[bool, ...], int] = {}
    for rows in holes_at(height, length):
        for columns in holes_at(width, length):
            hole = tuple((rows[:, None] & columns).flatten().tolist())
            expected[hole] = expected.get(hole, 0) + 500
    drawn = dict.fromkeys(expected, 0)
    for hole in holes[:, 0].flatten(1).tolist():
        drawn[tuple(hole)] += 1
    for hole, number in expected.items():
        assert abs(drawn[hole] - number) <= 5 * math.sqrt(number * (1 - number / count))


def test_the_share_of_holes_over_each_pixel_is_that_of_the_closed_form() -> None:
    side, length, count = 8, 4, 20_000
    covered = (cutout(torch.ones(count, 1, side, side), length, generator()) == 0).double().mean(dim=(0, 1))
    # Centres from place - 1 to place + 2 cover a place; those of them that are in the image count.
    along = [(min(place + length // 2, side - 1) - max(place - length // 2 + 1, 0) + 1) / side for place in range(side)]
    expected = torch.tensor(along, dtype=torch.float64).outer(torch.tensor(along, dtype=torch.float64))
    deviation = (expected * (1 - expected) / count).sqrt()
    assert bool(((covered - expected).abs() < 5 * deviation).all())


def test_outside_the_hole_nothing_changes_and_the_images_given_stay_as_they_were() -> None:
    images = torch.rand(50, 3, 9, 9) + 0.1
    before = images.clone()
    cut = cutout(images, 4, generator())
    assert torch.equal(images, before)
    assert bool(((cut == images) | (cut == 0)).all()) and bool((cut == 0).any(dim=(2, 3)).all())


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_the_share_of_mix_up_has_the_beta_distribution(alpha: float) -> None:
    images, labels = torch.zeros(2, 1, 1, 1, dtype=torch.float64), torch.tensor([0, 1])
    draws = generator()
    kept = [float(mix_up(images, labels, 2, alpha, draws)[1][0, 0]) for _ in range(4000)]
    # Of two images, half of the orders leave each its own partner.
    shares = [share for share in kept if share < 1]
    assert abs(len(shares) - 2000) < 5 * math.sqrt(1000)
    # Each image keeps the larger share: with the smaller one, which its partner has from it, they are the draws.
    assert min(shares) >= 0.5
    draws_or_not = [share if number % 2 else 1 - share for number, share in enumerate(shares)]
    assert stats.kstest(draws_or_not, "beta", args=(alpha, alpha)).pvalue > 1e-4
    deviation = math.sqrt(1 / (4 * (2 * alpha + 1)))
    assert sum(draws_or_not) / len(shares) == pytest.approx(0.5, abs=5 * deviation / math.sqrt(len(shares)))


def test_mixed_images_and_targets_are_the_same_combination_of_the_same_partners() -> None:
    images, labels = torch.rand(64, 3, 5, 5), torch.arange(64)
    mixed, targets = mix_up(images, labels, 64, 1.0, generator(1))
    assert targets.dtype == torch.float32 and targets.sum(1).tolist() == pytest.approx([1.0] * 64)
    # With a class for each image the targets name the partners and the share.
    assert mixed.numpy() == pytest.approx((targets @ images.flatten(1)).view_as(images).numpy(), abs=1e-6)
    share = targets.diagonal().min()
    paired = targets.diagonal() < 1
    assert torch.equal(targets.diagonal()[paired], share.expand(int(paired.sum())))
    # A permutation: each image is a partner once.
    partners = targets - torch.diag(torch.full((64,), float(share)))
    assert partners.sum(0).tolist() == pytest.approx([1 - float(share)] * 64, abs=1e-6)


def test_mixed_images_stay_in_0_1_exactly_and_targets_work_as_probabilities() -> None:
    for seed in range(200):
        white, targets = mix_up(torch.ones(4, 1, 2, 2), torch.tensor([0, 1, 2, 0]), 3, 1.0, generator(seed))
        assert float(white.max()) <= 1.0
    loss = F.cross_entropy(torch.zeros(4, 3), targets)
    assert float(loss) == pytest.approx(math.log(3), rel=1e-5)


def test_draws_come_from_the_generator_alone() -> None:
    images, labels, state = torch.rand(8, 3, 6, 6), torch.arange(8), torch.get_rng_state()
    results = [
        (
            crop_and_flip(images, 2, True, generator(seed)),
            cutout(images, 3, generator(seed)),
            *mix_up(images, labels, 8, 0.5, generator(seed)),
        )
        for seed in (3, 3, 4)
    ]
    assert all(torch.equal(*pair) for pair in zip(results[0], results[1], strict=True))
    assert not any(torch.equal(*pair) for pair in zip(results[0], results[2], strict=True))
    assert torch.equal(state, torch.get_rng_state())
