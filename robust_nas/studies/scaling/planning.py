"""The planning of a scaling study: what every network of a grid costs, and what fits, before anything is trained."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from robust_nas import pipeline
from robust_nas.architectures.resnet import ResNetArchitecture
from robust_nas.core.errors import InputError
from robust_nas.core.registry import name_of
from robust_nas.datasets import DataForm
from robust_nas.models.complexity import machine_memory
from robust_nas.models.pace import settle_threads
from robust_nas.recipes import Recipe
from robust_nas.records.scaling import StudyData
from robust_nas.runtime.distributed import World
from robust_nas.runtime.process import unchanged_process
from robust_nas.runtime.progress import Progress
from robust_nas.runtime.resident import resident
from robust_nas.studies.scaling import costs
from robust_nas.studies.scaling.calibration import (
    Candidate,
    Pace,
    Trial,
    calibrate,
    evaluation_passes,
    validation_passes,
)
from robust_nas.studies.scaling.costs import NetworkCost, PeakMemory
from robust_nas.studies.scaling.grid import Cell, Grid
from robust_nas.studies.scaling.planned import GIB, Plan, PlannedNetwork

SECONDS = 5.0
"""Seconds that are spent on timing steps, about."""


def study_data(
    recipe: Recipe,
    *,
    size: int | None = None,
    classes: int | None = None,
    num_images: int | None = None,
) -> tuple[StudyData, int, int]:
    """Return a study's data in numbers, its test images, and the bytes that its images take in memory.

    Args:
        recipe: its data is read, unless all three numbers are given.
        size: pixels a side of its images.
        classes: its classes.
        num_images: images to train on.

    Raises:
        InputError: if only some of the numbers are given and the data is not here, or for numbers below 1.
    """
    given = {"size": size, "classes": classes, "num-images": num_images}
    for name, value in given.items():
        if value is not None and value < 1 + (name == "classes"):
            raise InputError(f"--{name} must be at least {1 + (name == 'classes')}, but got {value}.")
    source = recipe.data
    if size is not None and classes is not None and num_images is not None:
        validation = getattr(source, "validation_size", None) or max(1, num_images // 10)
        tested = recipe.evaluation.num_images or getattr(source, "test_size", None) or validation
        found = StudyData(
            name=name_of(source),
            image_shape=(3, size, size),
            num_classes=classes,
            num_train=num_images,
            num_validation=validation,
        )
        return found, tested, (validation + tested) * 3 * size * size
    data = pipeline.read_data(source, World())
    splits = (data.train, data.validation, data.test)
    shape = data.image_shape if size is None else (data.image_shape[0], size, size)
    found = StudyData(
        name=data.name,
        image_shape=shape,
        num_classes=classes or len(data.classes),
        num_train=num_images or len(data.train),
        num_validation=len(data.validation),
    )
    tested = (
        len(data.test) if recipe.evaluation.num_images is None else min(len(data.test), recipe.evaluation.num_images)
    )
    held = sum(len(part) for part in splits if hasattr(part, "pixels"))
    return found, tested, held * shape[0] * shape[1] * shape[2]


@unchanged_process()
def plan(
    grid: Grid,
    *,
    size: int | None = None,
    classes: int | None = None,
    num_images: int | None = None,
    memory: float | None = None,
    seconds: float = SECONDS,
    attacks: bool = True,
    progress: Progress | None = None,
) -> Plan:
    """Return the plan of a grid: the costs of its networks, from their shapes and from some seconds of this device.

    Args:
        grid: the study.
        size: pixels a side of the images; with `classes` and `num_images`, the data need not be here.
        classes: of the data.
        num_images: images to train on.
        memory: GiB; what this device has, if not given.
        seconds: to be spent on timing steps, about.
        attacks: whether the attacks on test images are counted, which takes some seconds of its own.
        progress: the display.

    Raises:
        InputError: for a mistake in the settings, or data that is not here.
    """
    progress = progress or Progress(quiet=True)
    if memory is not None and not memory > 0:
        raise InputError(f"--memory is a number of GiB above 0, but got {memory}.")
    if not seconds > 0:
        raise InputError(f"--seconds must be above 0, but got {seconds}.")
    kinds = _kinds(grid)
    first = kinds[0].recipe
    data, tested, held = study_data(first, size=size, classes=classes, num_images=num_images)
    world = World.start(first.device, first.threads)
    planner = _Planner(data, tested, held, world, memory, progress)
    return planner.plan(kinds, len(grid.seeds), seconds, attacks)


def _kinds(grid: Grid) -> list[Cell]:
    """Return one cell of each network and setting: that of the first seed."""
    return replace(grid, seeds=grid.seeds[:1]).cells()


@dataclass
class _Planner:
    """The planning of some networks on a device.

    Args:
        data: in numbers.
        tested: test images that are attacked.
        held: bytes of the images.
        world: the device.
        gibibytes: memory, if it is not the device's.
        progress: the display.
    """

    data: StudyData
    tested: int
    held: int
    world: World
    gibibytes: float | None
    progress: Progress
    _shapes: dict[Any, Any] = field(default_factory=dict)
    _costs: dict[Any, NetworkCost] = field(default_factory=dict)

    @property
    def memory(self) -> int:
        """The bytes that there are."""
        if self.gibibytes is not None:
            return round(self.gibibytes * GIB)
        if self.world.device.type == "cuda":
            return int(torch.cuda.get_device_properties(self.world.device).total_memory)
        return machine_memory()

    @property
    def base(self) -> int:
        """The bytes that are taken before there is a network."""
        if self.world.device.type == "cuda":
            return self.held
        return (resident() or 0) + self.held

    def plan(self, kinds: list[Cell], seeds: int, seconds: float, attacks: bool) -> Plan:
        """Return the plan of one cell for each network and setting."""
        base = self.base
        found = [self.cost(cell) for cell in kinds]
        pace = self.pace(kinds, found, seconds)
        tries = {cell.grid.net: evaluation_passes(cell.recipe, self.form, self.tested) for cell in kinds[:1] if attacks}
        attack = next(iter(tries.values()), None)
        rows = tuple(self.row(cell, cost, pace, attack, base, seeds) for cell, cost in zip(kinds, found, strict=True))
        return Plan(
            networks=rows,
            cells=len(rows) * seeds,
            data=self.data,
            device=_device_name(self.world),
            memory=self.memory,
            base=base,
            rates=pace.rates,
            timed=pace.timed,
            overhead=pace.overhead,
            seconds=seeds * math.fsum(row.seconds + (row.attack_seconds or 0.0) for row in rows),
            flops=seeds * math.fsum(row.flops + row.validation_flops + (row.attack_flops or 0.0) for row in rows),
        )

    @property
    def form(self) -> DataForm:
        """The data's form."""
        return costs.form_of(self.data, self.data.image_shape)

    def largest(self, cell: Cell) -> costs.Part:
        """Return the part of a training that takes the most memory."""
        parts = costs.parts_of(cell.recipe.train, self.data)
        return max(parts, key=lambda part: part.batch_size * math.prod(self.shape(part)))

    def shape(self, part: costs.Part) -> tuple[int, int, int]:
        """Return the shape of the images of a part of a training."""
        return costs.image_shape(self.data, part.side)

    def cost(self, cell: Cell) -> NetworkCost:
        """Return the passes of a cell's network, at the largest images and batch of its training."""
        part = self.largest(cell)
        shape, batch = self.shape(part), part.batch_size // cell.recipe.train.accumulate
        chunk = self.chunk(cell)
        key = (str(cell.network), cell.recipe.train.mixes, shape, batch, chunk)
        if key not in self._costs:
            self._costs[key] = self._measured(cell.network, shape, batch, chunk)
        return self._costs[key]

    def chunk(self, cell: Cell) -> int:
        """Return the validation images that are attacked at once."""
        return min(cell.recipe.train.selection_batch, self.data.num_validation)

    def _measured(
        self, network: ResNetArchitecture, shape: tuple[int, int, int], batch: int, chunk: int
    ) -> NetworkCost:
        form = costs.form_of(self.data, shape)
        return costs.network_cost(costs.on_meta(network, form), shape, batch, chunk, self._shapes)

    def pace(self, kinds: list[Cell], found: list[NetworkCost], seconds: float) -> Pace:
        """Return the pace of the device at the first setting's training.

        The networks of the grid may be timed, and shallow ones of the same widths, whose steps are short.
        """
        first = kinds[0]
        candidates: dict[str, Candidate] = {}
        for cell, cost in zip(kinds, found, strict=True):
            if cell.varied != first.varied:
                continue
            shape, chunk = self.shape(self.largest(cell)), self.chunk(cell)
            for blocks in (2, 3) if cell.recipe.train.checkpointing else (1, 2):
                shallow = replace(cell.network, stages=tuple(min(blocks, own) for own in cell.network.stages))
                if str(shallow) not in candidates and shallow != cell.network:
                    own = self._measured(shallow, shape, cost.training.images, chunk)
                    candidates[str(shallow)] = Candidate(self._maker(shallow, shape), own, shape)
            candidates[str(cell.network)] = Candidate(self._maker(cell.network, shape), cost, shape)
        smallest = min(candidates.values(), key=lambda each: each.flops)
        if first.recipe.threads is None:
            images = costs.random_images(
                costs.form_of(self.data, smallest.shape), min(64, smallest.cost.training.images)
            )
            settle_threads(smallest.make(), images.to(self.world.device))
        self.progress.say(f"timing steps of training for about {seconds:g} s")
        step = costs.step_of(first.recipe, first.network, self.data)
        return calibrate(
            list(candidates.values()), Trial(first.recipe, self.form, step, self.world, self.memory / 2, seconds)
        )

    def _maker(self, network: ResNetArchitecture, shape: tuple[int, int, int]) -> Callable[[], nn.Module]:
        return lambda: costs.made(network, costs.form_of(self.data, shape))

    def row(
        self, cell: Cell, cost: NetworkCost, pace: Pace, attack: float | None, base: int, seeds: int
    ) -> PlannedNetwork:
        """Return the row of a network in a setting."""
        recipe, training = cell.recipe, cell.recipe.train
        step = costs.step_of(recipe, cell.network, self.data)
        parts, largest = costs.parts_of(training, self.data), self.largest(cell)
        accumulate, chunk = training.accumulate, self.chunk(cell)
        one_image = cost.training.forward_flops / cost.training.images
        own = (math.prod(self.data.image_shape[1:])) / math.prod(self.shape(largest)[1:])
        validation = validation_passes(recipe, self.form) * self.data.num_validation
        per_validation = pace.seconds(cost, chunk) / chunk / 3 * own
        flops = seconds = 0.0
        for part in parts:
            share = math.prod(self.shape(part)[1:]) / math.prod(self.shape(largest)[1:])
            flops += part.epochs * part.steps * part.batch_size * step.passes * one_image * share
            taken = accumulate * pace.seconds(cost, max(1, part.batch_size // accumulate)) * share
            seconds += part.epochs * (part.steps * taken * step.passes / 3 + validation * per_validation)
        memory = costs.peak_memory(cost, step, averages=training.ema > 0, overhead=pace.overhead)
        fits, reason = self.fit(cell, largest, memory, base)
        recomputed = None if memory.step_checkpointed is None else memory.peak(True)
        return PlannedNetwork(
            network=str(cell.network),
            depth=cell.network.depth,
            width=cell.width,
            varied=dict(cell.varied),
            seeds=seeds,
            parameters=cost.size.parameters,
            multiply_adds=cost.size.multiply_adds,
            image_size=max(self.shape(largest)[1:]),
            batch_size=largest.batch_size,
            steps=sum(part.epochs * part.steps for part in parts),
            epochs=training.epochs,
            images_per_epoch=parts[0].steps * parts[0].batch_size // training.method.replays,
            passes=step.passes,
            flops=flops,
            validation_flops=training.epochs * validation * one_image * own,
            attack_flops=None if attack is None else attack * one_image * own,
            activations=cost.activations,
            activations_checkpointed=cost.activations_checkpointed,
            memory=memory.peak(training.checkpointing),
            memory_plain=memory.peak(),
            memory_checkpointed=recomputed,
            epoch_seconds=seconds / training.epochs,
            seconds=seconds,
            attack_seconds=None if attack is None else attack * per_validation,
            fits=fits,
            reason=reason,
        )

    def fit(self, cell: Cell, part: costs.Part, memory: PeakMemory, base: int) -> tuple[str, str | None]:
        """Return whether a training fits into the memory or how it would, and what is too large as it is."""
        training = cell.recipe.train
        left = self.memory - base
        if memory.peak(training.checkpointing) <= left:
            return "yes", None
        name = f"{cell.network} at {max(self.shape(part)[1:])} px"
        there = f"but {max(left, 0) / GIB:.3g} GiB are left of {self.memory / GIB:.3g}"
        if memory.fixed >= left:
            weights = f"{memory.fixed / GIB:.3g} GiB of weights, gradients and the optimiser's state"
            return "no", f"{name} does not fit: {weights}, {there}."
        settings, reasons = [], []
        batch, chunk, room = part.batch_size // training.accumulate, self.chunk(cell), left - memory.fixed
        step, attack = memory.step, memory.validation
        for whole, recomputed, what in (
            (step, memory.step_checkpointed, f"batch {batch}"),
            (attack, memory.validation_checkpointed, f"{chunk} validation images under attack"),
        ):
            if (recomputed if training.checkpointing and recomputed is not None else whole) > room:
                with_it = "" if recomputed is None else f", {recomputed / GIB:.3g} GiB with checkpointing"
                reasons.append(f"{what}: {whole / GIB:.3g} GiB of activations{with_it}")
        if not training.checkpointing and memory.step_checkpointed is not None:
            settings.append("checkpointing")
            step, attack = memory.step_checkpointed, memory.validation_checkpointed or attack
        elif training.checkpointing:
            step, attack = memory.step_checkpointed or step, memory.validation_checkpointed or attack
        fitting = math.floor(room / (step / batch))
        attacked = math.floor(room / (attack / chunk))
        if fitting < min(2, batch) or attacked < 1:
            return "no", f"{name} does not fit: {'; '.join(reasons)}, {there}."
        if step > room:
            settings.append(f"train.accumulate={math.ceil(part.batch_size / fitting)}")
        if attack > room:
            settings.append(f"train.selection_batch={attacked}")
        return f"with {' and '.join(settings)}", f"{name}, {'; '.join(reasons)}, {there}."


def _device_name(world: World) -> str:
    if world.device.type == "cuda":
        return torch.cuda.get_device_name(world.device)
    threads = torch.get_num_threads()
    return f"{platform.machine()} CPU, {threads} of {os.cpu_count()} cores"
