"""Runs under a real torchrun, of which processes are killed: `pytest -m slow tests/test_torchrun.py`, two minutes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from robust_nas.runtime.states import load_state
from robust_nas.runtime.watch import LOST

WORDS = ["train", "cifar-resnet-8 width=0.25", "--data", "digits", "train.epochs=6", "threads=1", "save_steps=3"]


def _started(folder: Path, *, restarts: int) -> subprocess.Popen[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    words = [*launcher, f"--max-restarts={restarts}", "-m", "robust_nas", *WORDS, "--out", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def _process_of(launcher: int, rank: int) -> int:
    """Return the number of the process of a rank."""
    for place in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == launcher and f"\0RANK={rank}\0" in f"\0{(place / 'environ').read_text()}":
                return int(place.name)
        except OSError:
            continue
    raise AssertionError(f"no process of rank {rank}")


def _trains(folder: Path) -> bool:
    return any(folder.glob("*/checkpoints/train-0.state.safetensors"))


def _kill_when(launcher: subprocess.Popen[str], folder: Path, rank: int) -> int:
    for _ in range(600):
        if _trains(folder):
            break
        time.sleep(0.1)
    number = _process_of(launcher.pid, rank)
    os.kill(number, signal.SIGKILL)
    return number


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    (path,) = folder.glob("*/checkpoints/model-0.safetensors")
    found: dict[str, torch.Tensor] = load_state(path)["weights"]
    return found


@pytest.mark.slow
def test_a_run_of_which_a_process_is_killed_goes_on_by_itself_to_equal_bits(tmp_path: Path) -> None:
    whole = _started(tmp_path / "whole", restarts=0)
    assert whole.wait(120) == 0
    killed = _started(tmp_path / "killed", restarts=1)
    _kill_when(killed, tmp_path / "killed", rank=1)
    _, said = killed.communicate(timeout=120)
    assert killed.returncode == 0 and "torchrun has started this again: going on with" in said, said
    torch.testing.assert_close(_weights(tmp_path / "killed"), _weights(tmp_path / "whole"), rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_the_process_that_is_left_names_the_killed_one_and_says_how_to_go_on(rank: int, tmp_path: Path) -> None:
    launcher = _started(tmp_path, restarts=0)
    number = _kill_when(launcher, tmp_path, rank)
    started = time.monotonic()
    _, said = launcher.communicate(timeout=120)
    assert time.monotonic() - started < 60 and launcher.returncode != 0
    other = "" if rank == 1 else "rank 1: "
    assert f"robust-nas: {other}Process {rank} of this group (number {number} on " in said, said
    assert "Go on with: torchrun --standalone --nproc-per-node=2 -m robust_nas run --resume" in said
    assert re.search(rf"exitcode *: {LOST} ", said)
