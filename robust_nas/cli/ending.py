"""How a command ends: in a sentence, with an exit code that says why.

Wrong input has exit code 2. Work that is stopped says how to go on, and ends with 130 after Ctrl-C, 143 after SIGTERM,
and 75 if a part of it was lost: a worker that was killed, another process of torchrun, the memory. Set
ROBUST_NAS_TRACEBACK=1 to see where a mistake was found.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from robust_nas.cli import slow
from robust_nas.core.commands import End
from robust_nas.core.errors import InputError, Interrupted, Terminated, of_exit
from robust_nas.core.secrets import masked
from robust_nas.core.text import visible
from robust_nas.runtime.watch import LOST, said_at_the_end

SAME = "The same command goes on where it ended."
"""How to go on with work that finds its own folder again."""


@contextlib.contextmanager
def answered() -> Iterator[None]:
    """End the program in a sentence, whatever ends the block."""
    _hear_signals()
    # The first is for a stop while another sentence is printed.
    with _stopping(""), _stopping("robust-nas: Stopped; nothing was half-written."), _mistakes_said():
        yield


@contextlib.contextmanager
def warnings_said() -> Iterator[None]:
    """Print a warning of the block as a line that begins with "beware", and not with a place in our code."""
    show = warnings.showwarning

    def say(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if category is UserWarning:
            print(f"beware: {visible(str(message))}", file=sys.stderr)
        else:
            show(message, category, *place, **more)

    warnings.showwarning = say
    try:
        yield
    finally:
        warnings.showwarning = show


@contextlib.contextmanager
def going_on(again: str, say: Callable[[str], None] | None = None) -> Iterator[None]:
    """Say how to go on if the work in the block is stopped, or a part of it is lost.

    Args:
        again: the way to go on, as a sentence.
        say: prints the sentence; on standard error, if not given.
    """
    with _stopping(f"Stopped. {again}", say):
        try:
            with slow.distributed.losses_said(), said_at_the_end(again):
                yield
        except Interrupted as error:
            raise Interrupted(f"{error} {again}") from error


@contextlib.contextmanager
def _stopping(sentence: str, say: Callable[[str], None] | None = None) -> Iterator[None]:
    """Say a sentence if the block is stopped, and end the program with 128 and the signal's number, as shells do."""
    try:
        yield
    except KeyboardInterrupt as stop:
        if say is not None:
            say(sentence)
        elif sentence:
            print(sentence, file=sys.stderr)
        raise End(128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)) from None


def _hear_signals() -> None:
    """Answer SIGTERM like Ctrl-C, and have it sent if the torchrun that started this process is lost."""
    if threading.current_thread() is not threading.main_thread():
        return
    own = os.getpid()

    def terminate(number: int, _: Any) -> None:
        signal.signal(number, signal.SIG_IGN)  # clusters and launchers send several
        if os.getpid() != own:
            os._exit(128 + number)  # a fork, which has nothing to say
        raise Terminated

    signal.signal(signal.SIGTERM, terminate)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        slow.distributed.end_with_parent(signal.SIGTERM)


@contextlib.contextmanager
def _mistakes_said() -> Iterator[None]:
    """Print mistakes in the input, and errors of the file system, as one sentence."""
    try:
        yield
    except InputError as error:
        _fail(str(error), error)
    except End:
        raise
    except BrokenPipeError:
        # Whoever read the output has seen enough (`| head`); Python would complain once more when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        place = f"{error.filename}: " if error.filename else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        advice = "free some space and resume the run" if full else "check the path, and whether it may be used"
        _fail(f"{place}{error.strerror}; {advice}.", error)
    except (Exception, KeyboardInterrupt):
        raise
    except BaseException as error:  # code of the user's, which ends the program
        _fail(str(of_exit(error)), error)


def _fail(message: str, error: BaseException) -> None:
    if os.environ.get("ROBUST_NAS_TRACEBACK"):
        raise (error if isinstance(error, Exception) else RuntimeError(message)) from error.__cause__
    # Under torchrun a mistake may be one rank's alone; mistakes that all ranks find are said by each.
    rank = os.environ.get("RANK", "0")
    print(
        f"robust-nas: {'' if rank == '0' else f'rank {rank}: '}{visible(_shortened(masked(message)))}", file=sys.stderr
    )
    raise End(LOST if isinstance(error, Interrupted) else 2)


def _shortened(message: str) -> str:
    """Return a message on one line, without the middle of words of hundreds of letters."""
    return re.sub(r"\S{400,}", lambda word: f"{word[0][:100]}...{word[0][-20:]}", " ".join(message.split()))
