"""The files of a scaling study: the end of each cell, and what its run folder says, in a row."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from robust_nas.records import Record
from robust_nas.records.evaluation import Count, Measured, Share

Status = Literal["finished", "diverged", "out of memory", "failed"]


@dataclass(frozen=True, kw_only=True)
class CellEnd(Record):
    """cells/NAME.json: how a cell ended, which nobody measures again.

    Args:
        status: "finished"; "diverged", if the loss was no number any more; "out of memory"; or "failed".
        reason: of what did not finish, one sentence.
        seconds: wall time of the session that ended it.
        peak_memory: the largest resident memory of its process, in bytes; None where it was not measured.
    """

    status: Status
    reason: str | None = None
    seconds: float
    peak_memory: Count | None = None


@dataclass(frozen=True, kw_only=True)
class StudyData(Record):
    """study.json: a study's data and cells in numbers.

    Args:
        name: the data set's.
        image_shape: [C, H, W].
        num_classes: classes.
        num_train: images to train on.
        num_validation: images that choose the epoch.
        num_cells: cells of its grid; 0 of a plan, which has no folder.
        command: what was typed to make it.
    """

    name: str
    image_shape: tuple[Count, Count, Count]
    num_classes: Count
    num_train: Count
    num_validation: Count
    num_cells: Count = 0
    command: str | None = None


@dataclass(frozen=True, kw_only=True)
class CellRow(Record):
    """A cell of a study, with what is known of it.

    Args:
        name: the name of its run folder in cells/.
        network: the architecture's string.
        net: its line of networks, such as cifar-resnet.
        depth: its layers with weights.
        blocks: of each stage, the blocks.
        widths: of each stage, the multiplier of channels.
        channels: of each stage, the channels of its 3x3 convolutions.
        seed: of all draws.
        varied: the settings in which cells differ beside depth, width and seed, by key.
        parameters: trainable ones.
        multiply_adds: of one image.
        epochs: of the training.
        training_flops: of the whole training, attacks included; 2 for a multiply-add.
        status: as `CellEnd` has it, or "waiting".
        reason: of what did not finish.
        seconds: wall time of the training.
        peak_memory: in bytes.
        validation: accuracies of the kept epoch on validation images.
        clean: accuracy on test images.
        robust: worst-case accuracy on test images under all attacks.
        attacks: accuracy under each, by its label.
        steps: accuracy under PGD after so many steps, the images counted that no earlier step fooled.
        collapsed: whether its training was stopped by catastrophic overfitting.
    """

    name: str
    network: str
    net: str
    depth: Count
    blocks: tuple[Count, ...]
    widths: tuple[float, ...]
    channels: tuple[Count, ...]
    seed: int
    varied: dict[str, str] = field(default_factory=dict)
    parameters: Count
    multiply_adds: Count
    epochs: Count
    training_flops: float
    status: Status | Literal["waiting"]
    reason: str | None = None
    seconds: float | None = None
    peak_memory: Count | None = None
    validation: dict[str, Share] | None = None
    clean: Measured | None = None
    robust: Measured | None = None
    attacks: dict[str, Measured] = field(default_factory=dict)
    steps: dict[str, Share] = field(default_factory=dict)
    collapsed: bool = False

    @property
    def width(self) -> str:
        """The multiplier as it is written: 2, or one for each stage, 1-1-1.5-2."""
        written = [f"{own:g}" for own in self.widths]
        return written[0] if len({*written}) == 1 else "-".join(written)


@dataclass(frozen=True, kw_only=True)
class StudyRecord(Record):
    """scaling.json: all cells of a study, with the circumstances that they were measured in.

    Args:
        name: the study's.
        data: the data set's name.
        threat: as "linf 8/255".
        method: the training method.
        hardware: the processors of the sessions.
        command: what ran it, as one types it; None if that is not known.
        cells: in the grid's order.
    """

    name: str
    data: str
    threat: str
    method: str
    hardware: tuple[str, ...]
    command: str | None = None
    cells: Annotated[tuple[CellRow, ...], Field(min_length=1)]
