"""`robust-nas attack MODEL ...`: any model, from the command to the report; killed and resumed; what it costs."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import robust_nas as rn
from robust_nas import datasets
from robust_nas.core import config
from robust_nas.core.errors import InputError
from robust_nas.core.writing import write_text
from robust_nas.jobs import attack_models
from robust_nas.jobs.given_models import few_training_images
from robust_nas.recipes import load as load_recipe
from robust_nas.runtime import progress
from robust_nas.runtime.per_sample import read_outcomes

Command = Callable[..., subprocess.CompletedProcess[str]]

NET = """
import torch


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(64, 10)

    def forward(self, images):
        return self.linear(images.flatten(1))


class Probabilities(Net):
    def forward(self, images):
        return super().forward(images).softmax(1)
"""

EPSILON = 0.08


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a user's own model: a file of code and a file of weights, trained by scikit-learn."""
    from sklearn.linear_model import LogisticRegression

    place = tmp_path_factory.mktemp("own")
    data = rn.datasets.load("digits")
    fitted = LogisticRegression(C=0.1, max_iter=500).fit(data.train.images.flatten(1).numpy(), data.train.labels)
    weight, bias = (torch.from_numpy(array).float().contiguous() for array in (fitted.coef_, fitted.intercept_))
    (place / "own_net.py").write_text(NET)
    save_file({"linear.weight": weight, "linear.bias": bias}, place / "own.safetensors")
    return place


def exactly_robust(folder: Path, epsilon: float) -> Tensor:
    """Return which test images no point of the ball and the box changes the linear model's mind about, [N]."""
    from safetensors.torch import load_file

    weights, test = load_file(folder / "own.safetensors"), rn.datasets.load("digits").test
    x = test.images.flatten(1).double()
    w, b = weights["linear.weight"].double(), weights["linear.bias"].double()
    up, down = (1 - x).clamp_max(epsilon), x.clamp_max(epsilon)
    worst = []
    for other in range(10):
        difference = w[other] - w[test.labels]
        gain = torch.where(difference > 0, difference * up, -difference * down).sum(1)
        margin = (difference * x).sum(1) + b[other] - b[test.labels] + gain
        worst.append(margin.masked_fill(test.labels == other, -torch.inf))
    return torch.stack(worst).amax(0) < 0


MODEL = "own_net.py:Net@own.safetensors"


def attacked(root: Path) -> Path:
    (path,) = root.glob("attack-*")
    return path


def numbers(value: Any) -> Any:
    """The contents of a result, without durations."""
    if isinstance(value, dict):
        return {key: numbers(item) for key, item in value.items() if key != "seconds"}
    return [numbers(item) for item in value] if isinstance(value, list) else value


def test_a_users_own_model_is_attacked_from_the_command_to_the_report(
    folder: Path, tmp_path: Path, command: Command
) -> None:
    words = ["attack", MODEL, "--data", "digits", "--threat", f"linf:{EPSILON}", "--threat", "l2:0.5"]
    words += ["--attack", "pgd[steps=20,loss=margin]", "--attack", "apgd", "--distances", "fab[targets=9]"]
    done = command(*words, "--budget", "--images", "100", "--out", tmp_path, "evaluation.batch_size=40", cwd=folder)
    assert done.returncode == 0, done.stderr
    path = attacked(tmp_path)
    record = json.loads((path / "evaluation.json").read_text())
    assert (record["data"], record["split"], record["num_images"], len(record["classes"])) == (
        "digits",
        "test",
        100,
        10,
    )
    ((name, found),) = record["models"].items()

    exact = exactly_robust(folder, EPSILON)[:100]
    outcomes = [row for row in read_outcomes(path / "evaluation.parquet").to_pylist() if row["norm"] == "linf"]
    stands = torch.ones(100, dtype=torch.bool)
    for row in outcomes:
        stands[row["image"]] &= row["correct"]
    # What is exactly robust stands, and of the rest the attacks find all but what lies at the very boundary.
    assert (stands | ~exact).all() and int((stands & ~exact).sum()) <= 1
    assert found["threats"][0]["accuracy"] == int(stands.sum()) / 100
    assert [point["norm"] for point in found["curve"]] == ["linf"] * 7 + ["l2"] * 7
    assert [item["norm"] for item in found["distortions"]] == ["linf", "l2"]
    # Half of the images have an adversarial example within the median distance, and the exact share says the same.
    median = found["distortions"][0]["quantiles"]["0.5"]
    assert abs(float(exactly_robust(folder, median)[:100].float().mean()) - 0.5) <= 0.03
    assert len(read_outcomes(path / "distortions.parquet")) == 200
    assert sum(map(sum, found["confusion"])) == 100 and found["notes"] == []
    assert (path / "report.html").stat().st_size > 10_000
    assert name in done.stdout and f"{100 * found['average']:.1f}" in done.stdout and str(path) in done.stdout
    assert "forward passes" in done.stderr and "expected for" in done.stderr


def test_without_checks_for_gradient_masking_the_report_says_that_none_were_made(
    folder: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "SHORT", 0.0)  # a line for every loop, however quick this machine is
    words = ["attack", MODEL, "--data", "digits", "--threat", "linf:0.05", "--attack", "fgsm", "--images", "20"]
    checked = command(*words, "evaluation.masking_images=4", "--out", tmp_path / "checked", cwd=folder)
    assert "checks for gradient masking on 4 images: 9/9" in checked.stderr
    done = command(*words, "--no-checks", "--budget", "--out", tmp_path / "plain", cwd=folder)
    assert done.returncode == 0 and "masking" not in done.stderr
    found = [
        json.loads((attacked(tmp_path / name) / "evaluation.json").read_text())["models"]
        for name in ("checked", "plain")
    ]
    ((name, with_checks),), ((_, without),) = (models.items() for models in found)
    assert len(with_checks["masking"]) == 9 and without["masking"] == []
    assert without["attacks"][0]["accuracy"] == with_checks["attacks"][0]["accuracy"]
    page = (attacked(tmp_path / "plain") / "report.html").read_text()
    assert "The checks for gradient masking were not run." in page and f"Not looked for in {name}" in page


def test_the_same_command_says_again_what_it_has_found_and_another_does_not(
    folder: Path, tmp_path: Path, command: Command
) -> None:
    words = ["attack", MODEL, "--data", "digits", "--threat", "linf:0.05", "--attack", "fgsm", "--images", "20"]
    words += ["evaluation.masking_images=4", "--out", str(tmp_path)]
    first = command(*words, cwd=folder)
    assert first.returncode == 0, first.stderr
    before = (attacked(tmp_path) / "evaluation.json").stat().st_mtime_ns
    assert command(*words, cwd=folder).stdout == first.stdout
    assert (attacked(tmp_path) / "evaluation.json").stat().st_mtime_ns == before
    # Other words for the same weights are the same model.
    again = [f"{folder}/{MODEL}" if word == MODEL else word for word in words]
    found = command(*again, cwd=folder)
    assert (found.returncode, found.stdout) == (0, first.stdout), found.stderr
    # Other weights in the same file are another model.
    changed = tmp_path / "changed"
    shutil.copytree(folder, changed)
    generator = torch.Generator().manual_seed(0)
    weights = {"linear.weight": torch.randn(10, 64, generator=generator), "linear.bias": torch.zeros(10)}
    save_file(weights, changed / "own.safetensors")
    assert command(*words, cwd=changed).returncode == 0
    assert len(list(tmp_path.glob("attack-*"))) == 2


def test_probabilities_are_named_and_their_logarithm_is_attacked_as_well_as_logits(
    folder: Path, tmp_path: Path, command: Command
) -> None:
    found = {}
    for kind, words in {
        "logits": ["own_net.py:Net@own.safetensors"],
        "probabilities": ["own_net.py:Probabilities@own.safetensors"],
        "log": ["own_net.py:Probabilities@own.safetensors", "--outputs", "probabilities"],
    }.items():
        out = tmp_path / kind
        words += ["--data", "digits", "--threat", "linf:0.08", "--attack", "pgd[steps=10]", "--images", "60"]
        done = command("attack", *words, "evaluation.masking_images=4", "--out", out, cwd=folder)
        assert done.returncode == 0, done.stderr
        (found[kind],) = json.loads((attacked(out) / "evaluation.json").read_text())["models"].values()
    assert [bool(found[kind]["notes"]) for kind in found] == [False, True, False]
    assert "probabilities" in found["probabilities"]["notes"][0]
    assert found["log"]["worst_case"]["accuracy"] == found["logits"]["worst_case"]["accuracy"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["own_net.py:Net@own.safetensors"], "belongs to no run folder that would say its data"),
        ([MODEL, "--data", "digits"], "such as --threat linf:8/255"),
        ([MODEL, "--data", "digits", "--threat", "8/255"], "norm:epsilon"),
        ([MODEL, "--data", "digits", "--threat", "linf:8"], "did you mean 8/255"),
        ([MODEL, "--data", "digits", "--threat", "linf:0.1", "--attack", "pdg"], "Did you mean 'pgd'"),
        ([MODEL, "--data", "digits", "--threat", "linf:0.1", "--attack", "pgd[step=3]"], "no key 'step'"),
        ([MODEL, "--data", "digits", "--threat", "linf:0.1", "--attack", "pgd[steps=3"], "name[key=value"),
        ([MODEL, "--data", "digits", "--threat", "l1:3", "--attack", "szvr_g"], "but got an l1 threat model"),
        ([MODEL, "--data", "digits", "--threat", "l1:3", "--threat", "l1:3"], "one or several different ones"),
        (
            [MODEL, "--data", "digits", "--threat", "l1:3", "--threat", "linf:0.1", "--epsilons", "0,1"],
            "radii of a curve are of one norm",
        ),
        (["own_net.py:Nett", "--data", "digits", "--threat", "linf:0.1"], "Did you mean 'Net'"),
        (["own_net.py", "--data", "digits"], "own_net.py:NAME"),
        (["nowhere/model.safetensors"], "There is no nowhere/model.safetensors"),
        ([MODEL, "--data", "../imgs", "--threat", "linf:0.1"], "There is no data set or folder '../imgs'"),
        ([MODEL, "--data", "own_net.py", "--threat", "linf:0.1"], "own_net.py is a file"),
        (["a=1"], "takes a run folder or a model"),
    ],
)
def test_wrong_words_end_in_one_sentence_and_leave_nothing(
    folder: Path, tmp_path: Path, command: Command, words: list[str], message: str
) -> None:
    done = command("attack", *words, "--out", tmp_path, cwd=folder)
    assert done.returncode == 2 and message.lower() in done.stderr.lower()
    assert "Traceback" not in done.stderr and list(tmp_path.iterdir()) == []


@pytest.mark.slow  # a run that is killed between two networks' attacks is in test_pipeline.py
def test_an_attack_that_is_killed_at_60_percent_resumes_to_the_same_numbers(folder: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "robust_nas", "attack", MODEL, "--data", "digits", "--threat", "linf:0.08"]
    words += ["--attack", "pgd[steps=40,restarts=4,loss=margin]", "--attack", "square[queries=300]"]
    words += ["--images", "180", "evaluation.batch_size=20", "evaluation.masking_images=4", "threads=1"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

    def run(out: Path) -> Path:
        done = subprocess.run(
            [*words, "--out", str(out)], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        return attacked(out)

    expected = run(tmp_path / "whole")
    process = subprocess.Popen(
        [*words, "--out", str(tmp_path / "killed")], cwd=folder, env=environment, stderr=subprocess.DEVNULL
    )
    # 9 chunks of clean images and about as many for each attack: some of the second attack's are done at 60 %.
    deadline, done = time.monotonic() + 200, 0
    while done < 15 and time.monotonic() < deadline and process.poll() is None:
        for state in (tmp_path / "killed").glob("attack-*/checkpoints/attack-*.state.safetensors"):
            match = re.search(rb'"step", \{"value": (\d+)\}', state.read_bytes()[:200_000].replace(b"\\", b""))
            done = int(match[1]) if match else done
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    killed = attacked(tmp_path / "killed")
    assert done >= 15 and not (killed / "evaluation.json").exists()
    resumed = run(tmp_path / "killed")
    assert numbers(json.loads((resumed / "evaluation.json").read_text())) == numbers(
        json.loads((expected / "evaluation.json").read_text())
    )
    outcomes = [read_outcomes(path / "evaluation.parquet").to_pylist() for path in (expected, resumed)]
    assert outcomes[0] == outcomes[1]
    assert not list(killed.glob("checkpoints/*.state.safetensors"))


@pytest.mark.slow  # a run on two ranks, attacks included, is in test_pipeline.py
def test_two_ranks_find_what_one_process_finds(folder: Path, tmp_path: Path, command: Command) -> None:
    words = ["attack", MODEL, "--data", "digits", "--threat", "linf:0.08", "--attack", "pgd[steps=5]", "--images", "90"]
    words += ["evaluation.batch_size=20", "evaluation.masking_images=10", "threads=1"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "robust_nas"]
    done = subprocess.run(
        [*launcher, *words, "--out", str(tmp_path / "two")], cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    alone = command(*words, "--out", tmp_path / "one", cwd=folder)
    assert alone.returncode == 0, alone.stderr
    records = [json.loads((attacked(tmp_path / name) / "evaluation.json").read_text()) for name in ("two", "one")]
    assert numbers(records[0]) == numbers(records[1])
    environment = json.loads((attacked(tmp_path / "two") / "environment.json").read_text())
    assert environment["world_size"] == 2 and done.stdout.count("attacked models") == 1


def test_only_the_images_that_are_attacked_are_read(folder: Path, tmp_path: Path) -> None:
    source = datasets.get("folder")(root=tmp_path)
    assert (few_training_images(source).train_size, few_training_images(source).validation_size) == (1, 1)
    # A set whose parts cannot be told to be small stays as it is.
    digits = datasets.get("digits")()
    assert few_training_images(digits) == digits


def test_a_folder_that_is_not_finished_says_how_to_go_on(folder: Path, tmp_path: Path, command: Command) -> None:
    words = ["attack", MODEL, "--data", "digits", "--threat", "linf:0.05", "--attack", "fgsm", "--images", "20"]
    assert command(*words, "evaluation.masking_images=4", "--out", tmp_path, cwd=folder).returncode == 0
    path = attacked(tmp_path)
    (path / "report.html").unlink()
    assert "not finished: repeat the command" in command("info", path).stdout
    assert command("report", path).returncode == 0 and (path / "report.html").exists()
    assert "not finished" not in command("info", path).stdout


def test_a_model_that_cannot_take_the_images_is_named_and_leaves_no_folder(
    folder: Path, tmp_path: Path, command: Command
) -> None:
    (tmp_path / "wide.py").write_text("import torch\n\n\ndef wide():\n    return torch.nn.Conv2d(3, 10, 3)\n")
    words = [MODEL, f"{tmp_path / 'wide.py'}:wide", "--data", "digits", "--threat", "linf:0.1"]
    done = command("attack", *words, "--out", tmp_path / "out", cwd=folder)
    assert done.returncode == 2 and "wide: The model cannot take images of 1 x 8 x 8 pixels" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_saved_ensemble_is_attacked_on_the_images_and_in_the_ball_of_its_run_or_of_those_that_are_named(
    tmp_path: Path,
) -> None:
    data, space = rn.datasets.load("digits"), rn.spaces.load("nasbench201", channels=2, cells_per_stage=1, stages=1)
    members = [space.network(space.parse(digits), data) for digits in ("323133", "112041")]
    ensemble = rn.Ensemble(members, [0.3, 0.7]).eval()
    within, alone = ensemble.save(tmp_path / "run" / "ensemble"), ensemble.save(tmp_path / "mine")
    recipe = load_recipe("digits", ["threat.norm=l2", "threat.epsilon=0.7"])
    write_text(tmp_path / "run" / "config.toml", config.to_toml(recipe.to_dict()))
    for folder, given, norm in ((within, {}, "l2"), (alone, {"data": "digits", "threat": ["linf:0.1"]}, "linf")):
        chosen = attack_models.from_words([str(folder)], **given)
        assert [threat.norm for threat in chosen.threats] == [norm]
        assert chosen.data == datasets.get("digits")()
        ((name, model),) = chosen.load(torch.device("cpu")).items()
        assert name == folder.name
        torch.testing.assert_close(model(data.test[:5].images), ensemble(data.test[:5].images))
    with pytest.raises(InputError, match="belongs to no run folder"):
        attack_models.from_words([str(alone)])
