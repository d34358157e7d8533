"""The rehearsal of a run: what its stages demand is checked before the search, on one image and untrained networks."""

from __future__ import annotations

from torch import nn

from robust_nas import derivation, intake
from robust_nas.attacks import left_out
from robust_nas.bounds import Bound, foretold_seconds, slow_kind
from robust_nas.bounds.crown_ibp import CROWNIBP
from robust_nas.certification import certify as certify_model
from robust_nas.certification import refusal
from robust_nas.core.seeds import seeded
from robust_nas.datasets import Dataset
from robust_nas.models import pace
from robust_nas.models.complexity import within_memory
from robust_nas.recipes import Recipe
from robust_nas.runtime import threads
from robust_nas.runtime.distributed import World
from robust_nas.searches import SearchResult
from robust_nas.spaces import Space
from robust_nas.threat import ThreatModel
from robust_nas.training import rehearse as rehearse_training


def rehearse(chosen: Recipe, data: Dataset, world: World, *, trains: bool) -> list[str]:
    """Return the notes before a run: suspicious images, measurements left out, bounds that take hours.

    Args:
        trains: whether the run searches and trains, so that this is rehearsed too.

    Raises:
        InputError: for what a stage would only refuse once it is there.
    """
    found = [*data.notes]
    for name, attack in chosen.evaluation.named().items():
        if missing := left_out(attack, len(data.classes)):
            found.append(
                f"{name} will be run without {' and '.join(missing)}, whose losses compare more classes than the "
                f"{len(data.classes)} there are."
            )
    chosen.evaluation.check_data(chosen.threat, data)
    if trains:
        warning = _rehearse_bounds(chosen, data, _rehearse_training(chosen, data), world)
        found += [warning] if warning else []
        with seeded(chosen.seed, "rehearsal"):
            chosen.search.rehearse(chosen.space, data)
    return found


def settle_threads(chosen: Recipe, data: Dataset, world: World) -> str | None:
    """Give torch the number of threads that is fastest for a recipe's networks, if it says none; return what was tried.

    Several processes share the cores evenly, and so does a group of forked ones.
    """
    if chosen.threads is not None or world.size > 1:
        return None
    tried = pace.settle_threads(any_network(chosen.space, data, chosen.seed), data.some(chosen.train.batch_size))
    return threads.sentence(tried) if tried else None


def _rehearse_bounds(chosen: Recipe, data: Dataset, model: nn.Module, world: World) -> str | None:
    """Return the note on the time that the bounds will take, if it is long.

    Of an operation without a sound rule they say so later: which operations there will be is not known yet.

    Raises:
        InputError: for what the bounds would only refuse after the training, of one image.
    """
    if refusal(model, data.validation):
        return None
    plan, image = chosen.certification, data.validation[:1]
    joined = chosen.derive.count > 1
    fitted = chosen.ensemble.bound or plan.bound
    tried = [(plan.bound, chosen.threat.with_epsilon(min(plan.epsilons)))]
    tried += [(fitted, chosen.ensemble_threat)] if joined and chosen.ensemble.bound is not None else []
    for bound, threat in tried:
        # What takes long refuses what its quick neighbour does.
        slow = slow_kind(bound)
        certify_model(model, image, threat, bound=CROWNIBP(dtype=getattr(bound, "dtype", "float64")) if slow else bound)

    def seconds(bound: Bound, threats: list[ThreatModel]) -> float:
        slow = slow_kind(bound)
        return sum(foretold_seconds(slow, model, image.images, image.labels, threats)) if slow else 0.0

    count = chosen.derive.count
    num_test, num_validation = len(data.test[: plan.num_images]), len(data.validation[: chosen.ensemble.num_images])
    # Both ensembles are all networks at once.
    networks = 3 * count if joined else count
    total = networks * num_test * seconds(plan.bound, [chosen.threat.with_epsilon(e) for e in plan.epsilons])
    total += count * num_validation * seconds(fitted, [chosen.ensemble_threat]) if joined else 0.0
    hours = total / (world.size * world.workers) / 3600
    if hours < 0.5:
        return None
    return (
        f"the bounds will take about {hours:.1f} hours after the training, judged by an untrained network; take "
        "certification.bound=crown_ibp, fewer images (certification.num_images), or smaller ones."
    )


def _rehearse_training(chosen: Recipe, data: Dataset) -> nn.Module:
    """Return an untrained network; raise InputError now for what the training would only refuse after the search."""
    if chosen.train.start_from is not None:
        intake.check_weights_file(chosen.train.start_from)
    model = any_network(chosen.space, data, chosen.seed)
    rehearse_training(model, data, chosen.threat, chosen.train)
    return model.eval()


def uniform_rows(space: Space) -> list[list[float]]:
    """Return probabilities of a space's choices, all of one row alike."""
    return [[1 / len(options)] * len(options) for options in space.choices.values()]


def any_network(space: Space, data: Dataset, seed: int) -> nn.Module:
    """Return an untrained network of a space, on the device of the data."""
    any_architecture = derivation.distinct(SearchResult(space, uniform_rows(space), None, {}), 1)[0].architecture
    with seeded(seed, "rehearsal"), within_memory(f"A network of {space.name}"):
        return space.network(any_architecture, data).to(data.train.device)
