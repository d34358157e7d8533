"""Random numbers that belong to an image: they do not depend on the batch in which the image is attacked."""

from __future__ import annotations

import torch
from torch import Tensor

from robust_nas.core.seeds import seed_at

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64


class Draws:
    """A counter-based generator per image, keyed by the seed and by the image's own pixels.

    Everything is computed on the images' device, and nothing waits for it. Equal images draw equal numbers.
    """

    def __init__(self, images: Tensor, seed: int) -> None:
        bits = images.detach().float().contiguous().view(torch.int32).flatten(1).long()
        places = torch.arange(bits.shape[1], device=bits.device) * _GOLDEN
        self._keys = _mix(_mix(bits + places).sum(1) + seed_at(seed, "attack"))

    def __getitem__(self, index: Tensor | slice) -> Draws:
        """Return the generators of some of the images."""
        part = object.__new__(Draws)
        part._keys = self._keys[index]
        return part

    def uniform(self, count: int, place: int | Tensor) -> Tensor:
        """Return uniform numbers in (0, 1), [B, count]; other places of the attack, [B] or one, get other ones."""
        stream = _mix(self._keys ^ _mix(torch.ones_like(self._keys) + place))
        counters = torch.arange(1, count + 1, device=stream.device) * _GOLDEN
        # The 23 highest bits, half a step above zero: exact in float32, and never 0 or 1.
        highest = _shift(_mix(stream.unsqueeze(1) + counters), 41)
        return (highest.float() + 0.5) * 2.0**-23


def _mix(x: Tensor) -> Tensor:
    """Return the bits well mixed (the finaliser of SplitMix64, Steele et al. 2014, doi:10.1145/2660193.2660195)."""
    x = (x ^ _shift(x, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    x = (x ^ _shift(x, 27)) * (0x94D049BB133111EB - 2**64)
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    # Integers are signed here: the sign that a shift to the right drags in is masked away.
    return (x >> bits) & ((1 << (64 - bits)) - 1)
