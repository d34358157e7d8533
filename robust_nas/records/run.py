"""The environment of a run (environment.json), the settings that reports read, and record.json."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from robust_nas.records import Record
from robust_nas.records.evaluation import Count, Radius


@dataclass(frozen=True, kw_only=True)
class Session(Record):
    """The environment of a session that computed something of a folder.

    Args:
        launch: of torchrun, whose restarts are of the same; None without it.
    """

    version: str
    commit: str | None
    python: str
    torch: str
    packages: dict[str, str | None]
    device: str
    cpu: str
    cores: Count | None
    threads: Count
    world_size: Annotated[int, Field(ge=1)]
    arguments: tuple[str, ...]
    started: str
    launch: str | None = None

    def __post_init__(self) -> None:
        datetime.fromisoformat(self.started)


@dataclass(frozen=True, kw_only=True)
class EnvironmentRecord(Session):
    """The environment of the last session, and of those before it."""

    earlier: tuple[Session, ...] = ()

    @property
    def sessions(self) -> tuple[Session, ...]:
        """Every session that computed something of the folder, the first first."""
        return *self.earlier, self


@dataclass(frozen=True, kw_only=True)
class RecordedRows(Record):
    """The number of rows of a table that are of this run."""

    table: str | None
    rows: Count


@dataclass(frozen=True, kw_only=True)
class Named(Record):
    """A section that names a component."""

    name: str


@dataclass(frozen=True, kw_only=True)
class DataSection(Named):
    """The section [data]; a folder of images has its place."""

    root: str | None = None

    def __post_init__(self) -> None:
        if self.name in ("folder", "shards") and self.root is None:
            raise ValueError("a folder of images must have a root")


@dataclass(frozen=True, kw_only=True)
class SpaceSection(Named):
    """The section [space]."""

    operations: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class ThreatSection(Record):
    """The section [threat]."""

    norm: Literal["linf", "l2", "l1"]
    epsilon: Radius


@dataclass(frozen=True, kw_only=True)
class TrainSection(Record):
    """The section [train]."""

    keep: Literal["best", "last"] = "best"


@dataclass(frozen=True, kw_only=True)
class Settings(Record):
    """The settings that a run and an attack of any models have in common."""

    seed: int
    data: Named


@dataclass(frozen=True, kw_only=True)
class RunSettings(Settings):
    """Of config.toml, what a report reads."""

    threat: ThreatSection
    space: SpaceSection
    search: Named
    train: TrainSection


@dataclass(frozen=True, kw_only=True)
class RecordedSettings(Record):
    """The part of config.toml that the table of one's own runs reads."""

    seed: int
    data: DataSection
    threat: ThreatSection
    space: SpaceSection
    train: dict[str, Any]
    name: str | None = None
    evaluation: dict[str, Any] = field(default_factory=dict)
    certification: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ModelSettings(Settings):
    """Of attack.toml and certify.toml, what a report or a list reads."""

    models: Annotated[tuple[str, ...], Field(min_length=1)]


@dataclass(frozen=True, kw_only=True)
class Split(Record):
    """The size and the digests of a split's images and labels."""

    count: Count
    images: str
    labels: str


@dataclass(frozen=True, kw_only=True)
class DataRecord(Record):
    """data.json: what tells the data of a run from other data."""

    name: str
    classes: tuple[str, ...]
    splits: dict[str, Split]

    def __post_init__(self) -> None:
        if not self.splits.keys() >= {"train", "validation", "test"}:
            raise ValueError("splits must be train, validation and test")
