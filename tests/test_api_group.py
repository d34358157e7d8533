"""The Python calls in a script of several processes: each has its part, and all have the result of one process."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import robust_nas as rn
from robust_nas.attacks.pgd import PGD
from robust_nas.core.errors import InputError

THREAT = rn.ThreatModel(epsilon=0.1)
ATTACK = PGD(steps=3, random_start=False)
QUICK = {"epochs": 2, "batch_size": 32, "selection_attack": "fgsm", "progress": False}


def _data() -> rn.Dataset:
    digits = rn.datasets.load("digits")
    parts = (digits.train[:160], digits.validation[:21], digits.test[:37])  # which two processes cannot halve
    return rn.Dataset.from_arrays(*[(part.images, part.labels) for part in parts])


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def _calls(folder: Path) -> dict[str, Any]:
    """Train a network of one's own, attack it, and certify it."""
    data = _data()
    method = {"name": "pgd_at", "attack": {"name": "pgd", "steps": 3, "random_start": False}}
    trained = rn.train(_network(), data, THREAT, method=method, folder=folder / "train", **QUICK)
    again = rn.train(_network(), data, THREAT, method=method, folder=folder / "train", **QUICK)
    found = rn.evaluate(trained, data.test, THREAT, attacks=[ATTACK], batch_size=8, progress=False)
    proved = rn.certify(trained, data.test, rn.ThreatModel(epsilon=0.02), bound="interval", progress=False)
    return {
        "weights": trained.state_dict(),
        "again": again.state_dict(),
        "correct": found.attacks[0].correct,
        "certified": proved[0].certified,
    }


def _rank(function: Callable[[Path], Any], rank: int, port: int, folder: Path) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()}, MASTER_ADDR="127.0.0.1")
    torch.save(function(folder), folder / f"{rank}.pt")


def _two(function: Callable[[Path], Any], folder: Path) -> list[Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=_rank, args=(function, rank, port, folder)) for rank in range(2)]
    for each in ranks:
        each.start()
    for each in ranks:
        each.join(timeout=120)
        assert each.exitcode == 0
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


def test_two_processes_train_attack_and_certify_a_network_of_ones_own_as_one_does(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    alone = _calls(tmp_path / "one")
    for found in _two(_calls, tmp_path):
        for name, value in alone["weights"].items():
            torch.testing.assert_close(found["weights"][name], value, atol=1e-5, rtol=1e-4)
            assert torch.equal(found["again"][name], found["weights"][name])
        assert found["correct"].tolist() == alone["correct"].tolist()
        assert found["certified"].tolist() == alone["certified"].tolist()
        assert len(found["correct"]) == 37


def _search(folder: Path) -> Any:
    settings = {"epochs": 1, "batch_size": 32, "validation_attack": "fgsm", "progress": False}
    space = rn.spaces.load("nasbench201", channels=2, cells_per_stage=1, stages=1)
    first = rn.search(space, _data(), THREAT, folder=folder / "search", **settings)
    return first.probabilities, rn.search(space, _data(), THREAT, folder=folder / "search", **settings).probabilities


def test_two_processes_search_together_and_a_call_that_is_over_is_not_made_again(tmp_path: Path) -> None:
    (one, again), (other, _) = _two(_search, tmp_path)
    assert one == other == again
    with pytest.raises(InputError, match=r"was begun with other settings: .*processes \(2 -> 1\)"):
        _search(tmp_path)


def _differently(folder: Path) -> str:
    if os.environ["RANK"] == "1":
        os.environ["WORLD_SIZE"], torch.__version__ = "2", "0.1"
    try:
        rn.evaluate(_network().eval(), _data().test, THREAT, attacks=["fgsm"], progress=False)
    except InputError as error:
        return str(error)
    return "nothing"


def test_processes_of_other_versions_are_refused_on_every_one(tmp_path: Path) -> None:
    for said in _two(_differently, tmp_path):
        assert said.startswith("Process 1 of this group has another installation than process 0: torch (")
