"""The folders that jobs have left in a folder, newest first: runs, attacked models, studies and tables, a row each.

A folder that cannot be read is a row that says why.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from robust_nas import records
from robust_nas.core.errors import InputError
from robust_nas.core.files import damaged, is_there, read_json, read_toml
from robust_nas.runtime.run_folder import STAGE_FILES, unfinished_stages

Kind = Literal["run", "attack", "certify", "scaling", "study", "table"]

_MARKS: dict[Kind, str] = {
    "run": "config.toml",
    "attack": "attack.toml",
    "certify": "certify.toml",
    "scaling": "study.toml",
    "study": "settings.json",
}
"""The file by which a folder of each kind is known; a table is known by its parts."""

_STUDIES = {"simulation": "simulation.json", "ranking": "ranking.json"}
"""The last file of a study beside a table: a simulated search, a ranking of scores."""


@dataclass(frozen=True, kw_only=True)
class RunRow:
    """A folder with results, in a line.

    Args:
        name: the folder's name.
        kind: the kind of job.
        started: the moment of its first session or, where no file says it, of its last change; ISO 8601, UTC.
        recipe: a run's recipe; None for other kinds.
        data: the data set.
        done: the finished stages.
        missing: the stages that are still to be done.
        clean: the best clean accuracy of its models, a fraction; None before they are attacked.
        robust: the best worst-case accuracy of those of its models that had the most attacks, a fraction.
        damage: the reason why it cannot be read, else None.
    """

    name: str
    kind: Kind
    started: str
    recipe: str | None = None
    data: str | None = None
    done: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    clean: float | None = None
    robust: float | None = None
    damage: str | None = None


def list_runs(folder: Path) -> list[RunRow]:
    """Return a row for each folder with results in `folder`, the newest first.

    Raises:
        InputError: if there is no such folder, or it cannot be read.
    """
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder} yet; 'robust-nas run digits' makes one, or give --out FOLDER.")
    try:
        found = [(kind, path) for path in folder.iterdir() if (kind := _kind_of(path)) is not None]
    except OSError as error:
        raise InputError(f"The folder {folder} cannot be read ({error.strerror}); give another.") from None
    return sorted((_row(kind, path) for kind, path in found), key=lambda row: (row.started, row.name), reverse=True)


def _kind_of(path: Path) -> Kind | None:
    """Return the kind of a folder; None for a file, a folder of others, and one that is being made."""
    if path.name.startswith(".") or not path.is_dir():
        return None
    for kind, mark in _MARKS.items():
        if is_there(path / mark):
            return kind
    return "table" if any(path.glob("part-*.parquet")) else None


def _row(kind: Kind, path: Path) -> RunRow:
    readers: dict[Kind, Callable[[Path], Mapping[str, Any]]] = {
        "run": _of_run, "attack": _of_attack, "certify": _of_certify, "scaling": _of_scaling,
        "study": _of_study, "table": lambda _: {},
    }  # fmt: skip
    try:
        return RunRow(name=path.name, kind=kind, started=_started(path), **readers[kind](path))
    except InputError as error:
        return RunRow(name=path.name, kind=kind, started=_started(path), damage=str(error))


def _started(path: Path) -> str:
    """Return when the work in a folder began, as far as that can be read."""
    try:
        first = records.read(path / "environment.json", records.EnvironmentRecord).sessions[0]
        moment = datetime.fromisoformat(first.started)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    except InputError:
        try:
            moment = datetime.fromtimestamp(path.stat().st_mtime, UTC)
        except OSError:  # removed meanwhile
            moment = datetime.fromtimestamp(0, UTC)
    return moment.astimezone(UTC).isoformat(timespec="seconds")


def _of_run(path: Path) -> dict[str, Any]:
    settings = read_toml(path / "config.toml", "mend it")
    missing = tuple(unfinished_stages(path))
    return {
        "recipe": _text(settings.get("name"), path),
        "data": _text(_section(settings, "data", path).get("name"), path),
        "done": tuple(stage for stage in (*STAGE_FILES, "report") if stage not in missing),
        "missing": missing,
        **_accuracies(path),
    }


def _of_attack(path: Path) -> dict[str, Any]:
    settings = records.read(path / "attack.toml", records.ModelSettings, "begin anew", read_toml)
    stages = {"attack": "evaluation.json", "report": "report.html"}
    done = tuple(stage for stage, file in stages.items() if is_there(path / file))
    missing = tuple(stage for stage in stages if stage not in done)
    return {"data": settings.data.name, "done": done, "missing": missing, **_accuracies(path)}


def _of_certify(path: Path) -> dict[str, Any]:
    settings = records.read(path / "certify.toml", records.ModelSettings, "begin anew", read_toml)
    ended = is_there(path / "certification.json")
    return {
        "data": settings.data.name,
        "done": ("certify",) if ended else (),
        "missing": () if ended else ("certify",),
    }


def _of_scaling(path: Path) -> dict[str, Any]:
    """Return the row of a scaling study, whose cells are runs of their own."""
    facts = records.read(path / "study.json", records.StudyData, "begin anew in another folder")
    ended = sum(1 for _ in (path / "cells").glob("*_seed=*.json"))
    stages = {"run": ended == facts.num_cells, "report": is_there(path / "scaling.html")}
    return {
        "data": facts.name,
        "done": tuple(stage for stage, found in stages.items() if found),
        "missing": tuple(stage for stage, found in stages.items() if not found),
    }


def _of_study(path: Path) -> dict[str, Any]:
    settings = read_json(path / "settings.json", "begin anew in another folder")
    if not isinstance(settings, dict):
        raise InputError(damaged(path / "settings.json", "it must be a table", "begin anew in another folder"))
    stage = "simulation" if "samplers" in settings else "ranking"
    ended = is_there(path / _STUDIES[stage])
    data = settings.get("dataset")
    return {
        "data": data if isinstance(data, str) else None,
        "done": (stage,) if ended else (),
        "missing": () if ended else (stage,),
    }


def _accuracies(path: Path) -> dict[str, float]:
    """Return the best accuracies of a folder's models, where they were measured."""
    if not is_there(path / "evaluation.json"):
        return {}
    models = records.read(path / "evaluation.json", records.EvaluationRecord).models.values()
    if not models:
        return {}
    # Strong attacks may be for some models only: the others' accuracies would look better than they are.
    most = max(len(model.attacks) for model in models)
    return {
        "clean": max(model.clean.accuracy for model in models),
        "robust": max(model.worst_case.accuracy for model in models if len(model.attacks) == most),
    }


def _section(settings: Mapping[str, Any], name: str, path: Path) -> Mapping[str, Any]:
    found = settings.get(name)
    if not isinstance(found, dict):
        raise InputError(damaged(path / "config.toml", f"it has no section [{name}]", "mend it"))
    return found


def _text(value: Any, path: Path) -> str | None:
    """Return a setting that is a text, or is not there."""
    if value is not None and not isinstance(value, str):
        raise InputError(damaged(path / "config.toml", "a name must be a text", "mend it"))
    return value
