"""Scaling studies at work: their cells are run folders, and end in one of four ways, whatever happens to processes."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from robust_nas.core import config
from robust_nas.core.errors import InputError
from robust_nas.records.scaling import CellEnd
from robust_nas.runtime.progress import Progress
from robust_nas.studies import scaling
from robust_nas.studies.scaling import grid as grids
from robust_nas.studies.scaling import results
from robust_nas.studies.scaling.files import Files
from robust_nas.studies.scaling.grid import Axis, Grid

QUICK = (
    "train.epochs=1",
    "evaluation.attacks=['fgsm']",
    "evaluation.strongest=[]",
    "evaluation.curve_epsilons=[0.2]",
    "evaluation.num_images=20",
    "evaluation.masking_images=0",
)

QUIET = Progress(quiet=True)


def test_a_grid_has_every_combination_once_and_each_is_named_apart() -> None:
    grid = Grid(
        data="digits",
        depths=(8, 14, 20),
        widths=("0.25", "1-1-2"),
        seeds=(0, 1),
        vary=(Axis(key="train.norm", values=("batch", "mixture")), Axis(key="train.awp", values=("0", "0.01"))),
    )
    cells = grid.cells()
    expected = set(itertools.product((8, 14, 20), ("0.25", "1-1-2"), (0, 1), ("batch", "mixture"), ("0", "0.01")))
    assert {(c.depth, c.width, c.seed, c.varied["train.norm"], c.varied["train.awp"]) for c in cells} == expected
    assert len(cells) == len(grid) == len(expected) == len({cell.name for cell in cells})


def test_norms_of_their_own_are_left_out_where_there_are_no_clean_images() -> None:
    words = {"norms": "plain,separate,mixture", "clean_images": "0,0.5,1"}
    grid = grids.from_words(data="digits", depths="8", seeds="2", **words)
    assert len(grid) == len(grid.cells()) == 2 * (1 + 2 * 3)


def test_the_first_seed_of_all_networks_comes_before_the_second() -> None:
    cells = Grid(data="digits", depths=(8, 14), seeds=(0, 1)).cells()
    assert [(cell.seed, cell.depth) for cell in cells] == [(0, 8), (0, 14), (1, 8), (1, 14)]


def test_a_grid_is_read_back_from_its_file_as_it_was() -> None:
    grid = Grid(data="digits", depths=(8,), vary=(Axis(key="train.norm", values=("batch", "mixture")),))
    assert config.build(Grid, config.parse_toml(config.to_toml(config.to_dict(grid)), "")) == grid


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ({"depths": "8,21"}, "the nearest are 20 and 26"),
        ({"depths": "8", "options": "norm=group:5"}, "groups"),
        ({"depths": "8,8"}, "has 8 twice"),
        ({"depths": "8", "widths": "zero"}, "such as 2, or one for each stage"),
        ({"depths": "8", "seeds": "10001"}, "10,001 cells"),
        ({"depths": "8", "vary": ["train.norm"]}, "KEY=VALUE,VALUE"),
        ({"depths": "8", "vary": ["train.nrom=batch,mixture"]}, "nrom"),
        ({"depths": "8", "train": "pgdat"}, "Did you mean 'pgd_at'"),
        ({"depths": "8", "widths": "2,2-2-2"}, "has 2 twice"),
        ({"depths": "8", "overrides": ["seed=7"]}, "seeds are --seeds"),
        ({"depths": "8", "vary": ["search.architecture=a,b"]}, "networks are --depths"),
        ({"depths": "8", "vary": ["data.size=8,16"]}, "one data set"),
        ({"depths": "8", "vary": ["train.awp=0.5/255,0.5-255"]}, "would have the folder"),
        ({"depths": "8", "norms": "mixture", "clean_images": "0"}, "of which there are none"),
        ({"depths": "8", "norms": "plain,mixture"}, "No image goes through the clean batch norm"),
        ({"depths": "8", "epoch": "5"}, "Did you mean 'epochs'"),
    ],
)
def test_a_grid_that_is_none_is_refused_in_a_sentence_and_leaves_no_folder(
    words: dict[str, object], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=sentence):
        scaling.begun(None, {"data": "digits", **words}, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_folder_of_another_grid_or_of_something_else_is_refused_by_what_differs(tmp_path: Path) -> None:
    words = {"data": "digits", "depths": "8", "overrides": QUICK}
    study = scaling.begun(tmp_path / "study", words, tmp_path)
    assert scaling.begun(study, words, tmp_path) == study
    with pytest.raises(InputError, match="other settings: depths"):
        scaling.begun(study, {**words, "depths": "8,14"}, tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="something else than a scaling study"):
        scaling.begun(tmp_path / "mine", words, tmp_path)
    with pytest.raises(InputError, match=r"has no study\.toml"):
        scaling.measure(tmp_path / "mine", QUIET)


@pytest.mark.slow
def test_a_cell_that_diverges_or_finds_no_memory_is_recorded_and_the_study_goes_on(tmp_path: Path) -> None:
    wide = 64  # 450 million parameters
    overrides = (*QUICK, "train.learning_rate=1e30")
    words = {"data": "digits", "depths": "8", "widths": f"0.25,{wide}", "overrides": overrides}
    study = scaling.begun(tmp_path / "study", words, tmp_path)
    scaling.measure(study, QUIET, workers=2, memory=1.5)
    ends = {row.width: row.status for row in results.read(study).cells}
    assert ends == {"0.25": "diverged", str(wide): "out of memory"}


@pytest.mark.slow
def test_a_cell_is_the_run_that_its_network_has_by_itself(
    tmp_path: Path, command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    study = scaling.begun(None, {"data": "digits", "depths": "8", "widths": "0.25", "overrides": QUICK}, tmp_path)
    scaling.measure(study, QUIET)
    (row,) = results.read(study).cells
    out = tmp_path / "runs"
    alone = command("train", row.network, "--data", "digits", *QUICK, "workers=1", "--out", out)
    assert alone.returncode == 0, alone.stderr
    (other,) = out.iterdir()
    facts = json.loads((other / "train.json").read_text())["models"][0]
    assert row.validation == facts["validation"]
    evaluated = json.loads((Files(study).run(row.name) / "evaluation.json").read_text())["models"]["model-0"]
    assert row.robust is not None
    assert row.robust.accuracy == evaluated["worst_case"]["accuracy"]


def test_cells_that_did_not_finish_are_measured_again_if_that_is_asked(tmp_path: Path) -> None:
    study = scaling.begun(None, {"data": "digits", "depths": "8", "widths": "0.25", "overrides": QUICK}, tmp_path)
    files, (cell,) = Files(study), grids.read(study).cells()
    lost = CellEnd(status="failed", reason="a test said so", seconds=0.0)
    files.end_file(cell.name).write_text(json.dumps({"status": "failed", "reason": lost.reason, "seconds": 0.0}))
    scaling.measure(study, QUIET)
    assert files.end(cell.name) == lost
    scaling.measure(study, QUIET, retry=True)
    end = files.end(cell.name)
    assert end is not None
    assert end.status == "finished"


@pytest.mark.slow
def test_a_study_that_is_killed_goes_on_to_the_same_results_with_two_processes_on_it(tmp_path: Path) -> None:
    words = {"data": "digits", "depths": "8,14", "widths": "0.25", "seeds": "2", "overrides": QUICK}
    whole = scaling.begun(tmp_path / "whole", words, tmp_path)
    scaling.measure(whole, QUIET)
    cut = scaling.begun(tmp_path / "cut", words, tmp_path)
    files = Files(cut)
    names = [cell.name for cell in grids.read(cut).cells()]
    run = [sys.executable, "-m", "robust_nas", "scale", "run", str(cut)]
    first = subprocess.Popen(run, stderr=subprocess.DEVNULL)
    while not files.run(names[1]).exists():
        time.sleep(0.05)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    work = [sys.executable, "-m", "robust_nas", "work", str(cut)]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in (run, work)]
    said = [process.communicate(timeout=300)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    for name in names:
        for file in ("train.json", "evaluation.json"):
            found = [json.loads((Files(study).run(name) / file).read_text()) for study in (whole, cut)]
            assert _timeless(found[0]) == _timeless(found[1])


def _timeless(value: object) -> object:
    """Return a result without its seconds."""
    if isinstance(value, dict):
        return {key: _timeless(item) for key, item in value.items() if key != "seconds"}
    return [_timeless(item) for item in value] if isinstance(value, list) else value
