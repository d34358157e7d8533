"""`robust-nas search`: of a recipe or a run, of a space on a data set, or of a table."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from robust_nas.cli import slow
from robust_nas.cli.arguments import DATA_ROOT, OUT, OVERRIDES, given
from robust_nas.cli.ending import SAME, going_on
from robust_nas.cli.job import begun, finish, progress, resumed
from robust_nas.core.commands import Argument, argument, command, json_asked
from robust_nas.core.errors import InputError

OF_SPACE = (
    argument(
        "--threat", metavar="NORM:EPSILON", help="with a search space: such as linf:8/255 (the data set's recipe's)"
    ),
    argument(
        "--relaxation",
        metavar="NAME",
        help="with a search space that has a supernet: dirichlet, softmax or gumbel (dirichlet)",
    ),
    argument(
        "--progressive",
        action="store_true",
        default=None,
        help="with a search space: leave out operations and widen partial channels at half-time",
    ),
)
"""The options of `recipes.for_space`."""

STORAGE = (
    argument(
        "--storage",
        metavar="URL",
        help="of a search by trials: share them with 'robust-nas work URL' on other machines, through a journal in a "
        "shared folder (journal:///FILE), PostgreSQL or MySQL",
    ),
    argument("--study", metavar="NAME", help="with --storage: the name of the search in it (that of the run folder)"),
)
"""The options that are written as settings, search.storage and search.study."""

OF_TABLE = (
    argument(
        "--objective",
        action="append",
        metavar="LABEL",
        help="with --on: a column such as pgd@8/255, or flops (few are good); repeatable",
    ),
    argument("--dataset", help="with --on: of the table; all of its data sets in turn, if not given"),
    argument("--sampler", action="append", metavar="NAME", help="with --on: repeatable; all that can, if not given"),
    argument("--budget", type=int, help="with --on: queries per search (50)"),
    argument("--seeds", type=int, help="with --on: searches per sampler (100)"),
    argument("--workers", type=int, help="with --on: processes side by side (1)"),
)
"""The options of `simulation.in_turn`."""


@command(
    argument("recipe", nargs="?", metavar="RECIPE", help="a recipe, an unfinished run folder, or a search space"),
    OVERRIDES,
    OUT,
    DATA_ROOT,
    argument("--data", metavar="NAME", help="with a search space: a data set that has a recipe, or a folder"),
    *OF_SPACE,
    *STORAGE,
    argument("--on", metavar="table:NAME", help="simulate searches of a table instead, by queries"),
    *OF_TABLE,
    examples=[
        "robust-nas search robust-resnet-small --data digits --threat linf:0.1",
        "robust-nas search robust-resnet-small --data digits --storage postgresql://user@host/base",
        "robust-nas search --on table:nas-robbench-201 --dataset cifar10 --objective pgd@8/255",
    ],
)
def search(
    recipe: str | None,
    overrides: Sequence[str],
    out: Path,
    data_root: Path | None,
    on: str | None,
    data: str | None,
    storage: str | None,
    study: str | None,
    **options: Any,
) -> None:
    """Train the supernet and its distributions over architectures; or simulate searches of a table."""
    chosen = given(options)
    _check_job(chosen, recipe, on, data, data_root)
    places = given({"storage": storage, "study": study})
    if places and (on is not None or (recipe is not None and slow.run_folder.is_run(recipe))):
        raise InputError(f"--{next(iter(places))} is for a search that begins; leave it out.")
    # As TOML strings: what a URL has in it is no value of another kind.
    overrides = [*overrides, *(f"search.{name}={json.dumps(value)}" for name, value in places.items())]
    if on is not None:
        _search_table(on, out, chosen)
    elif data is not None:
        _search_space(str(recipe), overrides, out, {**chosen, "data": data, "data_root": data_root})
    else:
        _search_recipe(str(recipe), overrides, out, data_root)


def _check_job(
    chosen: Mapping[str, Any], recipe: str | None, on: str | None, data: str | None, data_root: Path | None
) -> None:
    """Raise InputError unless the words are of one search: of a table, a space or a recipe."""
    if data is None and (name := _first(OF_SPACE, chosen)):
        raise InputError(f"{name} belongs to the search of a space, with --data; in a recipe it is a KEY=VALUE.")
    if data is not None and (recipe is None or on is not None):
        raise InputError("--data goes with a search space: 'robust-nas search nasbench201 --data cifar10'.")
    if on is not None and (recipe is not None or data_root is not None):
        word = recipe or f"--data-root {data_root}"
        raise InputError(f"'search --on {on}' searches a table and takes no recipe or data, but got '{word}'.")
    if on is None and recipe is not None and (name := _first(OF_TABLE, chosen)):
        raise InputError(f"{name} belongs to the search of a table, with --on; leave it out for '{recipe}'.")
    if on is None and recipe is None:
        raise InputError("'robust-nas search' takes a recipe, such as digits, or --on table:NAME --objective LABEL.")


def _first(options: Sequence[Argument], chosen: Mapping[str, Any]) -> str | None:
    """Return the first of some options that was given."""
    return next((name for (name, *_), _ in options if name.removeprefix("--") in chosen), None)


def _search_table(on: str, out: Path, chosen: Mapping[str, Any]) -> None:
    with going_on(SAME):
        found = []
        for text, facts in slow.simulation.in_turn(on, out, **chosen, progress=progress()):
            found.append(facts)
            if not json_asked():
                slow.answer.answer(f"{text}\n", facts)
        if json_asked():
            slow.answer.answer("", found)


def _search_space(space: str, overrides: Sequence[str], out: Path, chosen: Mapping[str, Any]) -> None:
    finish(
        slow.pipeline.start(slow.recipes.for_space(space, overrides, **chosen), out, progress(), sys.argv[1:]),
        slow.pipeline.search,
    )


def _search_recipe(recipe: str, overrides: Sequence[str], out: Path, data_root: Path | None) -> None:
    """Search by a recipe, or resume the search of a run folder."""
    job = (
        resumed(Path(recipe), overrides) if slow.run_folder.is_run(recipe) else begun(recipe, overrides, out, data_root)
    )
    finish(job, slow.pipeline.search)
