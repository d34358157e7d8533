"""Files are written to a temporary name in the same folder and renamed: a reader finds the whole file or none."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from robust_nas.core.errors import InputError

_TEMPORARY = re.compile(r"\..+\.robust-nas-\d+(\.\w+)?")


_MANY = 10**9


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; rename it to `path` on success, remove it on failure.

    The file is locked as long as it is written: what a killed process has left is no longer, and the next one takes it
    for its own.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, lock = _temporary(path)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        # Only here: after the file has got its name, the temporary one may be another process's.
        temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(lock)


def _temporary(path: Path) -> tuple[Path, int]:
    """Return an empty file beside `path` that no other process writes, and the descriptor that has it locked."""
    number = 1
    while True:
        # A long name leaves no room for more.
        temporary = path.with_name(f".{path.name[:150]}.robust-nas-{number}{path.suffix}")
        try:
            lock = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except PermissionError:
            if not os.path.lexists(temporary):
                raise
            number += 1  # another user's
            continue
        locked = lock_alone(lock) if os.fstat(lock).st_uid == os.geteuid() else False
        if locked is None and number < _MANY:
            number = _MANY + secrets.randbelow(_MANY)  # nobody else's, without a lock
        elif locked is False:
            number += 1
        else:
            # Before it was locked, who had it locked may have given it its name, or removed it.
            if _is_at(lock, temporary):
                os.ftruncate(lock, 0)
                return temporary, lock
        os.close(lock)


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def lock_alone(descriptor: int) -> bool | None:
    """Lock an open file or folder, unless another process has it; None where the file system has no such locks.

    Unlike `fcntl.lockf`, it holds although the same file is opened and closed elsewhere in this process.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def remove_leftovers(paths: Iterable[Path]) -> None:
    """Remove those of some files that processes which were killed have left half-written."""
    for path in paths:
        if _TEMPORARY.fullmatch(path.name):
            # Not there any more, or somebody else's.
            with contextlib.suppress(OSError), path.open("rb+") as file:
                if lock_alone(file.fileno()) and _is_at(file.fileno(), path):
                    path.unlink()


def make_folder(path: Path, advice: str) -> None:
    """Make a folder, unless it is there.

    Raises:
        InputError: if it cannot be made, with what is to be done.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"The folder {path} cannot be made ({error.strerror}); {advice}.") from None


def open_own(path: Path, mode: str) -> IO[str]:
    """Open a file that is written in place, but none somewhere else to which a link in a stranger's folder leads.

    Raises:
        InputError: if it is a link.
    """
    try:
        return open(
            path, mode, encoding="utf-8", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o666)
        )
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise InputError(f"{path} is a symbolic link, and files must stay in their folder; delete it.") from None


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(value, indent=1, allow_nan=True) + "\n")
