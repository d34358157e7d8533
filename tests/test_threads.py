"""The number of threads is the one that a few steps are fastest with, and what is gone on with keeps it."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from robust_nas.models.pace import settle_threads
from robust_nas.runtime import threads


def tried(cost: dict[int, float], most: int, first: float = 0.0) -> dict[int, float]:
    """Return what is measured of steps that take `cost` by number of threads, the first of each `first` longer."""
    now, current, new = 0.0, 1, True

    def set_threads(count: int) -> None:
        nonlocal current, new
        current, new = count, True

    def step() -> None:
        nonlocal now, new
        now += cost[current] + (first if new else 0.0)
        new = False

    return threads.measured(step, most, set_threads, lambda: now)


def test_numbers_double_up_to_the_largest_and_the_first_step_of_each_does_not_count() -> None:
    cost = {1: 0.4, 2: 0.3, 4: 0.2, 6: 0.1}
    found = tried(cost, most=6, first=1.0)
    assert found == pytest.approx(cost) and threads.fastest(found) == 6


def test_no_more_are_tried_once_they_are_much_slower() -> None:
    found = tried({1: 0.1, 2: 0.9}, most=64)
    assert list(found) == [1, 2] and threads.fastest(found) == 1


def test_of_numbers_that_are_as_fast_the_smallest_is_taken() -> None:
    assert threads.fastest({1: 1.04, 2: 1.0, 4: 1.0}) == 1 and threads.fastest({1: 1.06, 2: 1.0, 4: 1.0}) == 2


def test_long_steps_are_taken_twice_at_most() -> None:
    steps = []
    threads.measured(lambda: steps.append(None), 1, lambda count: None, lambda: 3.0 * len(steps))
    assert len(steps) == 1


def test_a_smaller_number_of_somebodys_own_is_a_limit_whatever_was_fastest_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(threads, "measured", lambda step, most, set_threads: {1: 2.0, most: 1.0})
    count = torch.get_num_threads()
    try:
        for most in (4, 2, 1, 4):
            torch.set_num_threads(most)
            threads.settle(lambda: None, "steps of this test")
            assert torch.get_num_threads() == most
    finally:
        torch.set_num_threads(count)


def test_a_folder_is_gone_on_with_by_the_threads_that_it_was_begun_with() -> None:
    assert threads.recorded(()) is None
    assert threads.recorded((SimpleNamespace(threads=1), SimpleNamespace(threads=2))) == 1  # type: ignore[arg-type]
    assert threads.recorded((SimpleNamespace(threads=10_000),)) == os.cpu_count()  # type: ignore[arg-type]


class Whole(nn.Module):
    """A network without gradients."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)[:, :2].round().detach()


@pytest.mark.parametrize("model", [nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).half(), Whole()])
def test_a_model_is_as_it_was_whether_it_has_gradients_or_not(model: nn.Module) -> None:
    before, count = {key: value.clone() for key, value in model.state_dict().items()}, torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        settle_threads(model, torch.rand(3, 3, 2, 2))
        assert torch.get_num_threads() in (1, 2)
    finally:
        torch.set_num_threads(count)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_command_line_lets_threads_sleep_unless_the_person_at_work_says_how_they_wait() -> None:
    program = "import os; from robust_nas.runtime.threads import wait_passively as wait; wait(); "
    program += "print(os.environ['OMP_WAIT_POLICY'])"
    for given, expected in (({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")):
        own = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
        done = subprocess.run([sys.executable, "-c", program], env={**own, **given}, capture_output=True, text=True)
        assert done.stdout.strip() == expected
