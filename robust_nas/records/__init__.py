"""Records: the stages' files in a run folder, JSON there and typed here, a module for each.

A record's class is the shape of its file, and a file of another shape is damaged; the error names the key. Keys that no
record has are left alone. Importing this package imports nothing slow; its modules bring pydantic, and `records.NAME`
imports the one of a record when a file is read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from robust_nas.core.errors import InputError
from robust_nas.core.files import damaged, read_json
from robust_nas.core.registry import offered
from robust_nas.core.writing import write_json

if TYPE_CHECKING:
    from pydantic import TypeAdapter

    from robust_nas.records.certification import CertificationRecord as CertificationRecord
    from robust_nas.records.certification import SmoothingRecord as SmoothingRecord
    from robust_nas.records.derivation import DerivationRecord as DerivationRecord
    from robust_nas.records.ensemble import EnsembleRecord as EnsembleRecord
    from robust_nas.records.ensemble import SavedEnsemble as SavedEnsemble
    from robust_nas.records.evaluation import EvaluationRecord as EvaluationRecord
    from robust_nas.records.evaluation import SavedEvaluations as SavedEvaluations
    from robust_nas.records.evaluation import SavedExamples as SavedExamples
    from robust_nas.records.run import EnvironmentRecord as EnvironmentRecord
    from robust_nas.records.run import ModelSettings as ModelSettings
    from robust_nas.records.run import RecordedRows as RecordedRows
    from robust_nas.records.run import RecordedSettings as RecordedSettings
    from robust_nas.records.run import RunSettings as RunSettings
    from robust_nas.records.scaling import StudyData as StudyData
    from robust_nas.records.search import SearchRecord as SearchRecord
    from robust_nas.records.training import TrainingRecord as TrainingRecord
    from robust_nas.records.trials import Asked as Asked
    from robust_nas.records.trials import MeasuredTrial as MeasuredTrial

KINDS = {
    "certification.json": "CertificationRecord",
    "data.json": "DataRecord",
    "derive.json": "DerivationRecord",
    "ensemble.json": "EnsembleRecord",
    "environment.json": "EnvironmentRecord",
    "evaluation.json": "EvaluationRecord",
    "record.json": "RecordedRows",
    "search.json": "SearchRecord",
    "train.json": "TrainingRecord",
}
"""The record of each file of a run folder, by the file's name."""

__getattr__ = offered(
    __name__,
    {
        "Asked": "trials",
        "ModelSettings": "run",
        "CertificationRecord": "certification",
        "DataRecord": "run",
        "DerivationRecord": "derivation",
        "EnsembleRecord": "ensemble",
        "EnvironmentRecord": "run",
        "EvaluationRecord": "evaluation",
        "MeasuredTrial": "trials",
        "RecordedRows": "run",
        "RecordedSettings": "run",
        "RunSettings": "run",
        "SavedEnsemble": "ensemble",
        "SavedEvaluations": "evaluation",
        "SavedExamples": "evaluation",
        "SearchRecord": "search",
        "SmoothingRecord": "certification",
        "StudyData": "scaling",
        "TrainingRecord": "training",
    },
)

R = TypeVar("R", bound="Record")


class Record:
    """The base of records, which are frozen dataclasses: types are strict, and numbers are finite."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"strict": True, "extra": "ignore", "allow_inf_nan": False}


def read(path: Path, kind: type[R], advice: str | None = None, reader: Callable[[Path, Any], Any] = read_json) -> R:
    """Read a file as a record.

    Args:
        path: the file.
        kind: the class of the record.
        advice: what to do about a damaged file, if not to have its stage write it again.
        reader: reads the file's contents, given the path and the advice.

    Raises:
        InputError: if it is missing, damaged or of another shape.
    """
    record: R = _of(kind, reader(path, advice), path, advice)
    return record


def read_certificates(
    path: Path, reader: Callable[[Path, Any], Any] = read_json
) -> CertificationRecord | SmoothingRecord:
    """Read a certification.json, which is of bounds or of smoothed classifiers.

    Raises:
        InputError: as `read` does.
    """
    value = reader(path, None)
    record: CertificationRecord | SmoothingRecord = _of(_kind_of(path, value), value, path, None)
    return record


def write(path: Path, record: Record) -> None:
    """Write a record as a JSON file, atomically."""
    write_json(path, plain(record))


def plain(value: Any) -> Any:
    """Return a record, or what is in one, as JSON has it; optional values that are None are left out."""
    if isinstance(value, Record):
        named = [(field.name.removesuffix("_"), getattr(value, field.name), field) for field in fields(value)]  # type: ignore[arg-type]
        return {name: plain(item) for name, item, field in named if item is not None or field.default is not None}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def build(kind: type[R], value: Any, path: Path, advice: str | None = None) -> R:
    """Return the record that `plain` was given, from a file of another format.

    Raises:
        InputError: if it is of another shape.
    """
    record: R = _of(kind, value, path, advice)
    return record


def read_stage(path: Path, advice: str | None = None, kind: type[Record] | None = None) -> Any:
    """Return the contents of a stage's file as they are, if they have the shape of its record.

    For those that write them again, with more, or give them on; others `read` a record.

    Args:
        path: the file.
        advice: what to do about a damaged file, if not to have its stage write it again.
        kind: the class of the record, if not that of the file's name.

    Raises:
        InputError: as `read` does.
    """
    value = read_json(path, advice)
    _of(kind or _kind_of(path, value), value, path, advice)
    return value


def _kind_of(path: Path, value: Any) -> Any:
    """Return the class of the record that a file has, by its name and its contents."""
    # Certificates of smoothed classifiers have a file of the same name, in a folder of their own.
    is_smoothed = isinstance(value, dict) and value.get("method") == "smoothing"
    return __getattr__("SmoothingRecord" if is_smoothed else KINDS[path.name])


def _of(kind: Any, value: Any, path: Path, advice: str | None) -> Any:
    from pydantic import ValidationError

    try:
        # As JSON, which has objects and lists where records have records and tuples.
        return _adapter(kind).validate_json(json.dumps(value, default=str))
    except ValidationError as error:
        raise InputError(damaged(path, _in_words(error), advice)) from None


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _in_words(error: Any) -> str:
    """Return the first thing that is wrong with a value, with its place."""
    detail = error.errors(include_url=False)[0]
    place = ".".join(map(str, detail["loc"])) or "its content"
    if detail["type"] == "missing":
        return f"it has no {place}"
    cause = detail.get("ctx", {}).get("error")
    if isinstance(cause, ValueError):
        return str(cause) if not detail["loc"] else f"{place}: {cause}"
    got = repr(detail["input"])
    message = detail["msg"].removeprefix("Input should be ").replace("an object", "a table")
    return f"{place} must be {message}, but is {got if len(got) < 60 else got[:57] + '...'}"
