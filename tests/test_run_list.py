"""The list of runs: the newest first, what is done and how good it is, and a row for what is damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from robust_nas.core.errors import InputError
from robust_nas.runtime.run_list import RunRow, list_runs

Command = Callable[..., "CompletedProcess[str]"]
STAGES = ("search", "derive", "train", "attack", "certify", "ensemble", "record", "report")


def session(started: str) -> dict[str, Any]:
    return {
        "version": "0.1.0", "commit": None, "python": "3.13.1", "torch": "2.11.0", "packages": {}, "device": "cpu",
        "cpu": "EPYC", "cores": 2, "threads": 1, "world_size": 1, "arguments": [], "started": started,
    }  # fmt: skip


def make_run(path: Path, started: str) -> Path:
    path.mkdir(parents=True)
    (path / "config.toml").write_text('name = "mine"\n[data]\nname = "digits"\n')
    # The first session counts, not the one that went on with the run.
    environment = {**session("2027-01-01T00:00:00+00:00"), "earlier": [session(started)]}
    (path / "environment.json").write_text(json.dumps(environment))
    return path


def attack(path: Path) -> None:
    """Write what attacks found: the second model withstands fewer attacks, of which it has had more."""

    def share(accuracy: float, **more: Any) -> dict[str, Any]:
        return {"accuracy": accuracy, "low": 0.0, "high": 1.0, "count": 10, **more}

    def model(clean: float, worst: float, *attacks: str) -> dict[str, Any]:
        found = [share(worst, name=name, norm="linf", epsilon=0.2) for name in attacks]
        return {"clean": share(clean), "attacks": found, "worst_case": share(worst, name="worst case")}

    models = {"model-0": model(0.9, 0.6, "pgd"), "model-1": model(0.8, 0.5, "pgd", "autoattack")}
    content = {"split": "test", "num_images": 10, "models": models}
    (path / "evaluation.json").write_text(json.dumps(content))


def test_runs_are_listed_newest_first_with_what_is_done_and_how_good_it_is(tmp_path: Path) -> None:
    make_run(tmp_path / "a", "2026-01-02T00:00:00+00:00")
    attack(make_run(tmp_path / "b", "2026-01-03T01:00:00+01:00"))
    (tmp_path / ".20260101-x-abcdef.unfinished").mkdir()
    (tmp_path / "notes").mkdir()
    b, a = list_runs(tmp_path)
    assert a == RunRow(
        name="a", kind="run", started="2026-01-02T00:00:00+00:00", recipe="mine", data="digits", missing=STAGES
    )
    assert (b.name, b.started, b.done) == ("b", "2026-01-03T00:00:00+00:00", ("attack",))
    assert (b.clean, b.robust) == (0.9, 0.5), "robust is of those that had the strongest attacks"


def test_other_folders_are_listed_as_what_they_are(tmp_path: Path) -> None:
    attacked, study, table = (tmp_path / name for name in ("attacked", "study", "table"))
    for folder in (attacked, study, table):
        folder.mkdir()
    (attacked / "attack.toml").write_text('seed = 0\nmodels = ["a.py:net"]\n[data]\nname = "digits"\n')
    (study / "settings.json").write_text('{"samplers": {}, "dataset": "cifar10"}')
    (table / "part-x.parquet").touch()
    found = {row.name: (row.kind, row.data, row.missing) for row in list_runs(tmp_path)}
    assert found == {
        "attacked": ("attack", "digits", ("attack", "report")),
        "study": ("study", "cifar10", ("simulation",)),
        "table": ("table", None, ()),
    }


def test_a_damaged_run_is_a_row_that_says_so(command: Command, tmp_path: Path) -> None:
    for name, file, text in (
        ("a", "config.toml", "name = 'x"),
        ("b", "evaluation.json", '{"models": '),
        ("c", "environment.json", "[]"),
        ("d", "config.toml", "data = 3"),
    ):
        (make_run(tmp_path / name, "2026-01-02T00:00:00+00:00") / file).write_text(text)
    rows = {row.name: row for row in list_runs(tmp_path)}
    for name, reason in {"a": "not valid TOML", "b": "evaluation.json is damaged", "d": "no section"}.items():
        assert reason in (rows[name].damage or "") and not rows[name].done
    assert rows["c"].recipe == "mine" and rows["c"].damage is None, "its date is that of the folder"
    done = command("list", "runs", "--out", tmp_path)
    assert done.returncode == 0 and done.stdout.count("damaged") >= 3 and "beware: a: " in done.stdout


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no folder .*runs yet; 'robust-nas run digits' makes one"):
        list_runs(tmp_path / "runs")


def test_a_list_without_a_kind_is_of_all_kinds(command: Command) -> None:
    lines = command("list").stdout.splitlines()
    assert {"runs", "attacks", "recipes", "tables"} <= {line.split()[0] for line in lines if line}
    assert command("list", "attacks", "--out", "x").stderr.startswith("robust-nas: --out is for 'robust-nas list runs'")


def test_a_scaling_study_is_a_row_that_is_run_when_all_cells_of_its_grid_have_ended(tmp_path: Path) -> None:
    study = tmp_path / "scale-1a2b3c4d"
    (study / "cells").mkdir(parents=True)
    facts = {"name": "digits", "image_shape": [1, 8, 8], "num_classes": 10, "num_train": 9, "num_validation": 1}
    (study / "study.toml").write_text('data = "digits"\n')
    (study / "study.json").write_text(json.dumps({**facts, "num_cells": 2}))
    (study / "cells" / "cifar-resnet-8_width=1_seed=0.json").write_text("{}")
    (row,) = list_runs(tmp_path)
    assert (row.kind, row.data, row.done, row.missing) == ("scaling", "digits", (), ("run", "report"))
    (study / "cells" / "cifar-resnet-14_width=1_seed=0.json").write_text("{}")
    assert list_runs(tmp_path)[0].done == ("run",)
    del facts["num_train"]
    (study / "study.json").write_text(json.dumps(facts))
    assert "it has no num_train" in str(list_runs(tmp_path)[0].damage)
