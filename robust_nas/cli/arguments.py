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
RUN = argument("run", type=Path, metavar="RUN", help="a run folder")

_OVERRIDE = re.compile(r"[a-z_]+(\.[a-z_]+)*=")


def parted(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the words that are no KEY=VALUE, and those that are."""
    overrides = [word for word in words if _OVERRIDE.match(word)]
    return [word for word in words if not _OVERRIDE.match(word)], overrides


def given(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that were given."""
    return {name: value for name, value in options.items() if value is not None}
