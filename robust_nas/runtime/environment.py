"""The process that a run is made in: its description for `environment.json`, and its state before a call."""

from __future__ import annotations

import contextlib
import os
import platform
import random
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robust_nas import __version__
from robust_nas.core.files import is_there
from robust_nas.records import read_stage
from robust_nas.runtime.run_folder import locked_folders, write_json

if TYPE_CHECKING:
    from robust_nas.runtime.distributed import World

PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "scipy",
    "scikit-learn",
    "optuna",
    "pyarrow",
    "pyautoattack",
    "safetensors",
)


def describe_environment(world: World, arguments: list[str]) -> dict[str, Any]:
    """Return the contents of `environment.json`."""
    import torch

    accelerator = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else None
    return {
        "version": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "packages": {name: _version(name) for name in PACKAGES},
        "device": accelerator or str(world.device),
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "world_size": world.size,
        "arguments": arguments,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def sessions(environment: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return every session that computed something of the folder, from environment.json, the first first."""
    last = {key: value for key, value in environment.items() if key != "earlier"}
    return [*environment.get("earlier", []), *([last] if last else [])]


def add_session(path: Path, environment: dict[str, Any]) -> None:
    """Write what this session works with to environment.json, with what earlier ones worked with under "earlier"."""
    earlier = sessions(read_stage(path)) if is_there(path) else []
    write_json(path, {**environment, "earlier": earlier} if earlier else environment)


def hardware(session: Mapping[str, Any]) -> str:
    """Return the device, processor, cores and processes of a session in words."""
    cores, processes = session.get("cores"), session.get("world_size", 1)
    parts = [str(session["device"]), str(session.get("cpu") or ""), f"{cores} cores" if cores else ""]
    parts.append(f"{processes} processes" if processes > 1 else "")
    return ", ".join(part for part in parts if part)


def differing(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the hardware of sessions in words, each kind once; the versions of torch too, if they differ.

    Several mean that the last digits of results are of several kinds, too.
    """
    versions = {session.get("torch") for session in found}
    kinds = [hardware(each) + (f", torch {each.get('torch')}" if len(versions) > 1 else "") for each in found]
    return list(dict.fromkeys(kinds))


def _version(package: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Return the checkout's commit, with "+" if files differ from it; None outside a checkout."""
    folder = Path(__file__).resolve().parents[1]

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != folder.parent:
            return None  # installed inside somebody else's repository
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


@contextlib.contextmanager
def unchanged_process() -> Iterator[None]:
    """Leave the process as it was before the block, however the block ends: by a result, a mistake or Ctrl-C.

    Put back are torch's threads, kernels, default type and gradient mode, the random states of Python, NumPy and torch,
    the filters of warnings, environment variables and signal handlers. A process group that was joined is left, and a
    folder that was locked is free again. Imported modules stay imported.
    """
    restore = [*_of_python(), *_of_torch()]
    locked, joined = locked_folders(), _in_group()
    try:
        yield
    finally:
        for folder in locked_folders():
            if folder not in locked:
                folder.unlock()
        if not joined and _in_group():
            from robust_nas.runtime import distributed

            distributed.leave_group()
        for put_back in restore:
            put_back()


def _of_python() -> Iterator[Callable[[], None]]:
    """Yield what puts back the state of the interpreter and of NumPy."""
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
