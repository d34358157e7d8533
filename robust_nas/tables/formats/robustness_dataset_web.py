"""The web extract of the robustness data set: `acc.json`, and NAS-RobBench-201's `ops.json` for the numbering.

Both sources number the architectures as NAS-Bench-201 does; the check of the classes would find another numbering.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from robust_nas.tables.cards import Card
from robust_nas.tables.formats import Published
from robust_nas.tables.formats._web import read_extract


@dataclass(frozen=True, kw_only=True)
class RobustnessDatasetWeb:
    """The extract of Jung et al. 2023 (arXiv:2306.06712)."""

    def read(self, folder: Path, card: Card) -> Published:
        """Read the two files from `folder`."""
        return read_extract(folder, card, "acc.json")
