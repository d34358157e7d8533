"""The table of one's own runs: a folder with one small Parquet file per recorded network.

Why one file per network, and no lock: a network's rows are written to a temporary name and renamed to a name that
depends on the run and the network only. Appends of different networks never touch the same file, so any number of
processes lose nothing, on network file systems too, where locks are not to be trusted. Recording a network again
replaces its file in one step, and a reader finds all of a network's rows or none. Tables of several machines are merged
by copying their files into one folder. The price is one file to open per network (about a millisecond), which
suits the thousands of networks that one person trains.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from robust_nas import architectures, records
from robust_nas.architectures.cell import Architecture
from robust_nas.core.errors import InputError
from robust_nas.core.files import is_there, read_toml
from robust_nas.core.writing import atomic_path, remove_leftovers
from robust_nas.records import read
from robust_nas.runtime.environment import differing
from robust_nas.tables import skeletons
from robust_nas.tables._schema import SCHEMA, Row

if TYPE_CHECKING:
    from robust_nas.records.certification import Certified
    from robust_nas.records.evaluation import Attacked, Measured
    from robust_nas.records.run import DataSection
    from robust_nas.runtime.run_folder import RunFolder

_PLACES = ("root", "data_root", "path", "folder", "download", "workers", "memory")
"""Options of [data] that say where the images lie and how they are read, not which they are."""


def append(path: Path | str, rows: Iterable[Row]) -> int:
    """Add rows to the table in the folder `path`, which is made if it is not there; return how many were written.

    The rows given for one network (`source` and `model`) replace all rows that the table had for it. Safe from several
    processes at once.

    Raises:
        InputError: if the folder cannot be written.
    """
    path = Path(path)

    def network(row: Row) -> tuple[str, str]:
        return row.source, row.model or ""

    remove_leftovers(path.glob(".part-*"))
    total = 0
    for (source, model), group in groupby(sorted(rows, key=network), key=network):
        table = pa.Table.from_pylist([asdict(row) for row in group], schema=SCHEMA)
        try:
            with atomic_path(path / _part_name(source, model)) as temporary, temporary.open("wb") as file:
                pq.write_table(table, file)
        except OSError as error:
            raise InputError(
                f"The table {path} cannot be written ({error.strerror or error}); "
                "give a folder that can be, with space left."
            ) from error
        total += len(table)
    return total


def _part_name(source: str, model: str) -> str:
    """Return the file name of a network's rows: readable, and different for different networks."""
    readable = re.sub(r"[^\w.-]+", "_", f"{source}-{model}")[:80]
    return f"part-{readable}-{settings_hash([source, model], 8)}.parquet"


def settings_hash(value: Any, length: int = 12) -> str:
    """Return the first `length` hexadecimal digits of the SHA-256 of `value`, written as JSON with sorted keys."""
    return hashlib.sha256(_as_json(value).encode()).hexdigest()[:length]


def rows_from_run(run: RunFolder) -> list[Row]:
    """Return one row per accuracy that was measured of each network that the run trained; ensembles are left out.

    Reads config.toml, environment.json, train.json, and evaluation.json and certification.json as far as they are
    there. The result depends on the run's files only.

    Raises:
        InputError: if the run has trained nothing, no cells, or measured nothing, or one of the files is damaged.
    """
    evaluation_file, certification_file = run / "evaluation.json", run / "certification.json"
    evaluation = read(evaluation_file, records.EvaluationRecord) if is_there(evaluation_file) else None
    certification = read(certification_file, records.CertificationRecord) if is_there(certification_file) else None
    # As a table too, for digests and the skeleton: they are of all settings of a section, whichever it has.
    table = read_toml(run / "config.toml", "mend it")
    settings = read(run / "config.toml", records.RecordedSettings, "mend it", lambda *_: table)
    made_in = read(run / "environment.json", records.EnvironmentRecord).sessions
    rows = []
    for model in read(run / "train.json", records.TrainingRecord).models:
        architecture = _cell(model.architecture, settings.space.operations)
        if architecture is None:
            raise InputError(
                f"The table is of cells, as in nasbench201, but {run.path} has trained '{model.architecture}'."
            )
        provenance: dict[str, Any] = {
            "architecture": str(architecture),
            "canonical": architecture.canonical,
            "function": architecture.function,
            "space": settings.space.name,
            "skeleton": skeletons.written(table["space"]),
            "dataset": _dataset(settings.data),
            "recipe": model.method,
            "recipe_hash": recipe_hash(table),
            "recipe_name": settings.name,
            "recipe_settings": _as_json(trained_by(table)),
            "flops": model.multiply_adds / 1e6,
            "params": model.parameters / 1e6,
            "seed": settings.seed,
            "version": "; then ".join(dict.fromkeys(session.version for session in made_in)),
            "hardware": "; then ".join(differing(made_in)),
            "source": run.path.resolve().name,
            "model": model.name,
            "started": _moment(made_in[0].started),
        }
        # Bounds are computed over the same split as attacks; the evaluation names it.
        split = evaluation.split if evaluation else certification.split if certification else "test"
        measured = []
        if evaluation and model.name in evaluation.models:
            measured += _attacked(evaluation.models[model.name], settings.evaluation)
        if certification:
            measured += _certified(
                certification.models.get(model.name, ()),
                f"certified:{certification.method}",
                settings.threat.norm,
                settings.certification,
            )
        rows += [Row(**provenance, split=split, **item) for item in measured]
    if not rows:
        raise InputError(f"{run.path} has measured nothing of its trained networks yet; attack or certify them first.")
    return rows


def _cell(text: str, operations: tuple[str, ...] | None) -> Architecture | None:
    """Return the cell that a run's architecture is; None if it is of another kind."""
    # Only spaces of cells and genotypes have operations: in others, a number alone is no cell's digits.
    if operations is None or architectures.kind_of(text) is None:
        return None
    found = architectures.parse(text, operations)
    return found if isinstance(found, Architecture) else None


def _attacked(result: Attacked, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the measured columns of a network's entry in evaluation.json."""
    first, worst = result.attacks[0], result.worst_case
    measured: list[tuple[str, str | None, float | None, Measured]] = [("clean", None, None, result.clean)]
    measured += [(attack.name, attack.norm, attack.epsilon, attack) for attack in result.attacks]
    # A worst case over other attacks is another quantity, so its name says which they were.
    name = f"worst_case:{'+'.join(sorted(attack.name for attack in result.attacks))}"
    place = (first.norm, first.epsilon) if worst.norm is None else (worst.norm, worst.epsilon)
    return [
        {
            "attack": name,
            "norm": norm,
            "epsilon": epsilon,
            "accuracy": item.accuracy,
            "num_images": item.count,
            **_measured_by(settings),
        }
        for name, norm, epsilon, item in [*measured, (name, *place, worst)]
    ]


def _certified(
    results: Iterable[Certified], attack: str, norm: str, settings: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Return the measured columns of a network's entries in certification.json."""
    return [
        {
            "attack": attack,
            "norm": norm,
            "epsilon": item.epsilon,
            "accuracy": item.certified,
            "num_images": item.count,
            **_measured_by(settings),
        }
        for item in results
    ]


def _dataset(data: DataSection) -> str:
    """Return the data set's name; a folder of images is told from another by the folder's name."""
    return f"{data.name}:{Path(data.root or '').name}" if data.name in ("folder", "shards") else data.name


def _measured_by(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the columns that say with which settings an accuracy was measured."""
    return {"evaluation_hash": settings_hash(settings), "evaluation_settings": _as_json(settings)}


def trained_by(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a run's settings that a network is trained by."""
    data = {key: value for key, value in settings["data"].items() if key not in _PLACES}
    return {"data": data, "threat": settings["threat"], "train": settings["train"]}


def recipe_hash(settings: Mapping[str, Any]) -> str:
    """Return the digest of the settings that a network was trained by."""
    return settings_hash(trained_by(settings))


def _as_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)


def _moment(text: str) -> datetime:
    """Return the moment written as ISO 8601, in UTC; one without a time zone is taken as UTC."""
    moment = datetime.fromisoformat(text)
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
