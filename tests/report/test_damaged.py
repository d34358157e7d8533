"""Files of a run that are well-formed and of another shape: one sentence with the file, the key and what to do."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from robust_nas import records
from robust_nas.cli import results
from robust_nas.core.errors import InputError
from robust_nas.report._contents import Contents
from robust_nas.report.findings import check_consistency
from robust_nas.runtime.run_folder import RunFolder
from tests.report.test_attack_page import ENVIRONMENT

DEEP = "[" * 3000 + "]" * 3000
ACCURACY = '{"num_images": 9, "models": {"a": {"clean": {"accuracy": %s, "low": 0, "high": 1, "count": 9}}}}'

ENSEMBLE = {
    "name": "robboost", "members": ["a", "b"], "weights": [1, 2], "scales": [1, 1], "epsilon": 0.1, "objective": 1,
    "least_objective": 1,
    "uniform": {"weights": [1, 1], "scales": [1, 1]}, "uniform_objective": 1, "best_single": "a", "num_validation": 1,
    "seconds": 1,
}  # fmt: skip


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """A finished run of links, of which one is to be replaced."""
    return shutil.copytree(finished_run, tmp_path / "run", copy_function=os.link)


@pytest.mark.parametrize(
    ("file", "content", "key"),
    [
        ("search.json", "null", "its content must be a table"),
        ("train.json", "[]", "its content must be a table"),
        ("search.json", "{}", "it has no space"),
        ("derive.json", '{"chosen": [1, 2]}', "chosen.0 must be a valid string, but is 1"),
        ("train.json", '{"models": {}}', "models must be a valid array"),
        ("train.json", '{"models": [{"name": "a", "architecture": "b"}]}', "it has no models.0.validation"),
        ("evaluation.json", ACCURACY % "NaN", "models.a.clean.accuracy must be a finite number"),
        ("evaluation.json", ACCURACY % "7", "models.a.clean.accuracy must be less than or equal to 1"),
        ("evaluation.json", ACCURACY % "true", "models.a.clean.accuracy must be a valid number"),
        ("evaluation.json", DEEP, "nested too deeply"),
        ("certification.json", "9" * 5000, "too many digits"),
        ("ensemble.json", json.dumps({**ENSEMBLE, "members": ["a"]}), "as many as the members, 1"),
        ("record.json", '{"rows": "many", "table": null}', "rows must be a valid integer, but is 'many'"),
        ("environment.json", json.dumps({**ENVIRONMENT, "started": "now"}), "isoformat"),
        ("metrics.jsonl", '{"step": 1}\n', "line 1 must have a stage"),
        ("config.toml", "seed = 0\n", "it has no data"),
    ],
)  # fmt: skip
def test_a_file_of_another_shape_is_damaged_and_its_key_is_said(run: Path, file: str, content: str, key: str) -> None:
    (run / file).unlink(missing_ok=True)
    (run / file).write_text(content)
    with pytest.raises(InputError, match="is damaged") as refused:
        Contents.read(RunFolder.open(run))
    assert key in str(refused.value) and str(run / file) in str(refused.value)


def test_what_is_no_file_is_not_taken_for_a_stage_that_has_not_run(run: Path) -> None:
    (run / "train.json").unlink()
    (run / "train.json").symlink_to("train.json")
    with pytest.raises(InputError, match=r"train\.json cannot be read"):
        results.of_run(run)
    (run / "train.json").unlink()
    (run / "train.json").mkdir()
    with pytest.raises(InputError, match="must be a file, but is a folder"):
        results.of_run(run)


def test_certificates_of_other_columns_are_damaged_and_not_skipped(run: Path) -> None:
    (run / "certificates.parquet").unlink()
    pq.write_table(pa.table({"model": ["a"], "certified": [True]}), run / "certificates.parquet")
    with pytest.raises(InputError, match=r"certificates\.parquet is damaged \(it has no column norm\)"):
        check_consistency(Contents.read(RunFolder.open(run)))


def test_a_well_formed_file_is_given_on_as_it_is(finished_run: Path) -> None:
    for name in records.KINDS:
        if (finished_run / name).exists():
            assert records.read_stage(finished_run / name) == json.loads((finished_run / name).read_text())
