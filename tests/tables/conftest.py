"""Made-up files in the layout of a published table, for what needs no real numbers."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from robust_nas.architectures.cell import Architecture


@pytest.fixture(scope="session")
def numbering() -> tuple[list[str], list[int]]:
    """Return all architectures as digits, in a random order, and the number of each one's representative."""
    cells = list(Architecture.enumerate())
    random.Random(0).shuffle(cells)
    first: dict[str, int] = {}
    return [cell.digits() for cell in cells], [first.setdefault(cell.canonical, i) for i, cell in enumerate(cells)]


@pytest.fixture(scope="session")
def extract(numbering: tuple[list[str], list[int]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in the layout of NAS-RobBench-201's extract.

    It has two columns; in column 0 and 1, number n has (n + column) / 20,000.
    """
    index, representatives = numbering
    entries: dict[str, object] = {"": ["cifar10#val_acc", "imagenet#autoattack"]}
    for number, representative in enumerate(representatives):
        row = [number / 20_000, (number + 1) / 20_000]
        entries[str(number)] = row if number == representative else str(representative)
    folder = tmp_path_factory.mktemp("extract")
    (folder / "NAS-RobBench-201_html.json").write_text(f"acc={json.dumps(entries)}")
    (folder / "ops.json").write_text(f"arch={json.dumps(index)}")
    return folder


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty folder that the package takes for its own."""
    monkeypatch.setenv("ROBUST_NAS_HOME", str(tmp_path / "home"))
    return tmp_path / "home"
