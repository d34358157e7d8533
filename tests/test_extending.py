"""The examples of docs/extending are complete and do what they say, and pages link what is there."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import robust_nas
from robust_nas import attacks, bounds, datasets, samplers, searches, spaces, training
from robust_nas import recipes as recipe
from robust_nas.core import config
from robust_nas.runtime.distributed import World
from robust_nas.runtime.progress import Progress
from robust_nas.runtime.stages import Stage
from robust_nas.tables import cards
from robust_nas.threat import ThreatModel
from robust_nas.training import Batch, Memory

ROOT = Path(__file__).resolve().parent.parent
THREAT = ThreatModel(norm="linf", epsilon=0.1)


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the examples as a package `examples_of_docs`, a group's components in a folder each."""
    root = tmp_path_factory.mktemp("plugins")
    text = "".join(page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs" / "extending").glob("*.md")))
    for name, code in re.findall(r"```(?:python|toml)\n# (\S+)\n(.*?)```", text, flags=re.DOTALL):
        path = root / "examples_of_docs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code)
    return root


@pytest.fixture(autouse=True)
def importable(examples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(examples))


def example(group: str, name: str) -> str:
    """Return the dotted name under which an example is found."""
    return f"examples_of_docs.{group}.{name}"


def linear_model() -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return model


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(8, 1, 4, 4, generator=generator), torch.randint(3, (8,), generator=generator)


def test_the_attack_by_random_points_fools_where_a_tenth_of_the_ball_does() -> None:
    images, labels = torch.full((50, 1, 4, 4), 0.5), torch.zeros(50, dtype=torch.long)
    images += 1e-4 * torch.arange(50).view(-1, 1, 1, 1)

    class Threshold(nn.Module):
        """The class is 1 where the first pixel is in the upper tenth of the ball."""

        def forward(self, points: torch.Tensor) -> torch.Tensor:
            above = points[:, 0, 0, 0] - images[:, 0, 0, 0] - 0.08
            return torch.stack([-above, above], 1)

    attack = attacks.get(example("attacks", "random_points"))
    found = attack(count=50).perturb(Threshold(), images, labels, THREAT, seed=1)
    assert THREAT.around(images).contains(found).all()
    # An image survives 49 points with a probability of 0.9^49 = 0.6 %.
    assert int((Threshold()(found).argmax(1) == 0).sum()) <= 3


def test_the_momentum_attack_reaches_the_corner_of_the_ball_that_is_worst_for_two_classes() -> None:
    images, labels = batch()
    images, labels, model = images * 0.6 + 0.2, labels % 2, linear_model()
    model[1] = nn.Linear(16, 2)
    found = attacks.get(example("attacks", "momentum_fgsm"))().perturb(model, images, labels, THREAT)
    towards = (model[1].weight[1 - labels] - model[1].weight[labels]).sign().view_as(images)
    torch.testing.assert_close(found, images + 0.1 * towards)


def test_the_training_method_adds_noise_of_its_deviation() -> None:
    images, places = torch.full((200, 1, 4, 4), 0.5), torch.arange(200)
    labels = places % 3
    model, method = linear_model(), training.get(example("training", "noisy_images"))(sigma=0.1)
    step = Batch(images, labels, labels, THREAT, 0, places, places, 200, 200, Memory())
    crafted = method.craft(model, step)
    # 3,200 draws: the deviation of their deviation is 0.1 / sqrt(6400).
    assert float((crafted - 0.5).std()) == pytest.approx(0.1, abs=5 * 0.1 / 80)
    torch.testing.assert_close(method.loss(model, crafted, step), F.cross_entropy(model(crafted), labels))


def test_the_search_gives_another_order_for_another_seed() -> None:
    space, data = spaces.load("nasbench201"), datasets.load("digits")
    search = searches.get(example("searches", "random_order"))()
    found = [
        search.search(space, data, THREAT, Stage("search", seed, World(), Progress(quiet=True))) for seed in (0, 0, 1)
    ]
    assert found[0].probabilities == found[1].probabilities != found[2].probabilities
    assert all(sum(row) == pytest.approx(1) for row in found[0].probabilities)
    assert space.parse(str(found[0].best)) == found[0].best


def test_the_data_set_is_read_from_torchvision_s_files(shared_data: Path, tmp_path: Path) -> None:
    # Fashion-MNIST's files have MNIST's names and format.
    (tmp_path / "FashionMNIST").mkdir()
    (tmp_path / "FashionMNIST" / "raw").symlink_to(shared_data / "MNIST" / "raw")
    sizes = {"train_size": 100, "validation_size": 50, "test_size": 20}
    source = datasets.get(example("datasets", "fashion_mnist"))
    found = source(root=tmp_path, download=False, **sizes).load_splits()
    assert [len(part) for part in (found.train, found.validation, found.test)] == [100, 50, 20]
    assert found.classes[9] == "Ankle boot"
    # An IDX file: 16 bytes of header, then the images' bytes.
    raw = (shared_data / "MNIST" / "raw" / "t10k-images-idx3-ubyte").read_bytes()[16:]
    originals = {raw[start : start + 784] for start in range(0, len(raw), 784)}
    assert all(image.numpy().tobytes() in originals for image in found.test.pixels)


def test_the_bound_is_the_closed_form_of_a_linear_model() -> None:
    images, labels = batch()
    model = linear_model()
    lower = bounds.get(example("bounds", "best_of"))().margins(model, images, labels, THREAT).lower(THREAT)
    weight, bias = (parameter.detach().double() for parameter in model[1].parameters())
    pixels = images.flatten(1).double()
    low, high = (pixels - 0.1).clamp(0, 1), (pixels + 0.1).clamp(0, 1)
    for row, (label, one, other) in enumerate(zip(labels.tolist(), low, high, strict=True)):
        for rival in {0, 1, 2} - {label}:
            slope = weight[label] - weight[rival]
            exact = slope.clamp(min=0) @ one + slope.clamp(max=0) @ other + bias[label] - bias[rival]
            assert float(lower[row, rival]) == pytest.approx(float(exact), abs=1e-9)


def test_the_declarations_are_read(examples: Path) -> None:
    folder = examples / "examples_of_docs"
    space = spaces.load(str(folder / "search_spaces" / "small_cell.toml"))
    assert (len(space.edges), space.operations) == (3, ("skip_connect", "nor_conv_1x1", "nor_conv_3x3"))
    quick = recipe.load(str(folder / "recipes" / "mnist_quick.toml"))
    assert quick.name == "mnist_quick" and config.to_dict(quick.train)["method"]["attack"]["steps"] == 7
    assert quick.certification.epsilons == (1 / 255, 2 / 255)
    card = cards.load(str(folder / "tables" / "my-table.toml"))
    assert card.name == "my-table" and card.columns["val_pgd_8_acc"].epsilon == 8 / 255


def test_the_sampler_asks_for_one_architecture_after_the_other() -> None:
    found = samplers.get(example("samplers", "in_order"))().start(spaces.load("nasbench201"), 1, seed=0)
    digits = [found.ask().digits() for _ in range(5**6)]
    assert len({*digits}) == 5**6 and [len({*digits[start : start + 25]}) for start in (0, 25)] == [25, 25]
    assert {text[:5] for text in digits[:5]} == {digits[0][:5]} and found.ask().digits() == digits[0]


@pytest.mark.slow
def test_the_examples_keep_the_contracts_where_a_stranger_would_put_them(examples: Path, tmp_path: Path) -> None:
    for name in ("robust_nas", "search_spaces", "benchmarks/tables", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "setup.cfg", tmp_path)
    folder = examples / "examples_of_docs"
    places = {"search_spaces": tmp_path, "tables": tmp_path / "benchmarks"}
    added = [path.relative_to(folder) for path in folder.rglob("*.*") if "__pycache__" not in path.parts]
    for path in added:
        copy = places.get(path.parts[0], tmp_path / "robust_nas") / path
        copy.parent.mkdir(exist_ok=True)
        shutil.copy(folder / path, copy)
    names = [path.stem for path in added if path.parts[0] not in ("architectures", "spaces", "tables")]

    def python(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", *words],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr
        return done.stdout

    tests = ["-v", "-n", "0", "-p", "no:cacheprovider", "tests/contracts", "tests/spaces/test_spaces.py"]
    tried = python("pytest", *tests, "-k", " or ".join(names))
    assert [name for name in names if name not in tried] == []
    scored = ["search.objectives=['score']", "search.proxy=snip", "search.trials=2"]
    python("robust_nas", "search", "plain_small", "--data", "digits", "--threat", "linf:0.1", *scored)
    assert "pool=max" in python("robust_nas", "info", "layers=2 width=8 pool=max")


PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("*/README.md"), *ROOT.glob("benchmarks/*/*.md")]


@pytest.mark.parametrize("page", sorted({*PAGES}), ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_links_only_what_is_there(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert "://" in target or (page.parent / target).exists(), target


NAMING = [page for page in PAGES if page.name != "CHANGELOG.md" and "benchmarks" not in page.relative_to(ROOT).parts]


@pytest.mark.parametrize("page", sorted({*NAMING}), ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_names_only_what_can_be_imported(page: Path) -> None:
    # The examples are imported as they are.
    text = re.sub(r"```python\n# \S+\n.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for name in set(re.findall(r"(?<![\w/.-])(?:robust_nas|rn)(?:\.[a-zA-Z_]\w*)+", text)):
        found: Any = robust_nas
        for part in name.split(".")[1:]:
            found = getattr(found, part, None) or importlib.import_module(f"{found.__name__}.{part}")
