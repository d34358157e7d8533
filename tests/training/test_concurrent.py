"""Examples that other processes craft while steps are taken, against one process that crafts them in their own step."""

from __future__ import annotations

import dataclasses
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from robust_nas import datasets, spaces
from robust_nas.core.config import build
from robust_nas.core.errors import InputError, Terminated
from robust_nas.core.seeds import seeded
from robust_nas.runtime import stepping
from robust_nas.runtime.distributed import World
from robust_nas.runtime.progress import Progress
from robust_nas.runtime.stages import Stage
from robust_nas.runtime.states import load_state
from robust_nas.threat import ThreatModel
from robust_nas.training import Batch, Trainer, Training, fit
from robust_nas.training.conadv import ConAdv
from tests.test_distributed import on_two_ranks

DIGITS = datasets.load("digits")
DATA = dataclasses.replace(DIGITS, train=DIGITS.train[:80], validation=DIGITS.validation[:16])
ATTACK = {"name": "pgd", "steps": 2}


class _Network(nn.Sequential):
    """A small network with batch norm and dropout."""

    def __init__(self) -> None:
        super().__init__(
            *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(3)),
            *(nn.Flatten(), nn.Dropout(0.2), nn.Linear(36, 10)),
        )


def _training(crafters: str, staleness: int = 1, **options: Any) -> Training:
    method = {"name": "conadv", "attack": ATTACK, "staleness": staleness, "crafters": crafters}
    table = {"epochs": 2, "batch_size": 16, "selection_attack": "fgsm", "flip": True, "padding": 1, **options}
    return build(Training, {"method": method, **table}, "train")


def _trained(
    world: World, training: Training, folder: Path | None = None, model: Callable[[], nn.Module] = _Network
) -> dict[str, Any]:
    """Return the weights and the validation accuracies after 2 epochs of 5 steps."""
    with seeded(world.rank):  # a network may be drawn by each process for itself: that of rank 0 is the one
        network = model()
    stage = Stage("train", 0, world, Progress(quiet=True), folder)
    fitted = fit(network, DATA, ThreatModel(epsilon=0.1), training, stage)
    validation = [epoch.validation for epoch in fitted.history.epochs]
    losses = [epoch.loss for epoch in fitted.history.epochs]
    return {"weights": fitted.last, "best": fitted.best, "validation": validation, "losses": losses}


def _same_bits(ours: Any, expected: Any) -> None:
    torch.testing.assert_close(ours, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    "options",
    [
        {"staleness": 1, "ema": 0.9},
        {"staleness": 3, "accumulate": 3, "awp": 0.01},
        {"staleness": 20, "norm": "batch", "phases": [{"epochs": 1, "batch_size": 8}, {"epochs": 1, "size": 10}]},
    ],
    ids=["one-step", "three-steps-in-parts", "more-than-all-steps-in-phases"],
)
def test_a_pair_trains_to_the_bits_of_one_process(options: dict[str, Any], tmp_path: Path) -> None:
    expected = _trained(World(), _training("own", **options))
    for ours in on_two_ranks(lambda world: _trained(world, _training("others", **options)), tmp_path):
        _same_bits(ours, expected)


def test_two_pairs_train_what_two_processes_do(tmp_path: Path) -> None:
    space = spaces.load("nasbench201", channels=4, cells_per_stage=1)  # whose gradients are averaged by DDP
    cell = space.parse("|nor_conv_3x3~0|+|skip_connect~0|none~1|+|skip_connect~0|nor_conv_3x3~1|none~2|")

    def trained(crafters: str) -> Callable[[World], Any]:
        training = _training(crafters, norm_sync="synchronised", compression="fp16")
        return lambda world: _trained(world, training, model=lambda: space.network(cell, DATA))

    expected, _ = on_two_ranks(trained("own"), tmp_path)
    for ours in on_two_ranks(trained("others"), tmp_path, size=4):
        _same_bits(ours, expected)


def test_the_next_batch_is_crafted_while_a_step_is_taken(tmp_path: Path) -> None:
    step, craft = Trainer.step, Trainer.craft

    def trained(world: World) -> list[int]:
        sizes, number = [], 0

        def crafting(self: Trainer, batch: Batch) -> Tensor:
            found = craft(self, batch)
            (tmp_path / f"crafted-{batch.seed}").touch()
            nonlocal number
            number += 1
            return found

        def stepping(self: Trainer, batch: Batch, *rest: Any) -> Tensor:
            nonlocal number
            number += 1
            sizes.append(len(batch.images))
            # No step but an epoch's last, the fifth, ends before the next examples are there.
            expected, end = number + bool(number % 5), time.monotonic() + 20
            while len(list(tmp_path.glob("crafted-*"))) < expected:
                assert time.monotonic() < end, "the next examples wait for the end of this step"
                time.sleep(0.01)
            return step(self, batch, *rest)

        with mock.patch.multiple(Trainer, step=stepping, craft=crafting):
            _trained(world, _training("others"))
        return sizes if world.is_main else [number]

    assert on_two_ranks(trained, tmp_path) == [[16] * 10, [10]]


def test_a_pair_that_is_stopped_in_an_epoch_goes_on_to_equal_bits_also_as_one_process(tmp_path: Path) -> None:
    def trained(folder: Path, stopped_at: int = -1) -> Callable[[World], Any]:
        def work(world: World) -> Any:
            stepping.MOST_STEPS = 1
            crafted, craft = [], Trainer.craft

            def crafting(self: Trainer, batch: Batch) -> Tensor:
                crafted.append(batch)
                if len(crafted) == stopped_at:
                    signal.raise_signal(signal.SIGTERM)
                return craft(self, batch)

            with mock.patch.object(Trainer, "craft", crafting):
                try:
                    return _trained(world, _training("others", staleness=2), folder)
                except Terminated:
                    return "stopped"

        return work

    for name in ("pair", "alone"):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
    expected = _trained(World(), _training("own", staleness=2))
    # The ninth batch to be crafted is the fourth of the second epoch: in its second step.
    assert on_two_ranks(trained(tmp_path / "pair", stopped_at=9), tmp_path) == ["stopped", "stopped"]
    path = Path("checkpoints") / "train.state.safetensors"
    state = load_state(tmp_path / "pair" / path)
    assert (state["step"], [len(losses) for losses in state["state"]["within"]["losses"]]) == (1, [2])
    (tmp_path / "alone" / path).write_bytes((tmp_path / "pair" / path).read_bytes())

    _same_bits(_trained(World(), _training("own", staleness=2), tmp_path / "alone"), expected)
    for ours in on_two_ranks(trained(tmp_path / "pair"), tmp_path):
        _same_bits(ours, expected)


def _refused(world: World) -> str:
    with pytest.raises(InputError) as error:
        _trained(world, _training("others", batch_size=15) if world.size == 4 else _training("others"))
    return str(error.value)


def test_numbers_of_processes_that_make_no_pairs_and_batches_that_do_not_divide_are_refused(tmp_path: Path) -> None:
    assert "there is 1; start an even number of them by torchrun" in _refused(World())
    assert all("there are 3; start" in said for said in on_two_ranks(_refused, tmp_path, size=3))
    assert all("15 does not divide among 2 processes" in said for said in on_two_ranks(_refused, tmp_path, size=4))


def test_crafters_without_stale_weights_and_unknown_ones_are_refused() -> None:
    with pytest.raises(InputError, match="staleness is 0; set it to 1"):
        ConAdv(crafters="others", staleness=0)
    with pytest.raises(InputError, match="crafters"):
        ConAdv(crafters="half")  # type: ignore[arg-type]
