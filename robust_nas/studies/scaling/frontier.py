"""Error against cost: Pareto frontiers, depth against width at equal cost, and the best within a budget of training."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from robust_nas.records.reading import AtEqualCost, Estimate, Frontier, Law, Priced, Size, Verdict, Within
from robust_nas.studies.scaling.measured import Network, Sample, excludes_zero, paired
from robust_nas.tables import non_dominated

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

COSTS: tuple[Size, ...] = ("multiply_adds", "parameters", "training_flops")
"""The costs that networks have a frontier over."""

TOLERANCE = 1.3
"""The factor up to which costs count as equal: twice the width costs about four times, so that few pairs are nearer."""


def frontier(sample: Sample, over: Size) -> Frontier:
    """Return a setting's networks over a cost, with those that no other is both as cheap and as robust as.

    A network's share is how many of the bootstrap samples of seeds have it on the front.
    """
    costs = np.array([network.size(over) for network in sample.networks])
    front = non_dominated(np.stack([-costs, -sample.means[0]], axis=1))
    shares = None if sample.noise is None else _on_front(costs, sample.means[1:]).mean(axis=0)
    networks = [
        Priced(
            network=network.name,
            depth=network.row.depth,
            width=network.row.width,
            cost=float(costs[place]),
            error=sample.estimate(sample.means[:, place]),
            num_seeds=len(network.errors),
            on_front=place in front,
            share=None if shares is None else float(shares[place]),
        )
        for place, network in enumerate(sample.networks)
    ]
    ordered = tuple(sorted(networks, key=lambda network: network.cost))
    return Frontier(setting=sample.setting, error=sample.error, over=over, networks=ordered)


def _on_front(costs: Floats, errors: Floats) -> NDArray[np.bool_]:
    """Return whether networks are on the front, for errors [draws, networks]."""
    as_cheap, as_good = costs[:, None] <= costs, errors[:, :, None] <= errors[:, None, :]
    better = (costs[:, None] < costs) | (errors[:, :, None] < errors[:, None, :])
    return np.logical_not(np.any(as_cheap & as_good & better, axis=1))


def at_equal_cost(sample: Sample, over: Size) -> list[AtEqualCost]:
    """Return all pairs of a deeper and a wider network whose costs differ by less than `TOLERANCE`, the cheapest first.

    The one has more layers, the other more channels in every stage or the same, and in one more at least.
    """
    found = []
    for one, other in itertools.permutations(sample.networks, 2):
        costs = one.size(over), other.size(over)
        if one.row.depth > other.row.depth and _is_wider(other, one) and max(costs) < TOLERANCE * min(costs):
            seeds = sorted(one.errors.keys() & other.errors.keys())
            if seeds:
                found.append(_pair(sample, over, one, other, seeds))
    return sorted(found, key=lambda pair: pair.deeper_cost)


def _is_wider(one: Network, other: Network) -> bool:
    widths = one.row.widths, other.row.widths
    return (
        len(widths[0]) == len(widths[1])
        and widths[0] != widths[1]
        and all(a >= b for a, b in zip(*widths, strict=True))
    )


def _pair(sample: Sample, over: Size, deeper: Network, wider: Network, seeds: Sequence[int]) -> AtEqualCost:
    difference = paired([deeper.errors[seed] - wider.errors[seed] for seed in seeds])
    verdict: Verdict = "not decided"
    if excludes_zero(difference):
        verdict = "deeper" if difference.value < 0 else "wider"
    return AtEqualCost(
        setting=sample.setting,
        error=sample.error,
        over=over,
        deeper=deeper.name,
        wider=wider.name,
        deeper_cost=deeper.size(over),
        wider_cost=wider.size(over),
        difference=difference,
        num_seeds=len(seeds),
        verdict=verdict,
    )


def budgets(samples: Sequence[Sample]) -> list[float]:
    """Return three budgets of training FLOPs inside the measured ones, evenly spaced by their logarithms."""
    flops = [network.flops for sample in samples for network in sample.networks if network.flops > 0]
    if not flops or min(flops) == max(flops):
        return flops[:1]
    return [float(each) for each in np.geomspace(min(flops), max(flops), 5)[1:-1]]


def within(sample: Sample, law: Law, budget: float) -> Within:
    """Return the best of a setting within a budget of training FLOPs: measured, and by the law.

    Args:
        sample: a setting's networks, with robust errors.
        law: of these over training FLOPs.
        budget: training FLOPs of one network.
    """
    affordable = [place for place, network in enumerate(sample.networks) if network.flops <= budget]
    best = min(affordable, key=lambda place: sample.means[0, place], default=None)
    network = None if best is None else sample.networks[best].name
    error = None if best is None else sample.estimate(sample.means[:, best])
    flops = np.array([network.flops for network in sample.networks])
    parameters, predicted, refusal = None, None, None
    if not len(flops) or not flops.min() <= budget <= flops.max():
        ends = f"{flops.min():.3g} to {flops.max():.3g}" if len(flops) else "none"
        refusal = f"The budget is outside the measured training FLOPs, {ends}."
    elif law.fit is None:
        refusal = law.refusal
    else:
        predicted = _on(law, budget)
        order = np.argsort(flops)
        logs = np.log([sample.networks[place].row.parameters for place in order])
        parameters = float(np.exp(np.interp(np.log(budget), np.log(flops[order]), logs)))
    return Within(
        setting=sample.setting, budget=budget, network=network, error=error, parameters=parameters,
        predicted=predicted, refusal=refusal,
    )  # fmt: skip


def _on(law: Law, size: float) -> Estimate:
    """Return a law's error at a size between two points of its curve."""
    assert law.fit is not None
    curve = law.fit.curve
    places = np.log([point.size for point in curve])

    def read(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return float(np.interp(np.log(size), places, known)) if len(known) == len(values) else None

    value = read([point.error.value for point in curve])
    assert value is not None
    low, high = (read([getattr(point.error, end) for point in curve]) for end in ("low", "high"))
    return Estimate(value=value, low=low, high=high)
