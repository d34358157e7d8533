"""Situations, and how one is checked: equal, true, refused in one sentence."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import robust_nas as rn
from robust_nas import cli


@dataclass(frozen=True)
class Situation:
    """One situation.

    Args:
        kind: what it is about.
        report: `owner/repository#number` of the public thread.
        check: sets it up in an empty folder, and raises what happened if it does not hold.
    """

    kind: str
    report: str
    check: Callable[[Path], None]

    @property
    def name(self) -> str:
        """The situation as a sentence."""
        return self.check.__name__.strip("_").replace("_", " ")

    @property
    def address(self) -> str:
        """Where the report is."""
        repository, number = self.report.split("#")
        return f"https://github.com/{repository}/issues/{number}"


SITUATIONS: list[Situation] = []


def situation(kind: str, report: str) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    """Add a function to the situations."""

    def add(check: Callable[[Path], None]) -> Callable[[Path], None]:
        SITUATIONS.append(Situation(kind, report, check))
        return check

    return add


def same(found: Any, wanted: Any, what: str = "the answer", tolerance: float = 0.0) -> None:
    """Raise unless two tensors or numbers are equal."""
    found, wanted = torch.as_tensor(found), torch.as_tensor(wanted)
    if found.shape != wanted.shape:
        raise AssertionError(f"{what} has the shape {list(found.shape)}, not {list(wanted.shape)}")
    off = (found.double() - wanted.double()).abs()
    if not bool((off <= tolerance).all()):
        raise AssertionError(f"{what} is {short(found)}, not {short(wanted)}")


def true(holds: Any, otherwise: str) -> None:
    """Raise with a sentence unless something holds."""
    if not bool(holds):
        raise AssertionError(otherwise)


def refused(call: Callable[[], Any], *words: str) -> None:
    """Raise unless a call ends in one sentence of ours that has these words."""
    try:
        answer = call()
    except rn.InputError as error:
        said = str(error)
        true("\n" not in said, f"the message has several lines: {said!r}")
        missing = [word for word in words if word.lower() not in said.lower()]
        true(not missing, f"the message does not say {missing}: {said}")
        return
    raise AssertionError(f"it is accepted, with {short(answer)}")


def right_or_refused(call: Callable[[], Any], *words: str) -> None:
    """Raise unless a call, which raises where it is wrong, ends well or in one sentence that has these words."""
    try:
        call()
    except rn.InputError as error:
        missing = [word for word in words if word.lower() not in str(error).lower()]
        true(not missing and "\n" not in str(error), f"the message does not say {missing}: {error}")


def command(*words: str | Path) -> tuple[int, str, str]:
    """Run `robust-nas WORDS` in this process, and return its exit code, output and messages."""
    code = 0
    with (
        contextlib.redirect_stdout(io.StringIO()) as output,
        contextlib.redirect_stderr(io.StringIO()) as errors,
        mock.patch.object(sys, "argv", ["robust-nas", *(str(word) for word in words)]),
    ):
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
    return code, output.getvalue(), errors.getvalue()


def refused_command(words: Sequence[str | Path], *said: str) -> None:
    """Raise unless `robust-nas WORDS` ends with 2 and one sentence that has `said`."""
    code, _, errors = command(*words)
    last = errors.strip().splitlines()[-1] if errors.strip() else ""
    true(code == 2 and "Traceback" not in errors, f"it ends with {code}: {short(errors)}")
    missing = [word for word in said if word.lower() not in last.lower()]
    true(not missing, f"the message does not say {missing}: {last}")


def short(value: Any) -> str:
    """A value as a text of at most 160 characters."""
    text = str(value.tolist() if isinstance(value, Tensor) else value)
    text = " ".join(text.split())
    return text if len(text) <= 160 else f"{text[:160]}..."
