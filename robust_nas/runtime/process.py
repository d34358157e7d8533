"""The state of the process before a call, which is as it was after it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from robust_nas.core.errors import of_exit


class Held(Protocol):
    """A folder that this process keeps other processes from."""

    def unlock(self) -> None:
        """Let other processes work on it."""


HELD: list[Held] = []
"""The folders that this process has locked; locking and unlocking keep the list."""


@contextlib.contextmanager
def unchanged_process() -> Iterator[None]:
    """Leave the process as it was before the block, however the block ends: by a result, a mistake or Ctrl-C.

    Put back are torch's threads, kernels, default type and gradient mode, the random states of Python, NumPy and torch,
    the filters of warnings, environment variables and signal handlers. A process group that was joined is left, and a
    folder that was locked is free again. Imported modules stay imported.

    Raises:
        InputError: if code of the user's in the block, such as a model's pass, ends the program.
    """
    restore = [*_of_python(), *_of_torch()]
    held, joined = list(HELD), _in_group()
    try:
        yield
    except (Exception, KeyboardInterrupt):
        raise
    except BaseException as error:
        from robust_nas.core.commands import End

        if isinstance(error, End):
            raise
        raise of_exit(error) from error
    finally:
        for folder in list(HELD):
            if folder not in held:
                folder.unlock()
        if not joined and _in_group():
            from robust_nas.runtime import distributed

            distributed.leave_group()
        for put_back in restore:
            put_back()


def _of_python() -> Iterator[Callable[[], None]]:
    """Yield what puts back the state of the interpreter and of NumPy."""
    if "random" in sys.modules:
        import random

        state = random.getstate()
        yield lambda: random.setstate(state)
    if "numpy" in sys.modules:
        import numpy as np

        numbers = np.random.get_state()
        yield lambda: np.random.set_state(numbers)
    filters, variables = list(warnings.filters), dict(os.environ)
    yield lambda: _put_back_filters(filters)
    yield lambda: _put_back_variables(variables)
    if threading.current_thread() is threading.main_thread():  # no other may set a handler
        handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
        yield lambda: _put_back_handlers(handlers)


def _put_back_filters(filters: list[Any]) -> None:
    if list(warnings.filters) != filters:
        warnings.resetwarnings()  # which also tells the caches of what was shown
        warnings.filters[:] = filters  # type: ignore[index]


def _put_back_variables(variables: dict[str, str]) -> None:
    for name in os.environ.keys() - variables.keys():
        del os.environ[name]
    for name, value in variables.items():
        if os.environ.get(name) != value:
            os.environ[name] = value


def _put_back_handlers(handlers: dict[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        # None is a handler that was not set from Python, and cannot be.
        if handler is not None and signal.getsignal(number) is not handler:
            signal.signal(number, handler)


def _of_torch() -> Iterator[Callable[[], None]]:
    """Yield what puts back torch's state; nothing, if torch is not imported, as in questions to a table."""
    if "torch" not in sys.modules:
        return
    import torch

    threads, kind, with_gradients = torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()
    deterministic, cudnn = torch.get_deterministic_debug_mode(), torch.backends.cudnn
    kernels = cudnn.enabled, cudnn.benchmark, cudnn.deterministic
    state = torch.get_rng_state()
    own = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []

    def put_back() -> None:
        torch.set_rng_state(state)
        if own:
            torch.cuda.set_rng_state_all(own)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        torch.set_default_dtype(kind)
        torch.set_grad_enabled(with_gradients)
        torch.set_deterministic_debug_mode(deterministic)
        cudnn.enabled, cudnn.benchmark, cudnn.deterministic = kernels

    yield put_back


def _in_group() -> bool:
    if "torch" not in sys.modules:
        return False
    from robust_nas.runtime import distributed

    return distributed.in_group()
