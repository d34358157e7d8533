"""JSON and TOML files: one sentence refuses a file that is missing, no text, cut off, or nested beyond reason."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from robust_nas.core.errors import InputError

DEEPEST = 100
"""The number of tables and lists that may be in one another."""


def is_there(path: Path) -> bool:
    """Whether there is anything at a path, also what is no file, or a link that leads nowhere: it is to be read."""
    return os.path.lexists(path)


def damaged(path: Path, reason: object, advice: str | None = None) -> str:
    """Return the sentence that says that a file is damaged, why, and what to do: else, to have it written again."""
    if advice is None:
        is_attack = is_there(path.parent / "attack.toml")
        again = "repeat the command 'robust-nas attack'" if is_attack else "resume the run"
        advice = f"delete it and {again} to write it again"
    return f"{path} is damaged ({reason}); {advice}."


def read_json(path: Path, advice: str | None = None) -> Any:
    """Read a JSON file.

    Raises:
        InputError: if it is missing, unreadable, half-written or damaged.
    """
    try:
        text = text_of(path)
    except FileNotFoundError:
        raise InputError(f"There is no {path.name} in {path.parent}; run the stage that writes it first.") from None
    return _parsed(json.loads, text, lambda reason: damaged(path, reason, advice))


def read_toml(path: Path, advice: str = "mend it, or give another file") -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        InputError: if it is missing, unreadable, or is not TOML (with the line).
    """
    try:
        text = text_of(path)
    except FileNotFoundError:
        raise InputError(f"There is no file {path}.") from None
    return parse_toml(text, str(path), advice)


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file, the last of which has no end: it is empty, or was cut off.

    Bytes that are no text, as there may be where a line was cut off, are marked.

    Raises:
        InputError: if it is missing or cannot be read.
    """
    try:
        return text_of(path, errors="replace").split("\n")
    except FileNotFoundError:
        raise InputError(f"There is no file {path}.") from None


def read_rows(path: Path, fits: Callable[[Any], bool], parts: str) -> list[dict[str, Any]]:
    """Return the rows of a file with a JSON object on each line; none, if there is no file.

    A last line that was cut off is left out. It has no end; a line with an end that is no row is damage.

    Args:
        path: the file.
        fits: whether a line's value is a row of the file.
        parts: the parts of a row, for the sentence about a line that is none.

    Raises:
        InputError: if it cannot be read, or a line is no row.
    """
    rows: list[dict[str, Any]] = []
    lines = read_lines(path) if is_there(path) else []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            if number == len(lines) or not line.strip():
                continue
            row = None
        if not fits(row):
            raise InputError(damaged(path, f"line {number} must have {parts}", "delete the line"))
        rows.append(row)
    return rows


def parse_toml(text: str, source: str, advice: str = "mend it, or give another file") -> dict[str, Any]:
    """Return the table that a text of TOML is.

    Raises:
        InputError: if it is not TOML (with the line).
    """
    found: dict[str, Any] = _parsed(
        tomllib.loads, text.removeprefix("\ufeff"), lambda reason: f"{source} is not valid TOML: {reason}; {advice}."
    )
    return found


def text_of(path: Path, errors: str = "strict") -> str:
    """Return a file's text.

    Raises:
        FileNotFoundError: if it is missing.
        InputError: if it is no file, cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8", errors=errors)
    except FileNotFoundError:
        raise
    except IsADirectoryError:
        raise InputError(f"{path} must be a file, but is a folder; move it away, or give another path.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check the path and its permissions.") from None
    except UnicodeDecodeError as error:
        place = f"the byte {error.object[error.start]:#x} at {error.start}"
        raise InputError(f"{path} is damaged or no text in UTF-8 ({place}); write it again.") from None


def _parsed(parse: Callable[[str], Any], text: str, sentence: Callable[[object], str]) -> Any:
    try:
        found = parse(text)
        if _depth(found) > DEEPEST:
            raise RecursionError
    except RecursionError:
        raise InputError(sentence("it is nested too deeply")) from None
    except ValueError as error:
        # Python reads no whole numbers of more than some thousand digits.
        reason = "a whole number has too many digits" if "int_max_str_digits" in str(error) else error
        raise InputError(sentence(reason)) from None
    return found


def _depth(value: Any) -> int:
    """Return the depth of lists and tables in one another."""
    depth, layer = 0, [value]
    while layer := [item for item in layer if isinstance(item, dict | list)]:
        depth += 1
        layer = [item for node in layer for item in (node.values() if isinstance(node, dict) else node)]
    return depth
