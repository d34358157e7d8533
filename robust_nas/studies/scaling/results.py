"""The cells of a study in one table: what their run folders say of training and attacks."""

from __future__ import annotations

from pathlib import Path

from robust_nas import records
from robust_nas.core.files import is_there
from robust_nas.core.pixels import format_pixels
from robust_nas.core.registry import name_of
from robust_nas.records.evaluation import Attacked, EvaluationRecord, Measured
from robust_nas.records.scaling import CellRow, StudyData, StudyRecord
from robust_nas.records.training import TrainingRecord
from robust_nas.runtime.environment import differing, sessions_of
from robust_nas.runtime.run_folder import RunFolder
from robust_nas.studies.scaling import costs, grid
from robust_nas.studies.scaling.files import Files
from robust_nas.studies.scaling.grid import Cell

MODEL = "model-0"
"""The one model of a cell's run."""


def read(study: Path) -> StudyRecord:
    """Return all cells of a study, as far as they have come.

    Raises:
        InputError: if `study` is none, or a file of it is damaged.
    """
    cells, files = grid.read(study).cells(), Files(study)
    data = records.read(study / "study.json", StudyData)
    # One of each setting: seeds, depths and widths change neither.
    recipes = list({tuple(cell.varied.items()): cell.recipe for cell in reversed(cells)}.values())[::-1]
    threats = [f"{each.threat.norm} {format_pixels(each.threat.epsilon)}" for each in recipes]
    methods = [name_of(each.train.method) for each in recipes]
    sessions = [session for cell in cells for session in sessions_of(RunFolder(files.run(cell.name)))]
    return StudyRecord(
        name=study.name,
        data=data.name,
        threat=" or ".join(dict.fromkeys(threats)),
        method=" or ".join(dict.fromkeys(methods)),
        hardware=tuple(differing(sessions)),
        command=data.command,
        cells=tuple(_row(cell, files, data) for cell in cells),
    )


def _row(cell: Cell, files: Files, data: StudyData) -> CellRow:
    """Return a cell with what its run folder says."""
    run, end, network = files.run(cell.name), files.end(cell.name), cell.network
    size = costs.size(network, data)
    trained = records.read(run / "train.json", TrainingRecord).models[0] if is_there(run / "train.json") else None
    attacked = _attacked(run)
    return CellRow(
        name=cell.name,
        network=str(network),
        net=network.net,
        depth=network.depth,
        blocks=network.stages,
        widths=network.widths,
        channels=network.channels,
        seed=cell.seed,
        varied=dict(cell.varied),
        parameters=size.parameters,
        multiply_adds=size.multiply_adds,
        epochs=cell.recipe.train.epochs,
        training_flops=costs.training_flops(cell.recipe, network, data),
        status="waiting" if end is None else end.status,
        reason=None if end is None else end.reason,
        peak_memory=None if end is None else end.peak_memory,
        seconds=None if trained is None else trained.seconds,
        validation=None if trained is None else trained.validation,
        collapsed=trained is not None and trained.collapsed,
        clean=None if attacked is None else _measured(attacked.clean),
        robust=None if attacked is None else _measured(attacked.worst_case),
        attacks={} if attacked is None else {each.name: _measured(each) for each in attacked.attacks},
        steps={} if attacked is None else {str(point.steps): point.accuracy for point in attacked.steps},
    )


def _attacked(run: Path) -> Attacked | None:
    """Return the measurements of a run's model, if it has been attacked."""
    path = run / "evaluation.json"
    return records.read(path, EvaluationRecord).models.get(MODEL) if is_there(path) else None


def _measured(found: Measured) -> Measured:
    """Return an accuracy and its interval alone."""
    return Measured(accuracy=found.accuracy, low=found.low, high=found.high, count=found.count)
