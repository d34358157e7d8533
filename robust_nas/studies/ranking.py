"""The ranking of a table's architectures by scores of untrained networks: `robust-nas proxies rank`.

    runs/proxies-nas-robbench-201-1a2b3c4d/
        settings.json     table, data, threat model, networks: what the folder's name is a digest of
        environment.json  version, hardware, arguments; of each session that found scores, the last one first
        scores.jsonl      one line per architecture, seed and proxy, appended as it is found
        ranking.json      the last answer: correlations with intervals, differences between proxies, caveats

A folder can be continued: after an interruption, and for more architectures, seeds or proxies. Architectures are
classes of the table in a random order that depends on nothing but the table. A seed is another initialisation of every
network and another batch of training images, the same for all architectures. The table is looked up when the scores are
there.
"""

from __future__ import annotations

import json
import math
import random
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from robust_nas import __version__, datasets, proxies
from robust_nas.architectures.cell import Architecture
from robust_nas.core import config
from robust_nas.core.catalogue import expanded
from robust_nas.core.checks import check_at_least
from robust_nas.core.errors import InputError, suggest
from robust_nas.core.files import read_rows
from robust_nas.core.registry import named
from robust_nas.core.seeds import generator_at, seed_at, seeded
from robust_nas.core.text import aligned, warnings
from robust_nas.core.writing import write_json, write_text
from robust_nas.datasets import DataForm, DataSource
from robust_nas.proxies import Proxy
from robust_nas.records import plain
from robust_nas.runtime.distributed import World
from robust_nas.runtime.environment import add_session, sessions_of
from robust_nas.runtime.run_folder import RunFolder
from robust_nas.spaces import Space, describe
from robust_nas.tables import answers, skeletons
from robust_nas.tables.statistics import TOP, names_of
from robust_nas.threat import ThreatModel

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from robust_nas.datasets import Dataset
    from robust_nas.runtime.progress import Progress
    from robust_nas.tables import Column, Table

    Floats = NDArray[np.float64]

LEAST = 20
"""The fewest architectures: with fewer, the top decile has a single one."""

RESAMPLES = 1000
"""Bootstrap samples of the architectures behind an interval."""

CONFIDENCE = 0.95

MEASURES = ("kendall", "spearman", "top_spearman", "top_overlap")


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """The networks to score, the images, and the repetitions.

    Args:
        data: whose training images the scores see.
        space: of the networks that are scored; smaller ones than the table's cost less.
        threat: the threat model, for scores that attack.
        proxies: names, with options if need be: "robust_ntk[b=1.0]".
        num_architectures: number of classes of the table.
        seeds: initialisations and batches, with the seeds 0, 1, ...
        batch_size: images in a batch.
        device: "auto", "cpu" or "cuda".

    Raises:
        InputError: for too few architectures, seeds, images or proxies, an unknown proxy or option.
    """

    data: DataSource
    space: Space
    threat: ThreatModel = field(default_factory=ThreatModel)
    proxies: tuple[str, ...] = field(default_factory=lambda: tuple(proxies.names()))
    num_architectures: int = 300
    seeds: int = 3
    batch_size: int = 32
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self) -> None:
        check_at_least("The number of architectures", self.num_architectures, LEAST)
        check_at_least("The number of seeds", self.seeds, 1)
        check_at_least("The batch size", self.batch_size, 2)
        if not self.proxies or len(set(self.proxies)) < len(self.proxies):
            raise InputError(f"The proxies must be different ones, but got {', '.join(self.proxies) or 'none'}.")
        self.built()

    def built(self) -> dict[str, Proxy]:
        """Return the proxies by their name as it is written."""
        return {text: config.made(proxies.get, text, "proxy") for text in self.proxies}

    @property
    def place(self) -> dict[str, Any]:
        """The origin of scores: another value of any of this makes other scores."""
        return {
            "data": config.to_dict(_Data(data=self.data))["data"],
            "space": describe(self.space),
            "threat": config.to_dict(self.threat),
            "batch_size": self.batch_size,
            "version": __version__,
        }


@dataclass(frozen=True, kw_only=True)
class _Data:
    data: DataSource


def asked(table: Table, words: Sequence[str]) -> tuple[Sequence[Column], list[str]]:
    """Return the columns that the words of `robust-nas proxies rank` name, and the words that are overrides.

    Raises:
        InputError: for a column that the table lacks.
    """
    overrides = [word for word in words if "." in word.partition("=")[0] and "=" in word]
    criteria, labels = answers.parse([word for word in words if word not in overrides], labels=1)
    return table.select(*labels, **criteria), overrides


def from_words(
    table: Table, columns: Sequence[Column], overrides: Sequence[str] = (), *, data: str | None = None,
    data_root: Path | None = None, threat: str | None = None, proxy: Sequence[str] = (), **sizes: int,
) -> Scoring:  # fmt: skip
    """Read the words of `robust-nas proxies rank`.

    Networks are the table's own, and data the columns', if they are not given.

    Args:
        table: the table.
        columns: of it.
        overrides: such as "space.channels=8".
        data: a data set's name, or a folder of class folders.
        data_root: the folder of the data set's files.
        threat: such as "linf:8/255".
        proxy: names with options; all, if there are none.
        sizes: the other fields of `Scoring`.

    Raises:
        InputError: for a mistake in them.
    """
    networks = {(column.space, column.skeleton) for column in columns}
    if len(networks) > 1:
        raise InputError(
            f"One network is scored for all columns, but those of {table.name} that were asked for are of "
            f"{len(networks)} kinds of network; ask for fewer columns."
        )
    ((space, skeleton),) = networks
    if data is None:
        data = columns[0].dataset
        if data not in datasets.names():
            raise InputError(
                f"The table's data set {data} is not one that can be read; give images with --data. "
                f"{suggest(data, datasets.names())}"
            )
    section: dict[str, Any] = {
        "space": {"name": space, **skeletons.settings(skeleton)},
        "data": named(datasets.section(data)),
        **sizes,
    }
    if data_root is not None:
        config.set_key(section, "data.root", str(expanded(data_root).resolve()))
    if threat is not None:
        section["threat"] = config.to_dict(ThreatModel.parse(threat))
    if proxy:
        section["proxies"] = list(proxy)
    return config.build(Scoring, config.override(section, overrides))


def run(table: Table, columns: Sequence[Column], scoring: Scoring, out: Path, progress: Progress) -> dict[str, Any]:
    """Score architectures of a table in a folder in `out`; return ranking.json, which has the folder's place.

    Args:
        table: the table of architectures and accuracies.
        columns: of the table, which the scores are compared with.
        scoring: the networks and the scores.
        out: the folder of run folders.
        progress: the display of its progress.

    Raises:
        InputError: if the table has too few classes in these columns, or a network cannot be scored.
    """
    chosen = _draw(table, columns, scoring.num_architectures)
    architectures = [Architecture.parse(table.architectures[place]) for place in chosen]
    world = World.start(scoring.device)
    data = scoring.data.load_splits().to(world.device)
    if scoring.batch_size > len(data.train):
        raise InputError(
            f"A batch of {scoring.batch_size} is larger than the {len(data.train)} training images of {data.name}; "
            "set --batch-size lower."
        )
    images = data.fingerprint(["train"])["splits"]["train"]
    settings = {"table": table.name, **scoring.place, "images": images, "device": world.device.type}
    path = out / f"proxies-{Path(table.name).name}-{config.digest(settings)}"
    folder = RunFolder.open_or_create(path, settings, world, file="settings.json")
    try:
        progress.say(f"folder: {folder.path}")
        scores, seconds = _scores(folder, architectures, scoring, data, world, progress)
        compared = progress.steps(list(zip(names_of(columns, table), columns, strict=True)), "columns compared")
        result = {
            **settings,
            "proxies": list(scoring.proxies),
            "seeds": scoring.seeds,
            "num_architectures": len(chosen),
            "architectures": list(map(str, architectures)),
            "num_unconnected": sum(not architecture.is_connected for architecture in architectures),
            "interval": f"{CONFIDENCE:.0%} bootstrap over the architectures ({RESAMPLES} samples), mean over seeds",
            "seconds": seconds,
            "columns": [
                {"name": name, **agreement(scores, table.values(**asdict(column))[chosen])} for name, column in compared
            ],
            "caveats": list(table.caveats),
            "environment": plain(sessions_of(folder)[-1]),
            "folder": str(folder.path),
        }
        write_json(folder / "ranking.json", result)
    finally:
        folder.unlock()
        world.stop()
    return result


def text(result: Mapping[str, Any]) -> str:
    """Return the result of `run` as text."""
    space, count = result["space"], result["num_architectures"]
    sizes = ", ".join(f"{key} {value}" for key, value in space.items() if isinstance(value, int) and key != "num_nodes")
    lines = [
        f"{result['table']}: {count} architectures ({result['num_unconnected']} without a path from input to output), "
        f"{result['seeds']} seeds,",
        f"batches of {result['batch_size']} training images; networks with {sizes}",
        f"in brackets: {result['interval']}",
        "top decile: of the column's; Spearman in it, and which share of it is in the score's (by chance 10 %)",
    ]
    for column in result["columns"]:
        rows = [["", "Kendall", "Spearman", "in the top decile", "share of it", "seconds"]]
        order = sorted(column["proxies"].items(), key=lambda item: -_or_least(item[1]["spearman"]["mean"]))
        rows += [
            [name, *(interval_text(found[measure]) for measure in MEASURES), f"{result['seconds'][name]:.2f}"]
            for name, found in order
        ]
        lines += ["", f"{column['name']}:", *aligned(rows, left=1)]
    return "\n".join([*lines, "", *warnings(result["caveats"])])


def interval_text(found: Mapping[str, Any]) -> str:
    """Return a statistic with its interval, "0.61 [0.55, 0.66]"."""
    if math.isnan(found["mean"]):
        return "-"
    return f"{found['mean']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


def _or_least(value: float) -> float:
    return -2.0 if math.isnan(value) else value


# Scoring


def _draw(table: Table, columns: Sequence[Column], count: int) -> list[int]:
    """Return the places of `count` classes that all columns have, in a random order of the table's classes."""
    values = np.array([table.values(**asdict(column)) for column in columns])
    known = ~np.isnan(values).any(axis=0)
    if known.sum() < count:
        raise InputError(
            f"The table {table.name} has {known.sum()} classes in all columns that were asked for, but {count} "
            f"architectures were; a ranking needs at least {LEAST}."
        )
    order = list(range(len(table)))
    random.Random(seed_at(0, "ranking")).shuffle(order)
    return [place for place in order if known[place]][:count]


_PARTS = "the names of an architecture and a proxy, a seed, a score and seconds"


def _is_score(row: Any) -> bool:
    if not isinstance(row, dict) or type(row.get("seed")) is not int:
        return False
    names, numbers = (row.get("architecture"), row.get("proxy")), (row.get("score"), row.get("seconds"))
    return all(isinstance(name, str) for name in names) and all(type(number) in (int, float) for number in numbers)


def _scores(
    folder: RunFolder,
    architectures: Sequence[Architecture],
    scoring: Scoring,
    data: Dataset,
    world: World,
    progress: Progress,
) -> tuple[dict[str, Floats], dict[str, float]]:
    """Return every proxy's scores, [seeds, architectures], and mean seconds; what is in the file is not done again."""
    path = folder / "scores.jsonl"
    rows = {(row["architecture"], row["seed"], row["proxy"]): row for row in read_rows(path, _is_score, _PARTS)}
    # Without a line that was cut off, to which the next one would be appended.
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows.values()))
    wanted = [(architecture, seed) for architecture in architectures for seed in range(scoring.seeds)]
    missing = {
        (architecture, seed): [name for name in scoring.proxies if (str(architecture), seed, name) not in rows]
        for architecture, seed in wanted
    }
    todo = [pair for pair, names in missing.items() if names]
    if todo or not sessions_of(folder):
        add_session(folder, world, sys.argv[1:])
    built = scoring.built()
    form = DataForm.of(data)
    batches = [draw_batch(data, scoring.batch_size, seed) for seed in range(scoring.seeds)]
    shown = progress.steps(todo, "architectures and seeds scored", total=len(wanted), done=len(wanted) - len(todo))
    with path.open("a", encoding="utf-8") as file:
        for architecture, seed in shown:
            with seeded(seed, "proxy", str(architecture)):
                network = scoring.space.network(architecture, form).to(data.train.device)
            for name in missing[architecture, seed]:
                start = time.perf_counter()
                score = built[name].score(network, *batches[seed], scoring.threat, seed=seed)
                key = (str(architecture), seed, name)
                rows[key] = {
                    **dict(zip(("architecture", "seed", "proxy"), key, strict=True)),
                    "score": score,
                    "seconds": round(time.perf_counter() - start, 4),
                }
                file.write(json.dumps(rows[key]) + "\n")
            file.flush()
    found = {
        name: np.array(
            [[rows[str(one), seed, name]["score"] for one in architectures] for seed in range(scoring.seeds)]
        )
        for name in scoring.proxies
    }
    seconds = {name: [rows[str(one), seed, name]["seconds"] for one, seed in wanted] for name in scoring.proxies}
    return found, {name: float(np.mean(taken)) for name, taken in seconds.items()}


def draw_batch(data: Dataset, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return the training images [B, C, H, W] and labels [B] that every network sees with this seed."""
    chosen = torch.randperm(len(data.train), generator=generator_at("cpu", seed, "proxy", "batch"))[:size]
    (batch,) = data.train.batches([chosen], size=min(data.image_shape[1:]), seed=seed)
    return batch.images, batch.labels


# Statistics


def agreement(scores: Mapping[str, Floats], values: Floats) -> dict[str, Any]:
    """Measure how well scores rank architectures by their accuracy: "proxies" and "differences".

    Each statistic has its mean over seeds, its interval (bootstrap over the architectures, the same samples for all)
    and its value with every seed:

        kendall       tau-b
        spearman      rank correlation
        top_spearman  the same among the tenth of the architectures with the best accuracies
        top_overlap   the share of these that is in the score's best tenth; ties at its edge count as far as they fit in

    A difference is that of two proxies' Spearman correlations, the first's minus the second's. A statistic of constant
    values is NaN.

    Args:
        scores: each proxy's scores, [seeds, architectures].
        values: accuracies, [architectures].
    """
    size = len(values)
    draws = np.random.default_rng(seed_at(0, "bootstrap")).integers(size, size=(RESAMPLES, size))
    # How often each architecture is in each sample, [1 + samples, architectures]; the first is the architectures.
    weights = np.vstack([np.ones(size), *(np.bincount(draw, minlength=size) for draw in draws)])
    seeds = {
        name: np.array([_statistics(row, values, weights) for row in of_seeds]) for name, of_seeds in scores.items()
    }
    means = {name: found.mean(axis=0) for name, found in seeds.items()}  # [statistics, 1 + samples]
    compared = MEASURES.index("spearman")
    names = list(scores)
    return {
        "proxies": {
            name: {
                measure: {**_interval(means[name][place]), "seeds": seeds[name][:, place, 0].tolist()}
                for place, measure in enumerate(MEASURES)
            }
            for name in names
        },
        "differences": [
            {"first": one, "second": other, **_interval(means[one][compared] - means[other][compared])}
            for place, one in enumerate(names)
            for other in names[place + 1 :]
        ],
    }


def _interval(samples: Floats) -> dict[str, float]:
    """Return the first value, and the bootstrap interval of the others."""
    tails = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    defined = samples[1:][~np.isnan(samples[1:])]
    low, high = np.quantile(defined, tails) if len(defined) else (math.nan, math.nan)
    return {"mean": float(samples[0]), "low": float(low), "high": float(high)}


def _statistics(scores: Floats, values: Floats, weights: Floats) -> Floats:
    """Return `MEASURES` of architectures that occur `weights` times, [statistics, samples]."""
    best = top_membership(values, weights)
    # Accuracies equal to the worst of the top decile belong to it, as in `robust-nas table stats`.
    within = weights * (best > 0)
    count = (weights * best).sum(axis=1)
    return np.stack(
        [
            kendall(scores, values, weights),
            spearman(scores, values, weights),
            spearman(scores, values, within),
            (weights * best * top_membership(scores, weights)).sum(axis=1) / count,
        ]
    )


def kendall(one: Floats, other: Floats, weights: Floats) -> Floats:
    """Return Kendall's tau-b of values [n] that occur `weights` times [samples, n], [samples]."""
    first, second = (np.sign(values[:, None] - values) for values in (one, other))

    def total(pairs: Floats) -> Floats:
        return ((weights @ pairs) * weights).sum(axis=1)

    with np.errstate(invalid="ignore", divide="ignore"):
        return total(first * second) / np.sqrt(total(np.abs(first)) * total(np.abs(second)))


def spearman(one: Floats, other: Floats, weights: Floats) -> Floats:
    """Return Spearman's correlation of values [n] that occur `weights` times [samples, n], [samples]."""
    centred = []
    for values in (one, other):
        # A value's mean rank: those below it, and half of its equals.
        ranks = weights @ ((1 + np.sign(values - values[:, None])) / 2)
        centred.append(ranks - (weights * ranks).sum(axis=1, keepdims=True) / weights.sum(axis=1, keepdims=True))
    first, second = centred
    with np.errstate(invalid="ignore", divide="ignore"):
        lengths = (weights * first**2).sum(axis=1) * (weights * second**2).sum(axis=1)
        return np.where(lengths > 1e-9, (weights * first * second).sum(axis=1) / np.sqrt(lengths), np.nan)


def top_membership(values: Floats, weights: Floats) -> Floats:
    """Return the membership of each of the values [n] in the best tenth of its sample [samples, n], from 0 to 1.

    Values that are equal at its edge share what room is left.
    """
    order = np.argsort(-values, kind="stable")
    sizes = np.maximum(np.round(TOP * weights.sum(axis=1)), 1)
    reached = weights[:, order].cumsum(axis=1) >= sizes[:, None]
    edge = values[order][reached.argmax(axis=1)][:, None]
    above, tied = values > edge, values == edge
    room = sizes - (weights * above).sum(axis=1)
    share: Floats = above + tied * (room / (weights * tied).sum(axis=1))[:, None]
    return share
