"""Progress: what is shown when, and the time that is left of a job, by a clock of the test's."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace

import pytest
from rich.console import Console

import robust_nas as rn
from robust_nas.runtime.progress import Progress, of_call
from robust_nas.runtime.work import TimeLeft, Work, duration


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def _shown(clock: Clock, **settings: float) -> tuple[Progress, io.StringIO]:
    out = io.StringIO()
    return Progress(console=Console(file=out, width=200, highlight=False), clock=clock, **settings), out


def _epochs(progress: Progress, clock: Clock, count: int, seconds: float, title: str = "train") -> None:
    for epoch in progress.steps(range(count), title):
        clock.now += seconds
        progress.note(f"loss {epoch}")


def test_a_call_that_is_over_in_a_second_says_nothing_and_a_longer_one_says_what_it_held_back() -> None:
    clock = Clock()
    for seconds, lines in {0.1: 0, 5.0: 3}.items():
        progress, out = _shown(clock, wait=1.0)
        progress.say("first")
        _epochs(progress, clock, 4, seconds)
        progress.say("last")
        assert len(out.getvalue().splitlines()) == lines + (seconds > 1), out.getvalue()
    assert out.getvalue().splitlines()[0] == "first"
    progress, out = _shown(clock, wait=1.0)
    progress.warn("this is said at once")
    assert out.getvalue() == "beware: this is said at once\n"


def test_a_line_has_the_loss_the_count_and_the_time_left() -> None:
    clock = Clock()
    progress, out = _shown(clock)
    _epochs(progress, clock, 16, 4.0)
    lines = out.getvalue().splitlines()
    # Every 10 seconds at the earliest, so after 3 epochs of 4 seconds; 13 epochs are left.
    assert lines[0] == "train: 3/16, loss 2, after 12 s, left 0:00:52"
    assert lines[-1] == "train: 16/16 in 64 s, loss 15" and len(lines) == 6


def test_short_loops_leave_no_line_in_a_command() -> None:
    clock = Clock()
    progress, out = _shown(clock)
    _epochs(progress, clock, 3, 0.1)
    assert out.getvalue() == ""


def test_the_time_left_of_a_job_is_measured_and_what_was_not_is_named() -> None:
    clock = Clock()
    progress, _ = _shown(clock)
    assert progress.left() is None
    progress.plan({"search": 1, "train": 3 * 16, "attack": 2, "attack: the best": 1})
    with progress.unit("search", one_loop=True):
        for step in progress.steps(range(4), "search"):
            if step == 1:  # one of four steps of 5 seconds is done: 15 seconds of search are left
                assert progress.left() == TimeLeft(15.0, ("train", "attack", "attack: the best"), ("search", 0.25))
            clock.now += 5.0
    with progress.unit("train", 16, one_loop=True):
        _epochs(progress, clock, 16, 10.0)
    with progress.unit("train", 16, one_loop=True):
        for epoch in progress.steps(range(16), "train-1"):
            clock.now += 10.0
            if epoch == 6:  # six of these are done, and 10 seconds of the seventh: 9 epochs and 16 more are left
                left = progress.left()
                assert left == TimeLeft(9 * 10.0 + 160.0, ("attack", "attack: the best"), ("train", 22 / 48))
                assert str(left) == "train 46% done, 0:04:10 + ? left (not measured yet: attack)"
    with progress.unit("attack"):
        _epochs(progress, clock, 1, 7.0)
    with progress.unit("attack: the best"):
        _epochs(progress, clock, 1, 30.0)
    left = progress.left()
    assert left == TimeLeft(160.0 + 7.0) and str(left) == "about 0:02:47 left"


def test_what_an_earlier_session_did_is_counted_and_not_measured() -> None:
    clock = Clock()
    work = Work(clock)
    work.plan({"attack": 3, "train": 20})
    with work.unit("attack"):  # without a step: it was done
        clock.now += 0.01
    assert work.left() == TimeLeft(0.0, ("attack", "train"))
    with work.unit("train", 10, one_loop=True):  # resumed after 6 of 10 epochs
        clock.now += 8.0
        work.moved(6, 10, 10)
    left = work.left()
    assert left is not None and left.seconds == pytest.approx(10 * 2.0) and left.unknown == ("attack",)


def test_progress_is_left_out_where_it_is_not_wanted(capfd: pytest.CaptureFixture[str]) -> None:
    assert of_call(False).console.quiet and not of_call(True).console.quiet
    rn.show_progress(False)
    try:
        assert of_call(True).console.quiet
    finally:
        rn.show_progress(True)
    assert capfd.readouterr() == ("", "")


def test_durations_are_hours_minutes_and_seconds() -> None:
    assert [duration(seconds) for seconds in (0.4, 59.6, 3725)] == ["0:00:00", "0:01:00", "1:02:05"]


def test_a_terminal_has_a_bar_for_the_stage_and_one_for_the_job() -> None:
    clock, out = Clock(), io.StringIO()
    progress = Progress(console=Console(file=out, width=120, force_terminal=True), clock=clock)
    progress.plan({"train": 4})
    with progress.unit("train", 4, one_loop=True):
        for epoch in progress.steps(range(4), "train-0"):
            clock.now += 5.0
            if epoch == 2:
                progress.note("loss 1.25")
                assert progress._display is not None
                progress.console.print(progress._display._drawn())  # type: ignore[union-attr]
    drawn = out.getvalue()
    assert "left 0:00:05" in drawn and "loss 1.25" in drawn and "train 50% done, about 0:00:05 left" in drawn
    assert "job" not in drawn.splitlines()[-1]  # what stays is the stage's bar


def test_a_notebook_has_one_output_that_is_drawn_anew_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[dict[str, str]] = []

    class Handle:
        def update(self, bundle: dict[str, str], raw: bool) -> None:
            drawn.append(bundle)

    def display(bundle: dict[str, str], raw: bool, display_id: bool) -> Handle:
        assert raw and display_id and not drawn, "one output, which is then updated"
        drawn.append(bundle)
        return Handle()

    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))
    clock = Clock()
    progress = Progress(console=Console(file=io.StringIO(), force_jupyter=True), wait=1.0, clock=clock)
    _epochs(progress, clock, 3, 0.1, "short")
    assert not drawn
    _epochs(progress, clock, 2000, 0.01, "<b>long")
    # In 20 seconds less the first one, twice a second.
    assert 30 < len(drawn) < 45
    assert "<progress" in drawn[0]["text/html"] and "&lt;b&gt;long" in drawn[0]["text/html"]
    assert drawn[-1]["text/plain"] == "<b>long: 2000/2000 in 20 s, loss 1999"
