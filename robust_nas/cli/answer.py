"""The answer of a verb, on standard output: text for people or, with --json, the same as one JSON value for programs.

Progress and warnings are on standard error, so that an answer can be piped. Accuracies in JSON are fractions.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from robust_nas.cli.job import is_main
from robust_nas.core.commands import json_asked, print_answer
from robust_nas.core.text import visible


def answer(text: Callable[[], str] | str, facts: Callable[[], Any] | Any) -> None:
    """Print an answer, on one process of several.

    Args:
        text: the answer for people; a function is called only if it is wanted.
        facts: the same as data: records, tables, lists, numbers.
    """
    if not is_main():
        return
    chosen = facts if json_asked() else text
    found = chosen() if callable(chosen) else chosen
    print_answer(json.dumps(strict(found), indent=1, allow_nan=False) if json_asked() else visible(found))


def strict(value: Any) -> Any:
    """Return data as JSON has it: records as objects, paths as text, and null for what is no number."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        named = {field.name.removesuffix("_"): getattr(value, field.name) for field in dataclasses.fields(value)}
        return {name: strict(item) for name, item in named.items() if item is not None}
    if isinstance(value, Mapping):
        return {str(key): strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
