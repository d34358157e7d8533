"""Pieces of a scaling study's page that several sections use."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from robust_nas.records.reading import Estimate, Kind, Law, Priced, Reading, Size
from robust_nas.report._elements import Html, element
from robust_nas.report._page import column_head, scroll
from robust_nas.report.findings import percent
from robust_nas.report.size_plots import in_short

KINDS: tuple[Kind, ...] = ("robust", "clean")


def law_of(reading: Reading, setting: str, kind: Kind, over: Size, at: str | None = None) -> Law | None:
    wanted = setting, kind, over, at
    return next((law for law in reading.laws if (law.setting, law.error, law.over, law.at) == wanted), None)


def priced_by(reading: Reading, setting: str, kind: Kind, over: Size) -> Sequence[Priced]:
    wanted = setting, kind, over
    return next((own.networks for own in reading.frontiers if (own.setting, own.error, own.over) == wanted), ())


def points_in_words(found: Iterable[tuple[float, Estimate]]) -> str:
    return ", ".join(f"{percent(error.value)} % at {in_short(size)}" for size, error in found)


def table_of(heads: Sequence[str], rows: Sequence[Html], caption: str, name: str, left: int = 1) -> Html:
    """Return a table that scrolls sideways in itself; its first `left` columns are words."""
    table = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", [column_head(text, left=place < left) for place, text in enumerate(heads)])),
        element("tbody", rows),
        class_="named",
    )
    return scroll(table, name)
