"""Arguments that several verbs share."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from robust_nas.core.commands import SETTINGS, argument

OVERRIDES = argument("overrides", nargs="*", metavar=SETTINGS, help="settings, such as train.epochs=3")
OUT = argument("--out", type=Path, default=Path("runs"), metavar="FOLDER", help="folder for run folders (runs)")
DATA_ROOT = argument("--data-root", type=Path, metavar="FOLDER", help="the folder of the data set's files")
MODELS = argument(
    "models",
    nargs="+",
    metavar="MODEL",
    help="a run folder, weights in one, a saved ensemble, module:attribute, torchvision:NAME; the last two may end in "
    "@FILE, with weights; or KEY=VALUE, such as threads=1",
)
DATA = argument(
    "--data",
    metavar="NAME",
    help="a data set or a folder of class folders: its test images (the first run's)",
)
EPSILON = argument(
    "--epsilon",
    dest="epsilons",
    action="append",
    metavar="EPSILON",
    help="radius, such as 0.03 or 2/255; repeatable (those the recipe certifies)",
)
OUTPUTS = argument("--outputs", choices=["logits", "probabilities"], help="the kind of the models' outputs (logits)")
NORMALISE = argument(
    "--normalise", metavar="NAME", help="the pixels that the model expects: imagenet, cifar10, ..., MEAN/STD"
)
RUN = argument("run", type=Path, metavar="RUN", help="a run folder")

_OVERRIDE = re.compile(r"[a-z_]+(\.[a-z_]+)*=")


def parted(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the words that are no KEY=VALUE, and those that are."""
    overrides = [word for word in words if _OVERRIDE.match(word)]
    return [word for word in words if not _OVERRIDE.match(word)], overrides


def given(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that were given."""
    return {name: value for name, value in options.items() if value is not None}
