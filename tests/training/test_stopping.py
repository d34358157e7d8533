"""A training that is stopped between two steps goes on to the same bits, and sees every image once in an epoch."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from robust_nas import datasets, spaces
from robust_nas.attacks.fgsm import FGSM
from robust_nas.core.config import build
from robust_nas.core.errors import Terminated
from robust_nas.core.seeds import seeded
from robust_nas.runtime.distributed import World
from robust_nas.runtime.progress import Progress
from robust_nas.runtime.stages import Stage
from robust_nas.runtime.stepping import of_rank
from robust_nas.searches._subnetworks import SubnetworkTrainer
from robust_nas.searches._weight_step import WeightStep
from robust_nas.searches.dirichlet import Dirichlet
from robust_nas.searches.elastic import Elastic
from robust_nas.threat import ThreatModel
from robust_nas.training import Trainer, Training, fit

SPACE = spaces.load("nasbench201", channels=4, cells_per_stage=1)
CELL = SPACE.parse("|nor_conv_3x3~0|+|skip_connect~0|nor_conv_1x1~1|+|skip_connect~0|nor_conv_3x3~1|skip_connect~2|")
DIGITS = datasets.load("digits")
DATA = dataclasses.replace(DIGITS, train=DIGITS.train[:64], validation=DIGITS.validation[:8])


def _trained(folder: Path | None, save_steps: int = 0, **options: Any) -> dict[str, Tensor]:
    """Return the weights after 2 epochs of 4 batches."""
    table = {"epochs": 2, "batch_size": 16, "selection_attack": "fgsm", "method": "fast", **options}
    with seeded(1):
        model = SPACE.network(CELL, DATA)
    stage = Stage("train", 0, World(), Progress(quiet=True), folder, save_steps)
    return fit(model, DATA, ThreatModel(epsilon=0.1), build(Training, table), stage).last


@pytest.fixture(autouse=True)
def interrupt() -> Iterator[None]:
    """Ctrl-C is heard, also where the tests were started in a background that ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "checkpoints").mkdir()
    return tmp_path


def _at_step(monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], None]) -> list[list[int]]:
    """Act within a step, counted from 1; return the images of all steps, as they will be."""
    step, seen = Trainer.step, []

    def watched(self: Trainer, batch: Any, *rest: Any) -> Tensor:
        seen.append(batch.ids.tolist())
        if len(seen) == number:
            act()
        return step(self, batch, *rest)

    monkeypatch.setattr(Trainer, "step", watched)
    return seen


@pytest.mark.parametrize(
    "options",
    [
        {"method": {"name": "free", "replays": 3}},
        {"method": {"name": "cat", "attack": {"name": "pgd", "steps": 2}, "eta": 0.05}, "ema": 0.9, "padding": 1},
        {"norm": "mixture", "clean_weight": 1.0, "optimiser": "adamw", "learning_rate": 1e-3},
        {"method": {"name": "conadv", "staleness": 2}, "cutout": 2},
    ],
    ids=["free", "cat", "mixture", "conadv"],
)
@pytest.mark.parametrize("number", [3, 8])
def test_a_training_that_is_stopped_in_any_step_ends_it_and_goes_on_to_equal_bits(
    options: dict[str, Any], number: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _at_step(monkeypatch, 0, lambda: None)
    expected = _trained(None, **options)
    monkeypatch.undo()
    seen = _at_step(monkeypatch, number, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        _trained(folder, **options)
    assert len(seen) == number  # the step was ended, and none was begun
    torch.testing.assert_close(_trained(folder, **options), expected, rtol=0, atol=0)
    assert seen == whole


def test_sigterm_is_answered_in_the_same_way_and_handlers_are_as_before(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    _at_step(monkeypatch, 3, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Terminated):
        _trained(folder)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    torch.testing.assert_close(_trained(folder), _trained(None), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("search", "stepper"),
    [
        (Dirichlet(alpha_learning_rate=0.05, epochs=2, batch_size=16, validation_attack=FGSM()), WeightStep),
        (Elastic(epochs=2, batch_size=16, validation_attack=FGSM(), trials=1, num_random=1), SubnetworkTrainer),
    ],
    ids=["dirichlet", "elastic"],
)
def test_a_search_that_is_stopped_in_a_step_goes_on_to_equal_bits(
    search: Any, stepper: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = SPACE if isinstance(search, Dirichlet) else spaces.load("elastic-resnet-small")

    def found(folder: Path | None) -> Any:
        stage = Stage("search", 0, World(), Progress(quiet=True), folder)
        return search.search(space, DATA, ThreatModel(epsilon=0.1), stage).supernet.state_dict()

    expected, take, calls = found(None), stepper.take, []

    def stopped(self: Any, *arguments: Any) -> Tensor:
        calls.append(1)
        if len(calls) == 7:
            signal.raise_signal(signal.SIGINT)
        return take(self, *arguments)

    monkeypatch.setattr(stepper, "take", stopped)
    with pytest.raises(KeyboardInterrupt):
        found(folder)
    assert len(calls) == 7
    torch.testing.assert_close(found(folder), expected, rtol=0, atol=0)
    assert len(calls) == 8


def test_a_stop_while_validation_images_are_attacked_loses_no_step(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from robust_nas.training import _loop

    evaluate, calls = _loop.evaluate, []

    def stopped(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return evaluate(*arguments, **options)

    monkeypatch.setattr(_loop, "evaluate", stopped)
    seen = _at_step(monkeypatch, 0, lambda: None)
    with pytest.raises(KeyboardInterrupt):
        _trained(folder, ema=0.9)
    again = _trained(folder, ema=0.9)
    assert len(seen) == 8
    torch.testing.assert_close(again, _trained(None, ema=0.9), rtol=0, atol=0)


def test_a_training_that_is_killed_goes_on_from_the_last_step_that_was_saved(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die() -> None:
        raise SystemError("as kill -9, nothing is saved any more")

    seen = _at_step(monkeypatch, 8, die)
    with pytest.raises(SystemError):
        _trained(folder, save_steps=3)
    again = _trained(folder, save_steps=3)
    assert [len(seen), seen[8]] == [9, seen[7]]  # the seventh step, the third of its epoch, was saved
    torch.testing.assert_close(again, _trained(None), rtol=0, atol=0)


def test_what_each_process_had_is_its_own_again_or_the_mean_where_their_number_is_another() -> None:
    parts = [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 6.0])]
    assert of_rank(parts, World(rank=1, size=2)).tolist() == [3.0, 6.0]
    assert of_rank(parts, World()).tolist() == [2.0, 4.0]
    assert of_rank([torch.tensor([5])], World(rank=2, size=3)).tolist() == [5]
