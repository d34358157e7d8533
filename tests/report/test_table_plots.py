"""A table's figures: which are written, that they are whole SVG documents, small, and say what the table says."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from robust_nas import tables
from robust_nas.architectures.cell import Architecture
from robust_nas.report.table_plots import write_plots
from robust_nas.tables import Row, Table

CELLS = list(Architecture.enumerate(3, ("nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")))
CLEAN: dict[str, Any] = {"attack": "clean", "norm": None, "epsilon": None}
PGD: dict[str, Any] = {"attack": "pgd", "norm": "linf", "epsilon": 8 / 255}


@pytest.fixture
def table(tmp_path: Path) -> Table:
    """Return a table of all cells on one data set, and of three of them, under attack only, on another."""

    def row(cell: Architecture, **values: Any) -> Row:
        return Row(
            architecture=str(cell), canonical=cell.canonical, function=cell.function, space="cells",
            skeleton="channels=8", split="test", recipe="pgd_at", recipe_hash=None, seed=0, evaluation_hash=None,
            num_images=360, version=None, hardware=None, source="s", model=None, started=None, **values,
        )  # fmt: skip

    rows = [row(cell, dataset="digits", accuracy=0.5 + place / 100, **CLEAN) for place, cell in enumerate(CELLS)]
    rows += [row(cell, dataset="digits", accuracy=0.5 - place / 100, **PGD) for place, cell in enumerate(CELLS)]
    rows += [row(cell, dataset="mnist", accuracy=0.3 + place / 10, **PGD) for place, cell in enumerate(CELLS[:3])]
    tables.append(tmp_path / "table", rows)
    return Table(tmp_path / "table")


def texts(path: Path) -> list[str]:
    """Return the words of an SVG document."""
    root = ElementTree.parse(path).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    return ["".join(item.itertext()).strip() for item in root.iter("{http://www.w3.org/2000/svg}text")]


def test_every_figure_that_the_columns_allow_is_written_and_no_other(table: Table, tmp_path: Path) -> None:
    paths = write_plots(table, tmp_path / "plots")
    assert [path.name for path in paths] == [
        "accuracy-digits-pgd-8-255.svg",
        "correlations.svg",
        "correlations-top.svg",
        "effects-digits-clean.svg",
        "effects-digits-pgd-8-255.svg",
    ]
    assert sorted(paths) == sorted((tmp_path / "plots").iterdir())
    # Clean falls as PGD rises: all 27 are on the front, and -1 is the rank correlation.
    words = texts(paths[0])
    assert "27 classes" in words and "Pareto front (27)" in words
    assert {"digits clean, %", "digits pgd@8/255, %", CELLS[0].digits(), CELLS[-1].digits()} <= set(words)
    assert "\N{MINUS SIGN}1.000" in texts(paths[1])
    assert write_plots(table, tmp_path / "one", "pgd@8/255", dataset="mnist") == []


def test_the_same_table_gives_the_same_files(table: Table, tmp_path: Path) -> None:
    first, second = (write_plots(table, tmp_path / name, dataset="digits") for name in ("a", "b"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_the_figures_of_the_published_table_are_small_and_say_what_it_says(robbench: Table, tmp_path: Path) -> None:
    paths = {path.stem: path for path in write_plots(robbench, tmp_path, dataset="cifar10")}
    assert len(paths) == 5 + 2 + 6
    assert all(path.stat().st_size < 500_000 for path in paths.values())
    words = texts(paths["accuracy-cifar10-pgd-8-255"])
    # The best under PGD and the best on clean images.
    assert {"6,466 classes", "323133", "333133"} <= set(words)
    assert ".985" in texts(paths["correlations"]) and ".548" in texts(paths["correlations-top"])
    numbers = [
        word for word in texts(paths["effects-cifar10-pgd-8-255"]) if re.fullmatch(r"[+\N{MINUS SIGN}]?\d\.\d", word)
    ]
    assert len(numbers) == 2 * 6 * 5
