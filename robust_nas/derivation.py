"""From a search's belief to architectures: the most probable one and the best of the functionally different next ones.

Candidates are taken in the order of the posterior, one per equivalence class; all but the first are then ranked by
adversarial or certified accuracy on the validation split with the weights they inherit from the supernet.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from robust_nas.architecture import Architecture
from robust_nas.attacks import Attack
from robust_nas.attacks.pgd import PGD
from robust_nas.bounds import Bound
from robust_nas.certification import certify
from robust_nas.datasets._batches import epoch_batches
from robust_nas.errors import InputError
from robust_nas.evaluation import evaluate
from robust_nas.searches import LEAST_PROBABILITY

if TYPE_CHECKING:
    from robust_nas.datasets import Dataset
    from robust_nas.distributed import World
    from robust_nas.run_dir import Stage
    from robust_nas.searches import SearchResult
    from robust_nas.spaces import Space
    from robust_nas.threat import ThreatModel


@dataclass(frozen=True, kw_only=True)
class Derivation:
    """How architectures are chosen.

    Args:
        count: architectures to choose.
        pool: how many classes, in the order of the posterior, are ranked by validation accuracy.
        attack: attacks the candidates, which are ranked by their accuracy under it.
        bound: certifies the candidates, which are then ranked by their certified accuracy.
        calibration_batches: training batches over which a candidate's batch-norm statistics are measured anew: those
            of the supernet belong to the mixture.
        batch_size: of these batches.

    Raises:
        InputError: if `pool` is smaller than `count`, or `count` below 1.
    """

    count: int = 3
    pool: int = 12
    attack: Attack = field(default_factory=lambda: PGD(steps=10))
    bound: Bound | None = None
    calibration_batches: int = 8
    batch_size: int = 64

    def __post_init__(self) -> None:
        if not 1 <= self.count <= self.pool:
            raise InputError(f"derive.count must be from 1 to derive.pool ({self.pool}), but got {self.count}.")
        for name in ("calibration_batches", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"derive.{name} must be at least 1, but got {getattr(self, name)}.")


@dataclass(frozen=True)
class Candidate:
    """An architecture that was looked at, with what is known of it before training."""

    architecture: Architecture
    log_posterior: float
    validation_clean: float | None = None
    validation_robust: float | None = None
    validation_certified: float | None = None


def derive(
    found: SearchResult, space: Space, data: Dataset, threat: ThreatModel, derivation: Derivation, stage: Stage
) -> list[Candidate]:
    """Return the pool of candidates, chosen ones first: the argmax, then by robust validation accuracy.

    Architectures whose output does not depend on the input are left out. A search without a supernet keeps the
    order of its posterior.
    """
    pool = distinct(found, derivation.pool)
    if found.supernet is None:
        return pool
    scored = []
    for candidate in stage.progress.steps(pool, stage.name):
        network = found.supernet.choose(candidate.architecture)
        _measure_statistics(network, data, derivation, stage.world, stage.seed)
        within = stage.within("validation")
        result = evaluate(network, data.validation, threat, [derivation.attack], stage=within)
        certified = None
        if derivation.bound is not None:
            (certificates,) = certify(network, data.validation, threat, bound=derivation.bound, stage=within)
            certified = certificates.accuracy
        scored.append(
            replace(
                candidate,
                validation_clean=result.clean_accuracy,
                validation_robust=result.robust_accuracy,
                validation_certified=certified,
            )
        )
    first, *others = scored
    return [first, *sorted(others, key=_standing, reverse=True)]


def _standing(candidate: Candidate) -> tuple[float, float, float]:
    """Return what candidates are ranked by: certified accuracy where there is one, accuracy under attack, posterior."""
    return candidate.validation_certified or 0.0, candidate.validation_robust or 0.0, candidate.log_posterior


def distinct(found: SearchResult, count: int) -> list[Candidate]:
    """Return the `count` most probable architectures that are functionally different and not constant.

    They are fewer where all others have no probability at all.
    """
    pool: dict[str, Candidate] = {}
    for architecture, log_posterior in found.ranked():
        if log_posterior <= math.log(LEAST_PROBABILITY):
            break
        if architecture.is_connected:
            # As networks are built: a skip from a node without input, say, is no edge, which `canonical` does not see.
            pool.setdefault(architecture.pruned.function, Candidate(architecture, log_posterior))
        if len(pool) == count:
            break
    return list(pool.values())


@torch.no_grad()
def _measure_statistics(network: nn.Module, data: Dataset, derivation: Derivation, world: World, seed: int) -> None:
    """Replace the batch-norm statistics by the plain mean over a few clean training batches."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # cumulative average
    network.train()
    batches = epoch_batches(len(data.train), derivation.batch_size, world, seed, "derive")
    for indices in batches[: derivation.calibration_batches]:
        network(data.train[indices].images)
    world.mean_buffers(network)
    network.eval()


def to_record(
    candidates: list[Candidate], derivation: Derivation, num_validation: int, seconds: float
) -> dict[str, Any]:
    """Return what `derive.json` says."""
    return {
        "candidates": [
            {
                "architecture": str(candidate.architecture),
                "canonical": candidate.architecture.canonical,
                "log_posterior": candidate.log_posterior,
                "validation_clean": candidate.validation_clean,
                "validation_robust": candidate.validation_robust,
                "validation_certified": candidate.validation_certified,
                "rank": rank if rank <= derivation.count else None,
            }
            for rank, candidate in enumerate(candidates, start=1)
        ],
        "chosen": [str(candidate.architecture) for candidate in candidates[: derivation.count]],
        "num_validation": num_validation,
        "seconds": seconds,
    }
