"""The process that a run is made in, as `environment.json` describes it."""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from robust_nas import __version__, records
from robust_nas.core.files import is_there
from robust_nas.core.secrets import masked

if TYPE_CHECKING:
    from robust_nas.records.run import Session
    from robust_nas.runtime.distributed import World
    from robust_nas.runtime.run_folder import RunFolder

ENVIRONMENT = "environment.json"

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


def describe_environment(world: World, arguments: list[str]) -> Session:
    """Describe this process: its versions, its hardware, its arguments."""
    import torch

    from robust_nas.records.run import Session

    accelerator = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else None
    return Session(
        version=__version__,
        commit=_commit(),
        python=platform.python_version(),
        torch=torch.__version__,
        packages={name: _version(name) for name in PACKAGES},
        device=accelerator or str(world.device),
        cpu=_processor(),
        cores=os.cpu_count(),
        threads=torch.get_num_threads(),
        world_size=world.size,
        arguments=tuple(map(masked, arguments)),
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        launch=launched(),
    )


def launched() -> str | None:
    """Return what tells the launch by torchrun that this process is of, restarts included; None without torchrun."""
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    # Without a name of its own (the static way to meet), a launch is one process of torchrun.
    return f"{socket.gethostname()}/{os.getppid()}" if name == "none" else name


def is_restarted() -> bool:
    """Whether torchrun has started these processes again, after one of them was lost."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


def add_session(folder: RunFolder, world: World, arguments: list[str]) -> None:
    """Write what this session works with to environment.json, with what earlier ones worked with under "earlier".

    It is called before a session computes anything of the folder, and not where all is there. Rank 0 writes.
    """
    if world.is_main:
        earlier, session = sessions_of(folder), describe_environment(world, arguments)
        records.write(folder / ENVIRONMENT, records.EnvironmentRecord(**vars(session), earlier=earlier))


def sessions_of(folder: RunFolder) -> tuple[Session, ...]:
    """Return every session that computed something of a folder, the first first.

    Raises:
        InputError: if its environment.json is damaged.
    """
    path = folder / ENVIRONMENT
    return records.read(path, records.EnvironmentRecord).sessions if is_there(path) else ()


def hardware(session: Session) -> str:
    """Return the device, processor, cores and processes of a session in words."""
    parts = [session.device, session.cpu, f"{session.cores} cores" if session.cores else ""]
    parts.append(f"{session.world_size} processes" if session.world_size > 1 else "")
    return ", ".join(part for part in parts if part)


def differing(found: Sequence[Session]) -> list[str]:
    """Return the hardware of sessions in words, each kind once; the versions of torch too, if they differ.

    Several mean that the last digits of results are of several kinds, too.
    """
    versions = {session.torch for session in found}
    kinds = [hardware(each) + (f", torch {each.torch}" if len(versions) > 1 else "") for each in found]
    return list(dict.fromkeys(kinds))


def _version(package: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Return the checkout's commit, with "+" if files differ from it; None outside a checkout."""
    import subprocess

    folder = Path(__file__).resolve().parents[1]

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "--no-optional-locks", *arguments], cwd=folder, capture_output=True, text=True, check=True
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
