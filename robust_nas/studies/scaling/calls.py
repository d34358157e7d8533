"""A scaling study in one Python call, and its plan in another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from robust_nas.architectures.resnet import width_text
from robust_nas.records.reading import Reading
from robust_nas.runtime.process import unchanged_process
from robust_nas.runtime.progress import of_call
from robust_nas.studies.scaling.grid import SHORT, from_words
from robust_nas.studies.scaling.planned import Plan
from robust_nas.studies.scaling.planning import SECONDS, plan
from robust_nas.studies.scaling.reading import read
from robust_nas.studies.scaling.results import read as read_cells
from robust_nas.studies.scaling.run import begun, measure

Listed = str | float | Sequence[str | float]
"""The values of an axis: a list, or the text of the command line."""


def scale(
    data: str,
    depths: Listed,
    *,
    widths: Listed = 1,
    seeds: Listed = 1,
    vary: Mapping[str, Listed] | None = None,
    settings: Sequence[str] = (),
    out: Path | str = "runs",
    folder: Path | str | None = None,
    workers: int = 1,
    memory: float | None = None,
    retry: bool = False,
    budget: float | None = None,
    progress: bool = True,
    **words: Any,
) -> Reading:
    """Train and attack networks of many depths and widths, and return what the study says.

    The same call goes on with a study that was interrupted, as `robust-nas scale run` does.

    Args:
        data: the name of a data set that has a recipe, or a folder of class folders: each cell is a process of its own,
            which reads it.
        depths: layers with weights, [20, 38, 74].
        widths: multipliers of the channels, [1, 2], or "1-1-1.5-2" for each stage.
        seeds: how many, or a list.
        vary: further settings that vary, {"train.norm": ["batch", "mixture"]}.
        settings: assignments to the recipe of all cells, ["train.epochs=5"].
        out: the folder of studies.
        folder: the study's own; named after the grid in `out`, if not given.
        workers: cells side by side.
        memory: GiB that each may take.
        retry: whether cells that did not finish are measured again.
        budget: training FLOPs, for the best size within them.
        progress: whether to show it.
        words: net, options, train and threat, as `from_words` takes them; and the values of norms, clean_images and
            epochs.

    Raises:
        InputError: for a grid that is none, data that is not there, or a folder of another grid.
    """
    axes = {"depths": _text(depths), "widths": _text(widths), "seeds": _text(seeds)}
    varied = [f"{key}={_text(values)}" for key, values in (vary or {}).items()]
    with unchanged_process():
        words = {**_short(words), **axes, "data": str(data), "vary": varied, "overrides": list(settings)}
        study = begun(None if folder is None else Path(folder), words, Path(out))
        measure(study, of_call(progress), workers=workers, memory=memory, retry=retry)
        return read(read_cells(study), budget)


@unchanged_process()
def plan_scaling(
    data: str,
    depths: Listed,
    *,
    widths: Listed = 1,
    seeds: Listed = 1,
    vary: Mapping[str, Listed] | None = None,
    settings: Sequence[str] = (),
    size: int | None = None,
    classes: int | None = None,
    num_images: int | None = None,
    memory: float | None = None,
    seconds: float = SECONDS,
    attacks: bool = True,
    progress: bool = True,
    **words: Any,
) -> Plan:
    """Return the cost of every network of a study, and whether it fits, before anything is trained.

    Args:
        data: the name of a data set that has a recipe, or a folder of class folders.
        depths: layers with weights, [20, 38, 74].
        widths: multipliers of the channels, [1, 2], or "1-1-1.5-2" for each stage.
        seeds: how many, or a list.
        vary: further settings that vary, {"train.norm": ["batch", "mixture"]}.
        settings: assignments to the recipe of all cells, ["train.epochs=5"].
        size: pixels a side of the images; with `classes` and `num_images`, the data need not be here.
        classes: of the data.
        num_images: images to train on.
        memory: GiB; what this device has, if not given.
        seconds: to be spent on timing steps, about.
        attacks: whether the attacks on test images are counted.
        progress: whether to show it.
        words: as of `scale`.

    Raises:
        InputError: for a grid that is none, or data that is not here.
    """
    varied = [f"{key}={_text(values)}" for key, values in (vary or {}).items()]
    grid = from_words(
        list(settings),
        data=str(data),
        depths=_text(depths),
        widths=_text(widths),
        seeds=_text(seeds),
        vary=varied,
        size=size,
        **_short(words),
    )
    own = {"size": size, "classes": classes, "num_images": num_images}
    return plan(grid, **own, memory=memory, seconds=seconds, attacks=attacks, progress=of_call(progress))


def _short(words: Mapping[str, Any]) -> dict[str, Any]:
    """Return words with the values of those that are axes as text."""
    return {name: _text(values) if name in SHORT else values for name, values in words.items()}


def _text(values: Listed) -> str:
    """Return the values of an axis as the command line has them."""
    if isinstance(values, str | float | int):
        return width_text(values) if isinstance(values, float) else str(values)
    return ",".join([*map(_text, values), *([""] if len(values) == 1 else [])])
