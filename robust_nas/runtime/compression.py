"""The mean of gradients over ranks in fewer bytes: half precision, low rank, and unbiased 8-bit quantisation.

A reduction is what `World.wrap` hooks into DDP's backward pass, and what `World.mean_gradients` calls for networks that
DDP is not for. What it draws and remembers is addressed by parameter, rank and step, not by DDP's buckets, which are
cut anew after the first step of a process: a run that is gone on with takes the steps that it would have taken.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from robust_nas.core.seeds import generator_at

if TYPE_CHECKING:
    from robust_nas.runtime.distributed import World

Compression = Literal["none", "fp16", "bf16", "powersgd", "int8"]

SEGMENT = 512
"""The values that share a norm in 8-bit quantisation: 4 bytes more, and a variance below 1/31 of their square."""

LEVELS = 127
"""The quantisation levels on each side of 0: seven bits, and one for the sign."""


def ring_bytes(world: World, count: float) -> int:
    """Return the bytes that each rank sends in the mean of `count` bytes over a ring of all ranks."""
    return round(2 * (world.size - 1) / world.size * count)


def reduction_of(
    kind: Compression, world: World, parameters: Iterable[nn.Parameter], *, rank: int = 4, seed: int = 0
) -> Reduction | None:
    """Return the reduction of a name; None for "none", and in one process, where nothing is sent.

    Args:
        kind: "none", "fp16", "bf16", "powersgd" or "int8".
        parameters: of all that is trained; a parameter's place among them is its address.
        rank: of PowerSGD.
        seed: the same on all ranks.
    """
    if kind == "none" or world.size == 1:
        return None
    if kind == "powersgd":
        return PowerSGD(world, parameters, rank=rank, seed=seed)
    made = {"fp16": Float16, "bf16": BFloat16, "int8": Quantised}[kind]
    return made(world, parameters, seed=seed)


class Reduction(ABC):
    """The mean of gradients over ranks, compressed.

    Args:
        world: more than one process.
        parameters: all whose gradients come.
        seed: the same on all ranks.

    Attributes:
        step: optimiser steps that were taken.
        sent: bytes that this process has sent, if collectives go around a ring.
    """

    def __init__(self, world: World, parameters: Iterable[nn.Parameter], *, seed: int = 0) -> None:
        self.world, self.seed = world, seed
        self.step = self.sent = 0
        self._places = {parameter: place for place, parameter in enumerate(parameters)}

    @abstractmethod
    def mean(self, parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor]) -> list[Tensor]:
        """Return the means over all ranks of these parameters' gradients, the same on all ranks."""

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint, the same on every rank; all ranks must call this."""
        return {"step": self.step}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go back to a checkpoint."""
        self.step = state["step"]

    def _mean(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Return the exact means, in one message."""
        joined = torch.cat([value.flatten() for value in values])
        self.sent += ring_bytes(self.world, joined.numel() * joined.element_size())
        parts = self.world.mean(joined).split([value.numel() for value in values])
        return [part.view_as(value) for part, value in zip(parts, values, strict=True)]


class Half(Reduction):
    """Gradients in half precision, divided by the number of ranks before they are added."""

    dtype: ClassVar[torch.dtype]

    def mean(self, parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor]) -> list[Tensor]:
        """Return the means, rounded to half precision and back."""
        halves = torch.cat([gradient.flatten() for gradient in gradients]).to(self.dtype).div_(self.world.size)
        self.count(halves.numel())
        parts = self.world.sum(halves).split([gradient.numel() for gradient in gradients])
        return [part.to(gradient.dtype).view_as(gradient) for part, gradient in zip(parts, gradients, strict=True)]

    def count(self, values: int) -> None:
        """Note that as many values are sent."""
        self.sent += ring_bytes(self.world, 2 * values)


class Float16(Half):
    """Gradients in IEEE half precision; above 65504 they are infinite."""

    dtype = torch.float16


class BFloat16(Half):
    """Gradients in bfloat16: the range of float32, and 8 bits of precision."""

    dtype = torch.bfloat16


class Quantised(Reduction):
    """Gradients in 8 bits by unbiased stochastic rounding, to the ranks that average them and back from these.

    A value v of a segment with the Euclidean norm |s| is |s| sign(v) l / 127, where l is 127 |v| / |s|, rounded up with
    the probability of its fraction (QSGD, Alistarh et al. 2017, arXiv:1610.02132, section 3.1, which DAT quantises by:
    Zhang et al. 2022, arXiv:2206.06257). Its mean is v, and the variance of a segment of d values is at most
    min(d / 127^2, sqrt(d) / 127) |s|^2 (lemma 3.1). DAT's norms are of whole parameters; segments of 512 values keep
    that bound below 1/31 (as QSGD's buckets do, section 4).

    Every rank averages one part of the gradients, as the paper's server does, and quantises the mean again: each rank
    sends 2 (N - 1) / N bytes for each value, and 4 for each segment, where an exact mean sends 8 (N - 1) / N.
    """

    def mean(self, parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor]) -> list[Tensor]:
        """Return the means, quantised twice."""
        world, device = self.world, gradients[0].device
        counts = [gradient.numel() for gradient in gradients]
        lengths = torch.tensor([length for count in counts for length in segment_lengths(count)], device=device)
        ends = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        # Segments [cuts[r], cuts[r + 1]) are averaged by rank r.
        cuts = [len(lengths) * rank // world.size for rank in range(world.size + 1)]
        bounds = ends[cuts].tolist()
        mine = slice(bounds[world.rank], bounds[world.rank + 1])
        own = lengths[cuts[world.rank] : cuts[world.rank + 1]]

        values = torch.cat([gradient.flatten().float() for gradient in gradients])
        draws = [self._drawn(parameter, device, "rank", world.rank) for parameter in parameters]
        levels, norms = quantised(values, lengths, torch.cat(draws))
        parts = [
            _packed(levels[bounds[rank] : bounds[rank + 1]], norms[cuts[rank] : cuts[rank + 1]])
            for rank in range(world.size)
        ]
        self.sent += sum(len(part) for rank, part in enumerate(parts) if rank != world.rank)
        received = world.exchange(parts)
        mean = torch.stack([dequantised(*_unpacked(part, len(own)), own) for part in received]).mean(0)

        again = _packed(*quantised(mean, own, self._drawn_part(parameters, counts, mine, device)))
        sizes = [bounds[rank + 1] - bounds[rank] + 4 * (cuts[rank + 1] - cuts[rank]) for rank in range(world.size)]
        self.sent += (world.size - 1) * max(sizes)
        gathered = world.gather_rows(again, sizes)
        found = torch.cat(
            [
                dequantised(*_unpacked(part, cuts[rank + 1] - cuts[rank]), lengths[cuts[rank] : cuts[rank + 1]])
                for rank, part in enumerate(gathered)
            ]
        )
        return [
            part.view_as(gradient).to(gradient.dtype)
            for part, gradient in zip(found.split(counts), gradients, strict=True)
        ]

    def _drawn(self, parameter: nn.Parameter, device: torch.device, *place: str | int) -> Tensor:
        address = ("compression", self.step, *place, self._places[parameter])
        generator = generator_at(device, self.seed, *address)
        return torch.rand(parameter.numel(), device=device, generator=generator)

    def _drawn_part(
        self, parameters: Sequence[nn.Parameter], counts: Sequence[int], part: slice, device: torch.device
    ) -> Tensor:
        """Return the draws of the second rounding for a part of the values: the same whichever rank averages it."""
        found, start = [torch.empty(0, device=device)], 0
        for parameter, count in zip(parameters, counts, strict=True):
            first, last = max(part.start - start, 0), min(part.stop - start, count)
            if first < last:
                found.append(self._drawn(parameter, device, "mean")[first:last])
            start += count
        return torch.cat(found)


def segment_lengths(count: int) -> list[int]:
    """Return the lengths of a parameter's segments."""
    whole, rest = divmod(count, SEGMENT)
    return [SEGMENT] * whole + ([rest] if rest else [])


def quantised(values: Tensor, lengths: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Return the levels [N] of values [N], in [-127, 127] as int8, and the norms [S] of their segments.

    Args:
        values: float32.
        lengths: of the segments, [S].
        draws: [N], uniform in [0, 1).
    """
    segments = torch.arange(len(lengths), device=values.device).repeat_interleave(lengths)
    starts = (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
    padded = values.new_zeros(len(lengths), SEGMENT)
    padded[segments, torch.arange(len(values), device=values.device) - starts] = values
    norms = padded.norm(dim=1)
    exact = values.abs() / norms.repeat_interleave(lengths).clamp_min(torch.finfo(values.dtype).tiny) * LEVELS
    low = exact.floor()
    # The largest of a segment may be rounded to above its norm.
    levels = (low + (draws < exact - low)).clamp_max(LEVELS) * values.sign()
    # What is no number has no level; its norm carries it on.
    return levels.nan_to_num(1.0).to(torch.int8), norms


def dequantised(levels: Tensor, norms: Tensor, lengths: Tensor) -> Tensor:
    """Return the values [N] of levels [N] and the norms [S] of segments of these lengths."""
    return levels * (norms / LEVELS).repeat_interleave(lengths)


def _packed(levels: Tensor, norms: Tensor) -> Tensor:
    """Return levels and norms as one row of bytes."""
    return torch.cat([norms.contiguous().view(torch.uint8), levels.view(torch.uint8)])


def _unpacked(row: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the levels and `count` norms of a row of bytes."""
    # A copy, so that the four bytes of a norm lie where a number may.
    return row[4 * count :].view(torch.int8), row[: 4 * count].clone().view(torch.float32)


class PowerSGD(Reduction):
    """Gradients of low rank, by one step of power iteration (Vogels et al. 2019, arXiv:1905.13727, algorithms 1, 2).

    The gradient of a weight of more than one dimension is a matrix [n, m], its first dimension by all others. Ranks
    share P [n, r] and Q [m, r] instead, where (n + m) r numbers are fewer; the rest is sent as it is. What is left out
    is added to the next step's gradient (error feedback), and Q is where the next step begins.

    It is the algorithm of `torch.distributed`'s hook of this name, from the first step on; that one's memory is by
    bucket, and does not survive another cut of these.

    Args:
        rank: r; larger ones leave out less, and send more.
    """

    def __init__(self, world: World, parameters: Iterable[nn.Parameter], *, rank: int = 4, seed: int = 0) -> None:
        super().__init__(world, parameters, seed=seed)
        self._rank = rank
        self._errors: dict[int, Tensor] = {}
        self._queries: dict[int, Tensor] = {}

    def mean(self, parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor]) -> list[Tensor]:
        """Return the means, those of matrices of low rank."""
        means = [torch.empty(0)] * len(gradients)
        places = [self._places[parameter] for parameter in parameters]
        small = [number for number, gradient in enumerate(gradients) if not self._pays(gradient)]
        large = [number for number in range(len(gradients)) if number not in set(small)]
        # Gradient plus memory.
        matrices = [gradients[number].flatten(1).float() for number in large]
        matrices = [
            matrix + self._errors[places[number]] if places[number] in self._errors else matrix
            for number, matrix in zip(large, matrices, strict=True)
        ]
        queries = [self._query(places[number], matrix) for number, matrix in zip(large, matrices, strict=True)]
        # P = M Q, averaged; the small ones go with it.
        products = [matrix @ query for matrix, query in zip(matrices, queries, strict=True)]
        averaged = self._mean([*products, *(gradients[number].float() for number in small)])
        for number, found in zip(small, averaged[len(large) :], strict=True):
            means[number] = found.to(gradients[number].dtype)
        if not large:
            return means
        # P orthogonal; Q = M^T P, averaged.
        bases = [torch.linalg.qr(product).Q for product in averaged[: len(large)]]
        queries = self._mean([matrix.T @ basis for matrix, basis in zip(matrices, bases, strict=True)])
        for number, matrix, basis, query in zip(large, matrices, bases, queries, strict=True):
            found = basis @ query.T
            self._errors[places[number]], self._queries[places[number]] = matrix - found, query.clone()
            means[number] = found.view_as(gradients[number]).to(gradients[number].dtype)
        return means

    def _pays(self, gradient: Tensor) -> bool:
        if gradient.dim() < 2:
            return False
        rows, columns = gradient.flatten(1).shape
        return (rows + columns) * self._rank < rows * columns

    def _query(self, place: int, matrix: Tensor) -> Tensor:
        """Return where the power iteration begins: the last step's Q, or normal numbers, the same on all ranks."""
        if place in self._queries:
            return self._queries[place]
        generator = generator_at("cpu", self.seed, "powersgd", place)
        return torch.randn(matrix.shape[1], self._rank, generator=generator).to(matrix)

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint: of the errors, every rank's."""
        errors = {place: self.world.stack(self._errors[place]) for place in sorted(self._errors)}
        return {**super().state(), "errors": errors, "queries": dict(self._queries)}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go back to a checkpoint; other numbers of ranks than it was written by share the mean error."""
        super().load_state(state)
        device, world = self.world.device, self.world
        errors = {place: value.to(device) for place, value in state["errors"].items()}
        self._errors = {
            place: value[world.rank].clone() if len(value) == world.size else value.mean(0)
            for place, value in errors.items()
        }
        # Copies: where numbers lie in a file's memory can change the last bit of a product.
        self._queries = {place: value.to(device, copy=True) for place, value in state["queries"].items()}
