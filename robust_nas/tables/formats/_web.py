"""The common parts of the extracts on project pages: JavaScript literals, `acc={...}` and `arch=[...]`.

`arch` is the architecture of each number, six digits. In `acc`, the key "" names the columns, DATASET#QUANTITY; a
number's value is a list with the columns' values if the number represents its class, else the representative's number.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from robust_nas.core.errors import InputError
from robust_nas.tables.cards import Card
from robust_nas.tables.formats import Published
from robust_nas.tables.formats._classes import Classes
from robust_nas.tables.formats._files import damage, parse_json, read_text


def read_extract(folder: Path, card: Card, file: str) -> Published:
    """Read an extract from its `file` and from ops.json, which numbers the architectures.

    Raises:
        InputError: if a file is missing or damaged, or its classes of equal architectures are not ours.
    """
    path = folder / file
    entries, index = _literal(path, "acc"), _literal(folder / "ops.json", "arch")
    with damage(str(path)):
        names = [name.partition("#")[::2] for name in entries[""]]
        values = [entries[str(number)] for number in range(len(index))]
        classes = Classes.of(
            index,
            [number if isinstance(value, list) else int(value) for number, value in enumerate(values)],
            str(path),
        )
        rows = {number: values[number] for number in classes.members}
        if any(len(row) != len(names) for row in rows.values()):
            raise InputError(f"{path} has a row that has not {len(names)} values; it is damaged, get it again.")

    def measures() -> Iterator[pa.Table]:
        for place, name in enumerate(names):
            if card.knows(*name):
                column = {number: row[place] for number, row in rows.items()}
                yield classes.table(card.constant(*name), column, str(path))

    return Published(classes.index, measures(), tuple("#".join(name) for name in names if not card.knows(*name)))


def _literal(path: Path, variable: str) -> Any:
    """Return the value of `variable` in a file that is nothing but its assignment."""
    text = read_text(path)
    name, equals, literal = text.partition("=")
    if not equals or name.strip() != variable:
        raise InputError(f"{path} is damaged or of another format: it does not assign '{variable}'; get it again.")
    return parse_json(literal.strip().removesuffix(";"), str(path))
