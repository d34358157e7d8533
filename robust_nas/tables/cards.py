"""The cards of published tables, `benchmarks/tables/NAME.toml`: where a table is, and what its numbers mean.

The card alone states the facts of a whole table (training recipe, split, skeleton), of a data set (its name here, its
images) and of a measured quantity (attack, norm, epsilon, seeds); a format (`tables.formats`) only knows how the files
are laid out. Facts that a source does not state are left out of its card, and are null in the table.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from robust_nas.core import catalogue
from robust_nas.core.errors import InputError, suggest
from robust_nas.core.files import read_toml
from robust_nas.core.pixels import format_pixels, parse_pixels
from robust_nas.tables._store import place

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class File:
    """One published file.

    Args:
        name: its name.
        url: its address; empty if none is known, and then it must be imported from a local copy.
        sha256: its SHA-256, in hexadecimal digits; empty if not known.
        bytes: its size; 0 if not known.
    """

    name: str
    url: str = ""
    sha256: str = ""
    bytes: int = 0

    def __post_init__(self) -> None:
        if Path(self.name).name != self.name or self.name.startswith(".") or "\\" in self.name:
            raise InputError(f"A card's file must be named without a folder, but got '{self.name}'.")
        if self.sha256 and not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise InputError(
                f"{self.name}: a sha256 is 64 hexadecimal digits, in small letters, but got '{self.sha256}'."
            )
        if self.url and not (self.url.startswith(("http://", "https://")) and self.sha256):
            raise InputError(f"{self.name}: an address must be of HTTP and come with a sha256, but got '{self.url}'.")


@dataclass(frozen=True, kw_only=True)
class Shared:
    """The values that all rows of a table have in common: the columns of these names."""

    space: str
    skeleton: str
    split: str
    recipe: str


@dataclass(frozen=True, kw_only=True)
class Images:
    """A data set, under the name that the source gives it.

    Args:
        name: its name here.
        num_images: number of images of an accuracy; None if not known.
    """

    name: str
    num_images: int | None = None


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """A measured quantity, under the name that the source gives it: the columns of these names."""

    attack: str
    norm: str | None = None
    epsilon: float | None = None
    num_seeds: int | None = None
    is_mean: bool = False


@dataclass(frozen=True, kw_only=True)
class Card:
    """A published table's card.

    Args:
        name: the table's name, which is the card's file name.
        title: its authors' name for it.
        format: its files' format, a name of `tables.formats`.
        homepage: its authors' page.
        paper: its description.
        license: the stated terms of passing it on.
        units: of the published numbers.
        training: the networks' training.
        measured: the attacks on them, and the images.
        seeds: the trainings behind a number.
        caveats: warnings to users.
        files: the published files.
        rows: the values that all rows have in common.
        datasets: the data sets, by the source's names.
        columns: the measured quantities, by the source's names.
    """

    name: str
    title: str
    format: str
    homepage: str
    paper: str
    license: str
    units: str
    training: str
    measured: str
    seeds: str
    caveats: tuple[str, ...]
    files: tuple[File, ...]
    rows: Shared
    datasets: Mapping[str, Images]
    columns: Mapping[str, Quantity]

    @classmethod
    def read(cls, path: Path) -> Card:
        """Read a card.

        Raises:
            InputError: if the file cannot be read, lacks a key, or has a key or a value that a card cannot have.
        """
        content = read_toml(path, "mend the card or name another")
        for key, convert in _SECTIONS.items():
            if key in content:
                content[key] = convert(content[key], f"{path}, {key}")
        return _build(cls, {**content, "name": path.stem}, str(path))

    def constant(self, dataset: str, column: str) -> dict[str, Any]:
        """Return the common values of all rows of one quantity on one data set; both by the source's names."""
        images = self.datasets[dataset]
        return {
            **vars(self.rows),
            **vars(self.columns[column]),
            "dataset": images.name,
            "num_images": images.num_images,
            "source": self.name,
        }

    def knows(self, dataset: str, column: str) -> bool:
        """Return whether the card says what these names of the source mean."""
        return dataset in self.datasets and column in self.columns

    def describe(self) -> str:
        """Return the card as text for people, with what to beware of, and where the table is on this machine."""
        path = place(self.name)
        images = (
            f"{item.name}, {f'{item.num_images:,}' if item.num_images else 'number not stated'}"
            for item in self.datasets.values()
        )
        facts = [
            ("table", str(path) if path.is_file() else f"not on this machine; {self.how_to_get()}"),
            ("home page", self.homepage),
            ("paper", self.paper),
            ("licence", self.license),
            ("format", self.format),
            *(("file", _describe_file(file)) for file in self.files),
            ("space", f"{self.rows.space} with {self.rows.skeleton}"),
            ("training", f"{self.rows.recipe}: {self.training}"),
            ("measured", self.measured),
            ("images", f"{self.rows.split} split; {'; '.join(images)}"),
            ("columns", ", ".join(dict.fromkeys(map(_describe_quantity, self.columns.values())))),
            ("units", self.units),
            ("seeds", self.seeds),
            *(("beware", caveat) for caveat in self.caveats),
        ]
        return "\n".join([f"{self.name}: {self.title}", *_two_columns(facts)])

    def how_to_get(self) -> str:
        """Return the command that brings the table to this machine."""
        without = [file.name for file in self.files if not file.url]
        if not without:
            return f"fetch it with 'robust-nas table fetch {self.name}'"
        return (
            f"no address of {', '.join(without)} was found, so look for them at {self.homepage} and use "
            f"'robust-nas table import --name {self.name} --source FOLDER'"
        )


def names() -> list[str]:
    """Return the names of all cards, sorted."""
    return sorted(catalogue.files("tables"))


def load(name: str) -> Card:
    """Return the card called `name`, or the one in the file `name` if that ends in '.toml'.

    Raises:
        InputError: if there is none, or it is not valid.
    """
    if name.endswith(".toml"):
        return Card.read(Path(name))
    found = catalogue.files("tables")
    if name not in found:
        raise InputError(f"There is no card of a table '{name}'. {suggest(name, found)}")
    return Card.read(found[name])


def _build(kind: type[T], given: Any, where: str) -> T:
    """Return a dataclass made of a TOML table.

    Raises:
        InputError: if a key is missing or unknown, or a value has another type than the field.
    """
    _check(given, dict, where)
    known = {item.name: item for item in fields(kind)}  # type: ignore[arg-type]
    for key in given:
        if key not in known:
            raise InputError(f"{where} has the unknown key '{key}'. {suggest(key, known)}")
    for key, item in known.items():
        if key not in given and item.default is MISSING:
            raise InputError(f"{where} lacks the key '{key}'; add it.")
    values = dict(given)
    if "epsilon" in values:
        values["epsilon"] = parse_pixels(values["epsilon"])
    for key, value in values.items():
        _check(value, _KINDS.get(str(known[key].type), type(value)), f"{where}, {key}")
    return kind(**values)


_KINDS = {"str": str, "str | None": str, "int": int, "int | None": int, "bool": bool}
"""The type of a field's value, by its annotation; values of other fields have been converted before."""


def _check(value: object, kind: type, where: str) -> None:
    if type(value) is not kind:
        raise InputError(f"{where} must be of type {kind.__name__}, but got {value!r}.")


def _texts(given: Any, where: str) -> tuple[str, ...]:
    _check(given, list, where)
    for item in given:
        _check(item, str, where)
    return tuple(given)


def _files(given: Any, where: str) -> tuple[File, ...]:
    _check(given, list, where)
    return tuple(_build(File, item, where) for item in given)


def _build_each(kind: type[T], given: Any, where: str) -> dict[str, T]:
    _check(given, dict, where)
    return {key: _build(kind, value, f"{where}.{key}") for key, value in given.items()}


_SECTIONS: dict[str, Callable[[Any, str], Any]] = {
    "caveats": _texts,
    "files": _files,
    "rows": partial(_build, Shared),
    "datasets": partial(_build_each, Images),
    "columns": partial(_build_each, Quantity),
}
"""The functions that make the values of a card's fields from its TOML."""


def _describe_file(file: File) -> str:
    size = f"{file.bytes:,} bytes" if file.bytes else "size not known"
    return f"{file.name}, {size}, sha256 {file.sha256 or 'not known'}, {file.url or 'address not found'}"


def _describe_quantity(quantity: Quantity) -> str:
    if quantity.epsilon is not None:
        return f"{quantity.attack}@{format_pixels(quantity.epsilon)}"
    return quantity.attack


def _two_columns(facts: Iterable[tuple[str, str]], width: int = 12) -> list[str]:
    """Return lines with a word at the left and its text, wrapped, at the right; a word is written once."""
    lines, last = [], ""
    for word, text in facts:
        head = "" if word == last else word
        lines += textwrap.wrap(
            text,
            118,
            initial_indent=f"  {head:{width}}",
            subsequent_indent=" " * (width + 2),
            break_long_words=False,
            break_on_hyphens=False,
        )
        last = word
    return lines
