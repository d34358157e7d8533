"""The memory that a bound's intermediate values may take."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass


class TooManyImages(Exception):
    """The images at hand take more than there is for them; fewer at once may not."""


@dataclass
class Memory:
    """The numbers that may be held, and those that are."""

    numbers: float = float("inf")
    held: float = 0.0

    def fits(self, count: int) -> bool:
        """Whether as many numbers more may be held."""
        return self.held + count <= self.numbers

    def hold(self, count: int, num_images: int) -> None:
        """Count numbers that stay until the bounds are there.

        Raises:
            TooManyImages: if they are too many, and they belong to more than one image.
        """
        if not self.fits(count) and num_images > 1:
            raise TooManyImages
        self.held += count


_MEMORY: ContextVar[Memory | None] = ContextVar("memory", default=None)


def memory() -> Memory:
    """Return the memory for numbers: all of it, outside `limited`."""
    return _MEMORY.get() or Memory()


@contextlib.contextmanager
def limited(numbers: float) -> Iterator[None]:
    """Hold no more than so many numbers."""
    token = _MEMORY.set(Memory(numbers))
    try:
        yield
    finally:
        _MEMORY.reset(token)
