"""certification.json: the certificates of each model, or of its smoothed classifier."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field

from robust_nas.records import Record
from robust_nas.records.evaluation import Count, Radius, Share


@dataclass(frozen=True, kw_only=True)
class AtRadius(Record):
    """The share of images that are proved right at a radius, with its 95 % interval."""

    epsilon: Radius
    certified: Share
    low: Share
    high: Share
    count: Annotated[int, Field(ge=1)]
    seconds: float = 0.0

    @property
    def accuracy(self) -> float:
        """The certified accuracy."""
        return self.certified


@dataclass(frozen=True, kw_only=True)
class Certified(AtRadius):
    """The proofs of bounds at a radius, with the number of images that each kind of bound proved."""

    mean_margin: Annotated[float | None, Field(allow_inf_nan=True)] = None
    proved_by: dict[str, Count] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Smoothed(AtRadius):
    """The certificates of a smoothed classifier at a radius."""

    correct: Share
    abstained: Share
    average_radius: Radius


@dataclass(frozen=True, kw_only=True)
class CertificationRecord(Record):
    """The proofs of bounds. Models without sound bounds are left out, each with the reason."""

    models: dict[str, tuple[Certified, ...]]
    method: str | None = None
    dtype: str | None = None
    num_images: Count | None = None
    split: str = "test"
    left_out: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.models and None in (self.method, self.dtype, self.num_images):
            raise ValueError("it must have method, dtype and num_images where it has models")


@dataclass(frozen=True, kw_only=True)
class SmoothingRecord(Record):
    """The certificates of the models' smoothed classifiers."""

    method: str = "smoothing"
    of: str = "the smoothed classifier of each network, not the network"
    norm: str
    sigma: Radius
    num_selection: Count
    num_samples: Count
    failure: Share
    batch_size: Count
    largest_radius: Radius
    dtype: str
    num_images: Count
    models: dict[str, Annotated[tuple[Smoothed, ...], Field(min_length=1)]]
