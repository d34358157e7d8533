"""The course of a network's training, epoch by epoch, which the network carries as its attribute `history`."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

from robust_nas.core.figures import CURVES, line_plot
from robust_nas.core.shown import Shown, Summary, frame

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from torch import nn

HISTORY = "history"
"""The attribute in which a trained network has its history: a plain one, which no state dict has."""


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """An epoch of a training.

    Args:
        epoch: its number, from 1.
        loss: the mean over its steps.
        validation: accuracies on the validation split: "clean", "robust" and, where the network is bounded,
            "certified".
        learning_rate: at its end.
        seconds: since the training began.
    """

    epoch: int
    loss: float
    validation: dict[str, float]
    learning_rate: float
    seconds: float


@dataclass(frozen=True, repr=False)
class History(Shown):
    """The epochs of a training, as far as it went.

    Args:
        epochs: in their order. Beside frozen networks of an ensemble, accuracies are of all together.
        kept: the number of the epoch whose weights the network has.
        planned: the number of epochs that were to be trained; a watch may have stopped it before.
    """

    epochs: tuple[Epoch, ...]
    kept: int
    planned: int

    def to_frame(self) -> pd.DataFrame:
        """Return a row per epoch.

        The columns are epoch, loss, clean, robust and, where the network is bounded, certified (fractions of the
        validation split), learning_rate, seconds (since the beginning) and kept (whether these are the weights).
        """
        return frame(
            {
                "epoch": each.epoch,
                "loss": each.loss,
                **each.validation,
                "learning_rate": each.learning_rate,
                "seconds": each.seconds,
                "kept": each.epoch == self.kept,
            }
            for each in self.epochs
        )

    def plot(self) -> Figure:
        """Return a figure with the accuracies on the validation split over the epochs; a line marks the kept epoch."""
        places = [each.epoch for each in self.epochs]
        lines = {
            CURVES[kind][0]: (places, [each.validation[kind] for each in self.epochs], CURVES[kind][1])
            for kind in self.epochs[0].validation
        }
        title = f"Validation accuracy; epoch {self.kept} is kept"
        return line_plot(lines, title, "epoch", marked=self.kept, whole=True)

    def _summary(self) -> Summary:
        kept = self.epochs[-1] if self.kept == self.epochs[-1].epoch else self.epochs[self.kept - 1]
        # The first, the kept, the last and some between, in their order.
        step = max(len(self.epochs) // 6, 1)
        shown = {1, self.kept, self.epochs[-1].epoch, *range(step, self.epochs[-1].epoch, step)}
        rows = [
            (
                f"{each.epoch}{' (kept)' if each is kept else ''}",
                f"{each.loss:.3g}",
                *(f"{100 * share:.1f} %" for share in each.validation.values()),
            )
            for each in self.epochs
            if each.epoch in shown
        ]
        names = [CURVES[kind][0] for kind in kept.validation]
        seconds = self.epochs[-1].seconds
        title = f"{len(self.epochs)} of {self.planned} epochs in {seconds:.0f} s; epoch {self.kept} is kept"
        return Summary(title, ("epoch", "loss", *names), tuple(rows))


def remember(model: nn.Module, history: History) -> None:
    """Give a trained network its history, in place of an earlier one; an attribute of the user's own is left alone."""
    before = getattr(model, HISTORY, None)
    if before is not None and not isinstance(before, History):
        warnings.warn(
            f"The module has a '{HISTORY}' of its own, which is left as it is: the training's history is not kept.",
            stacklevel=4,
        )
        return
    vars(model)[HISTORY] = history
