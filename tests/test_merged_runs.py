"""Trained models of several runs, joined in a run of their own."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

import robust_nas as rn
from robust_nas.core import config
from robust_nas.ensembles import Ensemble
from robust_nas.jobs.merged_runs import _check_common
from robust_nas.recipes import from_table
from robust_nas.runtime.states import load_state

Command = Callable[..., subprocess.CompletedProcess[str]]
QUICK = [
    "search=given",
    "derive.count=1",
    "derive.pool=1",
    "space.stages=1",
    "train.epochs=2",
    "train.batch_size=256",
    "train.method=standard",
    "train.selection_attack=fgsm",
    "evaluation.attacks=['fgsm']",
    "evaluation.strongest=['pgd']",
    "evaluation.curve_epsilons=[]",
    "evaluation.masking_images=4",
    "evaluation.num_images=20",
    "certification.bound=interval",
    "certification.num_images=20",
    "certification.epsilons=[0.0001]",
    "ensemble.num_images=40",
]


def trained(command: Command, root: Path, *settings: str) -> Path:
    done = command("search", "digits", *QUICK, *settings, "--out", root)
    assert done.returncode == 0, done.stderr
    (run,) = (path for path in root.iterdir() if (path / "config.toml").is_file())
    for stage in ("derive", "train"):
        done = command(stage, run)
        assert done.returncode == 0, done.stderr
    return run


@pytest.fixture(scope="module")
def narrow(command: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(command, tmp_path_factory.mktemp("narrow"), "search.architecture=313131", "space.channels=1")


@pytest.fixture(scope="module")
def wide(command: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(command, tmp_path_factory.mktemp("wide"), "search.architecture=000300", "space.channels=3")


@pytest.fixture(scope="module")
def joined(command: Command, narrow: Path, wide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("joined")
    done = command(
        "ensemble", "build", "--from", narrow, wide, "--epsilon", "0.001", "--members", "1", "--out", root,
        "certification.bound=crown",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (run,) = (path for path in root.iterdir() if (path / "config.toml").is_file())
    return run


def test_runs_of_different_architectures_and_widths_are_joined_with_their_own_weights(
    joined: Path, narrow: Path, wide: Path
) -> None:
    models = rn.load_run(joined).models
    for name, source in {"model-0": narrow, "model-1": wide}.items():
        own = load_state(source / "checkpoints" / "model-0.safetensors")["weights"]
        assert own.keys() == models[name].state_dict().keys()
        assert all(torch.equal(value, own[key]) for key, value in models[name].state_dict().items())
    records = json.loads((joined / "train.json").read_text())["models"]
    assert [record["from"] for record in records] == [f"{narrow.name}/model-0", f"{wide.name}/model-0"]


def test_a_joined_run_is_attacked_certified_and_reported_at_the_radius_that_was_asked_for(joined: Path) -> None:
    evaluation, certification, ensemble = (
        json.loads((joined / f"{name}.json").read_text()) for name in ("evaluation", "certification", "ensemble")
    )
    models = {"model-0", "model-1", "uniform", "ensemble"}
    assert models == evaluation["models"].keys() == certification["models"].keys()
    assert all(entry[0]["epsilon"] == 0.001 for entry in certification["models"].values())
    assert certification["method"] == "crown"
    assert ensemble["epsilon"] == 0.001 and (joined / "report.html").is_file()


def test_the_limit_on_members_is_kept_and_the_saved_ensemble_is_the_one_that_was_measured(joined: Path) -> None:
    ensemble = json.loads((joined / "ensemble.json").read_text())
    assert sum(weight > 0 for weight in ensemble["weights"]) == 1
    kept = "model-0" if ensemble["weights"][0] > 0 else "model-1"
    run, saved = rn.load_run(joined), Ensemble.load(joined / "ensemble")
    images = run.data.test.images[:16]
    with torch.no_grad():
        torch.testing.assert_close(saved(images), run.models[kept](images), rtol=0, atol=1e-6)


def test_the_best_member_is_found_by_one_attack_at_the_joined_radius_whatever_the_runs_said(joined: Path) -> None:
    run = rn.load_run(joined)
    for record in run.read("train.json")["models"]:
        validation = run.data.validation[:40]
        expected = rn.evaluate(run.models[record["name"]], validation, run.threat, attacks=["pgd"])
        assert record["validation"] == {"clean": expected.clean_accuracy, "robust": expected.robust_accuracy}


def test_the_report_says_where_the_networks_come_from_and_claims_no_search(joined: Path, narrow: Path) -> None:
    page = (joined / "report.html").read_text()
    assert f"2 trained networks of {narrow.name} and" in page and f"{narrow.name}/model-0" in page
    assert "given search" not in page and "one run with one seed" not in page


def test_joining_that_fails_on_the_way_leaves_no_run(
    command: Command, narrow: Path, wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("robust_nas.jobs.merged_runs.write_text", mock.Mock(side_effect=KeyboardInterrupt))
    assert command("ensemble", "build", "--from", narrow, wide, "--out", tmp_path).returncode == 130
    assert not list(tmp_path.glob("*"))


def test_runs_of_one_data_set_in_two_places_are_joined_only_if_the_images_are_the_same(
    narrow: Path, tmp_path: Path
) -> None:
    for root, shift in {"first": 0, "copy": 0, "other": 9}.items():
        for label, name in enumerate(("a", "b")):
            folder = tmp_path / root / name
            folder.mkdir(parents=True)
            for image in range(12):
                pixels = np.full((8, 8), 10 * image + 100 * label + shift, np.uint8)
                Image.fromarray(pixels).save(folder / f"{image}.png")
    table = config.read_toml(narrow / "config.toml")
    recipes = [
        from_table({**table, "data": {"name": "folder", "root": str(tmp_path / root)}}, "")
        for root in ("first", "copy", "other")
    ]
    first, copy, other = (tmp_path / name for name in ("first", "copy", "other"))
    _check_common([first, copy], recipes[:2])
    with pytest.raises(rn.InputError, match="was made with other data"):
        _check_common([first, other], [recipes[0], recipes[2]])


def test_a_joined_run_adds_nothing_to_the_table_that_its_members_are_in(joined: Path) -> None:
    assert not (joined.parent / "table").exists()
    assert json.loads((joined / "record.json").read_text())["rows"] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ensemble", "build"], "ensemble build --from RUN RUN"),
        (["ensemble", "build", "--from", "nowhere"], "There is no nowhere"),
        (["ensemble", "RUN", "--members", "2"], "--members belongs to 'ensemble build'"),
        (["ensemble", "build", "--from", "RUN"], "two trained models or more"),
        (["ensemble", "build", "--from", "RUN", "OTHER"], "was made with other data than"),
        (["ensemble", "build", "--from", "RUN", "RUN"], "A run is joined once, and so is a model"),
        (["ensemble", "build", "--from", "RUN", "AGAIN", "--members", "0"], "RobBoost.members must be at least 1"),
        (["ensemble", "build", "--from", "RUN", "AGAIN", "--epsilon", "8"], "did you mean 8/255"),
        (["ensemble", "build", "--from", "RUN", "AGAIN", "data.validation_size=500"], "cannot be set, but evaluation"),
        (["ensemble", "build", "--from", "RUN", "SPOILED"], "model-0.safetensors"),
        (["ensemble", "build", "--from", "RUN", "UNTRAINED"], "There is no train.json"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_in_joining_costs_one_sentence(
    command: Command, narrow: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    other, untrained = tmp_path / "other", tmp_path / "untrained"
    again, spoiled = tmp_path / "again", tmp_path / "spoiled"
    for copy in (other, untrained, again, spoiled):
        shutil.copytree(narrow, copy)
    (untrained / "train.json").unlink()
    (spoiled / "checkpoints" / "model-0.safetensors").unlink()
    settings = other / "config.toml"
    settings.write_text(settings.read_text().replace('[data]\nname = "digits"', '[data]\nname = "mnist"\nroot = "x"'))
    places = {"RUN": narrow, "OTHER": other, "UNTRAINED": untrained, "AGAIN": again, "SPOILED": spoiled}
    done = command(*(places.get(word, word) for word in words), "--out", tmp_path / "out")
    assert done.returncode == 2 and message in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not list((tmp_path / "out").glob("*"))
