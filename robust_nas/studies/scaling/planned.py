"""The plan of a scaling study as it is shown: a row for every network of a grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from robust_nas.core.shown import Shown, Summary, frame
from robust_nas.core.text import aligned
from robust_nas.evaluation.costs import duration
from robust_nas.records.scaling import StudyData

if TYPE_CHECKING:
    import pandas as pd

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class PlannedNetwork:
    """A network of a grid in one setting, before it is trained.

    Args:
        network: its string.
        depth: layers with weights.
        width: multiplier of channels.
        varied: the settings in which cells differ, by key.
        seeds: trainings of it in the grid.
        parameters: trainable ones.
        multiply_adds: of one image.
        image_size: pixels a side, the largest of the training.
        batch_size: images of a step.
        steps: optimiser steps of the training.
        epochs: passes over the training images.
        images_per_epoch: images that are trained on in an epoch.
        passes: forward passes that a step amounts to, for each image: 2k + 3 for PGD-k.
        flops: of the training, crafting included; 2 for a multiply-add.
        validation_flops: of the attacks on validation images, at most.
        attack_flops: of the attacks on test images, at most; None if they were left out.
        activations: bytes that a training pass keeps for one image.
        activations_checkpointed: the same with checkpointing; None for a network without blocks.
        memory: the most bytes of weights, activations and the rest that the training holds, as the settings say.
        memory_plain: the same without checkpointing.
        memory_checkpointed: with it; None for a network without blocks.
        epoch_seconds: expected time of an epoch, validation included.
        seconds: of the training.
        attack_seconds: of the attacks on test images, at most; None if they were left out.
        fits: "yes", "no", or what is to be set, "with checkpointing and train.accumulate=8".
        reason: of what does not fit as it is: the thing that is too large.
    """

    network: str
    depth: int
    width: str
    varied: Mapping[str, str]
    seeds: int
    parameters: int
    multiply_adds: int
    image_size: int
    batch_size: int
    steps: int
    epochs: int
    images_per_epoch: int
    passes: float
    flops: float
    validation_flops: float
    attack_flops: float | None
    activations: float
    activations_checkpointed: float | None
    memory: int
    memory_plain: int
    memory_checkpointed: int | None
    epoch_seconds: float
    seconds: float
    attack_seconds: float | None
    fits: str
    reason: str | None


@dataclass(frozen=True, repr=False)
class Plan(Shown):
    """The plan of a scaling study.

    Args:
        networks: rows, the networks in the grid's order, in every setting.
        cells: trainings of the grid.
        data: the data in numbers.
        device: the name of the device that it was timed on.
        memory: bytes that there are.
        base: bytes that the process takes without a network, images included.
        rates: seconds for a multiplication, for a byte and for an operation, as they were fitted.
        timed: the steps that were timed: images, multiplications of a training pass of one, and seconds for a pass.
        overhead: the memory that steps really took, as a multiple of the activations that torch held.
        seconds: of all cells, one after the other, attacks included.
        flops: of all cells, attacks included.
    """

    networks: tuple[PlannedNetwork, ...]
    cells: int
    data: StudyData
    device: str
    memory: int
    base: int
    rates: tuple[float, float, float]
    timed: tuple[tuple[int, float, float], ...]
    overhead: float
    seconds: float
    flops: float

    def to_frame(self) -> pd.DataFrame:
        """Return a row per network and setting, with the fields of `PlannedNetwork`."""
        return frame({**asdict(row), **row.varied} for row in self.networks)

    def text(self) -> str:
        """Return it as lines, with all rows."""
        summary = self._summary()
        lines = [f"  {line}" for line in aligned([summary.heads, *summary.rows], left=1)]
        return "\n".join([summary.title, *lines, self._total, *summary.notes])

    @property
    def _total(self) -> str:
        size = " x ".join(map(str, self.data.image_shape))
        attacks = any(row.attack_seconds is not None for row in self.networks)
        return (
            f"{self.cells} trainings{' and their attacks' if attacks else ''}: {duration(self.seconds)} on this "
            f"device, one after the other, and {self.flops:.3g} FLOPs. {self.data.name}: {self.data.num_train:,} "
            f"images of {size} to train on, {self.data.num_validation:,} to validate. Activations are of one image, "
            f"memory is of the training beside {self.base / GIB:.1f} GiB for the program and its images. Attacks: at "
            "most, if no image falls."
        )

    def _summary(self) -> Summary:
        varied = list(dict.fromkeys(key for row in self.networks for key in row.varied))
        heads = ("network", *(key.rpartition(".")[2] for key in varied), "parameters", "multiply-adds", "activations")
        heads += ("checkpointed", "passes", "FLOPs", "epoch", "training", "attacks", "memory", "checkpointed", "fits")
        rows = tuple(
            (
                row.network,
                *(row.varied.get(key, "") for key in varied),
                _short(row.parameters),
                _short(row.multiply_adds),
                _mebibytes(row.activations),
                _mebibytes(row.activations_checkpointed),
                f"{row.passes:.1f}",
                f"{row.flops:.2g}",
                duration(row.epoch_seconds),
                duration(row.seconds),
                "-" if row.attack_seconds is None else duration(row.attack_seconds),
                _gibibytes(row.memory_plain),
                _gibibytes(row.memory_checkpointed),
                row.fits,
            )
            for row in self.networks
        )
        title = f"{len(self.networks)} networks on {self.device}, {self.memory / GIB:.0f} GiB of memory"
        notes = tuple(row.reason for row in self.networks if row.reason is not None)
        return Summary(title, heads, rows, tuple(dict.fromkeys(notes)), len(rows))


def _short(count: float) -> str:
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= unit:
            return f"{count / unit:.4g} {name}"
    return f"{count:.0f}"


def _mebibytes(count: float | None) -> str:
    return "-" if count is None else f"{count / 2**20:.3g} MiB"


def _gibibytes(count: float | None) -> str:
    return "-" if count is None else f"{count / GIB:.3g} GiB"
