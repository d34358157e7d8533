"""Certified accuracy: the share of images whose prediction provably no allowed perturbation changes."""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, compress
from typing import Any

import torch
from torch import Tensor, nn

from robust_nas import bounds
from robust_nas.bounds import TOLERANCE, Bound
from robust_nas.datasets import ImageSet
from robust_nas.distributed import World
from robust_nas.errors import InputError
from robust_nas.evaluation import wilson_interval
from robust_nas.registry import name_of
from robust_nas.run_dir import Stage
from robust_nas.threat import Norm, ThreatModel


@dataclass(frozen=True, kw_only=True, eq=False)
class Certification:
    """What is proved about N images at one radius.

    Args:
        method: the kind of bound.
        dtype: its arithmetic.
        norm: the ball's norm.
        epsilon: its radius in pixel units.
        labels: [N].
        margin: [N], float64: a lower bound of the least margin f_y - f_j over the wrong classes j and the ball.
        clean_correct: [N] booleans: whether the image itself is classified correctly.
        seconds: what the bounds took, on all processes together.
        methods: N names: the kind of bound that proved most about an image.
        seconds_each: [N], float64: the part of `seconds` that is an image's, in equal shares of its chunk's.
    """

    method: str
    dtype: str
    norm: Norm
    epsilon: float
    labels: Tensor
    margin: Tensor
    clean_correct: Tensor
    seconds: float
    methods: tuple[str, ...]
    seconds_each: Tensor

    @property
    def certified(self) -> Tensor:
        """[N] booleans: whether the label is proved for the whole ball. NaN proves nothing."""
        return self.margin > TOLERANCE

    @property
    def accuracy(self) -> float:
        """The certified accuracy, a fraction."""
        return float(self.certified.double().mean())

    def summary(self) -> dict[str, Any]:
        """Return the entry of certification.json: certified accuracy with its 95 % interval over images (Wilson)."""
        count, successes = len(self.margin), int(self.certified.sum())
        low, high = wilson_interval(successes, count)
        return {
            "epsilon": self.epsilon,
            "certified": self.accuracy,
            "low": low,
            "high": high,
            "count": count,
            "mean_margin": float(self.margin.mean()),
            "seconds": self.seconds,
            "proved_by": dict(Counter(compress(self.methods, self.certified.tolist()))),
        }

    def rows(self) -> list[dict[str, Any]]:
        """Return one row of certificates.parquet per image; `image` is its place in the data that was certified."""
        columns = {
            "method": list(self.methods),
            "label": self.labels.tolist(),
            "margin": self.margin.tolist(),
            "certified": self.certified.tolist(),
            "clean_correct": self.clean_correct.tolist(),
            "seconds": self.seconds_each.tolist(),
        }
        place = {"norm": self.norm, "epsilon": self.epsilon, "dtype": self.dtype}
        return [
            {**place, "image": image, **dict(zip(columns, values, strict=True))}
            for image, values in enumerate(zip(*columns.values(), strict=True))
        ]


def certify(
    model: nn.Module,
    data: ImageSet,
    threat: ThreatModel,
    *,
    bound: Bound | str = "interval",
    epsilons: Sequence[float | str] | None = None,
    batch_size: int = 128,
    stage: Stage | None = None,
) -> list[Certification]:
    """Return what `bound` proves about every image of `data`, at each radius.

    Args:
        model: maps [0, 1] images [B, C, H, W] to logits [B, K]; used in evaluation mode and left as it was.
        data: the images and labels.
        threat: gives the norm, and the radius where `epsilons` is None.
        bound: a kind of bound, or the name of one.
        epsilons: radii in pixel units.
        batch_size: images in a chunk: what a process bounds between two saves of the state.
        stage: shares the chunks out over its processes, shows progress, and continues after the chunks it has saved.

    Raises:
        InputError: for no images, no radii, a model that the bound cannot handle, or a saved state of other settings.
    """
    if len(data) == 0 or batch_size < 1:
        raise InputError(
            f"certify needs at least one image and a batch_size of at least 1, but got {len(data)} and {batch_size}."
        )
    threats = [threat] if epsilons is None else [threat.with_epsilon(epsilon) for epsilon in epsilons]
    if not threats:
        raise InputError("certify needs at least one radius, but epsilons is empty; leave it out for the threat's own.")
    chosen: Bound = bounds.get(bound)() if isinstance(bound, str) else bound
    network = copy.deepcopy(model).eval()
    world = stage.world if stage else World()
    device = next((tensor.device for tensor in chain(network.parameters(), network.buffers())), data.labels.device)
    chunks = [data[start : start + batch_size] for start in range(0, len(data), batch_size)]

    done, state = stage.resume() if stage else (0, None)
    settings = f"{chosen} at {threats} for {len(data)} images in chunks of {batch_size}"
    if stage and state and state["settings"] != settings:
        raise InputError(
            f"The stage {stage.name} was interrupted under other settings ({state['settings']}), but is now "
            f"{settings}; restore them, or start a new run."
        )
    margins: list[Tensor] = [state["margins"]] if state else []
    clean: list[Tensor] = [state["clean"]] if state else []
    seconds: list[Tensor] = [state["seconds"]] if state else []
    methods: list[list[str]] = state["methods"] if state else [[] for _ in threats]
    # One chunk per process, then all results come together: the state counts chunks and fits any number of processes.
    firsts = range(done, len(chunks), world.size)
    for first in stage.progress.steps(firsts, stage.name, done=-(-done // world.size)) if stage else firsts:
        here = chunks[first : first + world.size]
        results = [_certify_chunk(network, chunk.to(device), threats, chosen) for chunk in world.shard(here)]
        for found in world.gather_shards(results, len(here)):
            margins.append(found.margins)
            clean.append(found.clean)
            seconds.append(found.seconds)
            methods = [known + new for known, new in zip(methods, found.methods, strict=True)]
        if stage:
            finished = {"margins": torch.cat(margins, 1), "clean": torch.cat(clean), "seconds": torch.cat(seconds, 1)}
            stage.save(first + len(here), {"settings": settings, **finished, "methods": methods})
    return [
        Certification(
            method=name_of(chosen),
            dtype=getattr(chosen, "dtype", "float64"),
            norm=at.norm,
            epsilon=at.epsilon,
            labels=data.labels.cpu(),
            margin=margin,
            clean_correct=torch.cat(clean),
            seconds=float(took.sum()),
            methods=tuple(names),
            seconds_each=took,
        )
        for at, margin, took, names in zip(threats, torch.cat(margins, 1), torch.cat(seconds, 1), methods, strict=True)
    ]


@dataclass(frozen=True)
class _Chunk:
    """What was found about B images at E radii.

    Args:
        margins: the least ones, [E, B].
        clean: whether the images themselves are classified correctly, [B].
        seconds: [E, B].
        methods: E lists of B names.
    """

    margins: Tensor
    clean: Tensor
    seconds: Tensor
    methods: list[list[str]]


def _certify_chunk(network: nn.Module, chunk: ImageSet, threats: Sequence[ThreatModel], bound: Bound) -> _Chunk:
    images, count = chunk.images, len(chunk)
    with torch.no_grad():
        clean = network(images).argmax(1) == chunk.labels
    margins, seconds, methods = [], [], []
    for threat in threats:
        started = time.monotonic()
        found = bound.margins(network, images, chunk.labels, threat)
        # The least is NaN where any margin is: nothing is proved about an image with a bound that is not a number.
        margins.append(found.lower(threat).amin(1).double().cpu())
        seconds.append(torch.full((count,), (time.monotonic() - started) / count, dtype=torch.float64))
        methods.append(list(found.methods or [name_of(bound)] * count))
    return _Chunk(torch.stack(margins), clean.cpu(), torch.stack(seconds), methods)
