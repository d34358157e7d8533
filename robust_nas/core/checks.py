"""Checks of single settings, whose sentences name the wanted and the given value."""

from __future__ import annotations

import os
import reprlib
from numbers import Integral
from typing import Any, get_args

from robust_nas.core.errors import InputError
from robust_nas.core.text import visible


def check_choice(name: str, value: Any, choices: Any) -> None:
    """Raise InputError unless `value` is one of the values of the Literal `choices`."""
    if value not in get_args(choices):
        raise InputError(f"{name} must be one of {', '.join(get_args(choices))}, but got {value!r}.")


def check_at_least(name: str, value: int, low: int) -> None:
    """Raise InputError unless `value` is a whole number of at least `low`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < low:
        raise InputError(f"{name} must be a whole number of at least {low}, but got {value!r}.")


_MADE = {
    "Dataset": "rn.datasets.load makes it",
    "ImageSet": "a part of a data set, such as data.test",
    "ThreatModel": "such as rn.ThreatModel(epsilon=0.03)",
    "Module": "a network",
    "Tensor": "torch.as_tensor makes one of an array",
}
"""The makers of the arguments of calls, for the messages."""


def check_kinds(call: str, **given: tuple[object, type]) -> None:
    """Raise InputError for an argument that is not of its type."""
    for name, (value, kind) in given.items():
        if not isinstance(value, kind):
            raise InputError(
                f"{call} takes as {name} one {kind.__name__} ({_MADE[kind.__name__]}), but got one "
                f"{type(value).__name__}."
            )


def check_type(name: str, value: Any, kinds: type | tuple[type, ...], wanted: str) -> None:
    """Raise InputError unless an argument is of one of some types, which `wanted` says in words."""
    if not isinstance(value, kinds):
        plain = value is None or isinstance(value, str | int | float)
        got = reprlib.repr(value) if plain else f"one {type(value).__name__}"
        raise InputError(f"{name} must be {wanted}, but got {got}.")


def check_path(name: str, value: Any) -> None:
    """Raise InputError unless `value` is a path, or the text of one."""
    check_type(name, value, (str, os.PathLike), "a path, or the text of one")
    if "\0" in str(value):
        raise InputError(f"{name} must be a path, in which no null character is, but got {reprlib.repr(str(value))}.")


def check_utf8(name: str, value: str) -> None:
    """Raise InputError for text that is not UTF-8, as names of files may be."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(f"{name} must be UTF-8 text, but got '{visible(value)}'; rename the file or folder.") from None
