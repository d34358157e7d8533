"""The answers of `robust-nas table`: records, and the same answer as text for people, as JSON and as CSV.

Text has accuracies in percent and shows what differs; JSON and CSV have fractions and every column.
"""

from __future__ import annotations

import csv
import io
import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from robust_nas import tables
from robust_nas.architectures.cell import Architecture
from robust_nas.core.errors import InputError
from robust_nas.core.pixels import format_pixels, parse_pixels
from robust_nas.core.text import aligned, warnings
from robust_nas.tables import Result, Table

_IN_PERCENT = (
    *("accuracy", "std", "noise_floor", "mean", "median", "max"),
    *("first_accuracy", "second_accuracy", "difference", "standard_error"),
)
_HEADS = {
    "published_index": "number",
    "p_holm": "p (Holm)",
    "num_seeds": "seeds",
    "num_images": "images",
    "num_ranked": "of",
    "num_classes": "classes",
    "is_distinguishable": "different",
    **{name: f"{name.replace('_accuracy', '').replace('_', ' ')} %" for name in _IN_PERCENT},
}


@dataclass(frozen=True)
class Answer:
    """Records, with what holds for all of them.

    Args:
        title: the question, in words; a line above the text.
        records: one mapping for each line, all with the same keys.
        shown: the keys that the text shows.
        notes: warnings.
    """

    title: str
    records: list[dict[str, Any]]
    shown: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def text(self) -> str:
        """Return the answer in aligned columns."""
        heads = [_HEADS.get(key, key) for key in self.shown]
        body = [[_cell(key, record[key]) for key in self.shown] for record in self.records]
        title = textwrap.wrap(self.title, 118, break_long_words=False, break_on_hyphens=False)
        return "\n".join([*title, "", *aligned([heads, *body]), *warnings(self.notes)])

    def json(self) -> str:
        """Return the answer as a JSON object with `records` and `caveats`."""
        return json.dumps({"title": self.title, "records": self.records, "caveats": self.notes}, indent=1)

    def csv(self) -> str:
        """Return the records as CSV, with a line of names; a missing value is empty."""
        out = io.StringIO()
        writer = csv.DictWriter(out, list(self.records[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.records)
        return out.getvalue().rstrip("\n")


def query(table: Table, architecture: str, words: Sequence[str]) -> Answer:
    """Answer with a table's values of an architecture, in every column that fits `COLUMN=VALUE` words."""
    criteria, labels = parse(words, labels=1)
    results = table.results(architecture, *labels, **criteria)
    form = results[0].architecture
    number = "" if results[0].published_index is None else f", number {results[0].published_index}"
    is_other = architecture.strip() not in (form, _digits(form), str(results[0].published_index))
    asked = f"{architecture.strip()} is equivalent to " if is_other else ""
    return Answer(
        f"{table.name}: {asked}{form} ({_digits(form)}{number})",
        [_record(result) for result in results],
        (*_differing(table), "accuracy", *_known(results), "rank", "num_ranked", "percentile", "noise_floor"),
    )


def top(table: Table, words: Sequence[str], count: int) -> Answer:
    """Answer which architectures are the most accurate in one column: its label, `COLUMN=VALUE` words, or both."""
    criteria, labels = parse(words, labels=1)
    results = table.top(count, *labels, **criteria)
    column = results[0].column
    floor = results[0].noise_floor
    noise = (
        "" if floor is None else f"; by chance alone a value differs by {100 * floor:.2f} points (standard deviation)"
    )
    return Answer(
        f"{table.name}: {column.label} on {column.dataset}, the best {len(results)} of {results[0].num_ranked} classes"
        f"{noise}",
        (records := [_record(result) for result in results]),
        ("rank", "accuracy", *_known(results), _form(records)),
        table.caveats[:1],
    )


def pareto(table: Table, words: Sequence[str]) -> Answer:
    """Answer which architectures no other beats in every one of the columns whose labels are among the words."""
    criteria, labels = parse(words)
    if len({*labels}) < len(labels):
        raise InputError(f"Name different columns, but got {', '.join(labels)}; name each once.")
    front = table.pareto(labels, **criteria)
    records = [
        {
            **{label: result.mean for label, result in zip(labels, results, strict=True)},
            "digits": _digits(results[0].architecture),
            "architecture": results[0].architecture,
            "published_index": results[0].published_index,
            "dataset": results[0].column.dataset,
        }
        for results in front
    ]
    if not records:
        raise InputError(f"No architecture of the table {table.name} is in all of {', '.join(labels)}; name others.")
    lacking = int(np.isnan([table.values(label, **criteria) for label in labels]).any(axis=0).sum())
    where = front[0][0].column.dataset
    return Answer(
        f"{table.name}: the classes that no other beats in {' and '.join(labels)} on {where}, in %",
        records,
        (*labels, _form(records)),
        (
            *table.caveats[:1],
            *([f"{lacking} classes are not in all of these columns, and left out."] if lacking else []),
        ),
    )


def overview(table: Table) -> Answer:
    """Answer what columns a table has, and how they are distributed."""
    records = []
    for column in table.columns:
        values = table.values(**asdict(column))
        known = values[~np.isnan(values)]
        floor = table.noise_floor(**asdict(column))
        records.append(
            {
                **asdict(column),
                "num_classes": len(known),
                "mean": float(known.mean()),
                "median": float(np.median(known)),
                "max": float(known.max()),
                "noise_floor": floor and floor.std,
            }
        )
    return Answer(
        f"{table.name}: {len(table)} classes of architectures",
        records,
        (*_differing(table), "num_classes", "mean", "median", "max", "noise_floor"),
        table.caveats,
    )


def compare(table: Table, architectures: Sequence[str], words: Sequence[str]) -> Answer:
    """Answer whether architectures differ by more than chance, in every column that fits."""
    from robust_nas.tables import statistics

    criteria, labels = parse(words, labels=1)
    found = statistics.compare(table, architectures, *labels, **criteria)
    records = [
        {
            "first": _digits(item.first) or item.first,
            "second": _digits(item.second) or item.second,
            **asdict(item.column),
            **{
                key: getattr(item, key)
                for key in ("first_accuracy", "second_accuracy", "difference", "standard_error", "test")
            },
            "p": item.p_value,
            "p_holm": item.p_holm,
            "is_distinguishable": item.is_distinguishable,
        }
        for item in found
    ]
    unknown = any(item.p_value is None for item in found)
    return Answer(
        f"{table.name}: are they different by more than chance? p values are corrected for all {len(found)} "
        "comparisons (Holm)",
        records,
        (
            "first",
            "second",
            *_differing(table),
            "first_accuracy",
            "second_accuracy",
            "difference",
            "standard_error",
            "test",
            "p_holm",
            "is_distinguishable",
        ),
        (
            *table.caveats[:1],
            *(["where there is a '-', the table does not know how much a value differs by chance."] if unknown else []),
        ),
    )


def stats(table: Table, words: Sequence[str], *, as_json: bool = False) -> str:
    """Answer how columns are distributed and related, how noisy they are, and which operations matter."""
    from robust_nas.tables import statistics

    criteria, labels = parse(words, labels=1)
    if as_json:
        return json.dumps({**statistics.summarise(table, *labels, **criteria), "caveats": table.caveats}, indent=1)
    return "\n".join([statistics.describe(table, *labels, **criteria), "", *warnings(table.caveats)])


def parse(words: Sequence[str], *, labels: int | None = None) -> tuple[dict[str, Any], list[str]]:
    """Return the `COLUMN=VALUE` words, each value in the type of its column, and the words that are no such pair.

    Args:
        words: the typed words.
        labels: largest number of the latter, such as pgd@8/255; any number, if not given.

    Raises:
        InputError: for a value that its column cannot have, or too many labels.
    """
    pairs: dict[str, Any] = {}
    others = []
    for word in words:
        name, separator, value = word.partition("=")
        if not separator:
            others.append(word)
            continue
        if name in pairs:
            raise InputError(f"The column {name} is given twice, as {pairs[name]} and {value}; give it once.")
        pairs[name] = _value(name, value)
    if labels is not None and len(others) > labels:
        wanted = "COLUMN=VALUE, such as attack=pgd" + (", and one label, such as pgd@8/255" if labels else "")
        raise InputError(f"Write {wanted}, but got '{others[labels]}'.")
    return pairs, others


def _value(name: str, text: str) -> Any:
    """Return a value in the type of its column; 'none' is the missing value, where there may be one."""
    field = tables.SCHEMA.field(name) if name in tables.SCHEMA.names else None
    if field is None or (field.nullable and text == "none"):
        return text if field is None else None
    kind = str(field.type)
    if kind == "double":
        return parse_pixels(text)
    if kind == "bool":
        if text not in ("true", "false"):
            raise InputError(f"The column {name} is true or false, but got '{text}'.")
        return text == "true"
    if kind == "int64":
        if not re.fullmatch(r"-?[0-9]{1,18}", text):
            raise InputError(f"The column {name} holds whole numbers, but got '{name}={text}'.")
        return int(text)
    return text


def _record(result: Result) -> dict[str, Any]:
    """Return a result as a record with every fact in it."""
    column = asdict(result.column)
    return {
        "architecture": result.architecture,
        "digits": _digits(result.architecture),
        "published_index": result.published_index,
        **column,
        "accuracy": result.mean,
        "std": result.std,
        "num_seeds": result.num_seeds,
        "num_images": result.num_images,
        "rank": result.rank,
        "num_ranked": result.num_ranked,
        "percentile": result.percentile,
        "noise_floor": result.noise_floor,
    }


def _known(results: Sequence[Result]) -> tuple[str, ...]:
    """Return the names of the facts of results that are known of at least one of them."""
    return tuple(
        name
        for name in ("std", "num_seeds", "num_images")
        if any(getattr(result, name) is not None for result in results)
    )


def _differing(table: Table) -> tuple[str, ...]:
    """Return the criteria that a table's columns differ in, and always the data set and the attack."""
    columns = [asdict(column) for column in table.columns]
    return tuple(
        name
        for name in tables.IDENTITY
        if name in ("dataset", "attack") or (len({column[name] for column in columns}) > 1 and name != "norm")
    )


def _form(records: Sequence[Mapping[str, Any]]) -> str:
    """Return the form of an architecture to show: digits are short, but not every space has them."""
    return "digits" if all(record["digits"] for record in records) else "architecture"


def _digits(form: str) -> str:
    try:
        return Architecture.parse(form).digits()
    except InputError:  # of a space with other operations
        return ""


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if key == "epsilon":
        return format_pixels(value)
    if key == "percentile":
        return f"{value:.2f}"
    if key.startswith("p_"):
        return f"{value:.2g}" if value else "<1e-300"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{100 * value:.2f}"
    return str(value)
