"""The progress of a stage: a bar on a terminal, plain lines elsewhere, nothing on ranks other than 0."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sized
from typing import TYPE_CHECKING, TypeVar

from robust_nas.core.text import visible

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")


class Progress:
    """Shows steps and messages; `Progress(quiet=True)` shows nothing."""

    def __init__(self, *, quiet: bool = False, console: Console | None = None) -> None:
        if console is None:
            from rich.console import Console

            console = Console(stderr=True, quiet=quiet, highlight=False)
        self.console = console

    def say(self, message: str) -> None:
        """Print one line."""
        self.console.print(visible(message), markup=False, soft_wrap=True)

    def steps(self, items: Iterable[T], title: str, *, total: int | None = None, done: int = 0) -> Iterator[T]:
        """Yield `items` while showing how many of `total` are done, `done` of them before this run.

        A terminal gets a bar with the time left; anything else gets a line now and then.
        """
        if total is None and isinstance(items, Sized):
            total = done + len(items)
        if self.console.quiet:
            yield from items
        elif self.console.is_terminal:
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            with Bar(*columns, TextColumn("left"), TimeRemainingColumn(), console=self.console) as bar:
                task = bar.add_task(title, total=total, completed=done)
                for item in items:
                    yield item
                    bar.advance(task)
        else:
            yield from self._lines(items, title, total, done)

    def _lines(self, items: Iterable[T], title: str, total: int | None, done: int) -> Iterator[T]:
        start = shown = time.monotonic()
        count = done
        for count, item in enumerate(items, start=done + 1):
            yield item
            now = time.monotonic()
            if now - shown >= 10:
                self.say(f"{title}: {count}/{total or '?'} after {now - start:.0f} s")
                shown = now
        self.say(f"{title}: {count}/{total or count} in {time.monotonic() - start:.0f} s")
