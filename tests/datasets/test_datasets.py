import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from robust_nas import datasets
from robust_nas.core.errors import InputError
from robust_nas.datasets import epoch_batches
from robust_nas.runtime.distributed import World


def _rows(images: torch.Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


def test_digits_are_split_into_disjoint_parts_that_never_change():
    data = datasets.load("digits")
    assert [len(part) for part in (data.train, data.validation, data.test)] == [1077, 360, 360]
    again = datasets.load("digits")
    assert torch.equal(data.test.pixels, again.test.pixels)
    # The first labels of each part, fixed for ever: results on other splits would not be comparable.
    assert [part.labels[:8].tolist() for part in (data.train, data.validation, data.test)] == [
        [7, 9, 1, 1, 8, 7, 0, 1],
        [2, 1, 4, 5, 4, 8, 6, 7],
        [2, 7, 6, 1, 1, 9, 8, 5],
    ]
    together = torch.cat([part.pixels for part in (data.train, data.validation, data.test)])
    assert sorted(together.flatten().tolist()) == sorted(load_digits().images.astype(int).flatten().tolist())


def test_images_are_in_0_1_and_statistics_are_those_of_the_training_images():
    data = datasets.load("digits")
    assert float(data.train.images.min()) == 0.0 and float(data.train.images.max()) == 1.0
    mean, std = data.channel_statistics
    images = data.train.images.double()
    assert float(mean) == pytest.approx(float(images.mean()), rel=1e-6)
    assert float(std) == pytest.approx(float(images.std(correction=0)), rel=1e-6)


def test_mnist_is_read_from_its_original_files(shared_data):
    data = datasets.load("mnist", root=shared_data, download=False, train_size=500, validation_size=300, test_size=200)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [500, 300, 200]
    assert data.image_shape == (1, 28, 28)
    assert not _rows(data.train.pixels) & _rows(data.validation.pixels)


def test_the_validation_part_does_not_depend_on_the_size_of_the_training_part(shared_data):
    parts = [
        datasets.load("mnist", root=shared_data, download=False, train_size=size, validation_size=50, test_size=10)
        for size in (100, 200)
    ]
    assert torch.equal(parts[0].validation.pixels, parts[1].validation.pixels)


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_missing_files_that_may_not_be_downloaded_are_named(tmp_path, name):
    with pytest.raises(InputError, match=r"is not in .*--data-root"):
        datasets.load(name, root=tmp_path, download=False)


def test_cifar10_is_read_from_torchvisions_form(tmp_path, monkeypatch):
    import hashlib
    import pickle

    from torchvision.datasets import CIFAR10

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    draw = np.random.default_rng(0)
    hashes = {}
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    for name in names:
        batch = {"data": draw.integers(0, 256, (20, 3072), dtype=np.uint8), "labels": draw.integers(0, 10, 20).tolist()}
        (folder / name).write_bytes(pickle.dumps(batch))
        hashes[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    meta = {"label_names": [f"class {i}" for i in range(10)]}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta))
    monkeypatch.setattr(CIFAR10, "train_list", [[name, hashes[name]] for name in names[:5]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", hashes["test_batch"]]])
    md5 = hashlib.md5((folder / "batches.meta").read_bytes()).hexdigest()
    monkeypatch.setattr(CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": md5})
    data = datasets.load("cifar10", root=tmp_path, download=False, validation_size=30)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [70, 30, 20]
    assert data.image_shape == (3, 32, 32)
    last = pickle.loads((folder / "test_batch").read_bytes())
    first_red = {row[0] for row in last["data"]}
    assert {int(image[0, 0, 0]) for image in data.test.pixels} == {int(value) for value in first_red}


def _make_folder(root, classes: int, count: int, size=(6, 5)) -> None:
    draw = np.random.default_rng(len(root.name))
    for label in range(classes):
        folder = root / f"class-{label}"
        folder.mkdir(parents=True)
        for number in range(count):
            pixels = draw.integers(0, 256, (*size, 3), dtype=np.uint8)
            pixels[0, 0, 0] = label
            Image.fromarray(pixels).save(folder / f"{number}.png")


def test_a_folder_of_class_folders_is_split_without_overlap(tmp_path):
    _make_folder(tmp_path / "images", 3, 10)
    data = datasets.load("folder", root=tmp_path / "images")
    assert [len(part) for part in (data.train, data.validation, data.test)] == [18, 6, 6]
    assert data.classes == ("class-0", "class-1", "class-2")
    parts = [_rows(part.pixels) for part in (data.train, data.validation, data.test)]
    assert len(parts[0] | parts[1] | parts[2]) == 30
    for part in (data.train, data.validation, data.test):
        assert part.pixels[:, 0, 0, 0].tolist() == part.labels.tolist()


def test_train_and_test_folders_are_kept_apart(tmp_path):
    _make_folder(tmp_path / "train", 2, 10)
    _make_folder(tmp_path / "test", 2, 3)
    data = datasets.load("folder", root=tmp_path, grey=True, size=4, validation_size=4)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [16, 4, 6]
    assert data.image_shape == (1, 4, 4)


def test_cifar10_as_jpeg_is_a_folder_like_any_other(shared_data, tmp_path):
    import tarfile

    with tarfile.open(shared_data / "cifar10-jpeg.tar.xz") as archive:
        members = []
        for member in archive:
            if member.isfile() and member.name.endswith(("0001.jpg", "0002.jpg", "0003.jpg")):
                members.append(member)
                archive.extract(member, tmp_path, filter="data")
            if len(members) == 9:
                break
    (root,) = {path.parent.parent for path in tmp_path.rglob("*.jpg")}
    data = datasets.load("folder", root=root)
    assert data.image_shape == (3, 32, 32)
    assert len(data.classes) == 3


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda root: _make_folder(root, 1, 3), "two or more class folders with images in them, but it has 1"),
        (lambda root: (root / "a").mkdir(), "the class folder 'a' has no images"),
        (lambda root: _make_folder(root / "train", 2, 3), "both 'train' and 'test'"),
        (
            lambda root: (_make_folder(root, 2, 8), (root / "class-0" / "x.png").write_text("no image")),
            "cannot be read",
        ),
        (lambda root: (_make_folder(root, 2, 8), _make_folder(root / "z", 1, 9, (7, 7))), "set data.size"),
    ],
)
def test_a_folder_with_a_mistake_is_refused_in_one_sentence(tmp_path, build, message):
    build(tmp_path)
    with pytest.raises(InputError, match=message):
        datasets.load("folder", root=tmp_path)


def test_parts_that_do_not_fit_are_refused(shared_data):
    with pytest.raises(InputError, match="cannot give parts of"):
        datasets.load("mnist", root=shared_data, download=False, train_size=60_000)


def test_ranks_share_every_global_batch_without_overlap():
    alone = epoch_batches(103, 20, World(), 0, "train", 3)
    pair = [epoch_batches(103, 20, World(rank=rank, size=2), 0, "train", 3) for rank in (0, 1)]
    assert len(alone) == 5
    for whole, first, second in zip(alone, *pair, strict=True):
        assert len(first) == len(second) == 10
        assert set(whole.tolist()) == {*first.tolist(), *second.tolist()}
    assert not torch.equal(alone[0], epoch_batches(103, 20, World(), 0, "train", 4)[0])


def test_a_batch_that_does_not_divide_among_the_processes_is_refused():
    with pytest.raises(InputError, match="does not divide among 3 processes"):
        epoch_batches(100, 20, World(size=3), 0)


def test_labels_that_are_no_places_in_the_classes_are_refused():
    data = datasets.load("digits")
    shifted = dataclasses.replace(data.validation, labels=data.validation.labels + 1)
    with pytest.raises(InputError, match=r"digits's validation split must be .* from 0 to 9, but are from 1 to 10"):
        dataclasses.replace(data, validation=shifted)
