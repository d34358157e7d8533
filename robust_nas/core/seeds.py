"""Randomness by address: every draw's generator is made from the run's seed and the draw's place in the run.

No random state is carried from step to step, so none has to be saved: a run that resumes at epoch 7 draws what an
uninterrupted run draws at epoch 7, and a chunk of evaluation images gets the same attack starts on any rank.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def seed_at(seed: int, *place: str | int) -> int:
    """Return a 63-bit seed for a place such as `seed_at(0, "search", "epoch", 3)`; distinct places are independent."""
    text = "/".join(str(part) for part in (seed, *place))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator_at(device: torch.device | str, seed: int, *place: str | int) -> torch.Generator:
    """Return a new generator on `device`, seeded for a place of the run."""
    import torch

    return torch.Generator(device=device).manual_seed(seed_at(seed, *place))


@contextlib.contextmanager
def seeded(seed: int, *place: str | int, device: torch.device | None = None) -> Iterator[None]:
    """Seed torch's global CPU random state for a place of the run, and put it back as it was afterwards.

    For what draws from the global state and takes no generator: the initialisation of modules, distributions, dropout.

    Args:
        device: an accelerator whose global state is seeded too.
    """
    import torch

    accelerator = device if device is not None and device.type == "cuda" else None
    state = torch.get_rng_state()
    own = torch.cuda.get_rng_state(accelerator) if accelerator else None
    # Not torch.manual_seed: that would reseed every accelerator.
    torch.default_generator.manual_seed(seed_at(seed, *place))
    if accelerator:
        with torch.cuda.device(accelerator):
            torch.cuda.manual_seed(seed_at(seed, *place))
    try:
        yield
    finally:
        torch.set_rng_state(state)
        if own is not None:
            torch.cuda.set_rng_state(own, accelerator)  # type: ignore[arg-type]
