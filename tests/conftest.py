"""The common ground of all tests: one thread per process, and the way to the real data."""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest

if TYPE_CHECKING:
    from robust_nas.records.scaling import StudyRecord
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


@pytest.fixture(scope="session")
def made_study() -> Callable[..., StudyRecord]:
    """Return a function that makes the record of a study whose errors follow a known law, with noise over seeds."""
    import numpy as np

    from robust_nas.records.evaluation import Measured
    from robust_nas.records.scaling import CellRow, StudyRecord

    def measured(accuracy: float) -> Measured:
        return Measured(accuracy=accuracy, low=max(accuracy - 0.03, 0), high=min(accuracy + 0.03, 1), count=1000)

    def make(
        true: Callable[..., float],
        depths: Sequence[int],
        widths: Sequence[Any] = (1,),
        *,
        noise: float = 0.01,
        seeds: int = 3,
        varied: Sequence[dict[str, str]] = ({},),
        random: int = 0,
    ) -> StudyRecord:
        """Make a study; `true(depth, width, **varied)` is the robust error, and the clean one is its half."""
        draws, rows = np.random.default_rng(random), []
        for seed, depth, width, own in itertools.product(range(seeds), depths, widths, varied):
            each = width if isinstance(width, tuple) else (width,) * 3
            capacity = depth * sum(part**2 for part in each) / 3
            name = f"net-{depth} width={'-'.join(map(str, each)) if isinstance(width, tuple) else width}"
            setting = "".join(f"_{key}={value}" for key, value in own.items())
            errors = [true(depth, width, **own) * share * math.exp(noise * draws.normal()) for share in (1.0, 0.5)]
            robust, clean = (measured(1 - error) for error in errors)
            rows.append(
                CellRow(
                    name=f"{name}{setting}_seed={seed}", network=name, net="cifar-resnet", depth=depth,
                    blocks=(depth // 6,) * 3, widths=tuple(map(float, each)),
                    channels=tuple(int(16 * part) for part in each), seed=seed, varied=dict(own),
                    parameters=int(1e4 * capacity), multiply_adds=int(1e6 * capacity), epochs=20,
                    training_flops=1e12 * capacity, status="finished", seconds=1.0, peak_memory=2**28, clean=clean,
                    robust=robust, attacks={"pgd": robust},
                    steps={str(steps): 1 - errors[0] + 0.05 / steps for steps in (1, 10, 100, 2000)},
                )
            )  # fmt: skip
        return StudyRecord(
            name="scale-made", data="digits", threat="linf 0.1", method="pgd_at", hardware=("a processor, 2 cores",),
            command="robust-nas scale run --data digits", cells=tuple(rows),
        )  # fmt: skip

    return make
