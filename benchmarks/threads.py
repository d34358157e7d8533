"""How many threads, and how they wait: a step of adversarial training on an idle machine, and on a busy one.

    python benchmarks/threads.py --out FILE.json       # about seven minutes on two cores

Each row is a network of `nasbench201` and a batch. Torch's own choice is one thread for each core, which turn in
circles while they wait; ours sleep while they wait, and their number is measured at the start. In a busy machine there
is a process for each core that computes all the time. The settings take turns, each in a process of its own, and what
is compared is the median over the rounds of a step's mean wall time; the measuring is not in it, and is a column.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

NETWORKS = {
    "8 channels, 8 x 8, batch 16": (8, 8, 16),
    "16 channels, 32 x 32, batch 64": (16, 32, 64),
    "32 channels, 32 x 32, batch 128": (32, 32, 128),
}
SETTINGS = {
    "torch's choice": {},
    "torch's choice, asleep": {"OMP_WAIT_POLICY": "PASSIVE"},
    "one thread": {"OMP_NUM_THREADS": "1"},
    "measured, asleep": {"OMP_WAIT_POLICY": "PASSIVE", "MEASURED": "1"},
}
ROUNDS, SECONDS = 3, 1.5


def step_in_this_process(name: str) -> dict[str, float]:
    """Return the mean seconds of a step, the threads, and the seconds in which their number was measured."""
    import torch

    import robust_nas as rn
    from robust_nas.models.pace import gradient_step, settle_threads

    channels, size, batch = NETWORKS[name]
    torch.manual_seed(0)
    data = rn.Dataset.from_arrays((torch.rand(batch * 2, 3, size, size), torch.arange(batch * 2) % 10))
    space = rn.spaces.load("nasbench201", channels=channels, cells_per_stage=1)
    model, images = space.network(space.parse("323133"), data), torch.rand(batch, 3, size, size)
    started = time.perf_counter()
    if os.environ.get("MEASURED"):
        settle_threads(model, images)
    measuring = time.perf_counter() - started
    step = gradient_step(model, images)
    step()
    count, started = 0, time.perf_counter()
    while count < 3 or time.perf_counter() - started < SECONDS:
        step()
        count += 1
    mean = (time.perf_counter() - started) / count
    return {"seconds": mean, "threads": torch.get_num_threads(), "measuring": measuring}


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """Keep so many cores busy."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def in_a_process(name: str, setting: str) -> dict[str, float]:
    """Return what `step_in_this_process` does in another one, with a setting's variables."""
    own = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "MKL_", "MEASURED"))}
    words = [sys.executable, __file__, "--step", name]
    done = subprocess.run(words, env={**own, **SETTINGS[setting]}, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Print a table, and write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a JSON file for the numbers")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.step:
        print(json.dumps(step_in_this_process(words.step)))
        return
    cores, rows = os.cpu_count() or 1, []
    for load in (0, cores):
        for name in NETWORKS:
            found: dict[str, list[dict[str, float]]] = {setting: [] for setting in SETTINGS}
            for _ in range(ROUNDS):
                for setting, runs in found.items():
                    with busy(load):
                        runs.append(in_a_process(name, setting))
            for setting, runs in found.items():
                row = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
                rows.append({"busy processes": load, "network": name, "setting": setting, **row})
                usual = next(
                    each["seconds"] for each in rows if each["busy processes"] == load and each["network"] == name
                )
                print(
                    f"{load} busy | {name} | {setting} | {1000 * row['seconds']:.1f} ms a step | "
                    f"{usual / row['seconds']:.2f} times as fast | {row['threads']:g} threads | "
                    f"measured in {row['measuring']:.2f} s",
                    flush=True,
                )
    if words.out:
        words.out.write_text(json.dumps({"cores": cores, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
