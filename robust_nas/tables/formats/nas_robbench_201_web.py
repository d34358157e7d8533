"""NAS-RobBench-201 as its project page has it: means over seeds, in `NAS-RobBench-201_html.json` and `ops.json`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from robust_nas.tables.cards import Card
from robust_nas.tables.formats import Published
from robust_nas.tables.formats._web import read_extract


@dataclass(frozen=True, kw_only=True)
class NASRobBench201Web:
    """The extract of Wu et al. 2024 (arXiv:2403.13134)."""

    def read(self, folder: Path, card: Card) -> Published:
        """Read the two files from `folder`."""
        return read_extract(folder, card, "NAS-RobBench-201_html.json")
