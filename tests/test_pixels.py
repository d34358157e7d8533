"""Lengths in pixel units, as people write them, and images as people hold them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import robust_nas as rn
from robust_nas import bounds
from robust_nas.core.errors import InputError
from robust_nas.core.pixels import class_labels, format_pixels, parse_pixels, unit_images
from robust_nas.datasets import ImageSet


@pytest.mark.parametrize("length", [0.2, 8 / 255, 0.5 / 255, 1 / 255, 0.0001])
def test_what_is_written_is_read_back(length: float) -> None:
    assert parse_pixels(format_pixels(length)) == pytest.approx(length, rel=1e-12)


@pytest.mark.parametrize("wrong", ["eight", "8/0", "", "8/255/2", True, None])
def test_what_is_no_length_is_refused(wrong: object) -> None:
    with pytest.raises(InputError, match="must be a number or a fraction"):
        parse_pixels(wrong)  # type: ignore[arg-type]


STORED = torch.tensor([0, 51, 102, 255])
UNIT = [0.0, 0.2, 0.4, 1.0]
LABELS = torch.tensor([0, 0, 0, 0])


def shaped(pixels: Tensor) -> Tensor:
    return pixels.view(-1, 1, 1, 1)


@pytest.mark.parametrize(
    ("given", "expected", "said"),
    [
        (torch.tensor([False, True]), [0.0, 1.0], None),
        (STORED.byte(), UNIT, None),
        *[(STORED.to(kind), UNIT, "taken for bytes") for kind in (torch.int64, torch.int16, torch.uint16)],
        (torch.tensor([0, 1], dtype=torch.uint8), [0.0, 1 / 255], "nearly black"),
        (torch.tensor(UNIT), UNIT, None),
        (torch.tensor(UNIT, dtype=torch.float64), UNIT, None),
        (torch.tensor([0.0, 0.25], dtype=torch.float16), [0.0, 0.25], None),
    ],
)
def test_images_of_every_type_are_what_they_stand_for(given: Tensor, expected: list[float], said: str | None) -> None:
    labels = torch.zeros(len(given), dtype=torch.int32)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        images = unit_images(shaped(given))
        found = ImageSet(shaped(given), labels)
    assert images.flatten().tolist() == pytest.approx(expected) and images.itemsize >= 4
    assert found.images.flatten().tolist() == pytest.approx(expected) and found.images.dtype == torch.float32
    assert found.labels.dtype == torch.int64
    # Once for each call, and at the line that made it.
    assert [said in str(each.message) and each.filename == __file__ for each in caught if said] == [True] * len(caught)
    assert len(caught) == (2 if said else 0)


WRONG = {
    r"in \[0, 1\].*divide by 255": shaped(torch.tensor([0.0, 2.0, 0, 0])),
    "from -0.5": shaped(torch.tensor([-0.5, 0, 0, 0])),
    "from nan": shaped(torch.tensor([torch.nan, 0, 0, 0])),
    r"in \[0, 255\].*from 0 to 256": shaped(torch.tensor([0, 256, 0, 0])),
    "from -1": shaped(torch.tensor([0, -1, 0, 0], dtype=torch.int8)),
    "complex64": shaped(torch.tensor(UNIT) + 0j),
    r"real numbers \[N, C, H, W\]": torch.tensor(UNIT).view(4, 1),
    "must be a tensor": shaped(torch.tensor(UNIT)).numpy(),
}
WRONG_LABELS = {
    "torch.bool": torch.zeros(4, dtype=torch.bool),
    "torch.float32": torch.zeros(4),
    "torch.complex64": torch.zeros(4) + 0j,
    "one for each of 4": torch.zeros(3, dtype=torch.int64),
    r"of shape \[4, 1\]": torch.zeros(4, 1, dtype=torch.int64),
    "counted from 0, but got -1": torch.tensor([0, -1, 0, 0]),
    "Labels must be a tensor": [0, 0, 0, 0],
}


def entries() -> dict[str, Callable[[Any, Any], Any]]:
    """The ways in that take images from people, and what comes out of them."""
    model, threat = nn.Sequential(nn.Flatten(), nn.Linear(1, 2)), rn.ThreatModel(epsilon=1e-6)
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0], [0.0]]))
        model[1].bias.copy_(torch.tensor([0.0, 0.3]))
    smoothed = rn.smooth(model, sigma=0.01, num_samples=20)
    return {
        "evaluate": lambda images, labels: rn.evaluate(model, images, labels, threat, attacks=["fgsm"]).worst_case,
        "certify": lambda images, labels: rn.certify(model, ImageSet(images, labels), threat)[0].certified,
        "smoothed": lambda images, labels: smoothed.certify(ImageSet(images, labels)).correct,
        "ensemble": lambda images, labels: rn.Ensemble([model]).predict(images) == class_labels(labels, 4),
        "fitted": lambda images, labels: (
            rn.build_ensemble([model], ImageSet(images, labels), threat).predict(images) == 0
        ),
        "smoothed answers": lambda images, labels: smoothed.predict(images) == class_labels(labels, 4),
        **{
            f"bound by {kind}": lambda images, labels, kind=kind: (
                bounds.get(kind)().margins(model, images, labels, threat).lower(threat).amin(1) > 0
            )
            for kind in ("interval", "auto")
        },
    }


@pytest.mark.filterwarnings("ignore:The model classifies")
@pytest.mark.parametrize("entry", entries())
def test_every_way_in_takes_the_same_images_for_the_same(entry: str) -> None:
    for images in (STORED.byte(), torch.tensor(UNIT)):
        found = entries()[entry](shaped(images), LABELS)
        assert found.tolist() == [value > 0.3 for value in UNIT]


@pytest.mark.parametrize("entry", entries())
def test_every_way_in_refuses_what_are_no_images_or_labels(entry: str) -> None:
    call, arrays_too = entries()[entry], entry == "evaluate"
    for message, images in WRONG.items():
        if arrays_too and isinstance(images, np.ndarray):
            continue
        with pytest.raises(InputError, match=message):
            call(images, LABELS)
    for message, labels in WRONG_LABELS.items():
        if arrays_too and isinstance(labels, list):
            continue
        with pytest.raises(InputError, match=message):
            call(shaped(torch.tensor(UNIT)), labels)


def test_whole_numbers_with_a_white_of_their_own_are_kept_within_it() -> None:
    found = ImageSet(shaped(torch.tensor([0, 250, 1000])), torch.zeros(3, dtype=torch.int64), max_value=1000)
    assert found.images.flatten().tolist() == [0.0, 0.25, 1.0]
    values = torch.tensor([0.0, 0.25, 1.0])
    mean, deviation = found.channel_statistics
    assert mean.item() == pytest.approx(values.mean().item())
    assert deviation.item() == pytest.approx(values.std(correction=0).item())
    with pytest.raises(InputError, match=r"\[0, 16\]"):
        ImageSet(shaped(torch.tensor([17], dtype=torch.uint8)), torch.tensor([0]), max_value=16)
    with pytest.raises(InputError, match="max_value must be a whole number"):
        ImageSet(shaped(torch.tensor([1.0])), torch.tensor([0]), max_value=0)


def test_the_numbers_of_numpy_are_lengths() -> None:
    assert parse_pixels(np.float64(0.25)) == parse_pixels(np.float32(0.25)) == 0.25 and parse_pixels(np.int64(1)) == 1
