"""The common ground of all tests: one thread per process, and the way to the real data."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import pytest

if TYPE_CHECKING:
    from robust_nas.tables import Table

# Before anything imports torch, and inherited by the processes that tests start: on a few busy cores, several threads
# per test process are many times slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest tests, so that no process is left with one of them when the others have nothing to do."""
    items.sort(key=lambda item: item.path.name not in ("test_pipeline.py", "test_attack_models.py"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder with the real data sets and tables, which are not in the repository."""
    folder = Path(os.environ.get("ROBUST_NAS_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"there is no real data at {folder}; set ROBUST_NAS_SHARED_DATA to its folder")
    return folder


@pytest.fixture(scope="session")
def command() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs `robust-nas ARGUMENTS` in this process, which saves torch's imports."""

    def run(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        from robust_nas import cli

        words, code = [str(argument) for argument in arguments], 0
        with (
            contextlib.redirect_stdout(io.StringIO()) as output,
            contextlib.redirect_stderr(io.StringIO()) as errors,
            mock.patch.object(sys, "argv", ["robust-nas", *words]),
            contextlib.chdir(cwd or Path.cwd()),
        ):
            try:
                cli.main()
            except SystemExit as end:
                code = int(end.code or 0)
        return subprocess.CompletedProcess(words, code, output.getvalue(), errors.getvalue())

    return run


@pytest.fixture(scope="session")
def quickly() -> list[str]:
    """Return the settings of a run in which all that comes after the search takes seconds."""
    return [
        "train.epochs=1",
        "train.method=standard",
        "train.selection_attack=fgsm",
        "evaluation.num_images=16",
        "evaluation.masking_images=8",
        "evaluation.curve_epsilons=[0.1]",
        "evaluation.attacks=['fgsm']",
        "evaluation.strongest=[]",
        "certification.num_images=4",
        "certification.bound=interval",
        "workers=1",
    ]


@pytest.fixture(scope="session")
def robbench(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Table:
    """Return the published NAS-RobBench-201 table, imported from its real files."""
    from robust_nas.tables import Table, transfer

    with mock.patch.dict(os.environ, ROBUST_NAS_HOME=str(tmp_path_factory.mktemp("home"))):
        path = transfer.import_published(shared_data / "nas-robbench-201", format="nas-robbench-201-web", name=None)
    return Table(path, "nas-robbench-201")
