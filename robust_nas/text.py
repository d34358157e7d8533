"""Text for terminals."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence


def aligned(lines: Sequence[Sequence[str]], *, left: int = 0) -> list[str]:
    """Return lines of cells as text in columns; the first `left` are aligned at the left, the others at the right."""
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


def warnings(notes: Sequence[str]) -> list[str]:
    """Return what to beware of, as lines."""
    return [line for note in notes for line in textwrap.wrap(f"beware: {note}", 118, subsequent_indent=" " * 8)]
