"""The answers of a scaling study: laws of error over size, frontiers, comparisons; and published points beside them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from robust_nas.core.shown import Shown, Summary, frame
from robust_nas.records import Record
from robust_nas.records.evaluation import Count
from robust_nas.records.scaling import CellRow, StudyRecord

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

Kind = Literal["robust", "clean"]
"""The images that an error is of: attacked or clean ones."""

Size = Literal["parameters", "multiply_adds", "training_flops", "depth", "width"]
"""A measure of a network, or of its training."""

SIZES: dict[Size, str] = {
    "parameters": "parameters",
    "multiply_adds": "multiply-adds",
    "training_flops": "training FLOPs",
    "depth": "depth",
    "width": "width",
}
"""Each size in words."""

Verdict = Literal["deeper", "wider", "not decided"]


@dataclass(frozen=True, kw_only=True)
class Estimate(Record):
    """A number with its 95 % interval; without one where nothing tells how much is chance."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class OnCurve(Record):
    """A point of a fitted curve: an error at a size, and whether that is larger than all measured ones."""

    size: float
    error: Estimate
    beyond: bool


@dataclass(frozen=True, kw_only=True)
class Fit(Record):
    """error = irreducible + scale * size ** -exponent.

    Args:
        irreducible: the error that no size removes, at least 0.
        scale: the rest, at size 1.
        exponent: above 0.
        noise: standard deviation over seeds, as a share of the error; None with one seed.
        scatter: root mean square distance of the networks' means from the curve, as a share of the error.
        curve: the law over the measured sizes, and beyond where that is not refused.
    """

    irreducible: Estimate
    scale: Estimate
    exponent: Estimate
    noise: float | None
    scatter: float
    curve: tuple[OnCurve, ...]


@dataclass(frozen=True, kw_only=True)
class HeldOut(Record):
    """The largest size, predicted by a fit to the others.

    Args:
        size: the largest.
        measured: mean error there, with its interval over seeds.
        predicted: by the fit to all smaller sizes.
        difference: predicted minus measured.
    """

    size: float
    measured: Estimate
    predicted: Estimate
    difference: Estimate


@dataclass(frozen=True, kw_only=True)
class Law(Record):
    """A power law of one kind of error over one size, in one setting, or the reason why there is none.

    Args:
        setting: the setting's name; empty in a study where nothing varies.
        error: the kind of error.
        over: the size.
        at: of laws over depth or width, what the other is: "width 2".
        num_sizes: different sizes.
        num_cells: cells in it: networks and seeds.
        fit: the law; None if these data show none.
        held_out: the test of it.
        refusal: the reason not to go beyond the measured sizes, a sentence; None if the data bear it.
    """

    setting: str
    error: Kind
    over: Size
    at: str | None = None
    num_sizes: Count
    num_cells: Count
    fit: Fit | None = None
    held_out: HeldOut | None = None
    refusal: str | None = None


@dataclass(frozen=True, kw_only=True)
class Balance(Record):
    """The depth and width of least error at a cost, by the joint law, inside the measured depths and widths.

    Args:
        multiply_adds: of one image.
        depth: layers.
        width: multiplier.
        error: the law's there.
        at_edge: "depth", "width": what the measured range, and not the law, bounds; None if the least is inside.
    """

    multiply_adds: float
    depth: Estimate
    width: Estimate
    error: Estimate
    at_edge: str | None = None


@dataclass(frozen=True, kw_only=True)
class JointLaw(Record):
    """error = irreducible + deep * depth ** -deep_exponent + wide * width ** -wide_exponent, or why there is none."""

    setting: str
    error: Kind
    irreducible: Estimate | None = None
    deep: Estimate | None = None
    deep_exponent: Estimate | None = None
    wide: Estimate | None = None
    wide_exponent: Estimate | None = None
    scatter: float | None = None
    balances: tuple[Balance, ...] = ()
    refusal: str | None = None


@dataclass(frozen=True, kw_only=True)
class Priced(Record):
    """A network's cost and error.

    Args:
        network: its string.
        depth: layers.
        width: the multiplier, as it is written.
        cost: in the frontier's unit.
        error: mean over seeds, with its interval.
        num_seeds: of its cells that finished.
        on_front: whether no cheaper network has as small an error.
        share: of the draws of seeds in which it is on the front; None with one seed.
    """

    network: str
    depth: Count
    width: str
    cost: float
    error: Estimate
    num_seeds: Count
    on_front: bool
    share: float | None


@dataclass(frozen=True, kw_only=True)
class Frontier(Record):
    """The networks of a setting over a cost, the cheapest first."""

    setting: str
    error: Kind
    over: Size
    networks: tuple[Priced, ...]


@dataclass(frozen=True, kw_only=True)
class AtEqualCost(Record):
    """A deeper and a wider network of about the same cost.

    Args:
        setting: of both.
        error: the kind of error.
        over: the cost.
        deeper: the string of the one.
        wider: that of the other.
        deeper_cost: in the unit of the cost.
        wider_cost: the same.
        difference: error of the deeper minus that of the wider, paired over seeds.
        num_seeds: that both have.
        verdict: the better one, if the interval leaves out 0.
    """

    setting: str
    error: Kind
    over: Size
    deeper: str
    wider: str
    deeper_cost: float
    wider_cost: float
    difference: Estimate
    num_seeds: Count
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class StageEffect(Record):
    """The relative change of the error when a stage's capacity doubles, that of the others held: -0.02 is 2 % less."""

    stage: Count
    effect: Estimate


@dataclass(frozen=True, kw_only=True)
class Stages(Record):
    """Where capacity helps: effects of all stages of a setting's networks, or why this grid does not tell."""

    setting: str
    error: Kind
    effects: tuple[StageEffect, ...] = ()
    refusal: str | None = None


@dataclass(frozen=True, kw_only=True)
class Within(Record):
    """The best of a setting within a budget of training.

    Args:
        setting: its name.
        budget: training FLOPs.
        network: the measured network of least robust error among those within it; None if none is.
        error: its error.
        parameters: of a network whose training takes the whole budget, between measured ones; None if refused.
        predicted: robust error there, by the law over training FLOPs.
        refusal: the reason why nothing is predicted.
    """

    setting: str
    budget: float
    network: str | None = None
    error: Estimate | None = None
    parameters: float | None = None
    predicted: Estimate | None = None
    refusal: str | None = None


@dataclass(frozen=True, kw_only=True)
class Compared(Record):
    """Two settings that differ in one key, paired over networks and seeds.

    Args:
        first: a setting.
        second: another.
        error: the kind of error.
        difference: mean of the second's error minus the first's.
        num_pairs: of cells of the same network and seed.
        networks: mean difference of each network.
    """

    first: str
    second: str
    error: Kind
    difference: Estimate
    num_pairs: Count
    networks: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Published(Record):
    """A measurement by others, which is shown beside the study and enters none of its numbers.

    Args:
        network: as published.
        depth: layers.
        robust: accuracy under attack.
        data: the data set.
        attack: in words.
        training: in words.
        source: the paper.
    """

    network: str
    depth: Count
    robust: float
    data: str
    attack: str
    training: str
    source: str


@dataclass(frozen=True, kw_only=True, repr=False)
class Reading(Shown, Record):
    """All that a study's cells tell.

    Args:
        study: the cells.
        command: what made it, as one types it.
        settings: the settings' names, in the study's order; one empty name if nothing varies.
        laws: of error over each size.
        joint: of error over depth and width together.
        frontiers: of error over cost.
        equal_cost: depth against width.
        stages: where capacity helps.
        within: the best within budgets of training.
        compared: settings with each other.
        published: others' measurements, which enter nothing of this.
        findings: the answer in sentences.
    """

    study: StudyRecord
    command: str
    settings: tuple[str, ...]
    laws: tuple[Law, ...]
    joint: tuple[JointLaw, ...]
    frontiers: tuple[Frontier, ...]
    equal_cost: tuple[AtEqualCost, ...]
    stages: tuple[Stages, ...]
    within: tuple[Within, ...]
    compared: tuple[Compared, ...]
    published: tuple[Published, ...]
    findings: tuple[str, ...] = ()

    def _summary(self) -> Summary:
        rows = [
            (row.name, *(_percent(row, kind) for kind in ("clean", "robust")), row.status) for row in self.study.cells
        ]
        heads = ("cell", "clean", "robust", "status")
        return Summary(f"scaling study {self.study.name} on {self.study.data}", heads, tuple(rows), self.findings)

    def to_frame(self) -> pd.DataFrame:
        """Return the cells as a table, a row each; accuracies are fractions."""
        return frame(_plain(row) for row in self.study.cells)

    def plot(self) -> Figure:
        """Draw robust error over parameters with the fitted laws."""
        from robust_nas.core.figures import ATTACKED, LINES, own_figure, styled
        from robust_nas.core.palette import HUES

        def draw() -> Figure:
            figure = own_figure(6, 3.6)
            axes = figure.subplots()
            several = len(self.settings) > 1
            for place, name in enumerate(self.settings):
                colour = HUES[place % len(HUES)] if several else ATTACKED
                rows = [row for row in self.study.cells if row.robust and setting_of(row, self.study) == name]
                errors = [100 * (1 - row.robust.accuracy) for row in rows if row.robust]
                label = name or "cells"
                axes.plot([row.parameters for row in rows], errors, ".", color=colour, label=label)
                for law in self.laws:
                    if law.fit and (law.setting, law.error, law.over) == (name, "robust", "parameters"):
                        curve = [(point.size, 100 * point.error.value) for point in law.fit.curve if not point.beyond]
                        axes.plot(*zip(*curve, strict=True), color=colour, linestyle=LINES[place % len(LINES)])
            axes.set_xscale("log")
            axes.set_xlabel("parameters")
            axes.set_ylabel("robust error, %")
            if several:
                axes.legend(frameon=False)
            return figure

        return styled(draw)()


def setting_of(row: CellRow, study: StudyRecord) -> str:
    """Return the name of a cell's setting: "norm=mixture", with the whole key where its end says not enough."""
    keys = list(dict.fromkeys(key for cell in study.cells for key in cell.varied))
    last = [key.rpartition(".")[2] for key in keys]
    short = {key: end if last.count(end) == 1 else key for key, end in zip(keys, last, strict=True)}
    return ", ".join(f"{short[key]}={row.varied[key]}" for key in keys if key in row.varied)


def _percent(row: CellRow, kind: str) -> str:
    measured = getattr(row, kind)
    return f"{100 * measured.accuracy:.1f} %" if measured else "-"


def _plain(row: CellRow) -> dict[str, Any]:
    names = ("name", "network", "depth", "width", "seed", "parameters", "multiply_adds", "epochs", "training_flops")
    measured = {kind: found.accuracy if (found := getattr(row, kind)) else None for kind in ("clean", "robust")}
    rest = {"status": row.status, "reason": row.reason, "collapsed": row.collapsed, "seconds": row.seconds}
    return {name: getattr(row, name) for name in names} | dict(row.varied) | measured | rest
