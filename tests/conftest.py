"""What all tests share: one thread per process, and the way to the real data."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before anything imports torch, and inherited by the processes that tests start: on a few busy cores, several threads
# per test process are many times slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder with the real data sets and tables, which are not in the repository."""
    folder = Path(os.environ.get("ROBUST_NAS_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"there is no real data at {folder}; set ROBUST_NAS_SHARED_DATA to its folder")
    return folder
