"""The memory that a process really takes: more than torch holds, as the allocator keeps what it was given back.

With the C library's usual allocator this can be half as much again. Where blocks of more than 128 KiB go back to the
system at once (MALLOC_MMAP_THRESHOLD_=131072 and MALLOC_TRIM_THRESHOLD_=131072 in the environment), it is what torch
holds, and trainings are slower.
"""

from __future__ import annotations

import contextlib
import ctypes
import re
from collections.abc import Iterator
from pathlib import Path

_PROCESS = Path("/proc/self")


class Growth:
    """The bytes by which a process has grown at most; None until that is known, and where the system does not say."""

    most: int | None = None


@contextlib.contextmanager
def growth() -> Iterator[Growth]:
    """Give the most bytes by which the resident memory grows within the block, over what it is without free pieces."""
    found = Growth()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # of glibc
    before = resident()
    try:
        (_PROCESS / "clear_refs").write_text("5")  # the peak is of what comes
    except OSError:
        before = None
    yield found
    after = resident("VmHWM")
    if before is not None and after is not None:
        found.most = after - before


def resident(kind: str = "VmRSS") -> int | None:
    """Return the bytes of memory that the process takes, or took at most (VmHWM); None where no system says it."""
    try:
        found = re.search(rf"{kind}:\s+(\d+) kB", (_PROCESS / "status").read_text(encoding="ascii", errors="replace"))
    except OSError:
        return None
    return None if found is None else 1024 * int(found[1])
