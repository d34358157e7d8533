"""The watch over the processes of a group: which of them is lost, though the others wait for it.

A process that is killed, stopped or cut off answers nothing, and torch's collectives then say that a connection is
closed, or wait for as long as `patience`. So each process has a thread that lets the others know that it lives, over
the store at which the group has met, and that ends the process if another is lost and nothing else has ended it. Each
looks after the next one alone, and tells all: that is as little work with a thousand processes as with two.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Protocol

BEAT = 1.0
"""Seconds between two signs of life."""

SILENCE = 30.0
"""Seconds without a sign of life after which a process is lost."""

GRACE = 10.0
"""Seconds in which a process that knows of a loss may end by itself, with its own sentence."""

LOST = 75
"""Exit code of work of which a part was lost: EX_TEMPFAIL of sysexits.h, which says that another try may succeed."""


class Store(Protocol):
    """What a watch needs of the group's store: a map of names to bytes that all processes share."""

    def set(self, key: str, value: str) -> None:
        """Keep a value."""

    def get(self, key: str) -> bytes:
        """Return a value that is there; wait for it, if it is not."""

    def check(self, keys: list[str]) -> bool:
        """Whether all values are there."""

    def set_timeout(self, timeout: timedelta) -> None:
        """Wait no longer than this for an answer."""


class Watch:
    """The watch of one process over the others of its group.

    Args:
        store: what the processes share.
        rank: of this process.
        size: processes of the group.
        end: ends this process at once, with a sentence; called from another thread.
        silence: seconds without a sign of life after which a process is lost.
        grace: seconds in which this process may end by itself.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        size: int,
        *,
        end: Callable[[str], None] | None = None,
        silence: float = SILENCE,
        grace: float = GRACE,
    ) -> None:
        self._store, self._rank, self._size = store, rank, size
        self._end, self._silence, self._grace = end or end_at_once, silence, grace
        self._lost: str | None = None
        self._over = threading.Event()
        self._found = threading.Event()
        self._next_rank = (rank + 1) % size
        self._next: _Place | None = None
        self._first: _Place | None = None
        self._heard: tuple[bytes, float] | None = None
        self._next_is_done = False
        self._thread = threading.Thread(target=self._keep, name="watch", daemon=True)

    def begin(self) -> None:
        """Begin to watch; every process of the group calls it."""
        self._store.set_timeout(timedelta(seconds=self._silence))
        self._store.set(f"place/{self._rank}", _Place.here().text)
        self._store.set(f"beat/{self._rank}", "0")
        self._thread.start()

    def close(self) -> None:
        """End the watch: this process has done its part."""
        self._over.set()
        with contextlib.suppress(RuntimeError):  # whoever has the store may be gone
            self._store.set(f"over/{self._rank}", "")

    def tell(self, reason: str) -> None:
        """Let the others know why this process ends before its work is done."""
        with contextlib.suppress(RuntimeError):
            self._store.set(f"ended/{self._rank}", reason)

    def lost(self, wait: float = 0.0) -> str | None:
        """Return who is lost, in a sentence; None if nobody is.

        Args:
            wait: seconds to wait until it is known, at most; a process that has done its part is no loss.
        """
        until = time.monotonic() + wait
        while not self._found.wait(min(BEAT, max(0.0, until - time.monotonic()))):
            if time.monotonic() >= until or self._next_is_done:
                break
        if self._lost is not None and self._rank == 0:
            time.sleep(3 * BEAT)  # it may have the store, in which the others are to read the sentence
        return self._lost

    def _keep(self) -> None:
        number, last = 0, time.monotonic()
        while self._lost is None and not self._over.wait(BEAT):
            if time.monotonic() - last > BEAT + self._silence / 4:
                self._heard = None  # this process was stopped itself, and the others may have been
            last, number = time.monotonic(), number + 1
            try:
                self._store.set(f"beat/{self._rank}", str(number))
                self._lost = self._look()
            except RuntimeError:
                self._lost = "The process at which this group has met has ended, or cannot be reached."
                if self._first is not None and self._first.is_gone():
                    self._lost = f"Process 0 of this group ({self._first}) was killed, or has crashed."
        if self._lost is None:
            return
        self._found.set()
        if not self._over.wait(self._grace):
            self._end(self._lost)

    def _look(self) -> str | None:
        """Look at the next process once; return who is lost, in a sentence."""
        if self._store.check(["lost"]):
            return self._store.get("lost").decode()
        if (why := self._why_lost()) is None:
            return None
        place = "" if self._next is None else f" ({self._next})"
        sentence = f"Process {self._next_rank} of this group{place} {why}."
        self._store.set("lost", sentence)
        return sentence

    def _why_lost(self) -> str | None:
        """Return what has happened to the next process; None if it is well, or has done its part."""
        rank, store, now = self._next_rank, self._store, time.monotonic()
        if self._next is None and store.check([f"place/{rank}"]):
            self._next = _Place.of(store.get(f"place/{rank}").decode())
        if self._first is None and store.check(["place/0"]):
            self._first = _Place.of(store.get("place/0").decode())
        gone = self._next is not None and self._next.is_gone()  # looked at before what it may have said last
        if store.check([f"over/{rank}"]):
            self._next_is_done = True
            return None
        if store.check([f"ended/{rank}"]):
            return f"has ended: {store.get(f'ended/{rank}').decode().rstrip('.')}"
        if gone:
            return "was killed, or has crashed"
        beat = store.get(f"beat/{rank}") if store.check([f"beat/{rank}"]) else b""
        if self._heard is None or self._heard[0] != beat:
            self._heard = (beat, now)
        if now - self._heard[1] > self._silence:
            return f"has not answered for {self._silence:.0f} s: it is stopped, or its machine cannot be reached"
        return None


class _Place:
    """A process's machine and number."""

    def __init__(self, host: str, boot: str, process: int) -> None:
        self.host, self.boot, self.process = host, boot, process

    @classmethod
    def here(cls) -> _Place:
        return cls(socket.gethostname(), _boot(), os.getpid())

    @classmethod
    def of(cls, text: str) -> _Place:
        return cls(*json.loads(text))

    @property
    def text(self) -> str:
        return json.dumps([self.host, self.boot, self.process])

    def __str__(self) -> str:
        return f"number {self.process} on {self.host}"

    def is_gone(self) -> bool:
        """Whether the process has ended, as far as this machine can tell: it knows its own processes alone."""
        if self.boot != _boot() or not self.boot:
            return False
        try:
            state = Path(f"/proc/{self.process}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        return state in "ZX"


def _boot() -> str:
    """Return what tells this machine, or this container of it, from all others; "" where the system does not say."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return boot + os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


_AGAIN: list[str] = []
"""How to go on with the work under way, in sentences; the last one is of the innermost work."""


@contextlib.contextmanager
def said_at_the_end(again: str) -> Iterator[None]:
    """Say how to go on if the watch ends this process within the block."""
    _AGAIN.append(again)
    try:
        yield
    finally:
        _AGAIN.pop()


def end_at_once(sentence: str) -> None:
    """Print a sentence, and end this process, whose main thread waits for what never comes."""
    print(f"robust-nas: {' '.join([sentence, *_AGAIN[-1:]])}", file=sys.stderr, flush=True)
    os._exit(LOST)
