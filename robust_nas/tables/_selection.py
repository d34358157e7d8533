"""The selection of a table's columns by criteria and labels, and the sentences about what does not fit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from robust_nas.core.errors import InputError, suggest
from robust_nas.core.pixels import format_pixels, parse_pixels
from robust_nas.tables._arrays import IDENTITY, Column
from robust_nas.tables._recipes import Settings


class Selection:
    """The columns of a table, to be selected.

    Args:
        name: the table's name in messages.
        columns: its columns.
        settings: gives the settings behind hashes, which are read when they are needed.
    """

    def __init__(self, name: str, columns: Sequence[Column], settings: Callable[[], Settings]) -> None:
        self.name, self.columns = name, columns
        self._settings = settings
        self._chosen: dict[Any, int] = {}

    def recipe_name(self, column: Column) -> str | None:
        """Return the name by which a column's recipe goes; None for other software's."""
        return None if column.recipe_hash is None else self._settings().names.get(column.recipe_hash)

    def evaluation_names(self) -> dict[str | None, str]:
        """Return for each evaluation's hash the settings in which it differs from the others; "" for a single one."""
        found: dict[str | None, str] = {}
        for certified in (False, True):
            own = {column.evaluation_hash for column in self.columns if _is_certified(column) == certified}
            found |= self._settings().evaluation_names(own) if len(own) > 1 else dict.fromkeys(own, "")
        return found

    def place(self, label: str | None, criteria: Mapping[str, Any]) -> int:
        """Return the place of the one column that fits."""
        key = (label, *criteria.items())
        try:
            return self._chosen[key]
        except KeyError:
            pass
        except TypeError:  # a value that cannot be hashed
            raise InputError(
                f"The table {self.name} selects one value per criterion, but got {dict(criteria)}."
            ) from None
        fitting = self.places(label, criteria)
        if len(fitting) > 1:
            differing, example = self._differing([self.columns[place] for place in fitting])
            wanted = " ".join([*([label] if label else []), *(f"{key}={value}" for key, value in criteria.items())])
            found = f"{len(fitting)} columns fit '{wanted}'" if wanted else f"there are {len(fitting)} columns"
            raise InputError(
                f"In the table {self.name} {found}: they differ in {', '.join(differing)}; say which{example}."
            )
        self._chosen[key] = fitting[0]
        return fitting[0]

    def _differing(self, columns: Sequence[Column]) -> tuple[list[str], str]:
        """Return in what columns differ, hashes by the settings behind them, and words that choose by these."""
        found, example = [], ""
        for name in IDENTITY:
            values = {getattr(column, name): None for column in columns}
            if name == "evaluation_hash":
                # Attacks and certificates have settings of their own: between the two, the attack's name tells.
                alike = [
                    {column.evaluation_hash: None for column in columns if _is_certified(column) == certified}
                    for certified in (False, True)
                ]
                values = max(alike, key=len)
            if len(values) < 2:
                continue
            if name in ("recipe_hash", "evaluation_hash") and None not in values:
                known = self._settings()
                tell = known.recipes_in_words if name == "recipe_hash" else known.evaluations_in_words
                words, choice = tell(known.in_order(values))
                found.append(words)
                example = example or f", such as {choice}"
            else:
                found.append(f"{name} ({', '.join(_written(values, name))})")
        return found, example

    def _with_setting(self, places: Sequence[int], key: str, wanted: Any) -> list[int]:
        """Return the columns of the networks that were trained or measured with a setting."""
        hashes = self._settings().having(key, wanted)
        columns = [(place, self.columns[place]) for place in places]
        found = [place for place, column in columns if hashes & {column.recipe_hash, column.evaluation_hash}]
        if not found:
            raise InputError(f"The table {self.name} has no column with {key}={wanted} and the other criteria.")
        return found

    def _of_recipe(self, places: Sequence[int], wanted: Any) -> tuple[str, Any]:
        """Return the criterion that a recipe is: its training method's name, or else the hash that goes by its name."""
        methods = {self.columns[place].recipe for place in places}
        if wanted in methods:
            return "recipe", wanted
        names = {self.recipe_name(self.columns[place]): self.columns[place].recipe_hash for place in places}
        if wanted in names and wanted is not None:
            return "recipe_hash", names[wanted]
        known = [own for own in (*methods, *names) if own is not None]
        raise InputError(f"The table {self.name} has no column with recipe={wanted}. {suggest(str(wanted), known)}")

    def places(self, label: str | None, criteria: Mapping[str, Any]) -> list[int]:
        """Return the places of the columns that fit, at least one."""
        places = list(range(len(self.columns)))
        for name, wanted in criteria.items():
            if "." in name:
                places = self._with_setting(places, name, wanted)
                continue
            if name == "recipe":
                name, wanted = self._of_recipe(places, wanted)
            if name not in IDENTITY:
                raise InputError(f"A table's columns are not told apart by '{name}'. {suggest(name, IDENTITY)}")
            if isinstance(wanted, str) and name == "epsilon":
                wanted = parse_pixels(wanted)
            fitting = [place for place in places if _equal(getattr(self.columns[place], name), wanted)]
            if not fitting:
                values = {getattr(self.columns[place], name) for place in places}
                shown, hint = wanted, ""
                if isinstance(wanted, int | float):
                    shown = format_pixels(wanted) if name == "epsilon" else wanted
                    in_bytes = any(value is not None and _equal(value, wanted / 255) for value in values)
                    hint = f"Did you mean {wanted:g}/255? " if name == "epsilon" and in_bytes else ""
                known = _written(values, name)
                others = " and the other criteria" if len(places) < len(self.columns) else ""
                raise InputError(
                    f"The table {self.name} has no column with {name}={shown}{others}. "
                    + (suggest(wanted, known) if isinstance(wanted, str) else f"{hint}Available: {', '.join(known)}.")
                )
            places = fitting
        if label is None:
            return places
        labels = [self.columns[place].label for place in places]
        fitting = [place for place, own in zip(places, labels, strict=True) if _same_label(own, label)]
        if not fitting:
            others = " that fits the other criteria" if criteria else ""
            raise InputError(f"The table {self.name} has no column '{label}'{others}. {suggest(label, labels)}")
        return fitting


def _is_certified(column: Column) -> bool:
    return column.attack.startswith("certified:")


def _equal(own: Any, wanted: Any) -> bool:
    """Return whether a column's value is the wanted one; radii need only agree to 1e-9."""
    if isinstance(own, float) and isinstance(wanted, int | float):
        return abs(own - wanted) <= 1e-9
    return bool(own == wanted)


def _same_label(own: str, asked: str) -> bool:
    """Return whether two labels say the same: "pgd@8/255" and "pgd@0.03137254901960784" do."""
    if own == asked:
        return True
    (name, _, radius), (asked_name, _, asked_radius) = own.rpartition("@"), asked.rpartition("@")
    (norm, _, length), (asked_norm, _, asked_length) = radius.rpartition(":"), asked_radius.rpartition(":")
    if name != asked_name or asked_norm not in (norm, norm or "linf"):
        return False
    try:
        return abs(parse_pixels(length) - parse_pixels(asked_length)) <= 1e-9
    except InputError:
        return False


def _written(values: Iterable[Any], name: str) -> list[str]:
    """Return values as people write them, sorted."""

    def written(value: Any) -> str:
        if value is None:
            return "not stated"
        return format_pixels(value) if name == "epsilon" else str(value)

    ordered = sorted(values, key=lambda value: (value is None, value if value is not None else 0))
    return [written(value) for value in ordered]
