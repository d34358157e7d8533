"""Data of one's own: what arrays, data sets and loaders of torch hold is what the project works on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset
from torch.utils.data import Dataset as TorchDataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import Normalize, ToTensor

import robust_nas as rn
from robust_nas.core.errors import InputError

THREAT = rn.ThreatModel(epsilon=0.05)


class Samples(TorchDataset[Any]):
    """A data set whose samples are those of a list, which would be asked for samples beyond its end for ever."""

    def __init__(self, samples: list[Any]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, place: int) -> Any:
        return self.samples[place % len(self.samples)]


class Stream(IterableDataset[Any]):
    """The same as a stream."""

    def __init__(self, samples: list[Any]) -> None:
        self.samples = samples

    def __iter__(self) -> Any:
        return iter(self.samples)


PIXELS = np.random.default_rng(0).integers(0, 256, (40, 6, 5, 3), dtype=np.uint8)
LABELS = [place % 4 for place in range(40)]
BYTES = torch.from_numpy(PIXELS).permute(0, 3, 1, 2)
PICTURES = [Image.fromarray(pixels) for pixels in PIXELS]
UNIT = [ToTensor()(picture) for picture in PICTURES]

HELD: dict[str, Any] = {
    "tensors": (BYTES, torch.tensor(LABELS)),
    "arrays": (PIXELS.transpose(0, 3, 1, 2), np.array(LABELS)),
    "floats and a list": [BYTES.float() / 255, LABELS],
    "a data set of tensors": TensorDataset(torch.stack(UNIT), torch.tensor(LABELS)),
    "pictures": Samples(list(zip(PICTURES, LABELS, strict=True))),
    "ToTensor": Samples(list(zip(UNIT, LABELS, strict=True))),
    "arrays with channels last": Samples(list(zip(PIXELS, np.array(LABELS), strict=True))),
    "tables": Samples([{"img": image, "label": label} for image, label in zip(PICTURES, LABELS, strict=True)]),
    "more than two parts": Samples([(image, label, "a name") for image, label in zip(UNIT, LABELS, strict=True)]),
    "a stream": Stream(list(zip(UNIT, LABELS, strict=True))),
    "a loader": DataLoader(Samples(list(zip(UNIT, LABELS, strict=True))), batch_size=7),
    "a loader of a stream": DataLoader(Stream(list(zip(UNIT, LABELS, strict=True))), batch_size=40),
}


@pytest.mark.parametrize("held", HELD)
def test_what_people_hold_is_the_image_set_of_its_pixels_and_labels(held: str) -> None:
    found = rn.datasets.image_set(HELD[held])
    assert torch.equal(found.images, torch.stack(UNIT))
    assert found.labels.tolist() == LABELS


def test_images_that_came_from_bytes_are_kept_as_bytes_and_others_as_they_are() -> None:
    assert rn.datasets.image_set(HELD["ToTensor"]).pixels.dtype == torch.uint8
    between = [image + 1e-3 * (place == 39) * (image < 0.5) for place, image in enumerate(UNIT)]
    found = rn.datasets.image_set(Samples(list(zip(between, LABELS, strict=True))))
    assert torch.equal(found.images, torch.stack(between))


def test_every_call_takes_them() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(90, 4)).eval()
    images, loader = rn.ImageSet(BYTES, torch.tensor(LABELS)), HELD["a loader"]
    expected = rn.evaluate(model, images, THREAT, attacks=["pgd"])
    assert rn.evaluate(model, loader, THREAT, attacks=["pgd"]).rows() == expected.rows()
    assert rn.evaluate(model, *HELD["arrays"], THREAT, attacks=["pgd"]).rows() == expected.rows()
    (certified,) = rn.certify(model, loader, THREAT)
    assert torch.equal(certified.margin, rn.certify(model, images, THREAT)[0].margin)
    smoothed = rn.smooth(model, sigma=0.1, num_samples=40)
    assert torch.equal(smoothed.certify(loader).counts, smoothed.certify(images).counts)
    ensemble = rn.build_ensemble([model, model], loader, THREAT)
    assert ensemble.weights == rn.build_ensemble([model, model], images, THREAT).weights
    options: dict[str, Any] = {"epochs": 1, "batch_size": 8, "padding": 0}
    first, second = (nn.Sequential(nn.Flatten(), nn.Linear(90, 4)) for _ in range(2))
    second.load_state_dict(first.state_dict())
    rn.train(first, HELD["pictures"], THREAT, **options)
    rn.train(second, rn.Dataset.from_arrays(HELD["arrays"]), THREAT, **options)
    assert torch.equal(first[1].weight, second[1].weight)


def test_splits_that_are_not_given_are_cut_out_of_the_training_images_the_same_ones_each_time() -> None:
    data, again = (rn.Dataset.from_torch(HELD[held]) for held in ("pictures", "a loader"))
    parts = [data.train, data.validation, data.test]
    assert [len(part) for part in parts] == [32, 4, 4]
    together = torch.cat([part.images for part in parts])
    assert {image.numpy().tobytes() for image in together} == {image.numpy().tobytes() for image in UNIT}
    assert data.fingerprint() == again.fingerprint()
    given = rn.Dataset.from_arrays(HELD["arrays"], test=(BYTES[:2], LABELS[:2]))
    assert [len(part) for part in (given.train, given.validation, given.test)] == [36, 4, 2]


def _rows(images: rn.ImageSet) -> list[tuple[bytes, int]]:
    return [
        (pixels.numpy().tobytes(), label) for pixels, label in zip(images.pixels, images.labels.tolist(), strict=True)
    ]


def test_a_folder_that_torchvision_reads_is_the_data_set_that_is_read_without_it(tmp_path: Path) -> None:
    for place, picture in enumerate(PICTURES):
        split = ("train", "validation", "test")[place % 3]
        (tmp_path / split / f"c{place % 2}").mkdir(parents=True, exist_ok=True)
        picture.resize((6, 6)).save(tmp_path / split / f"c{place % 2}" / f"{place:02}.png")
    ours = rn.datasets.load("folder", root=tmp_path, size=6)
    theirs = [ImageFolder(str(tmp_path / split), transform=ToTensor()) for split in ("train", "validation", "test")]
    found = rn.Dataset.from_torch(*theirs, name=ours.name)
    assert found.classes == ours.classes == ("c0", "c1")
    for split in ("train", "validation", "test"):
        # Ours are in the project's own order.
        mine, own = (sorted(_rows(getattr(data, split))) for data in (found, ours))
        assert mine == own and len(own) > 0
    assert rn.Dataset.from_torch(Subset(theirs[0], range(8))).classes == ("c0", "c1")


def test_the_same_images_in_two_splits_are_noted() -> None:
    arrays = HELD["arrays"]
    (note,) = rn.Dataset.from_arrays(arrays, test=(BYTES[:4], LABELS[:4]), validation=(BYTES[:4], LABELS[:4])).notes
    assert note.startswith("The validation and the test split are the same images")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            Samples([(Normalize([0.5] * 3, [0.2] * 3)(image), 0) for image in UNIT]),
            r"in \[0, 1\].*normalisation to the",
        ),
        (
            Samples([(UNIT[0], 0), (UNIT[1][:, :4], 1)]),
            r"number 1 is of \[3, 4, 5\], but the ones before of \[3, 6, 5\]",
        ),
        (Samples([]), "has no samples"),
        (Samples([UNIT[0]]), "an image and its label, but got one Tensor"),
        (Samples([{"picture": UNIT[0], "label": 0}]), "'image' and a 'label', but has picture, label"),
        (Samples([("cat.png", 0)]), "Pillow's, but got one str"),
        (Samples([(Image.new("F", (4, 4)), 0)]), "do not say what white is"),
        (Samples([(UNIT[0], [0.1, 0.9])]), "whole numbers, one for each of 1 images"),
        ((PIXELS, LABELS), r"channels come last; give images\.transpose"),
        ((BYTES, LABELS[:7]), "one for each of 40 images"),
        (("images", LABELS), "Images must be"),
        (rn.Dataset.from_arrays(HELD["arrays"]), r"one ImageSet .*data\.test.* one Dataset"),
        ([BYTES], "data must be one ImageSet .* but got one list"),
        (None, "but got one NoneType"),
    ],
)
def test_what_are_no_images_with_labels_is_refused_in_a_sentence(given: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        rn.evaluate(nn.Flatten(), given, THREAT)


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"train": (BYTES[:2], LABELS[:2])}, "give at least 3"),
        ({"train": HELD["arrays"], "test": (BYTES[:, :, :4], LABELS)}, r"test images are of \[3, 4, 5\]"),
        ({"train": HELD["arrays"], "test": (BYTES[:0], torch.tensor(LABELS)[:0])}, "test split has no images"),
        ({"train": HELD["arrays"], "classes": ["a", "b"]}, "must be places in its 2 classes"),
    ],
)
def test_splits_that_do_not_fit_are_refused_in_a_sentence(splits: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        rn.Dataset.from_arrays(**splits)


def test_a_search_and_its_derivation_take_them() -> None:
    space = rn.spaces.load("nasbench201", channels=2, cells_per_stage=1, stages=1)
    data = rn.Dataset.from_arrays(HELD["arrays"])
    found, expected = (
        rn.search(space, held, THREAT, epochs=1, batch_size=8, validation_images=2) for held in (HELD["pictures"], data)
    )
    assert found.probabilities == expected.probabilities
    assert rn.derive(found, space, HELD["pictures"], THREAT, count=1, pool=1, batch_size=8)
