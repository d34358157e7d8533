"""Certificates of randomised smoothing: of other classifiers than the networks, so in tables of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from robust_nas.core.pixels import format_pixels
from robust_nas.report._contents import Contents
from robust_nas.report._elements import Content, Html, element
from robust_nas.report._page import EPSILON, column_head, interval_of, scroll
from robust_nas.report.findings import percent

if TYPE_CHECKING:
    from robust_nas.records import SmoothingRecord

_MOST_UPRIGHT = 6
"""The radii that a printed page takes upright; with more, it is a broad one."""


def smoothed(contents: Contents) -> Content:
    """Return a table for each noise that smoothed classifiers were certified with; nothing if there is none."""
    note = (
        "A smoothed classifier gives its network's most frequent answer under Gaussian noise, and abstains where "
        "that is not clear. These numbers are of the smoothed classifier. Attacks and bounds are of the network."
    )
    tables = [scroll(_table(contents, found), "Smoothed classifiers") for found in contents.smoothed]
    return [element("p", note, class_="note"), *tables] if tables else None


def _table(contents: Contents, found: SmoothingRecord) -> Html:
    radii = sorted({item.epsilon for items in found.models.values() for item in items})
    rows = []
    for model, items in found.models.items():
        at, first = {item.epsilon: item for item in items}, items[0]
        certified = [
            [percent(at[epsilon].certified), element("small", interval_of(at[epsilon]))] if epsilon in at else ""
            for epsilon in radii
        ]
        head = element("th", contents.title_of(model), scope="row")
        # The certificates come before what a telephone shows only by scrolling.
        cells = [percent(first.correct), *certified, percent(first.abstained), f"{first.average_radius:.3f}"]
        rows.append(element("tr", head, [element("td", cell) for cell in cells]))
    proved = [f"Certified, {EPSILON} = {format_pixels(epsilon)}" for epsilon in radii]
    heads = ["Model, smoothed", "Right", *proved, "Abstained", "Average radius"]
    caption = (
        f"Randomised smoothing with \N{GREEK SMALL LETTER SIGMA} = {format_pixels(found.sigma)}: "
        f"{found.num_samples:,} samples of each of {found.num_images} test images, failure "
        f"{found.failure:g}. Accuracy in %, certified in {found.norm} with its 95 % Wilson interval; no radius "
        f"can be above {found.largest_radius:.3g}. The average radius counts 0 where the answer is wrong or missing."
    )
    return element(
        "table",
        element("caption", caption),
        element("thead", element("tr", [column_head(head) for head in heads])),
        element("tbody", rows),
        class_="named" if len(radii) <= _MOST_UPRIGHT else "named broadest",
    )
