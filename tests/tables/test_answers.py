"""`robust-nas table`: what is printed for people and for programs."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pyarrow.parquet as pq
import pytest

from robust_nas import tables
from robust_nas.architectures.cell import Architecture
from robust_nas.core.errors import InputError
from robust_nas.tables import Row, Table, answers

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def published(robbench: Table) -> Iterator[Table]:
    """Let `nas-robbench-201` be on this machine while a test runs."""
    with mock.patch.dict(os.environ, ROBUST_NAS_HOME=str(robbench.path.parent.parent)):
        yield robbench


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Return the folder of a table of two networks under two attacks."""
    rows = []
    for digits, clean, robust in (("333333", 0.9, 0.4), ("222222", 0.8, 0.5)):
        cell = Architecture.parse(digits)
        for attack, accuracy, epsilon in (("clean", clean, None), ("pgd", robust, 8 / 255)):
            rows.append(
                Row(
                    architecture=str(cell), canonical=cell.canonical, function=cell.function, space="nasbench201",
                    skeleton="channels=8", dataset="digits", split="test", recipe="pgd_at", recipe_hash="a", seed=0,
                    attack=attack, norm=None if epsilon is None else "linf", epsilon=epsilon, evaluation_hash="b",
                    accuracy=accuracy, num_images=100, version="0", hardware="cpu", source="run", model=f"m-{digits}",
                    started=None,
                )
            )  # fmt: skip
    tables.append(tmp_path / "table", rows)
    return tmp_path / "table"


def parts(text: str) -> tuple[str, list[str]]:
    """Return an answer's title, and its lines."""
    title, _, lines = text.partition("\n\n")
    return title.replace("\n", " "), lines.splitlines()


def test_a_query_prints_percent_for_people_and_fractions_for_programs(command: Command, own: Path) -> None:
    done = command("table", "query", own, "333333")
    assert done.returncode == 0, done.stderr
    title, (head, *lines) = parts(done.stdout)
    assert "333333" in title and head.split()[:4] == ["dataset", "attack", "epsilon", "accuracy"]
    assert [line.split()[:4] for line in lines] == [
        ["digits", "clean", "-", "90.00"],
        ["digits", "pgd", "8/255", "40.00"],
    ]
    found = json.loads(command("table", "query", own, "333333", "attack=pgd", "--json").stdout)["records"]
    assert [(item["accuracy"], item["epsilon"], item["rank"], item["num_ranked"]) for item in found] == [
        (0.4, 8 / 255, 2, 2)
    ]
    (line,) = csv.DictReader(io.StringIO(command("table", "query", own, "333333", "epsilon=8/255", "--csv").stdout))
    assert float(line["accuracy"]) == 0.4 and line["std"] == "" and line["digits"] == "333333"


def test_top_and_pareto_order_what_they_are_asked_for(command: Command, own: Path) -> None:
    best = json.loads(command("table", "top", own, "pgd@8/255", "-n", "1", "--json").stdout)["records"]
    assert [(item["digits"], item["rank"]) for item in best] == [("222222", 1)]
    front = json.loads(command("table", "pareto", own, "clean", "pgd@8/255", "--json").stdout)["records"]
    assert [(item["digits"], item["clean"], item["pgd@8/255"]) for item in front] == [
        ("333333", 0.9, 0.4),
        ("222222", 0.8, 0.5),
    ]


def test_words_are_read_in_the_types_of_their_columns() -> None:
    assert answers.parse(["epsilon=8/255", "severity=3", "dataset=x=y", "clean"]) == (
        {"epsilon": 8 / 255, "severity": 3, "dataset": "x=y"},
        ["clean"],
    )
    with pytest.raises(InputError, match="severity holds whole numbers, but got 'severity=abc'"):
        answers.parse(["severity=abc"])
    with pytest.raises(InputError, match="COLUMN=VALUE, such as attack=pgd, but got 'pgd'"):
        answers.parse(["pgd"], labels=0)


def test_a_question_that_fits_several_columns_is_refused_in_one_sentence(command: Command, own: Path) -> None:
    done = command("table", "top", own)
    assert done.returncode == 2 and "they differ in attack (clean, pgd)" in done.stderr
    done = command("table", "top", own, "clean", "--json", "--csv")
    assert done.returncode == 2 and "give one of them" in done.stderr
    done = command("table", "pareto", own, "clean")
    assert done.returncode == 2 and "at least two columns" in done.stderr


def test_architectures_are_compared_in_every_column_that_fits(command: Command, published: Table, own: Path) -> None:
    done = command("table", "compare", "nas-robbench-201", "323133", "000000", "pgd@8/255", "dataset=cifar10", "--json")
    (found,) = json.loads(done.stdout)["records"]
    # Nothing but zero: ten classes at random. The standard error is the root of two noise floors.
    assert found["second_accuracy"] == pytest.approx(0.1, abs=1e-6) and found["is_distinguishable"] is True
    assert found["standard_error"] == pytest.approx(2**0.5 * 0.0032, abs=1e-4)
    assert command("table", "compare", "nas-robbench-201", "323133", "000000", "dataset=cifar10").returncode == 0
    done = command("table", "compare", own, "333333")
    assert done.returncode == 2 and "at least two architectures" in done.stderr


def test_statistics_are_printed_and_drawn(command: Command, published: Table, tmp_path: Path) -> None:
    done = command("table", "stats", "nas-robbench-201", "dataset=cifar10", "attack=pgd", "--plots", tmp_path / "plots")
    assert done.returncode == 0, done.stderr
    assert "42.75" in done.stdout and "official test split" in done.stdout
    assert "correlations.svg" in {path.name for path in (tmp_path / "plots").iterdir()}
    found = json.loads(command("table", "stats", "nas-robbench-201", "pgd@8/255", "dataset=cifar10", "--json").stdout)
    assert found["columns"][0]["median"] == pytest.approx(0.4275, abs=5e-5) and len(found["caveats"]) == 4


def test_exported_rows_are_the_tables(command: Command, own: Path, tmp_path: Path) -> None:
    for name in ("all.parquet", "pgd.csv"):
        words = ["attack=pgd"] if name == "pgd.csv" else []
        done = command("table", "export", own, tmp_path / name, *words)
        assert done.returncode == 0, done.stderr
    rows = pq.read_table(tmp_path / "all.parquet").to_pylist()
    forms = [(row.pop("digits"), row.pop("published_index")) for row in rows]
    assert rows == tables.read(own).to_pylist() and sorted({*forms}) == [("222222", None), ("333333", None)]
    exported = list(csv.DictReader((tmp_path / "pgd.csv").open()))
    assert sorted(float(line["accuracy"]) for line in exported) == [0.4, 0.5]
    assert tables.load(tmp_path / "all.parquet").query("333333", "clean").mean == 0.9


def test_the_published_table_is_asked_by_its_name(command: Command, published: Table) -> None:
    done = command("table", "top", "nas-robbench-201", "dataset=cifar10", "attack=pgd", "epsilon=8/255", "-n", "3")
    assert done.returncode == 0, done.stderr
    title, lines = parts(done.stdout)
    assert [line.split()[1] for line in lines[1:4]] == ["48.11", "47.79", "47.75"]
    assert "0.32 points" in title and "official test split" in lines[4]
    done = command("table", "query", "nas-robbench-201", "13714", "dataset=cifar100", "attack=pgd", "epsilon=8/255")
    assert "333123, number 13714" in done.stdout and "24.67" in done.stdout


def test_information_on_a_table_names_source_and_caveats(command: Command, published: Table, own: Path) -> None:
    told = command("table", "info", "nas-robbench-201").stdout
    assert "arXiv:2403.13134" in told and "b3dc99b96324" in told and "official test split" in told
    told = command("table", "info", own).stdout
    assert "2 classes of architectures" in told and "8/255" in told
    assert "nas-robbench-201" in command("list", "tables").stdout.split()
