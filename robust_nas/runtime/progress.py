"""The progress of stages and of a whole job: bars on a terminal and in a notebook, plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from robust_nas.core.text import escape, visible
from robust_nas.runtime.work import TimeLeft, Work, duration

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

T = TypeVar("T")

SHORT = 1.0
"""Seconds of a call, or of a loop, of which nothing is shown."""

_BETWEEN_LINES = 10.0
"""Seconds between two lines of a loop where there is no bar."""

_BETWEEN_DRAWINGS = 0.5
"""Seconds between two drawings of a notebook's bar."""

_SHOWN = {"calls": True}


def show_progress(shown: bool) -> None:
    """Show the progress of Python calls, as at first, or do not, for the rest of this process.

    A call's `progress=False` leaves out that of one call.
    """
    _SHOWN["calls"] = bool(shown)


def of_call(progress: bool) -> Progress:
    """Return the display of a Python call: silent for its first second, and for good where progress is not wanted."""
    return Progress(quiet=not (progress and _SHOWN["calls"]), wait=SHORT)


def accuracies_in_words(accuracies: Mapping[str, float], loss: float | None = None) -> str:
    """Return the loss and the accuracies of a step for `Progress.note`, "loss 1.23, clean 61.0%, robust 45.0%"."""
    words = [f"{kind} {share:.1%}" for kind, share in accuracies.items()]
    return ", ".join(words if loss is None else [f"loss {loss:.3g}", *words])


@dataclass
class Loop:
    """A loop of steps that is shown.

    Args:
        title: its name.
        total: its steps, if they are known.
        began: the steps that were done before.
        count: the steps that are done.
        started: when.
        moved: when the last step ended.
        now: the clock.
        note: what the last step found.
    """

    title: str
    total: int | None
    began: int
    count: int
    started: float
    moved: float
    now: Callable[[], float]
    note: str = ""

    @property
    def seconds(self) -> float:
        """Seconds since it started."""
        return self.now() - self.started

    @property
    def left(self) -> str:
        """The time that is left of it, by the mean of its steps."""
        if self.total is None or self.count == self.began:
            return "?"
        mean = (self.moved - self.started) / (self.count - self.began)
        return duration(max(mean * (self.total - self.count) - (self.now() - self.moved), 0.0))

    def line(self) -> str:
        """Return it under way as a line."""
        parts = [f"{self.title}: {self.count}/{self.total or '?'}", *([self.note] if self.note else [])]
        return ", ".join([*parts, f"after {self.seconds:.0f} s", f"left {self.left}"])

    def end(self) -> str:
        """Return it at its end as a line."""
        parts = [f"{self.title}: {self.count}/{self.total or self.count} in {self.seconds:.0f} s"]
        return ", ".join([*parts, *([self.note] if self.note else [])])


class Progress:
    """Shows steps and messages; `Progress(quiet=True)` shows nothing.

    Args:
        quiet: whether it does.
        console: where, if not on standard error.
        wait: seconds at the start in which nothing is shown but warnings: a call that is over before says nothing.
        clock: gives the seconds.
    """

    def __init__(
        self,
        *,
        quiet: bool = False,
        console: Console | None = None,
        wait: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if console is None:
            from rich.console import Console

            console = Console(stderr=True, quiet=quiet, highlight=False)
        self.console = console
        self._clock, self._wait, self._started = clock, wait, clock()
        self._held: list[str] = []
        self._loops: list[Loop] = []
        self._work = Work(clock)
        self._display: _Lines | _Bars | _Notebook | None = None

    def say(self, message: str) -> None:
        """Print one line; in the first `wait` seconds, keep it for what is shown after them."""
        if self._is_early():
            self._held.append(message)
        else:
            self._release()
            self._print(message)

    def warn(self, message: str) -> None:
        """Print one line that begins with "beware", at once."""
        self._print(f"beware: {message}")

    def note(self, text: str) -> None:
        """Show what the step under way has found beside its bar, such as "loss 1.23, robust 45.0%"."""
        if self._loops:
            self._loops[-1].note = visible(text)

    def plan(self, amounts: Mapping[str, float]) -> None:
        """Say how much work of each kind a whole job is, done or not; its time left is then shown. See `Work`."""
        self._work.plan(amounts)

    def unit(self, kind: str, amount: float = 1.0, *, one_loop: bool = False) -> AbstractContextManager[None]:
        """Do a unit of the job's work in the block; see `Work.unit`."""
        return self._work.unit(kind, amount, one_loop=one_loop)

    def left(self) -> TimeLeft | None:
        """Return the time that is left of the whole job; None without a plan."""
        return self._work.left()

    def steps(self, items: Iterable[T], title: str, *, total: int | None = None, done: int = 0) -> Iterator[T]:
        """Yield `items` while showing how many of `total` are done, `done` of them before this run.

        A terminal and a notebook get a bar with the time left; anything else gets a line now and then.
        """
        if total is None and isinstance(items, Sized):
            total = done + len(items)
        start = self._clock()
        loop = Loop(visible(title), total, done, done, start, start, self._clock)
        self._loops.append(loop)
        display = None if self.console.quiet else self._shown_on()
        try:
            if display is not None:
                display.begin()
            for item in items:
                yield item
                loop.count, loop.moved = loop.count + 1, self._clock()
                if len(self._loops) == 1:
                    self._work.moved(done, loop.count, total)
                if display is not None and not self._is_early():
                    self._release()
                    display.step(loop)
        finally:
            self._loops.remove(loop)
            if display is not None:
                display.end(loop, is_worth_a_line=loop.seconds >= SHORT and not self._is_early())

    @property
    def loops(self) -> tuple[Loop, ...]:
        """The loops under way that are to be shown now, the outer ones first."""
        return () if self._is_early() else tuple(self._loops)

    def _is_early(self) -> bool:
        return self._clock() - self._started < self._wait

    def _release(self) -> None:
        held, self._held = self._held, []
        for message in held:
            self._print(message)

    def _print(self, message: str) -> None:
        display = self._shown_on()
        if isinstance(display, _Notebook) and not self.console.quiet:
            display.add(message)
        else:
            self.console.print(visible(message), markup=False, soft_wrap=True)

    def _shown_on(self) -> _Lines | _Bars | _Notebook:
        if self._display is None:
            kind = _Notebook if self.console.is_jupyter else _Bars if self.console.is_terminal else _Lines
            self._display = kind(self)
        return self._display


def _job_line(left: TimeLeft | None) -> str:
    return "" if left is None else f"job: {left}"


class _Lines:
    """Lines now and then, for files and pipes."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._shown = progress, progress._clock()

    def begin(self) -> None:
        """Show that a loop begins: nothing yet."""

    def step(self, loop: Loop) -> None:
        """Show a loop's step, if the last line was long ago."""
        # Fewer as hours go by: a log of a night has some hundred lines.
        pause = max(_BETWEEN_LINES, loop.seconds / 20)
        if loop.now() - max(self._shown, loop.started) >= pause and loop.count != loop.total:
            self._line(loop.line(), loop)

    def end(self, loop: Loop, *, is_worth_a_line: bool) -> None:
        """Show that a loop is over."""
        if is_worth_a_line:
            self._line(loop.end(), loop)

    def _line(self, text: str, loop: Loop) -> None:
        self._shown = loop.now()
        self._progress.say("; ".join(part for part in (text, _job_line(self._progress.left())) if part))


class _Bars:
    """Bars on a terminal: one for each loop under way, and one for the whole job."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._live: Live | None = None
        self._over: Loop | None = None

    def begin(self) -> None:
        """Show the bars."""
        if self._live is None:
            from rich.live import Live

            # What is printed meanwhile stands above the bars; a pipe gets it as it is.
            self._live = Live(
                console=self._progress.console,
                get_renderable=self._drawn,
                refresh_per_second=4,
                redirect_stdout=sys.stdout.isatty(),
            )
            self._live.start()

    def step(self, loop: Loop) -> None:
        """Show a loop's step: the bars are drawn anew by themselves."""

    def end(self, loop: Loop, *, is_worth_a_line: bool) -> None:
        """Leave the bar of an outermost loop that is over on the terminal, if it took long enough."""
        if self._live is None or self._progress._loops:
            return
        self._over = loop if is_worth_a_line else None
        live, self._live = self._live, None
        live.transient = not is_worth_a_line
        live.stop()
        self._over = None

    def _drawn(self) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        console = self._progress.console
        width = 24 if console.width >= 100 else 10
        grid = Table.grid(padding=(0, 1))
        grid.add_column(no_wrap=True, overflow="ellipsis", max_width=console.width // 2 - width // 2)
        for _ in range(4):
            grid.add_column(no_wrap=True)
        grid.add_column(no_wrap=True, overflow="ellipsis")
        loops = (self._over,) if self._over is not None else self._progress.loops
        for loop in loops:
            bar = ProgressBar(total=loop.total, completed=loop.count, width=width, pulse=loop.total is None)
            time_left = "" if loop is self._over else f"left {loop.left}"
            count = f"{loop.count}/{'?' if loop.total is None else loop.total}"
            grid.add_row(loop.title, bar, count, f"after {duration(loop.seconds)}", time_left, loop.note)
        if loops and self._over is None and (left := self._progress.left()) is not None:
            took = self._progress._clock() - self._progress._started
            total = None if left.unknown else took + left.seconds
            job = Table.grid(padding=(0, 1))
            job.add_column(no_wrap=True)
            job.add_column(no_wrap=True)
            job.add_column(no_wrap=True, overflow="ellipsis")
            bar = ProgressBar(total=total, completed=took, width=width, pulse=total is None)
            job.add_row("job", bar, str(left))
            return Group(grid, job)
        return grid


class _Notebook:
    """One output of a notebook's cell, drawn anew as the work goes on: the last lines, and bars under them."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._lines: deque[str] = deque(maxlen=12)
        self._handle: Any = None
        self._drawn = -_BETWEEN_DRAWINGS
        self._lock = threading.RLock()
        self._timer: threading.Timer | None = None

    def begin(self) -> None:
        """Draw after a second, if no step does before."""
        if self._timer is None and self._progress._loops[1:] == []:
            self._timer = threading.Timer(SHORT, self._draw)
            self._timer.daemon = True
            self._timer.start()

    def step(self, loop: Loop) -> None:
        """Draw, if the last drawing was long enough ago."""
        if self._progress._clock() - self._drawn >= _BETWEEN_DRAWINGS:
            self._draw()

    def end(self, loop: Loop, *, is_worth_a_line: bool) -> None:
        """Leave a line of a loop that took long enough."""
        if not self._progress._loops and self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if is_worth_a_line:
            self._lines.append(loop.end())
        if self._handle is not None:
            self._draw()

    def add(self, message: str) -> None:
        """Show a line."""
        self._lines.append(visible(message))
        self._draw()

    def _draw(self) -> None:
        from IPython.display import display  # there, where this is called

        with self._lock:
            self._drawn = self._progress._clock()
            loops, left = self._progress.loops, self._progress.left()
            job = [_job_line(left)] if loops and left is not None else []
            bars = [
                f'<progress value="{loop.count}" max="{loop.total}"></progress> {escape(loop.line())}'
                if loop.total
                else escape(loop.line())
                for loop in loops
            ]
            parts = [*map(escape, self._lines), *bars, *map(escape, job)]
            plain = "\n".join([*self._lines, *(loop.line() for loop in loops), *job])
            if not parts and self._handle is None:
                return
            bundle = {"text/plain": plain, "text/html": "<br>".join(parts)}
            if self._handle is None:
                self._handle = display(bundle, raw=True, display_id=True)
            else:
                self._handle.update(bundle, raw=True)
