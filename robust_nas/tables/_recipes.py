"""The settings behind a table's hashes: names for recipes, and the keys in which they differ.

Rows have their settings since version 3. Those of an older row are in its run folder, if that is still beside the table
and has the row's hash; else they are not known, and a recipe goes by the name of its run.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from robust_nas.core.errors import InputError
from robust_nas.core.files import is_there, read_toml
from robust_nas.core.pixels import format_pixels, parse_pixels
from robust_nas.tables._store import has_values, read_rows
from robust_nas.tables.local import recipe_hash, settings_hash

_FACTS = ("recipe_hash", "recipe_name", "recipe_settings", "evaluation_hash", "evaluation_settings", "attack", "source")
_RUN = re.compile(r"\d{8}-(.+)-[0-9a-f]{6}")

_NOT_SET = "not set"

Flat = Mapping[str, Any]
"""Settings by their whole keys, such as train.epochs."""


class Settings:
    """The recipes and evaluations of a table, by their hashes.

    Args:
        path: the table's file or folder.
    """

    def __init__(self, path: Path) -> None:
        self.flat: dict[str, Flat | None] = {}
        """The settings of each recipe and evaluation; None if they are not known."""
        self.names: dict[str, str] = {}
        """A name for each recipe, by which no other one goes."""

        named: dict[str, tuple[datetime | None, str]] = {}
        for row in _distinct(path):
            run = (
                _run_settings(path, row["source"])
                if None in (row["recipe_settings"], row["evaluation_settings"])
                else {}
            )
            self._note(row["recipe_hash"], row["recipe_settings"], run, "")
            section = "certification" if row["attack"].startswith("certified:") else "evaluation"
            self._note(row["evaluation_hash"], row["evaluation_settings"], run.get(section, {}), f"{section}.")
            if row["recipe_hash"] is not None:
                match = _RUN.fullmatch(row["source"])
                name = row["recipe_name"] or run.get("name") or (match[1] if match else row["source"])
                named.setdefault(row["recipe_hash"], (row["started"], str(name)))
        # In the order of their runs, so that a name stays when others come.
        for key, (_, name) in sorted(named.items(), key=lambda item: (item[1][0] is None, str(item[1][0]), item[0])):
            count, own = 1, name
            while own in self.names.values():
                count, own = count + 1, f"{name}-{count + 1}"
            self.names[key] = own

    def _note(self, key: str | None, text: str | None, run: Mapping[str, Any], prefix: str) -> None:
        if key is None or self.flat.get(key) is not None:
            return
        self.flat[key] = None
        if text is not None:
            self.flat[key] = dict(_flat(json.loads(text), prefix))
        elif run and key == (settings_hash(run) if prefix else recipe_hash(run)):
            known = {name: run[name] for name in ("data", "threat", "train")} if not prefix else run
            self.flat[key] = dict(_flat(json.loads(json.dumps(known, default=str)), prefix))

    def having(self, key: str, wanted: Any) -> set[str]:
        """Return the hashes of the recipes or evaluations that have a setting.

        Raises:
            InputError: if none has the key, or none this value.
        """
        values = {own: flat[key] for own, flat in self.flat.items() if flat is not None and key in flat}
        found = {own for own, value in values.items() if _is(value, wanted)}
        if not found:
            known = sorted({_written(value) for value in values.values()})
            raise InputError(
                f"No network of the table has {key}={wanted}: it has {' and '.join(known)}."
                if known
                else f"The settings of the table's networks have no '{key}', or are not known; give another key."
            )
        return found

    def in_order(self, hashes: Collection[str | None]) -> list[str | None]:
        """Return hashes with the recipes in the order of their runs."""
        order = {key: place for place, key in enumerate([*self.names, *self.flat])}
        return sorted(hashes, key=lambda key: order.get(key or "", -1))

    def differences(self, hashes: Collection[str | None]) -> dict[str, list[str]] | None:
        """Return the keys in which settings differ, each with its values; None if some are not known."""
        flats = [self.flat.get(key) if key is not None else None for key in hashes]
        known = [flat for flat in flats if flat is not None]
        if len(known) < len(flats):
            return None
        keys = dict.fromkeys(key for flat in known for key in flat)
        values = {key: list(dict.fromkeys(_written(flat.get(key)) for flat in known)) for key in keys}
        return {key: found for key, found in values.items() if len(found) > 1}

    def recipes_in_words(self, hashes: Sequence[str | None]) -> tuple[str, str]:
        """Return how recipes differ, "digits, digits-2: train.epochs 10 or 3", and words that choose the first."""
        names = [self.names.get(key or "", "not stated") for key in hashes]
        found = self.differences(hashes)
        if found is None:
            why = "whose settings are not all known"
        else:
            why = f"which differ in {', '.join(f'{key} {_either(values)}' for key, values in found.items())}"
        return f"recipe ({', '.join(names)}, {why})", f"recipe={names[0]}"

    def evaluations_in_words(self, hashes: Sequence[str | None]) -> tuple[str, str]:
        """Return how evaluations differ, "evaluation.num_images 200 or 100", and words that choose the first."""
        found = self.differences(hashes)
        if not found:
            return f"evaluation_hash ({', '.join(map(str, hashes))})", f"evaluation_hash={hashes[0]}"
        key, value = next((key, value) for key, values in found.items() for value in values if value != _NOT_SET)
        return ", ".join(
            f"{key} {_either(values)}" for key, values in found.items()
        ), f"'{key}={value}'" if " " in value else f"{key}={value}"

    def evaluation_names(self, hashes: Collection[str | None]) -> dict[str | None, str]:
        """Return for each of several evaluations the settings in which they differ; its hash, if they are not known."""
        found = self.differences(hashes)
        if found is None:
            return {key: str(key) for key in hashes}
        flats = {key: self.flat.get(key or "") or {} for key in hashes}
        return {key: ", ".join(f"{name}={_written(flat.get(name))}" for name in found) for key, flat in flats.items()}


def _distinct(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the facts of a table's rows, equal ones once."""
    if not has_values(path, ["recipe_hash", "evaluation_hash"]):
        return
    rows = read_rows(path, [*_FACTS, "started"])
    columns = [rows[name].to_pylist() for name in (*_FACTS, "started")]
    for values in dict.fromkeys(zip(*columns, strict=True)):
        yield dict(zip((*_FACTS, "started"), values, strict=True))


def _run_settings(path: Path, source: str) -> dict[str, Any]:
    """Return the settings of the run folder beside a table; nothing if it is not there or cannot be read."""
    file = path.resolve().parent / source / "config.toml"
    try:
        found = read_toml(file) if path.is_dir() and is_there(file) else {}
    except InputError:
        return {}
    return found if {"data", "threat", "train"} <= found.keys() else {}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _is(value: Any, wanted: Any) -> bool:
    """Return whether a setting is what somebody typed."""
    if value == wanted or str(value) == str(wanted):
        return True
    try:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return abs(float(value) - parse_pixels(wanted)) <= 1e-9
        return bool(value == tomllib.loads(f"value = {wanted}")["value"])
    except (InputError, tomllib.TOMLDecodeError, ValueError):
        return False


def _written(value: Any) -> str:
    """Return a setting as people write it."""
    if value is None:
        return _NOT_SET
    if isinstance(value, float):
        return format_pixels(value) if 0 < value < 1 else f"{value:g}"
    if isinstance(value, list):
        return f"[{', '.join(map(_written, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}={_written(item)}' for key, item in value.items())}}}"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _either(values: Sequence[str]) -> str:
    return " or ".join(values)
