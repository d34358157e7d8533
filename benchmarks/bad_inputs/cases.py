"""A bad input, and the words and texts that several kinds use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ATTACK = ["attack", "net.py:Net", "--data", "digits", "--threat", "linf:0.1", "--attack", "fgsm", "--images", "10"]
DIGITS = "9" * 400
DEEP = "[" * 3000 + "]" * 3000


@dataclass(frozen=True)
class Case:
    """One bad input.

    Args:
        kind: what it is a mistake in.
        name: what is wrong.
        words: the command's words; or Python code, as a text.
        change: what makes the files around it bad, in a folder that has the good ones.
        may_work: whether an answer is right as well as a refusal.
    """

    kind: str
    name: str
    words: list[str] | str
    change: Callable[[Path], object] = lambda _: None
    may_work: bool = False
