"""Results that show themselves: short text, a small table in a notebook, a frame, a figure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from robust_nas.core.text import aligned, escape, percent, warnings

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_MOST_ROWS = 20
"""The rows that are shown of a long table; `to_frame` has them all."""


@dataclass(frozen=True)
class Summary:
    """A result in short.

    Args:
        title: one line.
        heads: the columns' names; none without rows.
        rows: lines of cells, as many as `heads` each.
        notes: warnings.
        num_rows: all rows, if `rows` are the first of them.
    """

    title: str
    heads: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    notes: tuple[str, ...] = ()
    num_rows: int | None = None

    @property
    def left_out(self) -> str:
        """A line about the rows that are not shown; empty, if all are."""
        count = (self.num_rows or len(self.rows)) - len(self.rows[:_MOST_ROWS])
        return f"... and {count} more" if count > 0 else ""

    def text(self) -> str:
        """Return it as lines."""
        rows = self.rows[:_MOST_ROWS]
        lines = [f"  {line}" for line in aligned([self.heads, *rows], left=1)] if rows else []
        return "\n".join(
            [self.title, *lines, *([f"  {self.left_out}"] if self.left_out else []), *warnings(self.notes)]
        )

    def html(self) -> str:
        """Return it as markup, in which all text is escaped."""

        def line(tag: str, cells: Iterable[str]) -> str:
            return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

        parts = [f"<div><strong>{escape(self.title)}</strong>"]
        if self.rows:
            body = "".join(line("td", row) for row in self.rows[:_MOST_ROWS])
            parts.append(f"<table><thead>{line('th', self.heads)}</thead><tbody>{body}</tbody></table>")
        parts += [f"<div>{escape(text)}</div>" for text in (self.left_out, *self.notes) if text]
        return "".join([*parts, "</div>"])


class Shown:
    """A result with a short text, a table in notebooks, a frame and a figure.

    A dataclass that inherits it is made with `repr=False`. Importing this costs nothing: pandas and matplotlib are
    imported when a frame or a figure is asked for.
    """

    def _summary(self) -> Summary:
        """Return the result in short."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return self._summary().text()

    def _repr_html_(self) -> str:
        return self._summary().html()

    def to_frame(self) -> pd.DataFrame:
        """Return the result as a table of pandas."""
        raise NotImplementedError

    def plot(self) -> Figure:
        """Return the result as a figure of matplotlib, which a notebook shows and `savefig` writes."""
        raise NotImplementedError


def frame(rows: Iterable[Mapping[str, Any]], columns: Iterable[str] | None = None) -> pd.DataFrame:
    """Return rows as a frame; with `columns`, those in this order."""
    import pandas as pd

    return pd.DataFrame(list(rows), columns=None if columns is None else list(columns))


def with_interval(accuracy: float, low: float, high: float) -> str:
    """Return an accuracy in percent with its 95 % interval, "61.0 % (54.1 to 67.5)"."""
    return f"{percent(accuracy)} ({100 * low:.1f} to {100 * high:.1f})"
