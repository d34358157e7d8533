"""Scaling studies: adversarial training over depths and widths, planned, run as a grid of run folders, and read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from robust_nas.core.registry import offered

if TYPE_CHECKING:
    from robust_nas.studies.scaling.grid import Grid as Grid
    from robust_nas.studies.scaling.grid import from_words as from_words
    from robust_nas.studies.scaling.planning import plan as plan
    from robust_nas.studies.scaling.reading import report as report
    from robust_nas.studies.scaling.run import begun as begun
    from robust_nas.studies.scaling.run import measure as measure

__getattr__ = offered(
    __name__,
    {"Grid": "grid", "begun": "run", "from_words": "grid", "measure": "run", "plan": "planning", "report": "reading"},
)
