"""Laws of error over size, as far as a study's cells bear them.

A law is error = E + A * size ** -b (`power`). Three things keep it honest. Its intervals are over draws of the seeds.
The largest size is held out, and predicted from the others. And where the cells do not bear a law, there is none, or
none beyond the measured sizes, with the reason in a sentence. The law of depth and width together has a term for each.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from robust_nas.records.reading import SIZES, Balance, Estimate, Fit, HeldOut, JointLaw, Law, OnCurve, Size
from robust_nas.studies.scaling.measured import Sample, excludes_zero
from robust_nas.studies.scaling.power import EXPONENTS, PowerLaws, fit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

LEAST_SIZES = 4
"""The fewest different sizes: the law has three coefficients."""

LEAST_RANGE = 4.0
"""The least factor between the smallest and the largest size for a look beyond it."""

REACH = 4.0
"""The factor beyond the largest size up to which a law that is not refused is drawn."""

_FAR = 2.0  # usual distances from the law, from which on a network weighs less
_LEAST_FAR = 5e-4  # a usual distance, as a share of the error
_POINTS = 48  # of a curve, over the measured sizes


def laws(sample: Sample) -> list[Law]:
    """Return the laws of a setting's error over each cost, over depth at each width, and over width at each depth."""
    overall: tuple[Size, ...] = ("parameters", "multiply_adds", "training_flops")
    found = [law(sample, over) for over in overall]
    return found + [law(part, over, at) for part, over, at in _lines(sample)]


def _lines(sample: Sample) -> Iterator[tuple[Sample, Size, str]]:
    """Yield the networks of each width, over depth, and those of each depth, over width; lines of two at least."""
    widths = {network.row.width: network.row.widths for network in sample.networks}
    for width in sorted(widths, key=lambda own: widths[own]):
        yield from _line(sample.where("width", width), "depth", f"width {width}")
    for depth in sorted({network.row.depth for network in sample.networks}):
        yield from _line(sample.where("depth", depth), "width", f"depth {depth}")


def _line(part: Sample, over: Size, at: str) -> Iterator[tuple[Sample, Size, str]]:
    if len({network.size(over) for network in part.networks}) > 1:
        yield part, over, at


def law(sample: Sample, over: Size, at: str | None = None) -> Law:
    """Return the law of a sample's error over a size, or why there is none.

    Args:
        sample: a setting's networks, or a line of them.
        over: the size.
        at: of a line, what its networks have in common.
    """
    sizes = np.array([network.size(over) for network in sample.networks])
    distinct = np.unique(sizes)
    reason: str | None
    base = Law(
        setting=sample.setting, error=sample.error, over=over, at=at, num_sizes=len(distinct),
        num_cells=sample.num_cells,
    )  # fmt: skip
    if len(distinct) < LEAST_SIZES:
        count = _cells(len(distinct), "size")
        reason = f"A law needs {LEAST_SIZES} different sizes at least, and networks of {count} finished."
        return _with(base, refusal=reason)
    slopes = _slopes(sizes, sample.means)
    falls = sample.estimate(slopes)
    if falls.value >= 0 or (sample.noise is not None and not (excludes_zero(falls))):
        reason = (
            f"The {sample.error} error does not fall with {SIZES[over]} by more than the seeds' chance: its change per "
            f"doubling is {_change(falls)}."
        )
        return _with(base, refusal=reason)
    found = _fitted(sample, [sizes])
    held_out = _held_out(sample, over, sizes)
    reason = _why_not_beyond(sample, over, distinct, found, held_out)
    return _with(base, fit=_fit(sample, sizes, found, beyond=reason is None), held_out=held_out, refusal=reason)


def _with(base: Law, *, fit: Fit | None = None, held_out: HeldOut | None = None, refusal: str | None) -> Law:
    return Law(
        setting=base.setting, error=base.error, over=base.over, at=base.at, num_sizes=base.num_sizes,
        num_cells=base.num_cells, fit=fit, held_out=held_out, refusal=refusal,
    )  # fmt: skip


def _slopes(sizes: Floats, means: Floats) -> Floats:
    """Return the slopes of log error over log size, by least squares, of errors [draws, networks]."""
    centred = np.log(sizes) - np.log(sizes).mean()
    slopes: Floats = np.log(means) @ centred / (centred @ centred)
    return slopes


def _fitted(sample: Sample, sizes: Sequence[Floats]) -> PowerLaws:
    """Return the laws of a sample's mean errors; the more seeds a network has, the more it weighs.

    The paper's Huber loss is almost the absolute distance (delta of 1e-3), since it has hundreds of runs. Here a
    handful of networks has three coefficients, so that only those far from the law weigh less: by more than the seeds'
    chance, and by more than most of the others are off.
    """
    counts = np.array([len(network.errors) for network in sample.networks], dtype=np.float64)
    measured = sample.means[:1]
    squares = fit(sizes, measured, math.inf, counts, finely=False)
    off = np.abs(np.log(squares.at(*sizes) / measured))
    # The median of normal distances is 0.67 standard deviations.
    usual = max(float(np.median(off)) / 0.67, (sample.noise or 0.0) / math.sqrt(counts.mean()), _LEAST_FAR)
    return fit(sizes, sample.means if sample.noise is not None else measured, _FAR * usual, counts)


def _fit(sample: Sample, sizes: Floats, found: PowerLaws, *, beyond: bool) -> Fit:
    smallest, largest = float(sizes.min()), float(sizes.max())
    places = np.geomspace(smallest, largest, _POINTS)
    if beyond:
        places = np.concatenate([places, np.geomspace(largest, REACH * largest, _POINTS // 3)[1:]])
    errors = found.at(places)
    distance = np.log(sample.means[0] / found.at(sizes)[0])
    return Fit(
        irreducible=sample.estimate(found.coefficients[:, 0]),
        scale=sample.estimate(found.coefficients[:, 1]),
        exponent=sample.estimate(found.exponents[:, 0]),
        noise=sample.noise,
        scatter=float(np.sqrt((distance**2).mean())),
        curve=tuple(
            OnCurve(size=float(place), error=sample.estimate(errors[:, i]), beyond=bool(place > largest * (1 + 1e-9)))
            for i, place in enumerate(places)
        ),
    )


def _held_out(sample: Sample, over: Size, sizes: Floats) -> HeldOut:
    """Predict the mean error at the largest size from a fit to all others."""
    largest = sizes.max()
    smaller = sample.part(lambda network: network.size(over) < largest)
    found = _fitted(smaller, [sizes[sizes < largest]])
    predicted = found.at(np.array([largest]))[:, 0]
    measured = sample.means[: len(predicted), sizes == largest].mean(axis=1)
    return HeldOut(
        size=float(largest),
        measured=sample.estimate(measured),
        predicted=sample.estimate(predicted),
        difference=sample.estimate(predicted - measured),
    )


def _why_not_beyond(sample: Sample, over: Size, distinct: Floats, found: PowerLaws, held_out: HeldOut) -> str | None:
    """Return why a law says nothing beyond the measured sizes; None if it may."""
    name, factor = SIZES[over], distinct[-1] / distinct[0]
    if factor < LEAST_RANGE:
        return (
            f"The largest size is {factor:.3g} times the smallest in {name}, and a look beyond needs {LEAST_RANGE:g} "
            "times."
        )
    if sample.noise is None:
        return "Every network has one seed, so that nothing tells how much of an error is chance."
    if found.exponents[0, 0] > 0.98 * EXPONENTS[1]:
        return f"The {sample.error} error falls among the smallest sizes alone, so that no exponent fits."
    off, predicted = held_out.difference, held_out.predicted
    assert predicted.low is not None and predicted.high is not None
    if excludes_zero(off):
        return (
            f"The largest size, held out, has {percent(held_out.measured.value)} {sample.error} error, and the fit to "
            f"the others predicts {percent(predicted.value)}: off by more than the seeds' chance."
        )
    smaller = sample.means[0].max() - sample.means[0].min()
    if predicted.high - predicted.low > smaller:
        return (
            f"The prediction of the largest size from the others, {percent(predicted.low)} to "
            f"{percent(predicted.high)}, is wider than all that was measured, {percent(sample.means[0].min())} to "
            f"{percent(sample.means[0].max())}."
        )
    return None


def percent(share: float) -> str:
    """Return a fraction as text in percent."""
    return f"{100 * share:.1f} %"


def _cells(count: int, noun: str) -> str:
    return f"{count or 'no'} {noun}{'' if count == 1 else 's'}"


def _change(slope: Estimate) -> str:
    """Return the relative change per doubling of a slope of logarithms, "-1.2 % (-3.0 to 0.6)"."""
    value, *ends = (100 * (2**each - 1) for each in (slope.value, slope.low, slope.high) if each is not None)
    return f"{value:.1f} %" + (f" ({ends[0]:.1f} to {ends[1]:.1f})" if ends else "")


# Depth and width together --------------------------------------------------------------------------------------------

LEAST_LINES = 3
"""The fewest depths, and widths, of the law over both: each term has two coefficients, and they share one."""


def joint(sample: Sample) -> JointLaw:
    """Return the law of a setting's error over depth and width together, or why there is none.

    Args:
        sample: a setting's networks; those whose widths differ among stages are left out.
    """
    sample = sample.part(lambda network: len({*network.row.widths}) == 1)
    depths = np.array([network.size("depth") for network in sample.networks])
    widths = np.array([network.size("width") for network in sample.networks])
    num_depths, num_widths = len({*depths}), len({*widths})
    if min(num_depths, num_widths) < LEAST_LINES or len(sample.networks) < 6:
        reason = (
            f"The law of depth and width together needs {LEAST_LINES} depths and {LEAST_LINES} widths at least, and "
            f"{_cells(num_depths, 'depth')} and {_cells(num_widths, 'width')} finished."
        )
        return JointLaw(setting=sample.setting, error=sample.error, refusal=reason)
    flat = [
        name
        for name, slopes in zip(("depth", "width"), _slopes_of_both(depths, widths, sample.means), strict=True)
        if slopes[0] >= 0 or (sample.noise is not None and not excludes_zero(sample.estimate(slopes)))
    ]
    if flat:
        reason = f"The {sample.error} error does not fall with {' or '.join(flat)} by more than the seeds' chance."
        return JointLaw(setting=sample.setting, error=sample.error, refusal=reason)
    found = _fitted(sample, [depths, widths])
    distance = np.log(sample.means[0] / found.at(depths, widths)[0])
    balances, refusal = _balances(sample, depths, widths, found)
    coefficients = [sample.estimate(found.coefficients[:, place]) for place in range(3)]
    exponents = [sample.estimate(found.exponents[:, place]) for place in range(2)]
    return JointLaw(
        setting=sample.setting,
        error=sample.error,
        irreducible=coefficients[0],
        deep=coefficients[1],
        deep_exponent=exponents[0],
        wide=coefficients[2],
        wide_exponent=exponents[1],
        scatter=float(np.sqrt((distance**2).mean())),
        balances=tuple(balances),
        refusal=refusal,
    )


def _slopes_of_both(depths: Floats, widths: Floats, means: Floats) -> tuple[Floats, Floats]:
    """Return the slopes of log error over log depth and over log width, each with the other held."""
    design = np.stack([np.ones(len(depths)), np.log(depths), np.log(widths)], axis=1)
    slopes = np.linalg.lstsq(design, np.log(means).T, rcond=None)[0]
    return slopes[1], slopes[2]


def _balances(sample: Sample, depths: Floats, widths: Floats, found: PowerLaws) -> tuple[list[Balance], str | None]:
    """Return depth and width of least error at three costs inside the measured range, or why not.

    The cost of networks between the measured ones is a product of powers of depth and width, fitted to their
    multiply-adds; the least error is sought along each cost.
    """
    costs = np.array([network.size("multiply_adds") for network in sample.networks])
    design = np.stack([np.ones(len(costs)), np.log(depths), np.log(widths)], axis=1)
    (first, by_depth, by_width), *_ = np.linalg.lstsq(design, np.log(costs), rcond=None)
    off = float(np.abs(design @ [first, by_depth, by_width] - np.log(costs)).max())
    if off > 0.15:
        return [], (
            f"Multiply-adds are no product of powers of depth and width here ({100 * off:.0f} % off), so that no depth "
            "and width of equal cost are computed."
        )
    balances = []
    for cost in np.quantile(costs, (0.25, 0.5, 0.75)):
        places = np.geomspace(depths.min(), depths.max(), 300)
        across = np.exp((math.log(cost) - first - by_depth * np.log(places)) / by_width)
        inside = (across >= widths.min()) & (across <= widths.max())
        places, across = places[inside], across[inside]
        if not len(places):
            continue
        errors = found.at(places, across)
        best = errors.argmin(axis=1)
        edge = None
        if best[0] in (0, len(places) - 1):
            # The line of equal cost leaves the range at a depth, or at a width.
            depth_ends = places[best[0]] < 1.02 * depths.min() or places[best[0]] > 0.98 * depths.max()
            edge = "depth" if depth_ends else "width"
        balances.append(
            Balance(
                multiply_adds=float(cost),
                depth=sample.estimate(places[best]),
                width=sample.estimate(across[best]),
                error=sample.estimate(errors.min(axis=1)),
                at_edge=edge,
            )
        )
    return balances, None if balances else "No cost has networks of several depths within the measured widths."
