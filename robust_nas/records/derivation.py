"""derive.json: the chosen architectures and the candidates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from robust_nas.records import Record
from robust_nas.records.evaluation import Count, Share


@dataclass(frozen=True, kw_only=True)
class Transferred(Record):
    """The adversarial examples of one network on images that two classify correctly, and those that fool the other."""

    examples: Count
    fooled: Count


@dataclass(frozen=True, kw_only=True)
class Candidate(Record):
    """An architecture that could have been chosen; its rank, if it was."""

    architecture: str
    canonical: str
    log_posterior: float
    validation_clean: Share | None
    validation_robust: Share | None
    validation_certified: Share | None
    rank: Count | None
    transfer: dict[str, Transferred] | None = None
    transfer_rate: Share | None = None


@dataclass(frozen=True, kw_only=True)
class DerivationRecord(Record):
    """The chosen architectures, best first; the networks of a joined run have spaces of their own."""

    chosen: Annotated[tuple[str, ...], Field(min_length=1)]
    candidates: tuple[Candidate, ...]
    num_validation: Count
    seconds: float
    spaces: tuple[dict[str, Any], ...] | None = None

    def __post_init__(self) -> None:
        if self.spaces is not None and len(self.spaces) != len(self.chosen):
            raise ValueError("spaces must be as many as the chosen architectures")
