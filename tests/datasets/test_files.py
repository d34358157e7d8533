"""Images in files: the crops are torchvision's in distribution, and the same however many processes decode."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import random
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torchvision import transforms
from torchvision.transforms import functional

from robust_nas.core.errors import InputError, Interrupted
from robust_nas.core.seeds import seed_at
from robust_nas.datasets import ImageSet, _files
from robust_nas.datasets._class_folders import ClassFolders
from robust_nas.datasets._files import ImageFiles, centre_crop, random_crop


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


@pytest.fixture
def files(tmp_path: Path) -> ImageFiles:
    """Return 20 images of noise of several sizes."""
    paths = [tmp_path / f"{number}.png" for number in range(20)]
    for number, path in enumerate(paths):
        noise(40 + number, 60 - 2 * number, number).save(path)
    return ImageFiles.of(paths, [number % 3 for number in range(20)], 16)


# --- the crops --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "height"), [(500, 375), (224, 448), (13, 9)])
def test_random_crops_have_the_distribution_of_torchvisions(width: int, height: int) -> None:
    count, generator, blank = 4000, random.Random(0), torch.empty(3, height, width)
    torch.manual_seed(0)
    theirs = np.array(
        [transforms.RandomResizedCrop.get_params(blank, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(count)]
    )
    left, top, right, bottom = np.array([random_crop(width, height, generator) for _ in range(count)]).T
    assert min(left.min(), top.min()) >= 0 and right.max() <= width and bottom.max() <= height
    ours = np.stack([top, left, bottom - top, right - left], axis=1)
    for drawn in zip(ours.T, theirs.T, strict=True):
        assert stats.ks_2samp(*drawn).pvalue > 1e-4
    for combine in (lambda box: box[:, 2] * box[:, 3], lambda box: box[:, 3] / box[:, 2]):
        assert stats.ks_2samp(combine(ours), combine(theirs)).pvalue > 1e-4


@pytest.mark.parametrize(("width", "height"), [(1000, 10), (10, 1000), (1, 90), (40, 1)])
def test_an_image_that_no_crop_fits_gives_its_centre_as_torchvision_does(width: int, height: int) -> None:
    top, left, crop_height, crop_width = transforms.RandomResizedCrop.get_params(
        torch.empty(3, height, width), [0.08, 1.0], [3 / 4, 4 / 3]
    )
    box = random_crop(width, height, random.Random(0))
    assert box == (left, top, left + crop_width, top + crop_height)


@pytest.mark.parametrize("size", [224, 33])
@pytest.mark.parametrize(("width", "height"), [(500, 375), (333, 500), (256, 256), (90, 37), (301, 300)])
def test_the_centre_crop_is_torchvisions_pixel_by_pixel(width: int, height: int, size: int) -> None:
    image = noise(width, height)
    usual = transforms.Compose([transforms.Resize(round(size * 256 / 224)), transforms.CenterCrop(size)])
    assert np.array_equal(np.asarray(centre_crop(image, size)), np.asarray(usual(image)))


def test_what_is_read_is_the_drawn_box_resized_as_torchvision_resizes(files: ImageFiles) -> None:
    (batch,) = files.batches([torch.tensor([7, 3])], seed=5)
    for row, index in enumerate((7, 3)):
        image = noise(40 + index, 60 - 2 * index, index)
        left, top, right, bottom = random_crop(*image.size, random.Random(seed_at(5, index)))
        expected = functional.resized_crop(image, top, left, bottom - top, right - left, [16, 16])
        assert np.array_equal(batch.pixels[row].permute(1, 2, 0).numpy(), np.asarray(expected))


@pytest.mark.parametrize("size", [64, 128])
def test_a_photograph_decoded_at_a_part_of_its_size_looks_as_the_whole_one_does(tmp_path: Path, size: int) -> None:
    from importlib import resources

    source = resources.files("sklearn.datasets") / "images" / "china.jpg"
    (tmp_path / "china.jpg").write_bytes(source.read_bytes())
    Image.open(tmp_path / "china.jpg").save(tmp_path / "china.png")  # never decoded in part
    small, whole = (
        torch.cat(
            [
                batch.images
                for seed in range(10)
                for batch in ImageFiles.of([tmp_path / name], [0], size).batches([torch.tensor([0])], seed=seed)
            ]
        )
        for name in ("china.jpg", "china.png")
    )
    # Two filters of the same crop differ at edges; a crop that is off by a pixel differs several times as much.
    shifted = (whole[..., 1:] - whole[..., :-1]).abs().mean()
    assert 0 < float((small - whole).abs().mean()) < 0.4 * float(shifted)


# --- batches ----------------------------------------------------------------------------------------------------------


def test_an_images_crop_depends_on_neither_workers_nor_batches_nor_order(files: ImageFiles) -> None:
    def crops(order: torch.Tensor, batch_size: int, workers: int, seed: int = 0) -> torch.Tensor:
        chosen = ImageFiles(files.paths, files.labels, files.size, workers=workers)
        batches = list(chosen.batches(order.split(batch_size), seed=seed))
        assert torch.equal(torch.cat([batch.labels for batch in batches]), files.labels[order])
        return torch.cat([batch.pixels for batch in batches])[order.argsort()]

    straight = torch.arange(20)
    alone = crops(straight, 20, 0)
    assert alone.shape == (20, 3, 16, 16) and alone.dtype == torch.uint8
    for order, batch_size, workers in [(straight, 3, 2), (straight.flip(0), 7, 1), (torch.randperm(20), 4, 0)]:
        assert torch.equal(crops(order, batch_size, workers), alone)
    assert not torch.equal(crops(straight, 20, 0, seed=1), alone)


def test_two_ranks_read_together_what_one_reads(files: ImageFiles) -> None:
    (whole,) = files.batches([torch.arange(20)], seed=3)
    halves = [next(files.batches([torch.arange(rank, 20, 2)], seed=3)) for rank in (0, 1)]
    assert all(torch.equal(half.pixels, whole.pixels[rank::2]) for rank, half in enumerate(halves))


def test_crops_are_decoded_at_the_size_that_is_asked_for(files: ImageFiles) -> None:
    (batch,) = files.batches([torch.arange(4)], size=24)
    assert batch.pixels.shape == (4, 3, 24, 24)
    assert files.image_shape == (3, 16, 16) and files[torch.arange(4)].image_shape == (3, 16, 16)


def test_reading_leaves_the_global_generators_alone(files: ImageFiles) -> None:
    def states() -> tuple[bytes, object, bytes]:
        return torch.get_rng_state().numpy().tobytes(), random.getstate(), np.random.get_state()[1].tobytes()

    before = states()
    for workers in (0, 1):
        list(ImageFiles(files.paths, files.labels, 16, workers=workers).batches([torch.arange(2)]))
    assert states() == before


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("damage", ["truncated", "no image", "missing"])
def test_a_file_that_cannot_be_read_is_named(files: ImageFiles, workers: int, damage: str) -> None:
    path = Path(os.fsdecode(files.paths[11]))
    whole = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(whole[: len(whole) // 2] if damage == "truncated" else b"no image")
    batches = ImageFiles(files.paths, files.labels, 16, workers=workers).batches(torch.arange(20).split(5))
    assert len(next(batches)) == 5
    with pytest.raises(InputError, match=r"^\S*/11.png cannot be read as an image \(.*\); remove or replace it.$"):
        list(batches)
    assert not multiprocessing.active_children()


def test_workers_end_when_the_iterator_is_dropped(files: ImageFiles) -> None:
    many = ImageFiles(files.paths, files.labels, 16, workers=2)
    batches = many.batches([torch.arange(20)] * 50)
    next(batches)
    assert len(multiprocessing.active_children()) == 2
    del batches
    assert not multiprocessing.active_children()


def test_workers_end_on_ctrl_c_though_the_traceback_is_kept(files: ImageFiles) -> None:
    stopped = threading.Event()

    def interrupt() -> None:
        # Again and again, as a user does: Python drops an interrupt that reaches it inside a finaliser.
        while not stopped.wait(0.5):
            for worker in multiprocessing.active_children():  # a terminal interrupts them as well
                os.kill(int(worker.pid or 0), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    many = ImageFiles(files.paths, files.labels, 256, workers=2)
    # A shell that starts tests in the background has them ignore the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=interrupt, daemon=True).start()
    caught = None
    try:
        for _ in many.batches([torch.arange(20)] * 20_000):
            pass
    except KeyboardInterrupt as error:
        stopped.set()
        caught = error
    finally:
        signal.signal(signal.SIGINT, before)
    assert caught is not None and caught.__traceback__ is not None
    assert not multiprocessing.active_children()


# --- what is in the files ---------------------------------------------------------------------------------------------


def test_grey_cmyk_rgba_palette_and_16_bit_images_are_read_in_their_colours(tmp_path: Path) -> None:
    grey = Image.new("L", (50, 40), 100)
    images = {
        "grey.png": (grey, (100, 100, 100)),
        "black-and-white.png": (Image.new("1", (50, 40), 1), (255, 255, 255)),
        "16 bits.png": (Image.fromarray(np.full((40, 50), 100 * 257, np.uint16)), (100, 100, 100)),
        "rgba.png": (Image.new("RGBA", (50, 40), (10, 20, 30, 128)), (10, 20, 30)),
        "palette.png": (Image.new("RGB", (50, 40), (10, 20, 30)).quantize(4), (10, 20, 30)),
        "cmyk.tif": (Image.new("CMYK", (50, 40), (255, 0, 0, 0)), (0, 255, 255)),
        "cmyk.jpg": (Image.new("CMYK", (50, 40), (0, 0, 0, 0)), (255, 255, 255)),
    }
    for name, (image, _) in images.items():
        image.save(tmp_path / name)
    files = ImageFiles.of([tmp_path / name for name in images], range(len(images)), 16)
    index = torch.arange(len(images))
    for batch in (files[index], *files.batches([index])):
        expected = torch.tensor([colour for _, colour in images.values()], dtype=torch.uint8)
        assert torch.equal(batch.pixels, expected.view(-1, 3, 1, 1).expand(-1, -1, 16, 16))


def test_pixels_of_no_known_range_are_refused(tmp_path: Path) -> None:
    Image.new("F", (5, 5), 0.5).save(tmp_path / "float.tif")
    with pytest.raises(InputError, match=r"float.tif cannot be read as an image .*do not say what white is"):
        ImageFiles.of([tmp_path / "float.tif"], [0], 4)[:]


def test_channel_statistics_are_given_or_those_of_the_centre_crops(tmp_path: Path) -> None:
    for number, colour in enumerate([(0, 51, 255), (102, 51, 255)]):
        Image.new("RGB", (40, 50), colour).save(tmp_path / f"{number}.png")
    files = ImageFiles.of(sorted(tmp_path.iterdir()), [0, 1], 8)
    mean, deviation = files.channel_statistics
    assert mean.tolist() == pytest.approx([0.2, 0.2, 1.0])
    assert deviation.tolist() == pytest.approx([0.2, 1e-3, 1e-3])
    given = torch.rand(3), torch.rand(3)
    assert ImageFiles(files.paths, files.labels, 8, statistics=given).channel_statistics is given


def test_all_images_in_memory_are_the_centre_crops_however_many_decode(files: ImageFiles) -> None:
    read = ImageFiles(files.paths, files.labels, 16, workers=2).in_memory()
    assert torch.equal(read.pixels, files[:].pixels) and torch.equal(read.labels, files.labels)
    part = files.part(torch.tensor([4, 2]))
    assert len(part) == 2 and torch.equal(part[:].pixels, read.pixels[[4, 2]])
    assert torch.equal(part.to("cpu").labels, files.labels[[4, 2]])


def test_files_are_listed_in_sorted_order_with_those_in_folders_and_behind_links(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/1/z.JPG", "b/1-/a.png", "elsewhere/x.webp", "b/notes.txt", "a/1.jpeg"):
        (tmp_path / "real" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "real" / name).touch()
    root = tmp_path / "root"
    root.mkdir()
    for name in ("a", "b"):
        (root / name).symlink_to(tmp_path / "real" / name)
    found = ClassFolders.of(root)
    assert found.classes == ("a", "b") and found.labels == [0, 1, 1, 1]
    # As pathlib sorts: folder by folder.
    assert found.paths == [str(root / name) for name in ("a/1.jpeg", "b/1/z.JPG", "b/1-/a.png", "b/2.png")]
    assert found.paths[1:] == [str(path) for path in sorted(map(Path, found.paths[1:]))]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"size": 0}, "at least 1 pixel, but got 0"), ({"size": 8, "workers": -1}, "0 or more, but got -1")],
)
def test_a_wrong_setting_is_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ImageFiles.of(["a.png"], [0], **options)


# --- images in memory -------------------------------------------------------------------------------------------------


def test_batches_of_images_in_memory_are_the_images_at_the_indices() -> None:
    images = ImageSet(torch.arange(5 * 3 * 4 * 4).view(5, 3, 4, 4).to(torch.uint8), torch.arange(5), max_value=250)
    indices = [torch.tensor([3, 1]), torch.tensor([0, 4])]
    for index, batch in zip(indices, images.batches(indices, seed=1), strict=True):
        assert torch.equal(batch.pixels, images.pixels[index]) and torch.equal(batch.labels, index)
        assert batch.max_value == 250
    assert images.device == torch.device("cpu") and images.image_shape == (3, 4, 4)


@pytest.mark.parametrize(("width", "height", "size"), [(64, 64, 40), (64, 64, 96), (60, 40, 20)])
def test_images_in_memory_are_resized_as_pillow_resizes(width: int, height: int, size: int) -> None:
    image = noise(width, height)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).unsqueeze(0)
    (batch,) = ImageSet(pixels, torch.tensor([0])).batches([torch.tensor([0])], size=size)
    shape = (width * size // min(width, height), height * size // min(width, height))
    expected = torch.from_numpy(np.array(image.resize(shape, Image.Resampling.BILINEAR))).permute(2, 0, 1)
    assert batch.pixels.dtype == torch.uint8
    # Pillow rounds between its two passes.
    assert int((batch.pixels[0].int() - expected.int()).abs().max()) <= 1


def test_resized_floats_stay_floats_in_0_1_and_their_statistics_are_theirs() -> None:
    floats = ImageSet.of(torch.rand(6, 2, 9, 9).round(decimals=1), torch.arange(6))
    (batch,) = floats.batches([torch.arange(6)], size=5)
    assert batch.images.shape == (6, 2, 5, 5) and 0 <= float(batch.images.min()) <= float(batch.images.max()) <= 1
    assert len(batch.images.unique()) > 11
    mean, deviation = floats.channel_statistics
    channels = floats.images.transpose(0, 1).flatten(1).numpy()
    assert mean.tolist() == pytest.approx(channels.mean(1).tolist(), abs=1e-6)
    assert deviation.tolist() == pytest.approx(channels.std(1).tolist(), abs=1e-6)


def test_a_size_of_nothing_is_refused() -> None:
    images = ImageSet(torch.zeros(1, 1, 4, 4, dtype=torch.uint8), torch.tensor([0]))
    with pytest.raises(InputError, match="at least 1 pixel, but got 0"):
        next(images.batches([torch.tensor([0])], size=0))


def test_a_process_that_decodes_and_is_killed_is_said(files: ImageFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_files._Reader, "__getitems__", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(Interrupted, match=r"decodes images was killed, .* set data\.workers lower"):
        list(dataclasses.replace(files, workers=1).batches([torch.arange(4)]))


def test_files_are_told_from_others_by_their_names_below_a_folder_and_their_sizes(tmp_path: Path) -> None:
    def written(root: str, **content: bytes) -> str:
        paths = []
        for name, data in content.items():
            paths.append(tmp_path / root / name[0] / f"{name}.png")
            paths[-1].parent.mkdir(parents=True, exist_ok=True)
            paths[-1].write_bytes(data)
        return ImageFiles.of(paths, [0] * len(paths), 8).digest

    first = written("one", a=b"1", ba=b"22")
    assert written("elsewhere/two", a=b"1", ba=b"22") == first
    others = [written("three", a=b"1", bb=b"22"), written("four", a=b"1", ba=b"333"), written("five", ba=b"22", a=b"1")]
    others.append(written("six", a=b"22", ba=b"1"))
    assert len({first, *others}) == 5
