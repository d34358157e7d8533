"""The answers of `robust-nas list` and `info`. Listing imports nothing slow."""

from __future__ import annotations

import dataclasses
import inspect
import textwrap
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robust_nas import architectures
from robust_nas.cli import slow
from robust_nas.core import catalogue
from robust_nas.core.errors import InputError, suggest
from robust_nas.core.text import aligned, warnings
from robust_nas.runtime.run_folder import is_run

if TYPE_CHECKING:
    from robust_nas.runtime.run_list import RunRow

GROUPS = {
    "attacks": "attacks",
    "bounds": "bounds",
    "datasets": "datasets",
    "ensembles": "ensembles",
    "formats": "tables.formats",
    "proxies": "proxies",
    "samplers": "samplers",
    "searches": "searches",
    "trainings": "training",
}

CATALOGUES = {"recipes": "recipes", "spaces": "search_spaces", "tables": "tables"}

SECTIONS = {
    "train": "training._plan.Training",
    "derive": "derivation.Derivation",
    "evaluation": "evaluation.plan.EvaluationPlan",
    "smoothing": "certification.smoothing.Smoothing",
}
"""The settings that are of no component: a recipe's sections, and those of `certify --method smoothing[...]`."""


def names(what: str) -> list[str]:
    """Return the names of all things of a kind: spaces, recipes, tables, or a group of components.

    Raises:
        InputError: for an unknown kind.
    """
    if what in CATALOGUES:
        return sorted(catalogue.files(CATALOGUES[what]))
    if what not in GROUPS:
        raise InputError(f"There is nothing called '{what}' to list. {suggest(what, [*GROUPS, *CATALOGUES, 'runs'])}")
    found: list[str] = import_module(f"robust_nas.{GROUPS[what]}").names()
    return found


def names_by_kind() -> dict[str, list[str]]:
    """Return the names of all things, by kind."""
    return {kind: names(kind) for kind in sorted([*GROUPS, *CATALOGUES])}


def kinds() -> str:
    """Return the kinds that can be listed, with the names of each, as text."""
    found = {"runs": "the runs in the folder runs, or --out FOLDER"}
    found |= {kind: ", ".join(names) for kind, names in names_by_kind().items()}
    width = max(map(len, found)) + 2
    lines = [
        textwrap.fill(
            text, 118, initial_indent=f"{kind:{width}}", subsequent_indent=" " * width, break_on_hyphens=False
        )
        for kind, text in found.items()
    ]
    return "\n".join([*lines, "", "'robust-nas list KIND' lists one kind; 'robust-nas info NAME' describes one name."])


def of_runs(folder: Path, rows: Sequence[RunRow]) -> str:
    """Return the folders with results in `folder` as text, a line each."""
    if not rows:
        return f"There are no runs in {folder} yet; 'robust-nas run digits' makes one."
    heads = ["name", "recipe", "data", "started (UTC)", "not done yet", "clean %", "robust %"]
    lines = [
        [
            row.name,
            row.recipe or (f"({row.kind})" if row.kind != "run" else "-"),
            row.data or "-",
            row.started[:16].replace("T", " "),
            "damaged" if row.damage else ", ".join(row.missing) or "-",
            *("-" if share is None else f"{100 * share:.1f}" for share in (row.clean, row.robust)),
        ]
        for row in rows
    ]
    damage = [f"{row.name}: {row.damage}" for row in rows if row.damage]
    note = (
        "% of the best model; robust is the worst case over the attacks of its run, whose radius 'robust-nas info' says"
    )
    return "\n".join([*aligned([heads, *lines], left=5), *warnings(damage), note])


def describe(thing: str) -> str:
    """Describe an architecture, a run folder or a component, as text.

    Raises:
        InputError: if `thing` is none of these.
    """
    if architectures.kind_of(thing) is not None:
        return architectures.parse(thing).describe()
    if is_run(thing):
        return slow.results.of_run(Path(thing))
    if (Path(thing) / "attack.toml").is_file():
        return slow.results.of_attacked(Path(thing))
    if (Path(thing) / "certify.toml").is_file():
        return slow.results.of_certificates(Path(thing))
    if any(Path(thing).glob("part-*.parquet")):
        return slow.answers.overview(slow.tables.load(thing)).text()
    if thing in SECTIONS:
        module, _, name = SECTIONS[thing].rpartition(".")
        kind = "method of certify" if thing == "smoothing" else "section of a recipe"
        return _describe_component(kind, getattr(import_module(f"robust_nas.{module}"), name), thing)
    # A data set and a recipe, or a table and a recipe, may share a name: all are shown.
    found = []
    if thing in catalogue.files("tables"):
        found.append(slow.cards.load(thing).describe())
    found += [
        _describe_component(kind, import_module(f"robust_nas.{package}").get(thing), thing)
        for kind, package in GROUPS.items()
        if thing in names(kind)
    ]
    for kind in ("search_spaces", "recipes"):
        if thing in catalogue.files(kind):
            found.append(catalogue.files(kind)[thing].read_text(encoding="utf-8").rstrip())
    if found:
        return "\n\n".join(found)
    known = [*SECTIONS, *(name for kind in [*GROUPS, *CATALOGUES] for name in names(kind))]
    raise InputError(f"'{thing}' is neither an architecture nor a run folder nor a component. {suggest(thing, known)}")


def facts(thing: str) -> Any:
    """Describe the same as data: results by their records, and other things by their settings and their text.

    Raises:
        InputError: as `describe` does.
    """
    if architectures.kind_of(thing) is not None:
        parsed = architectures.parse(thing)
        return {"architecture": str(parsed), "canonical": parsed.canonical, "parts": parsed.parts}
    if is_run(thing):
        return slow.results.facts_of_run(Path(thing))
    if (Path(thing) / "attack.toml").is_file():
        return slow.results.facts_of_attacked(Path(thing))
    if (Path(thing) / "certify.toml").is_file():
        return slow.results.facts_of_certificates(Path(thing))
    if any(Path(thing).glob("part-*.parquet")):
        return slow.answers.overview(slow.tables.load(thing)).facts()
    text = describe(thing)
    kinds = [kind for kind, known in names_by_kind().items() if thing in known]
    recipe = catalogue.files("recipes").get(thing)
    return {
        "name": thing,
        "kinds": kinds or ["settings"],
        "text": text,
        **({} if recipe is None else {"recipe": slow.files.read_toml(recipe)}),
    }


def _describe_component(kind: str, component: Any, name: str) -> str:
    about = [inspect.cleandoc(part.__doc__ or "") for part in (component, *slow.config.parts(component))]
    lines = [f"{name} ({kind})", "", "\n\n".join(about), "", "Defaults:"]
    for field in dataclasses.fields(component):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        lines.append(f"  {field.name} = {'(required)' if default is dataclasses.MISSING else default}")
    return "\n".join(lines if dataclasses.fields(component) else lines[:3])
