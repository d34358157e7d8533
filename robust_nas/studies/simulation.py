"""Simulated search: query-based samplers on a table in which every architecture is measured already.

A query is one class of architectures (`robust_nas.samplers`): equivalent ones are answered from memory and not counted.
Every seed's search is independent of all others, so that the folder of a simulation that was interrupted is completed
to the same result:

    settings.json     what is simulated; a simulation with other settings is refused
    environment.json  version, hardware, arguments; of each session that simulated something, the last one first
    queries/*.npy     a finished chunk of seeds: the queried classes, as places in the table, [seeds, budget]
    curves.parquet    one row per sampler, seed and query
    curves.svg        the mean curves with their bands
    simulation.json   settings, mean curves, bands, regret, caveats, versions, hardware; written last

One objective's curve is the best value so far. Several objectives' is the hypervolume that the classes measured so far
dominate: each objective is mapped onto 0 (its minimum over the table, the reference point) to 1 (its maximum), and the
hypervolume of all classes of the table counts as 1.
"""

from __future__ import annotations

import hashlib
import itertools
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from robust_nas import __version__, spaces, tables
from robust_nas import samplers as sampler_group
from robust_nas.architectures import AnyArchitecture
from robust_nas.architectures.cell import Architecture
from robust_nas.core import config
from robust_nas.core.errors import InputError
from robust_nas.core.registry import name_of
from robust_nas.core.text import aligned, warnings
from robust_nas.core.writing import atomic_path, write_json, write_text
from robust_nas.records import plain
from robust_nas.report.table_plots import search_plot
from robust_nas.runtime.environment import add_session, sessions_of
from robust_nas.runtime.progress import Progress
from robust_nas.runtime.run_folder import RunFolder
from robust_nas.samplers import PATIENCE, Sampler, classes, num_weights, queries
from robust_nas.spaces.cell import CellSpace
from robust_nas.tables import skeletons
from robust_nas.tables.statistics import compare_searches

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from robust_nas.runtime.distributed import World
    from robust_nas.spaces import Space
    from robust_nas.tables import Table

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

CHUNK = 10
"""Seeds whose queries are written together: at most so many searches per worker are lost to an interruption."""

CONFIDENCE = 0.95
"""Of the bands: a t-interval of the mean over seeds."""

SHOWN = (1, 5, 10, 25, 50, 100, 150, 200, 300, 500, 1000)
"""The queries after which `describe` shows the curves."""


def simulate(
    space: Space, values: Mapping[str, Sequence[float]], sampler: Sampler, budget: int, seeds: Iterable[int]
) -> Ints:
    """Return the classes that each seed's search measures, in order, as places in `values`; [seeds, budget].

    Args:
        space: the space that the sampler searches.
        values: the objectives of every class of the space by its canonical form, the higher the better.
        sampler: the sampler.
        budget: queries per search.
        seeds: one search each.

    Raises:
        InputError: if the budget is below 1 or above the number of classes, or the sampler objects.
    """
    from threadpoolctl import threadpool_limits

    _check_budget(budget, len(values))
    places = {canonical: place for place, canonical in enumerate(values)}
    num_objectives = len(next(iter(values.values())))

    def measure(architecture: AnyArchitecture) -> Sequence[float]:
        return values[architecture.canonical]

    # One thread: several would round differently, and so break ties differently, and are slower.
    with threadpool_limits(1):
        found = [
            [
                places[architecture.canonical]
                for architecture, _ in itertools.islice(
                    queries(sampler, space, measure, num_objectives=num_objectives, seed=seed), budget
                )
            ]
            for seed in seeds
        ]
    return np.array(found)


def _check_budget(budget: int, num_classes: int) -> None:
    if not 1 <= budget <= num_classes:
        raise InputError(f"The budget must be from 1 to {num_classes}, the number of classes, but got {budget}.")


def run(
    table: Table,
    objectives: Sequence[str],
    dataset: str | None,
    samplers: Sequence[str | Sampler],
    budget: int,
    seeds: int,
    out: Path,
    *,
    workers: int = 1,
    noise_floor: float | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Simulate searches of a table with several samplers, write the folder `out`, and return `simulation.json`.

    Args:
        table: a table with all classes of its space.
        objectives: labels of its columns, such as "pgd@8/255"; "flops" for few multiply-adds (`multiply_adds`).
        dataset: the data set, if the table has several.
        samplers: names, with options if need be ("predictor[prior=parameters]"), or samplers.
        budget: queries per search.
        seeds: searches per sampler, with the seeds 0, 1, ...
        out: the folder; one that was interrupted is completed.
        workers: processes that search side by side.
        noise_floor: the unit of regret, in the objective's unit; the table's own (`Table.noise_floor`) if not given.
        progress: the display of its progress.

    Raises:
        InputError: for an unknown objective, data set or sampler, fewer than two seeds, a class that the table lacks,
            a budget above the number of classes, or a folder with other settings.
    """
    from robust_nas.runtime.distributed import World

    if workers < 1:
        raise InputError(f"workers must be at least 1, but got {workers}.")
    if seeds < 2:
        raise InputError(f"A confidence band needs at least 2 seeds, but got {seeds}.")
    space, canonical, architectures, values = _objectives(table, objectives, dataset)
    _check_budget(budget, len(values))
    made: list[Sampler] = [config.made(sampler_group.get, sampler, "sampler") for sampler in samplers]
    named = {label_of(sampler): sampler for sampler in made}
    for sampler in named.values():
        # Objections come before the folder, and workers inherit a space's computed values.
        sampler.start(space, len(objectives), 0).ask()
    settings = {
        "table": table.name,
        "values": hashlib.sha256(values.tobytes()).hexdigest(),
        "objectives": list(objectives),
        "dataset": dataset,
        "samplers": {label: {"name": name_of(sampler), **config.to_dict(sampler)} for label, sampler in named.items()},
        "budget": budget,
        "seeds": seeds,
        "version": __version__,
    }
    world = World(workers=workers)
    folder = RunFolder.open_or_create(out, settings, world, file="settings.json")
    try:
        by_class = dict(zip(canonical, values.tolist(), strict=True))
        found = _search(folder, space, by_class, named, budget, seeds, world, progress)
        measured = {label: values[places] for label, places in found.items()}
        optimum, curves = _curves(values, measured)
        if len(objectives) > 1:
            noise_floor = None
        elif noise_floor is None:
            floor = table.noise_floor(objectives[0], **_criteria(dataset))
            noise_floor = None if floor is None else floor.std or None
        result = {
            **settings,
            "query": f"one class of equivalent architectures; after {PATIENCE} known in a row, a random unknown one",
            "measure": "best value" if len(objectives) == 1 else "hypervolume, as a share of the table's",
            "reference_point": None if len(objectives) == 1 else values.min(axis=0).tolist(),
            "band": f"{CONFIDENCE:.0%} t-interval of the mean over seeds",
            "optimum": optimum,
            "noise_floor": noise_floor,
            "curves": {label: _summary(curve, optimum, noise_floor) for label, curve in curves.items()},
            "comparisons": _comparisons({label: curve[:, -1].tolist() for label, curve in curves.items()}),
            "caveats": _caveats(table, objectives, dataset),
            "environment": plain(sessions_of(folder)[-1]),
        }
        _write_curves(folder / "curves.parquet", architectures, objectives, found, measured, curves)
        write_text(folder / "curves.svg", search_plot(result))
        write_json(folder / "simulation.json", result)
    finally:
        folder.unlock()
    return result


def run_in(
    out: Path,
    table: Table,
    objectives: Sequence[str],
    dataset: str,
    samplers: Sequence[str],
    budget: int,
    seeds: int,
    *,
    workers: int = 1,
    progress: Progress | None = None,
) -> tuple[str, dict[str, Any]]:
    """Do `run` in a folder of its own in `out`, named by the settings, and return the result as text, and as data.

    The same question finds the same folder: one that was interrupted is completed.

    Args:
        out: the folder of run folders.
        table: as for `run`, and so are the others.
        objectives: labels.
        dataset: the data set.
        samplers: names; if there are none, all samplers that can handle so many objectives.
        budget: queries per search.
        seeds: searches per sampler.
        workers: processes side by side.
        progress: the display of its progress.
    """
    chosen = list(samplers) or _able(len(objectives))
    asked = [table.name, list(objectives), dataset, chosen, budget, seeds, __version__]
    folder = out / f"search-{Path(table.name).name}-{dataset.replace(':', '-')}-{config.digest(asked)}"
    result = run(table, objectives, dataset, chosen, budget, seeds, folder, workers=workers, progress=progress)
    text = f"{describe(result)}\nin {folder}: curves.svg, curves.parquet (every query), simulation.json"
    return text, {"folder": folder, **result}


def in_turn(
    on: str, out: Path, *, objective: Sequence[str] = (), dataset: str | None = None, sampler: Sequence[str] = (),
    budget: int = 50, seeds: int = 100, workers: int = 1, progress: Progress | None = None,
) -> Iterator[tuple[str, dict[str, Any]]]:  # fmt: skip
    """Simulate the searches of `robust-nas search --on table:NAME`, and yield each data set's result as `run_in` does.

    Args:
        on: "table:" and the name of a table.
        out: the folder of run folders.
        objective: labels of its columns.
        dataset: the data set; all that the table has in turn, if not given.
        sampler: as for `run_in`, and so are the others.

    Raises:
        InputError: for words that name no table or no objective, and what `run` raises.
    """
    kind, _, name = on.partition(":")
    if kind != "table" or not name or not objective:
        raise InputError(
            "A search of a table is written --on table:NAME --objective LABEL, such as --on table:nas-robbench-201 "
            f"--objective pgd@8/255, but got --on {on} and {len(objective)} objectives."
        )
    table = tables.load(name)
    for chosen in table.datasets() if dataset is None else [dataset]:
        yield run_in(out, table, objective, chosen, sampler, budget, seeds, workers=workers, progress=progress)


def _able(num_objectives: int) -> list[str]:
    """Return the names of the samplers that can handle so many objectives, whatever the space."""
    found = []
    for name in sampler_group.names():
        try:
            sampler_group.get(name)().start(spaces.load("nasbench201"), num_objectives, 0)
        except InputError:
            continue
        found.append(name)
    return found


def label_of(sampler: Sampler) -> str:
    """Return a sampler's name in results, with the options that are not its defaults."""
    defaults = config.to_dict(type(sampler)())
    options = {key: value for key, value in config.to_dict(sampler).items() if value != defaults.get(key)}
    return config.word(name_of(sampler), options)


def describe(result: Mapping[str, Any]) -> str:
    """Return the result of `run` as text: the mean curves after some queries, in percent, and the caveats."""
    budget, has_regret = result["budget"], result["noise_floor"] is not None
    shown = [query for query in SHOWN if query < budget] + [budget]
    heads = ["after", *map(str, shown), "+-", "at the optimum"] + (["regret / noise"] if has_regret else [])
    lines = [heads]
    for label, curve in sorted(result["curves"].items(), key=lambda item: -item[1]["mean"][-1]):
        final = curve["mean"][-1]
        line = [label, *(f"{100 * curve['mean'][query - 1]:.2f}" for query in shown)]
        line += [f"{100 * (curve['high'][-1] - final):.2f}", f"{curve['num_at_optimum'][-1]} of {result['seeds']}"]
        lines.append(line + ([f"{curve['regret'][-1]:.2f}"] if has_regret else []))
    title = f"{result['table']}: {' and '.join(result['objectives'])}"
    title += f" on {result['dataset']}" if result["dataset"] else ""
    return "\n".join(
        [
            f"{title}: mean {result['measure']} in %, over {result['seeds']} seeds, after so many queries",
            f"optimum {100 * result['optimum']:.2f}; +- is the {result['band']} after the last query",
            f"a query is {result['query']}",
            "",
            *aligned(lines, left=1),
            *_tied(result["comparisons"]),
            "",
            *warnings(result["caveats"]),
        ]
    )


def _tied(comparisons: Sequence[Mapping[str, Any]], level: float = 0.05) -> list[str]:
    """Return a line on which samplers' last values do not differ by more than the luck of their seeds."""
    if not comparisons:
        return []
    tied = [f"{pair['first']} and {pair['second']}" for pair in comparisons if pair["p_holm"] >= level]
    found = f"not told apart: {', '.join(tied)}" if tied else "all differ"
    return [f"after the last query, paired over seeds (Wilcoxon, Holm, {level:.0%}): {found}"]


def multiply_adds(space: CellSpace, architecture: Architecture) -> int:
    """Return the multiply-adds of a network's cells for an image of 32 x 32 pixels.

    Those of the stem, the reductions and the classifier, which all architectures share, are left out.
    """
    # Every stage has twice the channels and half the side of the one before: each costs the same.
    return num_weights(architecture) * space.channels**2 * 32**2 * space.cells_per_stage * space.stages


def hypervolume(points: Floats, reference: Floats) -> float:
    """Return the volume that points [n, m] dominate above a reference point [m]; at least 2 objectives, all maximised.

    Exact, by slices along the last objective.
    """
    points = points[(points > reference).all(axis=1)]
    if not len(points):
        return 0.0
    points = points[np.argsort(-points[:, -1])]
    thickness = points[:, -1] - np.append(points[1:, -1], reference[-1])
    if points.shape[1] == 2:
        slices = np.maximum.accumulate(points[:, 0]) - reference[0]
    else:
        slices = np.array([hypervolume(points[: last + 1, :-1], reference[:-1]) for last in range(len(points))])
    return float(thickness @ slices)


# Setting up


def _criteria(dataset: str | None) -> dict[str, str]:
    return {} if dataset is None else {"dataset": dataset}


class _Objectives(NamedTuple):
    """The classes of a space, and the objectives of a search among them.

    Args:
        space: the space.
        canonical: each class's canonical form.
        architectures: the architecture of each class that was measured, in the string form.
        values: the objectives, [classes, objectives], the higher the better.
    """

    space: CellSpace
    canonical: list[str]
    architectures: list[str]
    values: Floats


def _objectives(table: Table, objectives: Sequence[str], dataset: str | None) -> _Objectives:
    labels = [label for label in objectives if label != "flops"]
    if not labels or len(set(objectives)) < len(objectives):
        raise InputError(
            "The objectives must be different ones, at least one of them a column such as pgd@8/255, "
            f"but got {', '.join(objectives) or 'none'}."
        )
    column = table.column(labels[0], **_criteria(dataset))
    space = spaces.described({"name": column.space, **skeletons.settings(column.skeleton)})
    if not isinstance(space, CellSpace):
        raise InputError(f"Searches are simulated in cell spaces, but the table {table.name} is of {column.space}.")
    columns = {label: table.values(label, **_criteria(dataset)) for label in labels}
    known = np.flatnonzero(~np.isnan(list(columns.values())).any(axis=0))
    canonical, architectures = ([forms[place] for place in known] for forms in (table.canonical, table.architectures))
    missing = {cell.canonical for cell in classes(space)} - set(canonical)
    if missing:
        raise InputError(
            f"A simulated search needs every class of the space, but the table {table.name} lacks {len(missing)} of "
            f"{len(missing) + len(known)} in {' and '.join(labels)}; choose another column."
        )
    costs = [multiply_adds(space, space.parse(text)) / 1e6 for text in architectures] if "flops" in objectives else []
    values = [-np.array(costs) if label == "flops" else columns[label][known] for label in objectives]
    return _Objectives(space, canonical, architectures, np.stack(values, axis=1))


# Searching


def _search(
    folder: RunFolder,
    space: Space,
    values: Mapping[str, Sequence[float]],
    named: Mapping[str, Sampler],
    budget: int,
    seeds: int,
    world: World,
    progress: Progress | None,
) -> dict[str, Ints]:
    """Return each sampler's queried classes, [seeds, budget], reading the chunks that are there."""
    import torch

    def path(chunk: tuple[str, range]) -> Path:
        label, numbers = chunk
        return folder / "queries" / f"{label}-{numbers[0]}-{numbers[-1]}.npy"

    def search(chunk: tuple[str, range]) -> torch.Tensor:
        label, numbers = chunk
        return torch.from_numpy(simulate(space, values, named[label], budget, numbers))

    def finish(chunks: Sequence[tuple[str, range]]) -> Iterator[None]:
        for first in range(0, len(chunks), world.workers):
            batch = chunks[first : first + world.workers]
            for chunk, places in zip(batch, world.each(search, batch), strict=True):
                with atomic_path(path(chunk)) as temporary:
                    np.save(temporary, places.numpy(), allow_pickle=False)
                yield

    parts = [range(start, min(start + CHUNK, seeds)) for start in range(0, seeds, CHUNK)]
    chunks = [(label, part) for label in named for part in parts]
    todo = [chunk for chunk in chunks if not path(chunk).exists()]
    if todo or not sessions_of(folder):
        add_session(folder, world, sys.argv[1:])
    shown = (progress or Progress(quiet=True)).steps(
        finish(todo), "simulated searches", total=len(chunks), done=len(chunks) - len(todo)
    )
    for _ in shown:
        pass
    return {label: np.concatenate([_read(path((label, part))) for part in parts]) for label in named}


def _read(path: Path) -> Ints:
    try:
        places: Ints = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise InputError(f"{path} is damaged ({error}); delete it and simulate again.") from None
    return places


# Results


def _curves(values: Floats, measured: Mapping[str, Floats]) -> tuple[float, dict[str, Floats]]:
    """Return the optimum and each sampler's curves, [seeds, budget].

    Args:
        values: the objectives of all classes, [classes, objectives].
        measured: those of the queried classes, [seeds, budget, objectives].
    """
    if values.shape[1] == 1:
        return float(values.max()), {
            label: np.maximum.accumulate(found[..., 0], axis=1) for label, found in measured.items()
        }
    low, spread = values.min(axis=0), np.ptp(values, axis=0)
    scaled = (values - low) / spread
    reference = np.zeros(values.shape[1])
    # In this order a class comes after those that dominate it, and few enter the front.
    *_, front = _fronts(scaled[np.argsort(-scaled.sum(axis=1))])
    whole = hypervolume(front, reference)
    curves = {}
    for label, found in measured.items():
        curves[label] = np.empty(found.shape[:2])
        for seed, points in enumerate((found - low) / spread):
            before, volume = None, 0.0
            for query, front in enumerate(_fronts(points)):
                volume = volume if front is before else hypervolume(front, reference)
                before = front
                curves[label][seed, query] = volume / whole
    return 1.0, curves


def _fronts(points: Floats) -> Iterator[Floats]:
    """Yield the non-dominated ones of the first 1, 2, ... points; the same array as long as none is added."""
    front = points[:0]
    for point in points:
        if not (front >= point).all(axis=1).any():
            front = np.vstack([front[(front > point).any(axis=1)], point])
        yield front


def _summary(curve: Floats, optimum: float, noise_floor: float | None) -> dict[str, Any]:
    """Return the mean of curves [seeds, budget], its band, its regret, and how many seeds have found the optimum."""
    from scipy.special import stdtrit

    seeds = len(curve)
    mean = curve.mean(axis=0)
    half = stdtrit(seeds - 1, (1 + CONFIDENCE) / 2) * curve.std(axis=0, ddof=1) / np.sqrt(seeds)
    return {
        "mean": mean.tolist(),
        "low": (mean - half).tolist(),
        "high": (mean + half).tolist(),
        "regret": None if noise_floor is None else (np.maximum(optimum - mean, 0) / noise_floor).tolist(),
        "num_at_optimum": (curve >= optimum - 1e-12).sum(axis=0).tolist(),
    }


def _comparisons(final: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """Test whether the samplers' last values differ by more than the luck of their seeds, pair by pair."""
    return [asdict(pair) for pair in compare_searches(final)] if len(final) > 1 else []


def _caveats(table: Table, objectives: Sequence[str], dataset: str | None) -> list[str]:
    labels = [label for label in objectives if label != "flops"]
    tested = [label for label in labels if table.column(label, **_criteria(dataset)).split == "test"]
    if tested and not table.caveats:
        return [f"{' and '.join(tested)}: measured on test images, on which these searches select."]
    return list(table.caveats)


def _write_curves(
    path: Path,
    architectures: Sequence[str],
    objectives: Sequence[str],
    found: Mapping[str, Ints],
    measured: Mapping[str, Floats],
    curves: Mapping[str, Floats],
) -> None:
    """Write one row per sampler, seed and query: the class's architecture, its values, and the curve."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    seeds, budget = next(iter(found.values())).shape
    size = seeds * budget
    columns: dict[str, NDArray[Any]] = {
        "sampler": np.repeat(np.array(list(found)), size),
        "seed": np.tile(np.repeat(np.arange(seeds), budget), len(found)),
        "query": np.tile(np.arange(1, budget + 1), seeds * len(found)),
        "architecture": np.array(architectures)[np.concatenate([places.ravel() for places in found.values()])],
        **{
            label: np.concatenate([values[..., place].ravel() for values in measured.values()])
            for place, label in enumerate(objectives)
        },
        "curve": np.concatenate([curve.ravel() for curve in curves.values()]),
    }
    with atomic_path(path) as temporary:
        pq.write_table(pa.table(columns), temporary)
