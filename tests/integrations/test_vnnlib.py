"""VNN-LIB files, read by a reader of s-expressions that is the tests' own, and evaluated in exact arithmetic."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robust_nas import certification, datasets
from robust_nas.api import load_run
from robust_nas.attacks.pgd import PGD
from robust_nas.core import config
from robust_nas.core.errors import InputError
from robust_nas.core.writing import write_json, write_text
from robust_nas.datasets import Dataset
from robust_nas.ensembles import Ensemble
from robust_nas.evaluation import file_name
from robust_nas.integrations.onnx import classify, export_onnx
from robust_nas.integrations.vnnlib import export_models, write_benchmark, write_vnnlib
from robust_nas.recipes import load
from robust_nas.runtime.states import save_state
from robust_nas.threat import ThreatModel

Command = Callable[..., subprocess.CompletedProcess[str]]


class Property:
    """The constraints of a file, over its declared names."""

    def __init__(self, path: Path) -> None:
        lines = path.read_text(encoding="utf-8").splitlines()
        tokens = iter(re.findall(r"[()]|[^\s()]+", "\n".join(line.partition(";")[0] for line in lines)))
        expressions = []
        for token in tokens:
            assert token == "("
            expressions.append(self._rest(tokens))
        self.names = [body[0] for head, *body in expressions if head == "declare-const" and body[1] == "Real"]
        self.asserts = [body[0] for head, *body in expressions if head == "assert"]
        assert len(self.names) + len(self.asserts) == len(expressions)
        self.inputs = [each for each in self.asserts if "Y_" not in str(each)]
        self.outputs = [each for each in self.asserts if "X_" not in str(each)]

    def _rest(self, tokens) -> list:
        found = []
        for token in tokens:
            if token == ")":
                return found
            found.append(self._rest(tokens) if token == "(" else token)
        raise AssertionError("a parenthesis is not closed")

    def allows(self, point: Tensor) -> bool:
        """Whether an image satisfies the constraints on X."""
        return all(_value(each, _numbers("X", point)) for each in self.inputs)

    def is_violated_by(self, logits: Tensor) -> bool:
        """Whether logits satisfy the constraints on Y: they are a counterexample's."""
        return all(_value(each, _numbers("Y", logits)) for each in self.outputs)


def _numbers(letter: str, values: Tensor) -> dict[str, Fraction]:
    return {f"{letter}_{i}": Fraction(value) for i, value in enumerate(values.double().flatten().tolist())}


def _value(expression, names: Mapping[str, Fraction]):
    if isinstance(expression, str):
        if expression in names:
            return names[expression]
        assert re.fullmatch(r"\d+\.\d+", expression), f"{expression} is no decimal of SMT-LIB's"
        return Fraction(expression)
    head, *parts = expression
    values = [_value(part, names) for part in parts]
    return {
        "and": lambda: all(values),
        "or": lambda: any(values),
        "<=": lambda: values[0] <= values[1],
        ">=": lambda: values[0] >= values[1],
    }[head]()


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return datasets.load("digits")


@pytest.fixture(scope="module")
def model(digits: Dataset) -> nn.Module:
    """A network of one hidden layer, trained for a moment: right about most digits, and easy to fool."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 6, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(96, 10))
    optimiser, train = torch.optim.Adam(network.parameters(), lr=0.01), digits.train
    for _ in range(25):
        optimiser.zero_grad()
        F.cross_entropy(network(train.images), train.labels).backward()
        optimiser.step()
    return network.eval()


@pytest.fixture(scope="module")
def folder(model: nn.Module, digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("out") / "export"
    threats = [ThreatModel(epsilon=epsilon) for epsilon in (0.02, 0.3)]
    write_benchmark({"net": model}, digits.test[:40], threats, folder, timeout=60)
    return folder


def property_at(folder: Path, image: int, epsilon: float) -> Property:
    return Property(folder / "vnnlib" / f"image-{image}-epsilon-{epsilon}.vnnlib")


@pytest.mark.parametrize("epsilon", ["0.03", "8/255", "1e-7", "1"])
def test_the_box_is_the_smallest_of_float32_numbers_around_the_ball(epsilon: str, tmp_path: Path) -> None:
    threat = ThreatModel(epsilon=epsilon)
    # Among them pixels at the ends of [0, 1], and one that is epsilon rounded to float32.
    pixels = [0.0, 1.0, min(threat.epsilon, 0.5), 0.5, 1 / 3, 1e-30, 1 - 2**-24]
    image = torch.tensor(pixels).view(1, 1, 7)
    write_vnnlib(tmp_path / "p.vnnlib", image, 0, 2, threat)
    found = Property(tmp_path / "p.vnnlib")
    bounds = {(name, operator): Fraction(number) for operator, name, number in found.inputs}
    for i, pixel in enumerate(image.flatten().tolist()):
        lower, upper = bounds[f"X_{i}", ">="], bounds[f"X_{i}", "<="]
        exact_lower = max(Fraction(pixel) - Fraction(threat.epsilon), Fraction(0))
        exact_upper = min(Fraction(pixel) + Fraction(threat.epsilon), Fraction(1))
        assert lower <= exact_lower and exact_upper <= upper
        for bound in (lower, upper):
            assert Fraction(float(np.float32(float(bound)))) == bound  # read alike in single and double precision
        assert lower == exact_lower or Fraction(float(np.nextafter(np.float32(lower), np.float32(1)))) > exact_lower
        assert upper == exact_upper or Fraction(float(np.nextafter(np.float32(upper), np.float32(0)))) < exact_upper


def test_points_are_allowed_if_they_are_in_the_ball_and_not_if_they_are_outside(folder: Path, digits: Dataset) -> None:
    threat, image = ThreatModel(epsilon=0.02), digits.test[:1].images
    ball, found = threat.around(image), property_at(folder, 0, 0.02)
    generator = torch.Generator().manual_seed(0)
    inside = [ball.random(generator) for _ in range(20)]
    corners = [ball.project(image + torch.randn(image.shape, generator=generator).sign()) for _ in range(20)]
    assert all(bool(ball.contains(point)) and found.allows(point) for point in [image, *inside, *corners])
    for place in range(64):  # one pixel just outside, the others as they are
        beyond = image.clone()
        pixel = beyond.view(-1)[place : place + 1]
        pixel += 0.02001 if float(pixel) < 0.5 else -0.02001
        assert not bool(ball.contains(beyond)) and not found.allows(beyond)
    assert not found.allows(torch.full_like(image, -1e-6)) and len(found.names) == 74


def test_the_property_is_that_another_class_has_at_least_the_labels_logit(tmp_path: Path) -> None:
    write_vnnlib(tmp_path / "p.vnnlib", torch.rand(1, 2, 2), 1, 3, ThreatModel(epsilon=0.1))
    found = Property(tmp_path / "p.vnnlib")
    cases = {(0.0, 1.0, 0.5): False, (1.0, 0.9, 0.0): True, (0.0, 0.9, 1.0): True, (1.0, 1.0, 0.0): True}
    for logits, violated in cases.items():
        assert found.is_violated_by(torch.tensor(logits)) == violated


def test_an_adversarial_example_satisfies_all_constraints_and_the_image_does_not(
    folder: Path, model: nn.Module, digits: Dataset
) -> None:
    threat, test = ThreatModel(epsilon=0.3), digits.test[:40]
    points = PGD(steps=20).perturb(model, test.images, test.labels, threat)
    logits, clean = (classify(folder / "onnx" / "net.onnx", images) for images in (points, test.images))
    right = clean.argmax(1) == test.labels
    fooled = right & (logits.argmax(1) != test.labels)
    assert fooled.sum() >= 10
    for image in right.nonzero().flatten().tolist():
        found = property_at(folder, image, 0.3)
        assert found.allows(points[image]) and found.is_violated_by(logits[image]) == bool(fooled[image])
        assert found.allows(test.images[image]) and not found.is_violated_by(clean[image])


def test_at_images_that_are_certified_no_point_is_a_counterexample(
    folder: Path, model: nn.Module, digits: Dataset
) -> None:
    threat, test = ThreatModel(epsilon=0.02), digits.test[:40]
    (proved,) = certification.certify(model, test, threat, bound="crown")
    places = proved.certified.nonzero().flatten().tolist()
    assert len(places) >= 10
    generator = torch.Generator().manual_seed(0)
    for image in places:
        ball = threat.around(test.images[image : image + 1].expand(30, 1, 8, 8))
        inner = ball.random(generator)
        corners = ball.project(inner + 0.1 * (inner - test.images[image]).sign())
        attacked = PGD(steps=10).perturb(model, test.images[image : image + 1], test.labels[image : image + 1], threat)
        found = property_at(folder, image, 0.02)
        for logits in classify(folder / "onnx" / "net.onnx", torch.cat([inner, corners, attacked])):
            assert not found.is_violated_by(logits)


def test_instances_are_those_that_are_classified_correctly(folder: Path, model: nn.Module, digits: Dataset) -> None:
    test = digits.test[:40]
    with torch.no_grad():
        right = (model(test.images).argmax(1) == test.labels).nonzero().flatten().tolist()
    assert 20 < len(right) < 40
    with (folder / "instances.csv").open(encoding="utf-8") as file:
        rows = list(csv.reader(file))
    expected = [f"vnnlib/image-{image}-epsilon-{epsilon}.vnnlib" for image in right for epsilon in (0.02, 0.3)]
    assert rows == [["onnx/net.onnx", name, "60"] for name in expected]
    assert {f"vnnlib/{path.name}" for path in (folder / "vnnlib").iterdir()} == set(expected)
    record = json.loads((folder / "export.json").read_text(encoding="utf-8"))
    assert sorted([*record["networks"]["net"]["misclassified"], *right]) == list(range(40))
    assert record["instances"] == len(rows) and record["epsilons"] == [0.02, 0.3]
    assert 0 <= record["networks"]["net"]["largest_difference"] < 1e-4 and record["networks"]["net"]["opset"] == 13
    assert record["networks"]["net"]["num_points"] == 40 * (1 + 2 * 4)


class Noisy(nn.Module):
    """Logits that are drawn."""

    def forward(self, images: Tensor) -> Tensor:
        return F.dropout(images.flatten(1)[:, :10], 0.5, training=True)


def test_what_fails_leaves_the_export_that_was_there_and_other_files_are_not_replaced(
    model: nn.Module, digits: Dataset, tmp_path: Path
) -> None:
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "export.json").write_text("older")
    with pytest.raises(InputError, match="draws nothing"):
        write_benchmark({"a": Noisy()}, digits.test[:2], [ThreatModel(epsilon=0.1)], tmp_path / "export")
    assert [path.name for path in tmp_path.rglob("*")] == ["export", "export.json"]
    (tmp_path / "export" / "thesis.tex").write_text("")
    with pytest.raises(InputError, match=r"such as thesis\.tex"):
        write_benchmark({"a": model}, digits.test[:2], [ThreatModel(epsilon=0.1)], tmp_path / "export")
    assert (tmp_path / "export" / "export.json").read_text() == "older"


@pytest.mark.parametrize("name", ["é" * 126, "e" * 255, "é" * 5000, "\udcff", "a\0b", "/.", "$5_$ <script>\n"])
def test_any_name_of_a_model_is_one_of_files(model: nn.Module, digits: Dataset, tmp_path: Path, name: str) -> None:
    part = file_name(name)
    assert part and len(part.encode()) <= 128 and file_name(f"{name}x") != part
    (tmp_path / f".attack-{part}-curve-linf.state.safetensors.robust-nas-1.safetensors").touch()
    path = tmp_path / os.fsdecode(b"m\xff.onnx")
    export_onnx(model, path, digits.image_shape)
    assert classify(path, digits.test[:2].images).shape == (2, 10)


def test_arguments_in_another_order_are_refused_in_a_sentence(
    model: nn.Module, digits: Dataset, tmp_path: Path
) -> None:
    models, data, threats, folder = {"a": model}, digits.test[:1], [ThreatModel(epsilon=0.1)], tmp_path / "export"
    calls: list[tuple[Any, ...]] = [
        (data, models, threats, folder),
        (models, threats, data, folder),
        (models, data, folder, threats),
        (model, data, threats, folder),
        (models, digits, threats, folder),
        (models, data, threats[0], folder),
        (models, data, [models], folder),
        ({3: model}, data, threats, folder),
    ]
    for arguments in calls:
        with pytest.raises(InputError, match=r", but got (one|3)"):
            write_benchmark(*arguments)
    image = data.images[0]
    for arguments in [(image, folder, 0, 10, threats[0]), (folder, image, 0, threats[0], 10), (folder, data, 0, 10, 1)]:
        with pytest.raises(InputError, match=r", but got (one|10)"):
            write_vnnlib(*arguments)
    assert not list(tmp_path.iterdir())


def test_what_is_no_box_no_image_or_no_class_is_refused(model: nn.Module, digits: Dataset, tmp_path: Path) -> None:
    image, box, ball = digits.test[:1].images[0], ThreatModel(epsilon=0.1), ThreatModel(norm="l2", epsilon=1.0)
    path = tmp_path / "p.vnnlib"
    for arguments, message in {
        (image, 0, 10, ball): "norm is l2",
        (255 * image, 0, 10, box): r"must be in \[0, 1\]",
        (image, 10, 10, box): "got 10 of 10",
        (image, 0, 1, box): "at least two classes",
    }.items():
        with pytest.raises(InputError, match=message):
            write_vnnlib(path, *arguments)
    for models, data, threats, message in [
        ({"a": model}, digits.test[:1], [ball], "norm is l2"),
        ({"a": model}, digits.test[:0], [box], "got 1, 0, 1"),
        ({}, digits.test[:1], [box], "got 0, 1, 1"),
        ({"a b": model, "a-b": model}, digits.test[:1], [box], "differ as files' names"),
    ]:
        with pytest.raises(InputError, match=message):
            write_benchmark(models, data, threats, tmp_path / "export")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def run(tmp_path: Path, digits: Dataset) -> Path:
    """A run folder with two networks that were never trained, and weights of which one is 0."""
    recipe = load("digits", ["space.channels=2", "space.stages=1", "certification.epsilons=[0.01]"])
    write_text(tmp_path / "run" / "config.toml", config.to_toml(recipe.to_dict()))
    chosen = [recipe.space.parse(digits_) for digits_ in ("323133", "112041")]
    derived = {
        "chosen": [str(architecture) for architecture in chosen],
        "candidates": [],
        "num_validation": 1,
        "seconds": 0.0,
    }
    write_json(tmp_path / "run" / "derive.json", derived)
    for index, architecture in enumerate(chosen):
        torch.manual_seed(index)
        weights = recipe.space.network(architecture, digits).state_dict()
        save_state(tmp_path / "run" / "checkpoints" / f"model-{index}.safetensors", {"weights": weights})
    rest = {"method": "pgd_at", "parameters": 1, "multiply_adds": 1, "epochs": 1, "seconds": 1.0}
    accuracies = {"clean": 0.1, "robust": 0.1}
    trained = [
        {"name": f"model-{index}", "architecture": str(architecture), "validation": accuracies, **rest}
        for index, architecture in enumerate(chosen)
    ]
    write_json(tmp_path / "run" / "train.json", {"models": trained})
    rule = {
        "members": ["model-0", "model-1"],
        "num_validation": 9,
        "weights": [0.0, 1.0],
        "scales": [1.0, 2.0],
        "uniform": {"weights": [0.5, 0.5], "scales": [1.0, 1.0]},
        "name": "robboost",
        "epsilon": 0.01,
        "objective": 0.4,
        "least_objective": 0.4,
        "uniform_objective": 0.5,
        "best_single": "model-1",
        "seconds": 1.0,
    }
    write_json(tmp_path / "run" / "ensemble.json", rule)
    return tmp_path / "run"


def test_the_command_exports_a_runs_networks_and_ensembles(
    command: Command, run: Path, digits: Dataset, tmp_path: Path
) -> None:
    done = command("export", run, "--epsilon", "2/255", "--images", "30", "--timeout", "9", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    with (tmp_path / "out" / "instances.csv").open(encoding="utf-8") as file:
        rows = list(csv.reader(file))
    images = digits.test[:30].images
    logits = {name: classify(tmp_path / "out" / "onnx" / f"{name}.onnx", images) for name in NETWORKS}
    assert {path.stem for path in (tmp_path / "out" / "onnx").iterdir()} == set(NETWORKS)
    torch.testing.assert_close(logits["ensemble"], logits["model-1"])
    torch.testing.assert_close(logits["uniform"], (logits["model-0"] + logits["model-1"]) / 2)
    right = {name: (found.argmax(1) == digits.test[:30].labels).sum() for name, found in logits.items()}
    assert len(rows) == sum(right.values()) and all(f"epsilon-{2 / 255}" in row[1] and row[2] == "9" for row in rows)
    record = json.loads((tmp_path / "out" / "export.json").read_text(encoding="utf-8"))
    assert (record["run"], record["data"], record["split"], record["num_images"]) == ("run", "digits", "test", 30)
    for name in NETWORKS:
        assert f"{name}: onnx/{name}.onnx, {right[name]} of 30 images right" in done.stdout
    refused = command("export", run, "--epsilon", "8", "--out", tmp_path / "no")
    assert refused.returncode == 2 and "did you mean 8/255?" in refused.stderr
    refused = command("export", run, "--images", "0", "--out", tmp_path / "no")
    assert refused.returncode == 2 and "certification.num_images" in refused.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]


def test_a_saved_ensemble_is_exported_on_the_images_of_its_run_or_on_those_that_are_named(
    run: Path, digits: Dataset, tmp_path: Path
) -> None:
    models = list(load_run(run).models.values())
    ensemble = Ensemble(models, [0.25, 0.75], [1.0, 2.0]).eval()
    within, alone = ensemble.save(run / "ensemble"), ensemble.save(tmp_path / "mine")
    expected = ensemble(digits.test[:3].images)
    for folder, options in ((within, {}), (alone, {"data": "digits", "epsilons": ["0.01"]})):
        text = export_models([str(folder)], [], tmp_path / "out", images=3, **options)
        assert f"{folder.name}: onnx/{folder.name}.onnx" in text
        found = classify(tmp_path / "out" / "onnx" / f"{folder.name}.onnx", digits.test[:3].images)
        torch.testing.assert_close(found, expected)
        record = json.loads((tmp_path / "out" / "export.json").read_text(encoding="utf-8"))
        assert (record["models"], record["data"], record["epsilons"]) == (str(folder), "digits", [0.01])
    with pytest.raises(InputError, match="--data digits"):
        export_models([str(alone)], [], tmp_path / "no", epsilons=["0.01"])
    with pytest.raises(InputError, match="no ensemble of version"):
        (alone / "config.json").write_text("{}")
        export_models([str(alone)], [], tmp_path / "no", data="digits", epsilons=["0.01"])


NETWORKS = ("model-0", "model-1", "uniform", "ensemble")
