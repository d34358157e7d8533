"""Reading the files of published tables."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from robust_nas.architectures.cell import Architecture
from robust_nas.core.errors import InputError
from robust_nas.tables.formats._classes import Classes


@contextmanager
def damage(source: str) -> Iterator[None]:
    """Turn what goes wrong when a file has not the layout that it should have into an `InputError`."""
    try:
        yield
    except InputError:
        raise
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        # JSON and Unicode errors are ValueErrors.
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"{source} is damaged or of another format ({reason}); get it again.") from None


def read_text(path: Path) -> str:
    """Return a file's text.

    Raises:
        InputError: if it is missing or not text.
    """
    try:
        with damage(str(path)):
            return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}); give the folder with the table's files, which "
            "'robust-nas table info' names."
        ) from None


def parse_json(text: str | bytes, source: str) -> Any:
    """Return the value of a JSON text.

    Raises:
        InputError: if it is damaged.
    """
    with damage(source):
        return json.loads(text)


def read_json(path: Path) -> Any:
    """Return the value of a JSON file.

    Raises:
        InputError: if it is missing or damaged.
    """
    return parse_json(read_text(path), str(path))


def classes_of_meta(meta: Mapping[str, Any], source: str) -> Classes:
    """Return the numbering of a `meta.json`: `["ids"][NUMBER]` has "nb201-string" and "isomorph".

    Raises:
        InputError: as `Classes.of` does, or if it has another layout.
    """
    with damage(source):
        entries = [meta["ids"][str(number)] for number in range(len(meta["ids"]))]
        index = [Architecture.parse(entry["nb201-string"]).digits() for entry in entries]
        return Classes.of(index, [int(entry["isomorph"]) for entry in entries], source)
