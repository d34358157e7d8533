"""Real process groups: what two ranks reduce, share and train is what one process has on the same global batch."""

from __future__ import annotations

import dataclasses
import importlib
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from robust_nas import datasets, spaces
from robust_nas.attacks.pgd import PGD
from robust_nas.core.config import build
from robust_nas.core.errors import InputError, Interrupted, Terminated
from robust_nas.runtime import stepping
from robust_nas.runtime.distributed import PATIENCE, World, losses_said
from robust_nas.runtime.progress import Progress
from robust_nas.runtime.stages import Stage
from robust_nas.runtime.states import load_state
from robust_nas.searches import _resources
from robust_nas.searches._resources import Resource
from robust_nas.searches._stability import CollapseMonitor
from robust_nas.searches._supernet_search import SupernetSearch
from robust_nas.searches.darts import DARTS
from robust_nas.searches.dirichlet import Dirichlet
from robust_nas.searches.gumbel import Gumbel
from robust_nas.searches.sampled import TrialSearch
from robust_nas.threat import ThreatModel
from robust_nas.training import Training, fit
from robust_nas.training.pgd_at import PGDAT


def _rank(function: Callable[[World], Any], rank: int, size: int, port: int, folder: Path, patience: float) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(size),
        LOCAL_WORLD_SIZE=str(size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    world = World.start("cpu", patience=patience)
    torch.save(function(world), folder / f"{rank}.pt")
    world.stop()


def on_two_ranks(
    function: Callable[[World], Any], folder: Path, patience: float = PATIENCE, size: int = 2
) -> list[Any]:
    """Return the results of `function` on each of two gloo ranks, or of more."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # What a wrapped network and the digits import, once here instead of in every process.
    importlib.import_module("torch._inductor.utils")
    datasets.load("digits")
    # Forked: functions of a test module cannot be imported by a fresh process.
    context = multiprocessing.get_context("fork")
    arguments = [(function, rank, size, port, folder, patience) for rank in range(size)]
    processes = [context.Process(target=_rank, args=each) for each in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(size)]


def _reductions(world: World) -> dict[str, Any]:
    value = torch.tensor([1.0, 10.0]) * (world.rank + 1)
    model = nn.BatchNorm1d(2)
    model.running_mean.copy_(value)
    world.mean_buffers(model)
    shard = [item * item for item in world.shard(range(7))]
    return {
        "mean": world.mean(value),
        "sum": world.sum(value),
        "own": value,
        "gathered": world.gather(world.rank),
        "joined": world.gather_shards(shard, 7),
        "broadcast": world.broadcast(f"from {world.rank}"),
        "buffers": (model.running_mean, int(model.num_batches_tracked)),
        "main": world.is_main,
    }


def test_reductions_are_over_all_ranks_and_leave_their_argument_alone(tmp_path: Path) -> None:
    first, second = on_two_ranks(_reductions, tmp_path)
    for result in (first, second):
        assert result["mean"].tolist() == [1.5, 15.0]
        assert result["sum"].tolist() == [3.0, 30.0]
        assert result["gathered"] == [0, 1]
        assert result["joined"] == [0, 1, 4, 9, 16, 25, 36]
        assert result["broadcast"] == "from 0"
        assert result["buffers"][0].tolist() == [1.5, 15.0]
    assert (first["main"], second["main"]) == (True, False)
    assert second["own"].tolist() == [2.0, 20.0]


def test_in_one_process_everything_is_a_no_op() -> None:
    world, value, model = World(), torch.ones(2), nn.Linear(2, 2)
    assert world.wrap(model) is model and world.mean(value) is value and world.sum(value) is value
    assert world.gather("x") == ["x"] and world.broadcast("x") == "x" and world.gather_shards([1, 2], 2) == [1, 2]


def test_workers_give_what_one_process_gives_in_the_same_order() -> None:
    def square(number: int) -> torch.Tensor:
        return torch.tensor([number * number])

    for workers in (1, 2, 3):
        assert [int(value) for value in World(workers=workers).each(square, range(5))] == [0, 1, 4, 9, 16]


def test_a_mistake_in_a_worker_is_raised_here() -> None:
    def fail(number: int) -> torch.Tensor:
        raise InputError(f"no {number}")

    with pytest.raises(InputError, match="no 0"):
        World(workers=2).each(fail, range(2))


def test_a_worker_that_is_killed_is_said_and_nothing_is_made_up() -> None:
    def killed(number: int) -> torch.Tensor:
        os.kill(os.getpid(), signal.SIGKILL)
        return torch.zeros(1)

    with pytest.raises(Interrupted, match=r"A worker process ended without a result \(exit code -9\), .* memory"):
        World(workers=2).each(killed, range(2))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "Memory has run out"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
            "Memory has run out",
        ),
        (torch.OutOfMemoryError("CUDA out of memory."), "Memory has run out"),
    ],
)
def test_a_lack_of_memory_is_said(error: Exception, said: str) -> None:
    with pytest.raises(Interrupted, match=said), losses_said():
        raise error
    with pytest.raises(RuntimeError, match="shapes"), losses_said():
        raise RuntimeError("shapes do not fit")


def _left_alone(world: World) -> str:
    """Reduce what only rank 0 reduces: rank 1 has ended."""
    if not world.is_main:
        return "ended"
    try:
        with losses_said():
            world.sum(torch.ones(1))
    except Interrupted as error:
        return str(error)
    return "nothing"


def test_a_rank_that_has_ended_is_said_by_the_others(tmp_path: Path) -> None:
    assert on_two_ranks(_left_alone, tmp_path)[0].startswith("Another process of this group has ended, or has not")


def _waiting(world: World) -> str:
    """Wait for rank 1, which does not answer for longer than rank 0 has patience, as one that is stopped."""
    if not world.is_main:
        time.sleep(25)
    return _left_alone(world)


@pytest.mark.slow
def test_a_rank_that_does_not_answer_is_given_up_when_the_patience_ends(tmp_path: Path) -> None:
    started = time.monotonic()
    said, _ = on_two_ranks(_waiting, tmp_path, patience=15)
    assert said.startswith("Another process of this group") and time.monotonic() - started < 60


def _refuse_on_main(world: World) -> str:
    def fail() -> None:
        raise InputError("no place")

    try:
        world.on_main(fail)
    except InputError as error:
        return str(error)
    return "nothing"


def test_a_mistake_of_rank_0_is_raised_on_every_rank(tmp_path: Path) -> None:
    assert on_two_ranks(_refuse_on_main, tmp_path) == ["no place", "no place"]


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))


def _gradient(world: World) -> list[torch.Tensor]:
    data, model = datasets.load("digits").train[:16], _model()
    part = data[torch.arange(world.rank, 16, world.size)]
    # An attack on the unwrapped module before the wrapped forward, as in training.
    crafted = PGD(steps=2, random_start=False).perturb(model, part.images, part.labels, ThreatModel(epsilon=0.1))
    wrapped = world.wrap(model)
    F.cross_entropy(wrapped(crafted), part.labels).backward()
    return [parameter.grad for parameter in model.parameters()]


def test_two_ranks_have_the_gradient_of_one_process_with_the_same_global_batch(tmp_path: Path) -> None:
    alone = _gradient(World())
    for rank in on_two_ranks(_gradient, tmp_path):
        for ours, expected in zip(rank, alone, strict=True):
            torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-4)


def _scaled(
    values: torch.Tensor, mean: Any, variance: Any, weight: torch.Tensor | None = None, *_: Any, **__: Any
) -> Any:
    """Do what a batch norm does without statistics: its scale may be a mixture's weights."""
    return values if weight is None else values * weight.view(1, -1, 1, 1)


def _search(world: World, search: SupernetSearch | None = None) -> dict[str, Any]:
    digits = datasets.load("digits")
    data = dataclasses.replace(digits, train=digits.train[:32], validation=digits.validation[:32], test=digits.test[:1])
    space = spaces.load("nasbench201", channels=2, cells_per_stage=1, stages=1)
    # Batch statistics are those of a rank's own part by contract: without them, two ranks must equal one.
    normed = F.batch_norm
    F.batch_norm = _scaled  # type: ignore[assignment]
    attack = PGD(steps=2, random_start=False)
    common = {"epochs": 2, "batch_size": 16, "objective": PGDAT(attack=attack), "validation_attack": attack}
    search = dataclasses.replace(search or Dirichlet(alpha_learning_rate=0.05), **common)
    stage = Stage("search", 0, world, Progress(quiet=True))
    found = search.search(space, data, ThreatModel(epsilon=0.1), stage)
    F.batch_norm = normed
    # Ranks have clocks of their own.
    trajectory = [{key: row[key] for key in row if key != "seconds"} for row in found.record["trajectory"]]
    return {"trajectory": trajectory, "weights": list(found.supernet.parameters())}


def test_two_processes_give_the_alpha_of_one_process_with_the_same_global_batch(tmp_path: Path) -> None:
    alone, (first, second) = _search(World()), on_two_ranks(_search, tmp_path)
    for ranks in zip(first["weights"], second["weights"], strict=True):
        assert torch.equal(*ranks)
    assert first["trajectory"] == second["trajectory"]
    for row, expected in zip(first["trajectory"], alone["trajectory"], strict=True):
        torch.testing.assert_close(
            torch.tensor(row["concentration"]), torch.tensor(expected["concentration"]), atol=2e-4, rtol=0
        )
        assert row["validation"] == expected["validation"]
    moved = torch.tensor(alone["trajectory"][-1]["concentration"]) - torch.tensor(
        alone["trajectory"][0]["concentration"]
    )
    assert float(moved.abs().max()) > 0.05


def test_two_processes_step_through_the_mean_of_their_gradients_in_the_second_order(tmp_path: Path) -> None:
    # At this learning rate the step is most of alpha's gradient.
    search = DARTS(order="second", learning_rate=0.5, gradient_clip=1e9, alpha_learning_rate=0.05)
    alone, ranks = _search(World(), search), on_two_ranks(lambda world: _search(world, search), tmp_path)
    assert ranks[0]["trajectory"] == ranks[1]["trajectory"]
    for row, expected in zip(ranks[0]["trajectory"], alone["trajectory"], strict=True):
        torch.testing.assert_close(torch.tensor(row["mixture"]), torch.tensor(expected["mixture"]), atol=1e-4, rtol=0)


def test_two_processes_decide_alike_what_each_would_decide_otherwise(tmp_path: Path) -> None:
    # Examples of the eigenvalue have random starts, latencies are measured, single operations skip weights.
    search = Gumbel(
        kept_operations=(5, 3),
        partial_channels=(2, 1),
        watch=CollapseMonitor(window=1, images=16),
        resource=Resource(quantity="latency", limit=1e-9),
        alpha_learning_rate=0.05,
    )

    def searched(world: World) -> dict[str, Any]:
        latencies = iter(range(1 + world.rank, 10_000))
        _resources._milliseconds = lambda *_: float(next(latencies))
        return _search(world, search)

    first, second = on_two_ranks(searched, tmp_path)
    assert first["trajectory"] == second["trajectory"]
    assert isinstance(first["trajectory"][-1]["eigenvalue"], float)
    for ours, others in zip(first["weights"], second["weights"], strict=True):
        assert torch.equal(ours, others)


def test_two_ranks_measure_the_open_trials_of_a_search_together_and_take_no_workers(tmp_path: Path) -> None:
    digits = datasets.load("digits")
    data = dataclasses.replace(digits, train=digits.train[:64], validation=digits.validation[:32])
    space = spaces.load("nasbench201", channels=2, cells_per_stage=1, stages=1)
    search = build(TrialSearch, {"objectives": ["score"], "proxy": "num_params", "trials": 5, "num_parallel": 2})
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)

    def searched(world: World) -> list[Any]:
        found = search.search(
            space, data, ThreatModel(epsilon=0.1), Stage("search", 0, world, Progress(quiet=True), folder)
        )
        return [trial["values"] for trial in found.record["trials"]]

    first, second = on_two_ranks(searched, tmp_path)
    alone = search.search(space, data, ThreatModel(epsilon=0.1), Stage("search", 0, World(), Progress(quiet=True)))
    assert first == second == [trial["values"] for trial in alone.record["trials"]]
    assert not (folder / "trials").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="an accelerator is here, so asking for one is right")
def test_an_accelerator_that_is_not_there_is_refused_and_never_replaced_by_the_cpu() -> None:
    with pytest.raises(InputError, match="device=cpu"):
        World.start("cuda")


def _state_of_training(method: str | dict[str, Any], folder: Path, **options: Any) -> Callable[[World], Any]:
    def train(world: World) -> Any:
        digits = datasets.load("digits")
        data = dataclasses.replace(digits, train=digits.train[:64], validation=digits.validation[:16])
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
        generator = torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
        plan = build(Training, {"method": method, "epochs": 2, "batch_size": 16, **options})
        stage = Stage("train", 0, world, Progress(quiet=True), folder)
        fitted = fit(model, data, ThreatModel(epsilon=0.1), plan, stage)
        saved = load_state(folder / "checkpoints" / "train.state.safetensors") if world.is_main else {}
        return {"weights": fitted.last, **(saved["state"]["trainer"]["memory"] if saved else {})}

    return train


FROM_THE_IMAGE = {"name": "pgd", "steps": 2, "step_size": 0.05, "random_start": False}


# Nothing here is drawn by rank, so that two ranks must give what one process gives on the same global batches.
@pytest.mark.parametrize(
    "options",
    [
        {"method": {"name": "mart", "attack": FROM_THE_IMAGE}},
        {"method": {"name": "fast", "start": "none"}, "pairing": 0.5, "clean_weight": 1.0},
        {"method": {"name": "free", "replays": 2}},
        {"method": {"name": "free", "replays": 2, "carry": "sample"}},
        {"method": {"name": "cat", "attack": FROM_THE_IMAGE, "eta": 0.05, "c": 0.0}},
        {"method": {"name": "sprout", "noise": 0.0, "mixup": 0.0, "alpha": 0.1, "concentration": 1e6}},
        {"method": {"name": "conadv", "staleness": 1}, "ema": 0.9},
        {"method": {"name": "pgd_at", "attack": FROM_THE_IMAGE, "clean_images": 1.0}, "awp": 0.01},
        {"method": {"name": "cat", "attack": FROM_THE_IMAGE, "eta": 0.05, "c": 0.0}, "accumulate": 3, "awp": 0.01},
    ],
    ids=lambda options: "-".join([options["method"]["name"], *list(options)[1:]]),
)
def test_two_ranks_train_and_remember_what_one_process_does(options: dict[str, Any], tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
    alone = _state_of_training(**options, folder=tmp_path / "one")(World())
    ranks = on_two_ranks(_state_of_training(**options, folder=tmp_path / "two"), tmp_path)
    tolerance = 2e-2 if options["method"]["name"] == "sprout" else 1e-5  # its labels are drawn by rank, closely
    for name, value in alone["weights"].items():
        torch.testing.assert_close(ranks[0]["weights"][name], value, atol=tolerance, rtol=tolerance)
        assert torch.equal(ranks[0]["weights"][name], ranks[1]["weights"][name])
    for name, table in alone["tables"].items():
        assert bool(table.abs().sum() > 0)
        torch.testing.assert_close(ranks[0]["tables"][name], table, atol=1e-5, rtol=1e-5)
    assert alone["shared"].keys() == ranks[0]["shared"].keys()


def test_two_ranks_take_their_batches_in_parts_with_checkpointing_as_one_process_the_whole(tmp_path: Path) -> None:
    space = spaces.load("robust-resnet-small")
    digits = datasets.load("digits")
    data = dataclasses.replace(digits, train=digits.train[:32], validation=digits.validation[:8])
    architecture = space.parse(
        "depths=2-1-1 widths=8-16-16 kernel=3 activation=silu norm=group se=none block=basic stem=8"
    )

    def train(world: World, **options: Any) -> Any:
        torch.manual_seed(0)
        model = space.network(architecture, data)  # whose gradients are averaged in the backward pass
        plan = build(
            Training,
            {
                "method": {"name": "pgd_at", "attack": FROM_THE_IMAGE},
                "epochs": 1,
                "batch_size": 16,
                "selection_attack": "fgsm",
                **options,
            },
        )
        return fit(model, data, ThreatModel(epsilon=0.1), plan, Stage("train", 0, world, Progress(quiet=True))).last

    alone = train(World())
    ranks = on_two_ranks(lambda world: train(world, accumulate=3, checkpointing=True), tmp_path)
    for name, value in alone.items():
        torch.testing.assert_close(ranks[0][name], value, atol=1e-4, rtol=1e-3)
        assert torch.equal(ranks[0][name], ranks[1][name])


def test_two_ranks_of_which_one_is_stopped_end_after_the_same_step_and_go_on_to_equal_bits(tmp_path: Path) -> None:
    space, digits = spaces.load("nasbench201", channels=4, cells_per_stage=1), datasets.load("digits")
    data = dataclasses.replace(digits, train=digits.train[:128], validation=digits.validation[:8])
    cell = space.parse("|nor_conv_3x3~0|+|skip_connect~0|none~1|+|skip_connect~0|nor_conv_3x3~1|none~2|")

    def train(folder: Path, stopped_at: int = -1) -> Callable[[World], Any]:
        def trained(world: World) -> Any:
            stepping.MOST_STEPS = 2  # quick steps ask each other less often
            torch.manual_seed(0)
            model, steps = space.network(cell, data), 0
            method = {"name": "cat", "attack": {"name": "pgd", "steps": 2}, "eta": 0.05}
            table = {"method": method, "epochs": 2, "batch_size": 16, "selection_attack": "fgsm", "ema": 0.9}

            def watched(*_: Any) -> None:
                nonlocal steps
                steps += model.training and torch.is_grad_enabled()
                if steps == stopped_at and world.rank == 1:
                    signal.raise_signal(signal.SIGTERM)

            model.register_forward_pre_hook(watched)
            stage = Stage("train", 0, world, Progress(quiet=True), folder)
            try:
                return fit(model, data, ThreatModel(epsilon=0.1), build(Training, table), stage).last
            except Terminated:
                return "stopped"

        return trained

    for name in ("whole", "parts"):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
    whole = on_two_ranks(train(tmp_path / "whole"), tmp_path)
    assert on_two_ranks(train(tmp_path / "parts", stopped_at=3), tmp_path) == ["stopped", "stopped"]
    saved = load_state(tmp_path / "parts" / "checkpoints" / "train.state.safetensors")
    assert (saved["step"], len(saved["state"]["within"]["losses"][0])) == (0, 3)
    assert not torch.equal(*[own["buffer/stem.1.running_mean"] for own in saved["state"]["within"]["own"]])
    for ours, expected in zip(on_two_ranks(train(tmp_path / "parts"), tmp_path), whole, strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=0)


class _PartlyUsed(nn.Module):
    """A network of one's own: one layer takes part in every second pass of the training, and one in none."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.sometimes, self.never = nn.Linear(64, 10), nn.Linear(64, 10), nn.Linear(3, 3)
        self.passes = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.passes += self.training
        pixels = images.flatten(1)
        return self.linear(pixels) + (self.sometimes(pixels) if self.training and self.passes % 2 else 0)


def test_two_ranks_train_a_network_whose_passes_leave_out_parameters_as_one_process_does(tmp_path: Path) -> None:
    torch.manual_seed(0)
    start = _PartlyUsed().state_dict()

    def train(world: World) -> Any:
        digits, model = datasets.load("digits"), _PartlyUsed()
        if world.is_main:  # as one whose weights are drawn without torch's seed, every rank has others
            model.load_state_dict(start)
        data = dataclasses.replace(digits, train=digits.train[:64], validation=digits.validation[:16])
        plan = build(Training, {"method": "standard", "epochs": 2, "batch_size": 16})
        return fit(model, data, ThreatModel(epsilon=0.1), plan, Stage("train", 0, world, Progress(quiet=True))).last

    alone, ranks = train(World()), on_two_ranks(train, tmp_path)
    for name, value in alone.items():
        assert torch.equal(value, start[name]) == name.startswith("never")
        assert torch.equal(ranks[0][name], ranks[1][name])
        torch.testing.assert_close(ranks[0][name], value)
