"""Models of one's own on the command line: trained, certified, exported and joined, as networks that were found are."""

from __future__ import annotations

import csv
import json
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import robust_nas as rn
from robust_nas import intake, recipes, spaces
from robust_nas.certification import certify
from robust_nas.core import config
from robust_nas.core.errors import InputError
from robust_nas.core.registry import allowing_code, named

Command = Callable[..., subprocess.CompletedProcess[str]]

NET = """
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10))

    def forward(self, images):
        return self.layers(images)


class Eleven(Net):
    def __init__(self):
        super().__init__()
        self.layers[3] = nn.Linear(24, 11)


ready = Net()
"""


LOUD = """
    def forward(self, images):
        print("a pass")
        return super().forward(images)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two networks of one class with weights, in files as torch.save writes them."""
    place = tmp_path_factory.mktemp("mine")
    (place / "net.py").write_text(NET, encoding="utf-8")
    data = rn.datasets.load("digits")
    for seed in (0, 1):
        torch.manual_seed(seed)
        (model,) = intake.load_models(f"{place / 'net.py'}:Net", device="cpu").values()
        rn.train(model, data, rn.ThreatModel(epsilon=0.05), method="standard", epochs=4, learning_rate=0.05, seed=seed)
        torch.save(model.state_dict(), place / f"{seed}.pt")
    return place


def read(run: Path, name: str) -> dict:
    return json.loads((run / name).read_text(encoding="utf-8"))


def only(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found


def test_a_model_is_trained_from_its_weights_in_a_run_that_other_verbs_take(
    folder: Path, tmp_path: Path, command: Command
) -> None:
    words = ["train", "net.py:Net@0.pt", "--data", "digits", "--threat", "linf:0.05", "--out", tmp_path]
    done = command(*words, "train.epochs=1", "train.learning_rate=1e-9", "workers=1", cwd=folder)
    assert done.returncode == 0, done.stderr
    run = only(tmp_path, "*-Net-*")
    # The next command is one that is taken.
    assert f"(robust-nas run --resume {run} --allow-code)" in done.stdout
    (record,) = read(run, "train.json")["models"]
    assert record["architecture"] == f"{folder / 'net.py'}:Net"
    # A step of next to nothing leaves the weights that it began with.
    (trained,) = rn.load_run(run, allow_code=True).models.values()
    (before,) = intake.load_models(f"{folder / 'net.py'}:Net@{folder / '0.pt'}", device="cpu").values()
    for key, value in before.state_dict().items():
        torch.testing.assert_close(trained.state_dict()[key], value, atol=1e-5, rtol=0)
    # The report advises nothing that is for networks of a search.
    page = rn.write_report(run).read_text(encoding="utf-8")
    assert "of the space own, given and trained with pgd_at" in page
    assert "--python" not in page and "Log posterior" not in page
    # What a file names runs only if that is allowed.
    refused = command("certify", run, "--epsilon", "0.01", "--images", "5", cwd=tmp_path)
    assert refused.returncode == 2 and "--allow-code" in refused.stderr
    assert command("certify", run, "--epsilon", "0.01", "--images", "5", "--allow-code", cwd=tmp_path).returncode == 0


def test_a_model_is_certified_as_the_python_call_does(folder: Path, tmp_path: Path, command: Command) -> None:
    words = ["certify", "net.py:Net@0.pt", "--data", "digits", "--epsilon", "0.01", "--images", "30"]
    done = command(*words, "--method", "crown", "--out", tmp_path, cwd=folder)
    assert done.returncode == 0, done.stderr
    kept = only(tmp_path, "certify-*")
    (found,) = read(kept, "certification.json")["models"]["Net@0"]
    (model,) = intake.load_models(f"{folder / 'net.py'}:Net@{folder / '0.pt'}", device="cpu").values()
    (expected,) = certify(model, rn.datasets.load("digits").test[:30], rn.ThreatModel(epsilon=0.01), bound="crown")
    assert found["certified"] == expected.summary().certified > 0
    # The same command again computes nothing, and other images are another folder.
    again = command(*words, "--method", "crown", "--out", tmp_path, cwd=folder)
    assert again.stdout == done.stdout and read(kept, "environment.json")["earlier"] == []
    assert command(*words[:-1], "7", "--out", tmp_path, cwd=folder).returncode == 0
    assert len(list(tmp_path.glob("certify-*"))) == 2


def test_what_a_models_own_code_prints_is_no_answer(folder: Path, tmp_path: Path, command: Command) -> None:
    (folder / "loud.py").write_text("from net import Net\n\nprint('loading')\n\n\nclass Loud(Net):\n" + LOUD)
    words = ["certify", "loud.py:Loud", "--data", "digits", "--epsilon", "0.01", "--images", "2", "--out", tmp_path]
    done = command(*words, "--json", cwd=folder)
    assert done.returncode == 0 and list(json.loads(done.stdout)["models"]) == ["Loud"], done
    assert "loading" in done.stderr and "a pass" in done.stderr


def test_other_radii_of_a_smoothed_model_cost_no_samples(folder: Path, tmp_path: Path, command: Command) -> None:
    words = ["certify", "net.py:Net@0.pt", "--data", "digits", "--images", "4", "--out", tmp_path]
    words += ["--method", "smoothing[sigma=0.1,num_samples=200,num_selection=20]"]
    assert command(*words, cwd=folder).returncode == 0
    assert "at 0.01 [" in command(*words, "--epsilon", "0.01", cwd=folder).stdout
    assert read(only(tmp_path, "certify-*"), "environment.json")["earlier"] == []


def test_a_model_is_exported_with_the_properties_of_images(folder: Path, tmp_path: Path, command: Command) -> None:
    pytest.importorskip("onnxruntime")
    words = ["export", "net.py:Net@0.pt", "--data", "digits", "--epsilon", "0.01", "--images", "4"]
    done = command(*words, "--out", tmp_path / "there", cwd=folder)
    assert done.returncode == 0, done.stderr
    with (tmp_path / "there" / "instances.csv").open(encoding="utf-8") as file:
        networks = {row[0] for row in csv.reader(file)}
    assert networks == {"onnx/Net-0.onnx"}


def test_own_models_and_the_members_of_a_saved_ensemble_are_joined(
    folder: Path, tmp_path: Path, command: Command
) -> None:
    first, second = (
        intake.load_models(f"{folder / 'net.py'}:Net@{folder / f'{seed}.pt'}", device="cpu").popitem()[1]
        for seed in (0, 1)
    )
    rn.Ensemble([first], [1.0], [1.0]).save(tmp_path / "saved")
    words = ["ensemble", "build", "--from", tmp_path / "saved", "net.py:Net@1.pt", "--data", "digits"]
    words += ["--threat", "linf:0.02", "--images", "12", "--epsilon", "0.01", "workers=1"]
    settings = [
        "certification.bound=interval",
        "evaluation.attacks=['fgsm']",
        "evaluation.strongest=[]",
        "evaluation.masking_images=0",
    ]
    # The ensemble's folder, which a command named, names code in turn.
    assert "--allow-code" in command(*words, "--out", tmp_path, cwd=folder).stderr
    done = command(*words, *settings, "--out", tmp_path, "--allow-code", cwd=folder)
    assert done.returncode == 0, done.stderr
    run = only(tmp_path, "*-ensemble-*")
    assert [model["from"] for model in read(run, "train.json")["models"]] == ["saved/0", "Net@1"]
    images = rn.datasets.load("digits").test[:12].images
    joined = rn.load_run(run, allow_code=True).models
    for found, expected in zip(joined.values(), (first, second), strict=True):
        torch.testing.assert_close(found(images), expected(images))
    # An export as Python, which models of one's own are already, would be refused.
    assert "--python" not in (run / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "net.py:Net"], "--data digits"),
        (["train", "net.py:Eleven", "--data", "digits"], "each of the 10 classes"),
        (["train", "nowhere.py:Net", "--data", "digits"], "no file"),
        (["train", "net.py:Net", "--data", "nowhere"], "no recipe for the data set"),
        (["certify", "net.py:Net", "--data", "digits"], "--epsilon 2/255"),
        (["certify", "net.py"], "net.py:NAME"),
        (["train", "net.py", "--data", "digits"], "net.py:NAME"),
        (["ensemble", "build", "--from", "0.pt", "net.py:Net", "--data", "digits"], "attribute@0.pt"),
        (
            [
                "certify",
                "net.py:Net",
                "--data",
                "digits",
                "--norm=linf",
                "--epsilon",
                "1",
                "--method=smoothing[sigma=1]",
            ],
            "certifies l2 balls",
        ),
        (["export", "net.py:Net", "--data", "digits", "--epsilon", "0.1"], "--out FOLDER"),
        (["ensemble", "build", "--from", "net.py:Net", "net.py:ready"], "give them, such as --data digits"),
        (["ensemble", "build", "--from", "net.py:Net", "--data", "digits"], "needs two trained models"),
    ],
)
def test_a_mistake_costs_one_sentence(
    folder: Path, tmp_path: Path, command: Command, words: list, message: str
) -> None:
    done = command(*words, *([] if words[0] == "export" else ["--out", tmp_path]), cwd=folder)
    assert done.returncode == 2 and message in done.stderr, done.stderr
    said = [line for line in done.stderr.splitlines() if line != "reading the data set digits"]
    assert len(said) == 1 and not list(tmp_path.iterdir())


def test_files_of_one_name_import_the_neighbours_that_they_have(tmp_path: Path) -> None:
    widths = []
    for name, width in (("a", 3), ("b", 5), ("a", 3)):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "sizes_of_it.py").write_text(f"WIDTH = {width}\n", encoding="utf-8")
        (tmp_path / name / "it.py").write_text(
            "from torch import nn\nfrom sizes_of_it import WIDTH\nnet = nn.Linear(2, WIDTH)\n", encoding="utf-8"
        )
        (model,) = rn.load_models(f"{tmp_path / name / 'it.py'}:net").values()
        widths.append(len(model.weight))
    assert widths == [3, 5, 3]


def test_a_file_that_has_changed_since_its_run_is_said(tmp_path: Path) -> None:
    file, data = tmp_path / "it.py", rn.datasets.load("digits")
    file.write_text(NET, encoding="utf-8")
    space = intake.own_space(f"{file}:Net")
    again = spaces.described({**spaces.describe(space), "models": named([f"{file}:Net"])})
    with warnings.catch_warnings(action="error"):
        again.network(again.parse(f"{file}:Net"), data)
    file.write_text(NET.replace("return self", "return -self"), encoding="utf-8")
    with pytest.warns(UserWarning, match="has changed since"):
        again.network(again.parse(f"{file}:Net"), data)


def test_a_ready_made_model_is_another_each_time_that_its_network_is_asked_for(folder: Path) -> None:
    space = (
        spaces.load("own")
        if "own" in spaces.names()
        else spaces.described(named({"kind": "module", "name": "own", "models": [f"{folder / 'net.py'}:ready"]}))
    )
    data = rn.datasets.load("digits")
    one, other = (space.network(space.parse(f"{folder / 'net.py'}:ready"), data) for _ in range(2))
    with torch.no_grad():
        next(one.parameters()).zero_()
    assert next(other.parameters()).detach().abs().sum() > 0


def test_a_space_of_models_runs_code_only_if_the_person_at_work_named_it(folder: Path) -> None:
    table = {"kind": "module", "name": "own", "models": [f"{folder / 'net.py'}:Net"]}
    with pytest.raises(InputError, match="--allow-code"):
        spaces.described(table)
    with allowing_code():
        assert spaces.described(table).choices == {"model": (f"{folder / 'net.py'}:Net",)}


def test_the_recipe_of_a_model_is_the_data_sets_but_for_the_search(folder: Path) -> None:
    own, usual = recipes.for_model(f"{folder / 'net.py'}:Net", data="digits"), recipes.load("digits")
    same = ("data", "train", "evaluation", "certification", "threat")
    assert all(config.to_dict(own)[key] == config.to_dict(usual)[key] for key in same)
