"""From a search's probabilities to architectures: the most probable one, or the best of some with the supernet's
weights.

Candidates are functionally different, and ranked by adversarial or certified accuracy on the validation split with the
weights they inherit from the supernet; those of an ensemble can be chosen so that few attacks transfer between them.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from robust_nas import records
from robust_nas.architectures import AnyArchitecture
from robust_nas.attacks import Attack
from robust_nas.attacks.pgd import PGD
from robust_nas.bounds import Bound
from robust_nas.certification import certify
from robust_nas.core.errors import InputError
from robust_nas.core.seeds import generator_at, seed_at
from robust_nas.evaluation import evaluate, transfers
from robust_nas.models.calibration import Network, calibrated
from robust_nas.records import derivation as recorded
from robust_nas.records.derivation import Transferred
from robust_nas.runtime.progress import accuracies_in_words
from robust_nas.searches import LEAST_PROBABILITY
from robust_nas.spaces import MixedSpace

if TYPE_CHECKING:
    from robust_nas.datasets import Dataset, ImageSet
    from robust_nas.runtime.stages import Stage
    from robust_nas.searches import SearchResult
    from robust_nas.spaces import Space
    from robust_nas.threat import ThreatModel


NO_WEIGHTS = (
    "derive.diversity is {}, but this search leaves no supernet whose weights the candidates could have when they are "
    "attacked; set it to 0, or search with a supernet."
)
"""The message where transfer cannot be measured."""


@dataclass(frozen=True, kw_only=True)
class Derivation:
    """The rule that chooses architectures.

    Args:
        count: architectures to choose.
        method: "argmax" chooses the most probable architecture first and ranks the next ones of the posterior;
            "samples" ranks architectures that are drawn from the posterior; "perturbation" chooses first, edge by edge,
            the operation without which the supernet is worst under attack (DARTS-PT, arXiv:2108.04392, without its
            fine-tuning), and ranks the next ones of the posterior.
        pool: number of architectures to choose from, no two of one function.
        num_images: validation images that rank them, the first ones; all, if not given.
        attack: attacks the candidates, which are ranked by their accuracy under it.
        bound: certifies the candidates, which are then ranked by their certified accuracy.
        calibration_batches: training batches over which a candidate's batch-norm statistics are measured anew: those
            of the supernet belong to the mixture.
        batch_size: of these batches.
        diversity: weight of a transfer rate against accuracy: after the first one, the candidate is chosen next
            whose accuracy (certified, or under attack), less `diversity` times its mean transfer rate with those
            chosen so far, is highest. With 0, transfer is not measured.

    Raises:
        InputError: if `pool` is smaller than `count`, `count` below 1, or `diversity` negative or for one network.
    """

    count: int = 3
    method: Literal["argmax", "samples", "perturbation"] = "argmax"
    pool: int = 12
    num_images: int | None = None
    attack: Attack = field(default_factory=lambda: PGD(steps=10))
    bound: Bound | None = None
    calibration_batches: int = 8
    batch_size: int = 64
    diversity: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.diversity < math.inf:
            raise InputError(f"derive.diversity must be a number from 0 on, but got {self.diversity}.")
        if self.diversity and self.count == 1:
            raise InputError(
                "derive.diversity chooses the networks beside the first, but derive.count is 1; leave it out."
            )
        if not 1 <= self.count <= self.pool:
            raise InputError(f"derive.count must be from 1 to derive.pool ({self.pool}), but got {self.count}.")
        for name in ("calibration_batches", "batch_size", "num_images"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise InputError(f"derive.{name} must be at least 1, but got {getattr(self, name)}.")

    def check(self, space: Space) -> None:
        """Raise InputError for a method that is not for a space whose supernet has no mixtures."""
        if self.method != "argmax" and not isinstance(space, MixedSpace):
            raise InputError(
                f"derive.method '{self.method}' is for mixtures of operations, but the supernet of {space.name} has "
                "none; leave it out: the best ones that the search has measured are chosen from."
            )

    def calibrated(self, network: Network, data: Dataset, stage: Stage) -> Network:
        """Return the network with batch-norm statistics of its own."""
        batches, size = self.calibration_batches, self.batch_size
        return calibrated(network, data, stage.world, stage.seed, batches=batches, batch_size=size)


@dataclass(frozen=True)
class Candidate:
    """An architecture that was considered, with its measurements before training."""

    architecture: AnyArchitecture
    log_posterior: float
    validation_clean: float | None = None
    validation_robust: float | None = None
    validation_certified: float | None = None
    transfer: Mapping[str, Transferred] | None = None  # of its examples to the other candidates, by architecture


def derive(
    found: SearchResult, space: Space, data: Dataset, threat: ThreatModel, derivation: Derivation, stage: Stage
) -> list[Candidate]:
    """Return the pool of candidates, best first; see `Derivation.method`.

    Architectures whose output does not depend on the input are left out. A search without a supernet keeps the
    order of its posterior. Where the search has learned nothing, no architecture is the most probable one: they are
    drawn, unless perturbation is to tell.

    Raises:
        InputError: if transfer is to be measured and there is no supernet.
    """
    if found.supernet is None:
        if derivation.diversity:
            raise InputError(NO_WEIGHTS.format(derivation.diversity))
        return distinct(found, derivation.pool)
    derivation.check(space)
    drawn = derivation.method == "samples" or (derivation.method == "argmax" and found.is_undecided)
    if drawn:
        pool = distinct(found, derivation.pool, found.drawn(seed_at(stage.seed, stage.name)))
    elif derivation.method == "perturbation":
        first = _least_dispensable(found, space, data, threat, derivation, stage)
        pool = distinct(found, derivation.pool, itertools.chain([first], found.ranked()))
    else:
        pool = distinct(found, derivation.pool)
    images, scored, networks = data.validation[: derivation.num_images], [], []
    for candidate in stage.progress.steps(pool, stage.name):
        network = derivation.calibrated(found.supernet.choose(candidate.architecture), data, stage)
        within = stage.within("validation")
        result = evaluate(network, images, threat, [derivation.attack], stage=within)
        stage.progress.note(accuracies_in_words({"clean": result.clean_accuracy, "robust": result.robust_accuracy}))
        certified = None
        if derivation.bound is not None:
            (certificates,) = certify(network, images, threat, bound=derivation.bound, stage=within)
            certified = certificates.accuracy
        scored.append(
            replace(
                candidate,
                validation_clean=result.clean_accuracy,
                validation_robust=result.robust_accuracy,
                validation_certified=certified,
            )
        )
        if derivation.diversity:
            networks.append(network)
    if derivation.diversity:
        scored = _with_transfer(scored, networks, images, threat, derivation, stage)
    named = 0 if drawn else 1
    ranked = [*scored[:named], *sorted(scored[named:], key=_standing, reverse=True)]
    return most_diverse(ranked, derivation.count, derivation.diversity) if derivation.diversity else ranked


def _with_transfer(
    candidates: Sequence[Candidate],
    networks: Sequence[nn.Module],
    images: ImageSet,
    threat: ThreatModel,
    derivation: Derivation,
    stage: Stage,
) -> list[Candidate]:
    """Return the candidates with the transfer of attacks between their networks, as far as it is known."""
    examples, fooled = (counts.tolist() for counts in transfers(networks, images, threat, derivation.attack, stage))
    return [
        replace(
            source,
            transfer={
                str(target.architecture): Transferred(examples=examples[row][column], fooled=fooled[row][column])
                for column, target in enumerate(candidates)
                if row != column
            },
        )
        for row, source in enumerate(candidates)
    ]


def transfer_rate(one: Candidate, other: Candidate) -> float:
    """Return the mean, over both directions, of the share of one candidate's adversarial examples that fool the other.

    A direction without an example does not count; where neither has one, nothing transfers, and the rate is 0.
    """
    assert one.transfer is not None and other.transfer is not None
    both = one.transfer[str(other.architecture)], other.transfer[str(one.architecture)]
    rates = [found.fooled / found.examples for found in both if found.examples]
    return sum(rates) / len(rates) if rates else 0.0


def most_diverse(ranked: Sequence[Candidate], count: int, diversity: float) -> list[Candidate]:
    """Return the candidates with `count` of them in front, chosen one after another; the others keep their order.

    The first one stays. Each next one has the highest accuracy less `diversity` times its mean transfer rate with
    those chosen before it; of equal ones, the first.
    """
    chosen, left = list(ranked[:1]), list(ranked[1:])

    def worth(candidate: Candidate) -> float:
        robust, certified = candidate.validation_robust, candidate.validation_certified
        rates = [transfer_rate(candidate, other) for other in chosen]
        return ((robust or 0.0) if certified is None else certified) - diversity * sum(rates) / len(rates)

    while left and len(chosen) < count:
        chosen.append(left.pop(left.index(max(left, key=worth))))
    return [*chosen, *left]


def _least_dispensable(
    found: SearchResult, space: Space, data: Dataset, threat: ThreatModel, derivation: Derivation, stage: Stage
) -> tuple[AnyArchitecture, float]:
    """Return the architecture of the least dispensable operations, decided edge by edge in random order.

    DARTS-PT, arXiv:2108.04392, algorithm 1: the accuracy, here under attack, of the supernet without an operation
    tells its worth, where its weight in the mixture does not. Where an architecture has only some of the edges,
    these are chosen in the same way afterwards, by what the supernet is without an edge (the paper chooses those of one
    node before it looks at the next one's; here all are looked at first).
    """
    assert found.supernet is not None and isinstance(space, MixedSpace)
    mixture = torch.tensor(found.probabilities)
    within, images = stage.within("validation"), data.validation[: derivation.num_images]
    generator = generator_at("cpu", stage.seed, stage.name, "edges")

    def accuracies_at(without: torch.Tensor) -> tuple[float, float]:
        mixed = copy.deepcopy(found.supernet).at(without.to(stage.world.device))  # type: ignore[union-attr,arg-type]
        network = derivation.calibrated(mixed, data, stage)
        result = evaluate(network, images, threat, [derivation.attack], stage=within)
        return result.robust_accuracy, result.clean_accuracy

    choices = [place for place, name in enumerate(space.operations) if name in space.final_operations]
    for edge in stage.progress.steps(torch.randperm(len(mixture), generator=generator).tolist(), "perturbation"):
        standings = {}
        for place in [place for place in choices if mixture[edge, place] > 0]:
            without = mixture.clone()
            without[edge, place] = 0
            if not _carries_the_input(space, without):
                standings[place] = 0.0, 0.0
                continue
            standings[place] = accuracies_at(without)
        if not standings:  # `none` is all that is left of it
            continue
        kept = min(standings, key=lambda place: standings[place])
        mixture[edge] = torch.zeros(len(mixture[edge])).index_fill(0, torch.tensor(kept), 1.0)
    chosen = replace(found, probabilities=mixture.tolist(), measured=None).best
    if None in space.indices_of(chosen):
        weights = mixture.clone()
        for edge in stage.progress.steps(range(len(mixture)), "perturbation of edges"):
            without = mixture.clone()
            without[edge] = 0
            robust, clean = accuracies_at(without)
            # The less is left without it, the more an edge weighs; clean accuracy decides between equal ones.
            weights[edge] *= 1 - robust + 1e-3 * (1 - clean) + 1e-6
        chosen = replace(found, probabilities=weights.tolist(), measured=None).best
    return chosen, found.log_probability(chosen)


def _standing(candidate: Candidate) -> tuple[float, float, float]:
    """Return the key that ranks a candidate: certified accuracy where known, accuracy under attack, posterior."""
    return candidate.validation_certified or 0.0, candidate.validation_robust or 0.0, candidate.log_posterior


def _carries_the_input(space: MixedSpace, mixture: torch.Tensor) -> bool:
    """Whether the output of a mixture [E, O] depends on its input."""
    edges, operations = mixture.shape
    none = [place for place in range(operations) if not space.is_connected([place] * edges)]
    weights = mixture.clone()
    weights[:, none] = weights[:, none].clamp(max=0.0) - 1  # chosen only where there is nothing else
    return space.is_connected(torch.where(mixture > 0, weights, -2.0).argmax(1).tolist())


def distinct(
    found: SearchResult, count: int, among: Iterable[tuple[AnyArchitecture, float]] | None = None
) -> list[Candidate]:
    """Return the first `count` architectures that are functionally different and not constant.

    `among` gives them with their log-probabilities; the most probable ones come first, if it is not given. They are
    fewer where all others have no probability at all.
    """
    pool: dict[str, Candidate] = {}
    for architecture, log_posterior in found.ranked() if among is None else among:
        if log_posterior <= math.log(LEAST_PROBABILITY):
            break
        if architecture.is_connected:
            pool.setdefault(architecture.family, Candidate(architecture, log_posterior))
        if len(pool) == count:
            break
    return list(pool.values())


def to_record(
    candidates: list[Candidate], derivation: Derivation, num_validation: int, seconds: float
) -> records.DerivationRecord:
    """Return the contents of `derive.json`."""
    chosen = candidates[: derivation.count]
    return records.DerivationRecord(
        candidates=tuple(
            recorded.Candidate(
                architecture=str(candidate.architecture),
                canonical=candidate.architecture.canonical,
                log_posterior=candidate.log_posterior,
                validation_clean=candidate.validation_clean,
                validation_robust=candidate.validation_robust,
                validation_certified=candidate.validation_certified,
                rank=rank if rank <= derivation.count else None,
                transfer=None if candidate.transfer is None else dict(candidate.transfer),
                transfer_rate=_mean_rate(candidate, chosen),
            )
            for rank, candidate in enumerate(candidates, start=1)
        ),
        chosen=tuple(str(candidate.architecture) for candidate in chosen),
        num_validation=num_validation,
        seconds=seconds,
    )


def _mean_rate(candidate: Candidate, chosen: Sequence[Candidate]) -> float | None:
    """Return the mean rate with the chosen ones, without the candidate, if it was measured."""
    if candidate.transfer is None:
        return None
    rates = [transfer_rate(candidate, other) for other in chosen if other is not candidate]
    return sum(rates) / len(rates) if rates else None
