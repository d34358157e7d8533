"""The explorer: one HTML page to explore a robust-accuracy table, which loads nothing and works from a file.

`explorer.js` runs in the page and `explorer.css` styles it, on top of the report's style. The table travels in the page
as JSON, its numbers as compressed float64, so that they are the table's own to the last bit. The page's security policy
names the two by their hashes and forbids everything else, the network included.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from robust_nas import __version__
from robust_nas.architectures.cell import OPERATIONS, Architecture
from robust_nas.core.errors import InputError
from robust_nas.core.writing import write_text
from robust_nas.report._elements import Html, element, security_policy
from robust_nas.report._style import STYLE
from robust_nas.report.plots import operation_colours
from robust_nas.tables.costs import COSTS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from robust_nas.tables import Column, Table

# Okabe and Ito's palette, which people with colour-blindness can tell apart: on dark paper, half of the colours of
# `operation_colours` cannot be seen.
_DARK_COLOURS = ("#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#009E73", "#E69F00", "#0072B2")

_BODY = Html("""
<p id="waiting" class="missing" role="note">The table is being read; this needs JavaScript and a browser of 2023 or
later.</p>
<main>
<section aria-labelledby="scatter-title" class="scatter">
<h2 id="scatter-title">Scatter plot</h2>
<div class="controls">
<label for="x">Horizontal <select id="x"></select></label>
<label for="y">Vertical <select id="y"></select></label>
<label for="colour">Colour: operation on <select id="colour"></select></label>
<label for="strings" class="check"><input type="checkbox" id="strings"> every string, not one per class</label>
</div>
<p id="problem" class="problem" role="alert"></p>
<div id="plot" tabindex="0" role="application" aria-labelledby="scatter-title" aria-describedby="keys">
<canvas id="points"></canvas><canvas id="marks"></canvas><div id="tip" hidden></div>
</div>
<div class="buttons">
<button type="button" id="in" aria-label="Zoom in">+</button>
<button type="button" id="out" aria-label="Zoom out">&minus;</button>
<button type="button" id="reset">Show all</button>
</div>
<ul id="legend" class="legend"></ul>
<p id="keys" class="note">Drag a box to zoom, with Shift to move; click a point to see it. With the plot in focus, the
arrow keys go to the next point, + and &minus; zoom, and 0 shows all.</p>
</section>
<section aria-labelledby="look-title" class="look">
<h2 id="look-title">Architecture</h2>
<form id="find">
<label for="text" id="accepts"></label>
<span class="line"><input id="text" autocomplete="off" spellcheck="false" aria-describedby="sentence">
<button>Look up</button></span>
</form>
<p id="sentence" class="problem" role="alert"></p>
<div id="edges" class="edges" role="group" aria-label="Operations on the edges"></div>
<p id="summary" role="status"></p>
<p><button type="button" id="keep">Keep to compare</button></p>
<div id="chosen"></div>
</section>
<section aria-labelledby="filter-title" class="filter">
<h2 id="filter-title">Filter and download</h2>
<div id="where"></div>
<p><button type="button" id="add">Add a condition</button></p>
<p id="count" role="status"></p>
<p class="buttons"><button type="button" id="csv">Download CSV</button>
<button type="button" id="json">Download JSON</button></p>
</section>
<section aria-labelledby="front-title" class="front">
<h2 id="front-title">Pareto front</h2>
<p class="note">The classes among the matches that no other match beats in both columns: at least as good in both and
better in one. Of accuracies more are better, of costs fewer.</p>
<div id="front" class="scroll" tabindex="0" role="region" aria-labelledby="front-title"></div>
</section>
<section aria-labelledby="beside-title" class="beside">
<h2 id="beside-title">Side by side</h2>
<form id="beside-find">
<label for="other">The first; the second is the architecture that is chosen</label>
<span class="line"><input id="other" autocomplete="off" spellcheck="false" aria-describedby="beside-sentence">
<button>Keep</button></span>
</form>
<p id="beside-sentence" class="problem" role="alert"></p>
<p class="buttons"><button type="button" id="swap">Swap</button>
<button type="button" id="let-go">Let go</button></p>
<p id="beside-note" class="note" role="status"></p>
<div id="beside-cells"></div>
</section>
<section aria-labelledby="list-title" class="list">
<h2 id="list-title">List</h2>
<p class="note">The matches, in the plot's columns. A head sorts by its column; pressed again, the other way round.</p>
<div id="list" class="scroll" tabindex="0" role="region" aria-labelledby="list-title"></div>
<p><button type="button" id="more"></button></p>
</section>
</main>
""")


def write_explorer(table: Table, path: Path, *, title: str | None = None, caveats: Sequence[str] | None = None) -> Path:
    """Write the page that explores `table` to `path` and return that; equal tables give equal pages.

    Args:
        table: an open table.
        path: the page's file.
        title: the table's title on the page; its name, if not given.
        caveats: sentences at the top of the page; those of the table's card, if not given.

    Raises:
        InputError: if the page cannot be written there.
    """
    name = title or Path(table.name).name
    try:
        write_text(path, _page(table, name, table.caveats if caveats is None else caveats))
    except OSError as error:
        raise InputError(
            f"The page {path} cannot be written ({error.strerror or error}); give a file in a folder that can be, "
            "with space left."
        ) from error
    return path


def _page(table: Table, name: str, caveats: Sequence[str]) -> Html:
    style = f"{STYLE}{_beside('explorer.css')}"
    script = _beside("explorer.js")
    # Without a "<", nothing in the data can end its element.
    content = json.dumps({"name": name, "caveats": list(caveats), **_content(table)}).replace("<", "\\u003c")
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        security_policy(policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", f"{name} \N{EN DASH} robust-nas"),
        element("style", Html(style)),
    )
    facts = (
        f"{len(table):,} classes of architectures",
        f"{len(table.columns)} columns on {', '.join(table.datasets())}",
        f"robust-nas {__version__}",
    )
    header = element(
        "header",
        element("h1", name),
        element("p", " \N{MIDDLE DOT} ".join(facts), class_="facts"),
        element("ul", [element("li", caveat) for caveat in caveats], class_="missing", aria_label="Caveats")
        if caveats
        else None,
    )
    footer = element("footer", f"Written by robust-nas {__version__}. The address of the page keeps the view.")
    data = element("script", Html(content), type="application/json", id="table")
    body = element("body", header, _BODY, footer, data, element("script", Html(script)))
    return Html(f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n")


def _content(table: Table) -> dict[str, Any]:
    """Return the page's data of a table; see the top of explorer.js."""
    parsed = [_read(text) for text in table.architectures]
    found = {name for architecture in parsed if architecture for name in architecture.operations}
    is_ours = found <= set(OPERATIONS)
    operations = OPERATIONS if is_ours else tuple(sorted(found))
    colours = operation_colours(operations)
    named = [name for name in operations if name != "none"]
    dark = {name: _DARK_COLOURS[index % len(_DARK_COLOURS)] for index, name in enumerate(named)}
    columns: list[dict[str, Any]] = []
    for column in table.columns:
        criteria = asdict(column)
        floor = table.noise_floor(**criteria)
        columns.append(
            {
                **criteria,
                "name": _name(column, table),
                "mean": _packed(table.values(**criteria)),
                "std": _packed(table.stds(**criteria)),
                "seeds": _packed(table.trainings(**criteria)),
                "floor": floor and {"std": floor.std, "method": floor.method},
            }
        )
    x, y = _first_axes(table)
    costs = _costs(table)
    columns += costs
    return {
        "costs": bool(costs),
        "operations": operations,
        "digits": is_ours,
        "colours": {
            "light": [colours[name] for name in operations],
            "dark": [dark.get(name, "#8a939e") for name in operations],
        },
        "cells": [architecture and _code(architecture, operations) for architecture in parsed],
        "unreadable": {
            place: text
            for place, (text, architecture) in enumerate(zip(table.architectures, parsed, strict=True))
            if architecture is None
        },
        "numbering": " ".join(table.index),
        "columns": columns,
        "x": x,
        "y": y,
    }


def _read(text: str) -> Architecture | None:
    """Return the cell that a string form stands for, whatever its operations are called; None if it is none."""
    try:
        return Architecture.parse(text, re.findall(r"(\w+)~", text))
    except InputError:
        return None


def _code(architecture: Architecture, operations: Sequence[str]) -> str:
    """Return one character per edge: the operation's place, counted from "0"."""
    return "".join(chr(ord("0") + operations.index(name)) for name in architecture.operations)


def _packed(values: NDArray[np.float64]) -> str | float | None:
    """Return one number if all are equal (None if all are missing), else all of them as base64 of gzip of float64."""
    if np.isnan(values).all():
        return None
    if (values == values[0]).all():
        return float(values[0])
    # No time stamp, so that the page is the same for the same table.
    return base64.b64encode(gzip.compress(values.astype("<f8").tobytes(), mtime=0)).decode()


def _costs(table: Table) -> list[dict[str, Any]]:
    """Return the columns of costs, as far as they are known: flops and params of each training."""
    names = ("space", "skeleton", "dataset")
    places = list(dict.fromkeys(tuple(str(getattr(column, name)) for name in names) for column in table.columns))
    found = []
    for place in places:
        criteria = dict(zip(names, place, strict=True))
        alike = [other for other in places if other[2] == place[2]]
        further = [
            f"{name} {own}"
            for name, own in criteria.items()
            if len({dict(zip(names, other, strict=True))[name] for other in alike}) > 1
        ]
        for cost in COSTS:
            values = table.values(cost, **criteria)
            if not np.isnan(values).all():
                name = ", ".join([f"{criteria['dataset']} {cost}", *further])
                unknown = {"std": None, "seeds": None, "floor": None}
                found.append({**criteria, "cost": cost, "name": name, "mean": _packed(values), **unknown})
    return found


def _name(column: Column, table: Table) -> str:
    """Return a column's name: data set, what was measured, and whatever else tells it from the other columns."""
    alike = [other for other in table.columns if (other.dataset, other.label) == (column.dataset, column.label)]
    said = {
        "recipe_hash": ("recipe", table.recipe_name(column)),
        "evaluation_hash": ("", table.evaluation_names[column.evaluation_hash]),
    }
    further = []
    for name, value in asdict(column).items():
        if len({getattr(other, name) for other in alike}) > 1:
            head, known = said.get(name, (name, value))
            head, known = (head, known) if known else (name, value)
            further.append(f"{head.replace('_', ' ')} {'not stated' if known is None else known}".strip())
    if column.norm is not None and column.epsilon is None:
        further.insert(0, "epsilon not stated")
    return ", ".join([f"{column.dataset} {column.label}", *further])


def _first_axes(table: Table) -> tuple[int, int]:
    """Return the columns to begin with: two that have the most points in common.

    Among those a clean one, and one attack (not the worst of several) on the same networks, with a large epsilon.
    """
    columns = table.columns
    known = [~np.isnan(table.values(**asdict(column))) for column in columns]
    training = [(column.space, column.skeleton, column.dataset, column.split, column.recipe_hash) for column in columns]

    def worth(pair: tuple[int, int]) -> tuple[Any, ...]:
        x, y = pair
        return (
            int((known[x] & known[y]).sum()),
            columns[x].attack == "clean",
            training[x] == training[y],
            columns[y].attack.isidentifier(),
            -x,
            columns[y].epsilon or 0,
            y,
        )

    return max(itertools.permutations(range(len(columns)), 2), key=worth, default=(0, 0))


def _beside(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """Return a script's or style's hash, as a security policy names it."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
