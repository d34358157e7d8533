"""The local table: every append is kept, a network is recorded once, and damage is said in one sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from robust_nas import tables
from robust_nas.core.errors import InputError
from robust_nas.runtime.run_folder import RunFolder
from robust_nas.tables import Row

CELL = "|none~0|+|nor_conv_3x3~0|skip_connect~1|+|none~0|none~1|nor_conv_1x1~2|"
ALIAS = "|none~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+|none~0|none~1|nor_conv_1x1~2|"  # pools the same zeros
CONFIG = """
seed = 3
data = {name = "digits", root = "ROOT"}
threat = {norm = "linf", epsilon = 0.2}
[space]
name = "nasbench201"
num_nodes = 4
operations = ["none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3"]
channels = 8
cells_per_stage = 1
stages = 2
[train]
name = "pgd_at"
epochs = 5
[evaluation]
batch_size = 64
[certification]
epsilons = [0.001]
"""


def make_row(**values: Any) -> Row:
    row = Row(
        architecture=CELL, canonical="c", space="nasbench201", skeleton="channels=8", dataset="digits", split="test",
        recipe="pgd_at", recipe_hash="0a", seed=0, attack="pgd", norm="linf", epsilon=8 / 255, evaluation_hash="0b",
        accuracy=0.5, num_images=360, version="0.1.0", hardware="cpu", source="run-a", model="model-0",
        started=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    )  # fmt: skip
    return replace(row, **values)


CLEAN: dict[str, Any] = {"attack": "clean", "norm": None, "epsilon": None}


def test_rows_come_back_as_they_were_written_with_missing_values_missing(tmp_path: Path) -> None:
    rows = [make_row(), make_row(**CLEAN, accuracy=0.9, canonical=None, started=None)]
    assert tables.append(tmp_path / "table", rows) == 2
    found = tables.read(tmp_path / "table").to_pylist()
    assert [Row(**row) for row in found] == rows
    assert found[1]["norm"] is None and found[1]["epsilon"] is None


def test_another_parquet_reader_finds_the_columns_and_what_they_mean(tmp_path: Path) -> None:
    tables.append(tmp_path, [make_row()])
    (part,) = tmp_path.iterdir()
    schema = pq.read_schema(part)
    assert {"architecture", "accuracy", "num_images", "recipe_hash", "epsilon"} <= set(schema.names)
    assert b"fraction in [0, 1]" in schema.field("accuracy").metadata[b"about"]
    assert not schema.field("accuracy").nullable and schema.field("norm").nullable


APPENDER = """
import sys, time
from pathlib import Path
from robust_nas import tables

folder, process = Path(sys.argv[1]), int(sys.argv[2])
pattern = tables.Row(**tables.read(folder / "pattern").to_pylist()[0])
rows = lambda **values: tables.Row(**{**vars(pattern), **values})
(folder / f"ready-{process}").touch()
while len(list(folder.glob("ready-*"))) < 3:
    time.sleep(0.001)
for index in range(20):
    tables.append(folder / "table", [rows(source=f"run-{process}", model=f"model-{index}", seed=100 * process + index)])
    clean = rows(source="shared", seed=process, attack="clean", norm=None, epsilon=None)
    tables.append(folder / "table", [rows(source="shared", seed=process), clean])
"""


def test_concurrent_appends_of_several_processes_lose_nothing(tmp_path: Path) -> None:
    tables.append(tmp_path / "pattern", [make_row()])
    commands = [[sys.executable, "-c", APPENDER, str(tmp_path), str(number)] for number in range(3)]
    workers = [subprocess.Popen(command) for command in commands]
    assert [worker.wait() for worker in workers] == [0, 0, 0]
    found = tables.read(tmp_path / "table").to_pylist()
    own = sorted(row["seed"] for row in found if row["source"] != "shared")
    assert own == [100 * process + index for process in range(3) for index in range(20)]
    # The network that all three wrote is there once, and whole: both rows are of one and the same writer.
    shared = [row["seed"] for row in found if row["source"] == "shared"]
    assert len(shared) == 2 and len(set(shared)) == 1


def test_recording_a_network_again_replaces_its_rows_and_no_others(tmp_path: Path) -> None:
    tables.append(tmp_path, [make_row(), make_row(**CLEAN), make_row(model="model-1", accuracy=0.3)])
    tables.append(tmp_path, [make_row(accuracy=0.6)])
    found = tables.read(tmp_path).to_pylist()
    assert [(row["model"], row["attack"], row["accuracy"]) for row in found] == [
        ("model-0", "pgd", 0.6),
        ("model-1", "pgd", 0.3),
    ]


def test_networks_whose_names_differ_in_odd_characters_only_are_kept_apart(tmp_path: Path) -> None:
    tables.append(tmp_path, [make_row(source="a/b"), make_row(source="a b"), make_row(source="a", model="b-model-0")])
    assert sorted(tables.read(tmp_path)["source"].to_pylist()) == ["a", "a b", "a/b"]


def test_filters_keep_a_value_one_of_several_and_the_missing_one(tmp_path: Path) -> None:
    rows = [make_row(), make_row(epsilon=3 / 255), make_row(attack="fgsm"), make_row(**CLEAN)]
    tables.append(tmp_path, rows)
    assert len(tables.read(tmp_path, epsilon=0.0313725490196)) == 2
    assert len(tables.read(tmp_path, attack=["pgd", "clean"])) == 3
    assert tables.read(tmp_path, norm=None)["attack"].to_pylist() == ["clean"]
    assert len(tables.read(tmp_path, attack="pgd", epsilon=3 / 255)) == 1
    assert len(tables.read(tmp_path, attack=[])) == 0


def test_an_unknown_column_is_named_with_the_nearest_one(tmp_path: Path) -> None:
    tables.append(tmp_path, [make_row()])
    with pytest.raises(InputError, match=r"no column 'atack'\. Did you mean 'attack'\?"):
        tables.read(tmp_path, atack="pgd")


def test_a_damaged_part_gives_one_sentence_with_its_name(tmp_path: Path) -> None:
    tables.append(tmp_path, [make_row()])
    (part,) = tmp_path.iterdir()
    whole = part.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"PAR1" + bytes(len(whole) - 8) + b"PAR1", whole[: len(whole) - 1]):
        part.write_bytes(damaged)
        with pytest.raises(InputError, match="is damaged") as caught:
            tables.read(tmp_path)
        assert part.name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("column", "values", "reason"),
    [
        ("accuracy", pa.array(["high"]), "accuracy must be of type double, but is string"),
        ("accuracy", pa.array([float("nan")]), "accuracy has values that are no finite numbers"),
        ("accuracy", pa.array([7.0]), "accuracy must be at least 0 and at most 1"),
        ("accuracy", pa.array([None], pa.float64()), "accuracy has no value in 1 row"),
        ("seed", pa.array([0.5]), "seed must be of type int64, but is double"),
        ("num_images", pa.array([-1]), "num_images must be at least 1"),
        ("architecture", pa.array([None], pa.string()), "architecture has no value in 1 row"),
    ],
)
def test_a_part_with_another_kind_of_column_is_damaged(
    tmp_path: Path, column: str, values: pa.Array, reason: str
) -> None:
    tables.append(tmp_path, [make_row()])
    (part,) = tmp_path.iterdir()
    content = pq.read_table(part)
    changed = content.set_column(content.schema.get_field_index(column), column, values)
    pq.write_table(changed.replace_schema_metadata(content.schema.metadata), part)
    with pytest.raises(InputError, match=f"is damaged .*{reason}"):
        tables.load(tmp_path).top(1, "clean")


def test_a_newer_version_and_a_foreign_file_are_refused(tmp_path: Path) -> None:
    tables.append(tmp_path, [make_row()])
    (part,) = tmp_path.iterdir()
    content = pq.read_table(part)
    pq.write_table(content.replace_schema_metadata({b"robust_nas.table.version": b"99"}), part)
    with pytest.raises(InputError, match=r"version 99 .* reads up to 3; install a newer robust-nas"):
        tables.read(tmp_path)
    pq.write_table(pa.table({"attack": ["pgd"]}), part)
    with pytest.raises(InputError, match="no robust-accuracy table"):
        tables.read(tmp_path)
    pq.write_table(content.drop_columns("accuracy"), part)
    with pytest.raises(InputError, match="columns are not those of version 3"):
        tables.read(tmp_path)


def test_a_half_written_temporary_file_of_a_killed_process_is_not_read(tmp_path: Path) -> None:
    tables.append(tmp_path, [make_row()])
    (part,) = tmp_path.iterdir()
    (tmp_path / f".{part.name}.k1ll3d.parquet").write_bytes(b"PAR1 half")
    assert len(tables.read(tmp_path)) == 1


def test_no_table_and_a_folder_that_cannot_be_written_are_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"There is no table at .*record a run"):
        tables.read(tmp_path / "nothing")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        tables.append(tmp_path / "file" / "table", [make_row()])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"accuracy": 51.0}, "fraction in"),
        ({"accuracy": float("nan")}, "fraction in"),
        ({"num_images": 0}, "num_images"),
        ({"norm": None}, "norm must be given"),
        ({"is_mean": True, "num_seeds": 3}, "has no seed and more than one"),
        ({"is_mean": True, "seed": None, "num_seeds": 1}, "has no seed and more than one"),
        ({"severity": 3}, "belongs to corruptions"),
        ({"attack": "clean"}, "left out for 'clean'"),
    ],
)
def test_a_row_that_cannot_be_true_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_row(**wrong)


def make_run(path: Path, *, root: str = "/data", architecture: str = CELL) -> RunFolder:
    def entry(accuracy: float, **more: Any) -> dict[str, Any]:
        return {"accuracy": accuracy, "low": 0.0, "high": 1.0, "count": 360, **more}

    linf: dict[str, Any] = {"norm": "linf", "epsilon": 0.2}
    result = {
        "clean": entry(0.9),
        "attacks": [entry(0.6, name="pgd", **linf, seconds=1), entry(0.5, name="apgd", **linf, seconds=2)],
        "worst_case": entry(0.4, name="worst case"),
        "masking": [],
        "curve": [],
    }
    validation = {"clean": 0.9, "robust": 0.5}
    trained = {
        "name": "model-0", "architecture": architecture, "validation": validation,
        "method": "pgd_at", "parameters": 20_000, "multiply_adds": 2_500_000, "epochs": 1, "seconds": 1.0,
    }  # fmt: skip
    certified = {
        "epsilon": 0.001,
        "certified": 0.25,
        "low": 0,
        "high": 1,
        "count": 100,
        "mean_margin": -1,
        "seconds": 1,
    }
    files: dict[str, Any] = {
        "environment": {
            "version": "0.1.0", "commit": None, "python": "3.13.1", "torch": "2.11.0", "packages": {}, "device": "cpu",
            "cpu": "EPYC", "cores": 2, "threads": 1, "world_size": 2, "arguments": [],
            "started": "2026-01-02T03:04:05+01:00",
        },
        "train": {"models": [trained]},
        "evaluation": {"split": "test", "num_images": 360, "models": {"model-0": result, "ensemble": result}},
        "certification": {
            "method": "interval", "dtype": "float64", "num_images": 100, "models": {"model-0": [certified]},
        },
    }  # fmt: skip
    path.mkdir()
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    (path / "config.toml").write_text(CONFIG.replace("ROOT", root))
    return RunFolder.open(path)


def test_a_runs_trained_network_gives_one_row_per_measurement(tmp_path: Path) -> None:
    rows = tables.rows_from_run(make_run(tmp_path / "run-a"))
    found = [(row.attack, row.norm, row.epsilon, row.accuracy, row.num_images) for row in rows]
    assert found == [
        ("clean", None, None, 0.9, 360),
        ("pgd", "linf", 0.2, 0.6, 360),
        ("apgd", "linf", 0.2, 0.5, 360),
        ("worst_case:apgd+pgd", "linf", 0.2, 0.4, 360),
        ("certified:interval", "linf", 0.001, 0.25, 100),
    ]
    assert {row.model for row in rows} == {"model-0"}, "ensembles are not networks"
    first = rows[0]
    assert (first.dataset, first.space, first.recipe, first.seed, first.source) == (
        "digits", "nasbench201", "pgd_at", 3, "run-a",
    )  # fmt: skip
    assert first.skeleton == "cells_per_stage=1,channels=8,stages=2"
    assert (first.flops, first.params) == (2.5, 0.02), "in millions, of what train.json says"
    assert json.loads(first.recipe_settings or "")["train"] == {"name": "pgd_at", "epochs": 5}
    assert [json.loads(row.evaluation_settings or "") for row in (first, rows[-1])] == [
        {"batch_size": 64}, {"epsilons": [0.001]},
    ]  # fmt: skip
    assert first.hardware == "cpu, EPYC, 2 cores, 2 processes"
    assert first.started == datetime(2026, 1, 2, 2, 4, 5, tzinfo=UTC)


def test_costs_are_those_of_the_run_also_where_rows_do_not_have_them_yet(tmp_path: Path) -> None:
    tables.append(tmp_path / "table", tables.rows_from_run(make_run(tmp_path / "run-a")))
    assert tables.load(tmp_path / "table").cost(CELL, attack="clean") == (2.5, 0.02)
    (part,) = (tmp_path / "table").iterdir()
    later = ["flops", "params", "recipe_name", "recipe_settings", "evaluation_settings"]
    old = {b"robust_nas.table.version": b"2"}
    pq.write_table(pq.read_table(part).drop_columns(later).replace_schema_metadata(old), part)
    assert tables.load(tmp_path / "table").cost(CELL) == (2.5, 0.02)
    frame = tables.load(tmp_path / "table").rows()
    assert {*frame["flops"].to_pylist()} == {2.5} and {*frame["digits"].to_pylist()} == {"031002"}
    (tmp_path / "run-a" / "train.json").unlink()
    assert tables.load(tmp_path / "table").rows()["flops"].null_count == len(frame)


def test_recording_the_same_run_twice_changes_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run-a")
    tables.append(tmp_path / "table", tables.rows_from_run(run))
    before = tables.read(tmp_path / "table")
    tables.append(tmp_path / "table", tables.rows_from_run(run))
    assert tables.read(tmp_path / "table").equals(before)


def test_the_recipe_hash_knows_the_recipe_and_not_where_the_data_lie(tmp_path: Path) -> None:
    here, there = make_run(tmp_path / "here"), make_run(tmp_path / "there", root="/elsewhere")
    other = make_run(tmp_path / "other")
    text = (other / "config.toml").read_text()
    (other / "config.toml").write_text(text.replace("epochs = 5", "epochs = 6"))
    one, same, different = (tables.rows_from_run(run)[0] for run in (here, there, other))
    assert one.recipe_hash == same.recipe_hash != different.recipe_hash
    assert one.evaluation_hash == different.evaluation_hash


def test_two_folders_of_images_are_two_data_sets(tmp_path: Path) -> None:
    cats, dogs = make_run(tmp_path / "one", root="/images/cats"), make_run(tmp_path / "two", root="/images/dogs")
    for run in (cats, dogs):
        text = (run / "config.toml").read_text()
        (run / "config.toml").write_text(text.replace('name = "digits"', 'name = "folder"'))
    assert tables.rows_from_run(cats)[0].dataset == "folder:cats"
    assert tables.rows_from_run(dogs)[0].dataset == "folder:dogs"


def test_equivalent_architectures_share_their_canonical_form(tmp_path: Path) -> None:
    one = tables.rows_from_run(make_run(tmp_path / "one"))[0]
    alias = tables.rows_from_run(make_run(tmp_path / "alias", architecture=ALIAS))[0]
    assert one.architecture != alias.architecture and one.canonical == alias.canonical


def test_a_run_that_measured_nothing_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run-a")
    (run / "evaluation.json").unlink()
    assert [row.attack for row in tables.rows_from_run(run)] == ["certified:interval"]
    (run / "certification.json").unlink()
    with pytest.raises(InputError, match="has measured nothing"):
        tables.rows_from_run(run)


def test_the_table_needs_neither_torch_nor_pandas(tmp_path: Path) -> None:
    tables.append(tmp_path, [make_row()])
    program = (
        "import sys; from robust_nas import tables; tables.read(sys.argv[1], attack='pgd'); "
        "print(sorted({'torch', 'pandas', 'sklearn', 'matplotlib', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
