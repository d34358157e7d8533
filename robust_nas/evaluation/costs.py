"""The expected cost of an evaluation, from a few of its images."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from robust_nas.core.seeds import generator_at
from robust_nas.core.text import aligned
from robust_nas.datasets import ImageSet
from robust_nas.models.frozen import device_of, frozen
from robust_nas.models.scores import scores
from robust_nas.runtime.distributed import World

NUM_IMAGES = 32


@dataclass(frozen=True)
class Cost:
    """The expected cost of a piece of work.

    Args:
        label: what it is.
        forwards: forward passes of single images through the model; about as many backward passes come on top where an
            attack follows gradients.
        seconds: wall time on the processes at hand.
    """

    label: str
    forwards: float
    seconds: float


def calibration_images(data: ImageSet, seed: int, count: int = NUM_IMAGES) -> ImageSet:
    """Return `count` random images of a set, to measure costs on."""
    chosen = torch.randperm(len(data), generator=generator_at("cpu", seed, "calibration"))[:count]
    return data[chosen.to(data.labels.device)]


def estimate_cost(
    label: str,
    model: nn.Module,
    sample: ImageSet,
    num_images: int,
    work: Callable[[ImageSet], object],
    processes: int = 1,
) -> Cost:
    """Estimate the cost of `work` on `num_images` images like those of `sample`, on which it is done here.

    Forward passes and time are taken to grow with the number of images: a full chunk costs less per image than this
    small one, so the time is rather too long. The processes are taken to share the work evenly.
    """
    passed = 0

    def count(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        nonlocal passed
        passed += len(inputs[0])

    with frozen(model, fold=False):
        scores(model, sample.images.to(device_of(model, sample.pixels)))  # what the first pass sets up
    handle = model.register_forward_pre_hook(count)
    started = time.monotonic()
    try:
        work(sample)
    finally:
        handle.remove()
    scale = num_images / len(sample)
    return Cost(label, passed * scale, (time.monotonic() - started) * scale / processes)


def costs_text(name: str, costs: Sequence[Cost], num_images: int, world: World) -> str:
    """Return expected costs as lines for a terminal."""
    total = Cost("all", sum(cost.forwards for cost in costs), sum(cost.seconds for cost in costs))
    rows = [[cost.label, f"{cost.forwards:,.0f}", duration(cost.seconds)] for cost in [*costs, total]]
    processes = world.size * world.workers
    return "\n".join(
        [
            f"expected for {name} on {num_images} images, in {processes} process{'es' * (processes > 1)}, from a few "
            "of them (the fewer images fall, the longer it takes):",
            *aligned([["", "forward passes", "time"], *rows], left=1),
        ]
    )


def duration(seconds: float) -> str:
    """Return a time in words."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
