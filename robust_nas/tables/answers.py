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
from robust_nas.core.errors import InputError
from robust_nas.core.pixels import format_pixels, parse_pixels
from robust_nas.core.text import aligned, warnings
from robust_nas.tables import Result, Table, costs
from robust_nas.tables._arrays import Column

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
    "recipe_name": "recipe",
    "evaluation_name": "evaluation",
    "flops": "flops M",
    "params": "params M",
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

    def facts(self) -> dict[str, Any]:
        """Return the answer as data, with `records` and `caveats`."""
        return {"title": self.title, "records": self.records, "caveats": self.notes}

    def json(self) -> str:
        """Return the answer as a JSON object."""
        return json.dumps(self.facts(), indent=1)

    def csv(self) -> str:
        """Return the records as CSV, with a line of names; a missing value is empty."""
        out = io.StringIO()
        writer = csv.DictWriter(out, list(self.records[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.records)
        return out.getvalue().rstrip("\n")


def query(table: Table, architecture: str, words: Sequence[str]) -> Answer:
    """Answer with a table's values of an architecture, in every column that fits `COLUMN=VALUE` words."""
    asked = _asked(words, labels=1)
    if asked.where:
        raise InputError(f"One architecture has one cost, so that a query takes no limit, but got {asked.where[0]}.")
    results = table.results(architecture, *asked.labels, **asked.criteria)
    form = results[0].architecture
    number = "" if results[0].published_index is None else f", number {results[0].published_index}"
    is_other = architecture.strip() not in (form, costs.digits_of(form), str(results[0].published_index))
    said = f"{architecture.strip()} is equivalent to " if is_other else ""
    records = [{**_record(table, result), **_cost(table, result)} for result in results]
    shown = [name for name in costs.COSTS if any(record[name] is not None for record in records)]
    return Answer(
        f"{table.name}: {said}{form} ({costs.digits_of(form)}{number})",
        records,
        (
            *(*_differing(table), "accuracy", *_known(results), "rank", "num_ranked", "percentile", "noise_floor"),
            *shown,
        ),
    )


def top(table: Table, words: Sequence[str], count: int) -> Answer:
    """Answer which architectures are the most accurate in one column: its label, `COLUMN=VALUE` words, or both.

    `flops` or `params` among the words shows the cost; a limit such as flops<50 leaves out others, and shows it too.
    """
    asked = _asked(words, labels=1)
    results = table.top(count, *asked.labels, where=asked.where, **asked.criteria)
    column = results[0].column
    floor = results[0].noise_floor
    noise = (
        "" if floor is None else f"; by chance alone a value differs by {100 * floor:.2f} points (standard deviation)"
    )
    records = [{**_record(table, result), **(_cost(table, result) if asked.costs else {})} for result in results]
    return Answer(
        f"{table.name}: {column.label} on {column.dataset}, the best {len(results)} of {results[0].num_ranked} classes"
        f"{asked.limits}{noise}",
        records,
        ("rank", "accuracy", *_known(results), *asked.costs, _form(records)),
        table.caveats[:1],
    )


def pareto(table: Table, words: Sequence[str]) -> Answer:
    """Answer which architectures no other beats in every one of the columns whose labels are among the words.

    Of `flops` and `params`, fewer are better.
    """
    asked = _asked(words)
    labels = [word for word in words if word in (*asked.labels, *costs.COSTS)]
    if len({*labels}) < len(labels):
        raise InputError(f"Name different columns, but got {', '.join(labels)}; name each once.")
    front = table.pareto(labels, where=asked.where, **asked.criteria)
    records = []
    for results in front:
        found = {
            **{label: result.mean for label, result in zip(asked.labels, results, strict=True)},
            **(_cost(table, results[0]) if asked.costs else {}),
        }
        records.append(
            {
                **{label: found[label] for label in dict.fromkeys([*labels, *asked.costs])},
                "digits": costs.digits_of(results[0].architecture),
                "architecture": results[0].architecture,
                "published_index": results[0].published_index,
                "dataset": results[0].column.dataset,
            }
        )
    if not records:
        raise InputError(f"No architecture of the table {table.name} is in all of {', '.join(labels)}; name others.")
    of = asdict(front[0][0].column)
    lacking = int(
        np.isnan([table.values(label, **(of if label in costs.COSTS else asked.criteria)) for label in labels])
        .any(axis=0)
        .sum()
    )
    where = front[0][0].column.dataset
    return Answer(
        f"{table.name}: the classes{asked.limits} that no other beats in {' and '.join(labels)} on {where}, "
        f"{'accuracies in %' if asked.costs else 'in %'}",
        records,
        (*labels, *(name for name in asked.costs if name not in labels), _form(records)),
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
                **_of_column(table, column),
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
            "first": costs.digits_of(item.first) or item.first,
            "second": costs.digits_of(item.second) or item.second,
            **_of_column(table, item.column),
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


@dataclass(frozen=True)
class _Asked:
    """What words ask for: columns by criteria and labels, limits on the cost, and costs to show."""

    criteria: dict[str, Any]
    labels: list[str]
    where: list[str]
    costs: tuple[str, ...]

    @property
    def limits(self) -> str:
        return f" with {' and '.join(self.where)}" if self.where else ""


def _asked(words: Sequence[str], *, labels: int | None = None) -> _Asked:
    """Read words, which may have `flops`, `params`, and limits on them among them; see `parse`."""
    limits = [limit for word in words if (limit := costs.condition(word))]
    others = [word for word in words if word not in costs.COSTS and not costs.condition(word)]
    named = {*(word for word in words if word in costs.COSTS), *(limit.name for limit in limits)}
    return _Asked(*parse(others, labels=labels), list(map(str, limits)), tuple(n for n in costs.COSTS if n in named))


def rows_asked(words: Sequence[str]) -> dict[str, Any]:
    """Read words that choose rows, as the arguments of `Table.rows`."""
    asked = _asked(words, labels=0)
    return {"where": asked.where, **asked.criteria}


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


def _of_column(table: Table, column: Column) -> dict[str, Any]:
    """Return the facts of a column, with names for its hashes."""
    return {
        **asdict(column),
        "recipe_name": table.recipe_name(column),
        "evaluation_name": table.evaluation_names[column.evaluation_hash] or None,
    }


def _cost(table: Table, result: Result) -> dict[str, float | None]:
    """Return the cost of a result's network, by name."""
    found = table.cost(result.architecture, **asdict(result.column))
    return {name: None if value != value else value for name, value in zip(costs.COSTS, found, strict=True)}


def _record(table: Table, result: Result) -> dict[str, Any]:
    """Return a result as a record with every fact in it but the cost."""
    return {
        "architecture": result.architecture,
        "digits": costs.digits_of(result.architecture),
        "published_index": result.published_index,
        **_of_column(table, result.column),
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
    """Return the criteria that a table's columns differ in, hashes by name, always with the data set and the attack."""
    columns = [_of_column(table, column) for column in table.columns]
    names = {"recipe_hash": "recipe_name", "evaluation_hash": "evaluation_name"}
    return tuple(
        name
        for name in (names.get(name, name) for name in tables.IDENTITY)
        if name in ("dataset", "attack") or (len({column[name] for column in columns}) > 1 and name != "norm")
    )


def _form(records: Sequence[Mapping[str, Any]]) -> str:
    """Return the form of an architecture to show: digits are short, but not every space has them."""
    return "digits" if all(record["digits"] for record in records) else "architecture"


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if key == "epsilon":
        return format_pixels(value)
    if key in costs.COSTS:
        return f"{value:.2f}" if key == "flops" else f"{value:.3f}"
    if key == "percentile":
        return f"{value:.2f}"
    if key.startswith("p_"):
        return f"{value:.2g}" if value else "<1e-300"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{100 * value:.2f}"
    return str(value)
