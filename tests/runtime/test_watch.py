"""Processes that are lost are named by those that are left, which end: real processes, really killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import pytest
import torch
import torch.distributed as dist

from robust_nas.core.errors import InputError, Interrupted
from robust_nas.runtime import watch
from robust_nas.runtime.distributed import World, losses_said
from robust_nas.runtime.watch import LOST, Watch


class _Ends:
    """What a watch ends the process with."""

    def __init__(self) -> None:
        self.sentence, self.called = "", threading.Event()

    def __call__(self, sentence: str) -> None:
        self.sentence = sentence
        self.called.set()


def _watches(size: int, **options: Any) -> tuple[list[Watch], list[_Ends]]:
    """Return watches of several processes that are all this one."""
    store, ends = dist.HashStore(), [_Ends() for _ in range(size)]
    found = [Watch(store, rank, size, end=ends[rank], grace=0.0, **options) for rank in range(size)]
    for each in found:
        each.begin()
    return found, ends


def test_a_process_that_falls_silent_is_named_to_all_and_one_that_is_done_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watch, "BEAT", 0.02)
    watches, ends = _watches(4, silence=0.5)
    watches[3].close()
    time.sleep(1.0)
    assert not any(each.called.is_set() for each in ends)
    watches[1]._over.set()  # it neither beats nor says that it is done, as one that is stopped
    for rank in (0, 2):
        assert ends[rank].called.wait(5)
        assert ends[rank].sentence.startswith(
            f"Process 1 of this group (number {os.getpid()} on {socket.gethostname()})"
        )
        assert "has not answered for 0 s: it is stopped, or its machine cannot be reached" in ends[rank].sentence


def test_why_a_process_has_ended_is_told_to_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "BEAT", 0.02)
    watches, ends = _watches(2)
    watches[1].tell("Memory has run out; free some.")
    assert ends[0].called.wait(5)
    assert ends[0].sentence.endswith("has ended: Memory has run out; free some.")


def _rank(function: Callable[[World], str], rank: int, port: int, answer: Connection) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 3, "LOCAL_WORLD_SIZE": 3, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()}, MASTER_ADDR="127.0.0.1")
    world = World.start("cpu")
    answer.send("here")
    answer.send(function(world))


def _reducing(world: World) -> str:
    """Reduce until another process is lost."""
    try:
        with losses_said():
            while True:
                world.sum(torch.ones(1))
                time.sleep(0.01)
    except Interrupted as error:
        return str(error)


def _three(function: Callable[[World], str]) -> tuple[list[Any], list[Connection]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context, processes, answers = multiprocessing.get_context("fork"), [], []
    for rank in range(3):
        receiver, sender = context.Pipe(duplex=False)
        processes.append(context.Process(target=_rank, args=(function, rank, port, sender), daemon=True))
        processes[-1].start()
        sender.close()
        answers.append(receiver)
    for answer in answers:
        assert answer.recv() == "here"
    return processes, answers


@pytest.mark.parametrize("lost", [0, 1])
def test_a_process_that_is_killed_is_named_by_the_others(lost: int) -> None:
    processes, answers = _three(_reducing)
    time.sleep(2.5)  # all have told who they are
    os.kill(processes[lost].pid, signal.SIGKILL)
    for rank in {0, 1, 2} - {lost}:
        assert answers[rank].poll(60)
        assert answers[rank].recv().startswith(f"Process {lost} of this group (number {processes[lost].pid} on ")


@pytest.mark.slow
def test_a_process_that_is_stopped_ends_the_others_within_a_minute() -> None:
    """`pytest -m slow tests/runtime/test_watch.py`."""
    processes, _ = _three(_reducing)
    time.sleep(2.5)
    started = time.monotonic()
    os.kill(processes[2].pid, signal.SIGSTOP)
    try:
        for rank in (0, 1):
            processes[rank].join(60)
            assert processes[rank].exitcode == LOST
        assert time.monotonic() - started < 60
    finally:
        os.kill(processes[2].pid, signal.SIGKILL)


def test_a_group_without_a_place_to_meet_or_without_its_others_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    threads = torch.get_num_threads()
    with pytest.raises(InputError, match="WORLD_SIZE is 2, but RANK and MASTER_ADDR and MASTER_PORT are not set"):
        World.start("cpu")
    for name, value in {"RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9"}.items():
        monkeypatch.setenv(name, value)
    started = time.monotonic()
    with pytest.raises(Interrupted, match=r"The 2 processes of this group did not meet at 127.0.0.1:9 within 2 s \("):
        World.start("cpu", patience=2)
    assert time.monotonic() - started < 10
    torch.set_num_threads(threads)
