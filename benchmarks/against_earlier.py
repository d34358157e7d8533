"""The time of attacks, certificates and commands, and what is certified, of this checkout beside an earlier one.

    python benchmarks/against_earlier.py EARLIER        # a folder with the earlier checkout

Of a call, it is the least processor time of five in a process of one thread; of a command, the wall time of a process.
Processes of both checkouts take turns, and the ratio is the median over the turns. Networks are made by this checkout,
and both get their weights. The question to a table is left out if the table is not there.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import nn

import robust_nas as rn

ROOT = Path(__file__).resolve().parents[1]
TURNS, CALLS, STARTS = 3, 5, 15
RADII = [0.005, 0.02]
THREAT = rn.ThreatModel(epsilon=0.02)
TABLE = "nas-robbench-201"


def cell(data: rn.Dataset) -> nn.Module:
    """Return an untrained cell network."""
    space = rn.spaces.load("nasbench201", channels=8, cells_per_stage=1, stages=2)
    return space.network(space.parse("333133"), data)


def trained(weights: Path, data: rn.Dataset) -> nn.Module:
    """Return the network with the weights that both checkouts get."""
    network = cell(data)
    network.load_state_dict(torch.load(weights, weights_only=True))
    return network.eval()


def jobs(weights: Path) -> dict[str, Callable[[], object]]:
    """Return the calls that are measured, by name."""
    data = rn.datasets.load("digits")
    network = trained(weights, data)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).eval()
    images, labels = data.test[:100].images, data.test[:100].labels
    pgd = rn.attacks.get("pgd")

    def certify(bound: str, count: int) -> object:
        return rn.certify(network, data.test[:count], THREAT, bound=bound, epsilons=RADII)

    return {
        "PGD, 300 steps on 100 images, two linear layers": lambda: pgd(steps=300).perturb(
            linear, images, labels, THREAT
        ),
        "PGD, 20 steps on 100 images, a cell network": lambda: pgd(steps=20).perturb(network, images, labels, THREAT),
        "intervals, 300 images, two radii": lambda: certify("interval", 300),
        "CROWN-IBP, 100 images, two radii": lambda: certify("crown_ibp", 100),
        "CROWN, 20 images, two radii": lambda: certify("crown", 20),
        "auto, 50 images, two radii": lambda: certify("auto", 50),
    }


def measured(weights: Path) -> dict[str, float]:
    """Return the processor seconds of each call."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found = {}
    for name, call in jobs(weights).items():
        taken = []
        for _ in range(CALLS):
            begun = time.process_time()
            call()
            taken.append(time.process_time() - begun)
        found[name] = min(taken)
    return found


def certified(weights: Path) -> dict[str, str]:
    """Return how many images are proved right by each kind of bound, by how much, and what rounding takes of it."""
    data, found = rn.datasets.load("digits"), {}
    network = trained(weights, data)
    for bound, count in (("interval", 200), ("crown", 40)):
        for each in rn.certify(network, data.test[:count], THREAT, bound=bound, epsilons=RADII):
            proved = each.certified
            said = f"{int(proved.sum())} of {count}, median margin {float(each.margin[proved].median()):.2g}"
            # Earlier checkouts take nothing for rounding.
            rounding = getattr(each, "rounding", None)
            said += "" if rounding is None else f", of which rounding may take {float(rounding[proved].median()):.1g}"
            found[f"certified by {bound} at {each.epsilon:g}"] = said
    return found


def main() -> None:
    """Measure both checkouts in turns, or, as one of their processes, this one."""
    parser = argparse.ArgumentParser(description="This checkout beside an earlier one.")
    parser.add_argument("earlier", type=Path)
    parser.add_argument("--weights", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    if given.weights is not None:
        print(json.dumps([measured(given.weights), certified(given.weights)]))
        return
    with tempfile.TemporaryDirectory() as folder:
        weights, data = Path(folder) / "weights.pt", rn.datasets.load("digits")
        torch.manual_seed(0)
        torch.save(rn.train(cell(data), data, THREAT, method="ibp", epochs=20, batch_size=64).state_dict(), weights)

        def of(checkout: Path) -> tuple[dict[str, float], dict[str, str]]:
            words = [sys.executable, "-P", __file__, str(checkout), "--weights", str(weights)]
            environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
            seconds, proved = json.loads(subprocess.run(words, env=environment, capture_output=True, check=True).stdout)
            return seconds, proved

        turns = [(of(given.earlier.resolve()), of(ROOT)) for _ in range(TURNS)]
    ((seconds, proved), (_, proved_now)) = turns[0]
    for name in seconds:
        report(name, [(before[name], now[name]) for (before, _), (now, _) in turns])
    for name in proved:
        print(f"{name}: {proved[name]} before; {proved_now[name]} now")
    questions = {"--help": ["--help"], "a question to a table": ["table", "query", TABLE, "323133", "attack=pgd"]}
    for name, words in questions.items():
        if words[0] != "table" or rn.tables.place(TABLE).is_file():
            pairs = [(started(given.earlier.resolve(), words), started(ROOT, words)) for _ in range(STARTS)]
            report(name, pairs[1:])


def started(checkout: Path, words: list[str]) -> float:
    """Return the wall seconds of a command."""
    begun = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    subprocess.run([sys.executable, "-P", "-m", "robust_nas", *words], env=environment, capture_output=True, check=True)
    return time.perf_counter() - begun


def report(name: str, pairs: list[tuple[float, float]]) -> None:
    """Print the least times before and now, and the median ratio."""
    before, now = (1000 * min(pair[place] for pair in pairs) for place in (0, 1))
    ratio = median(later / earlier for earlier, later in pairs)
    print(f"{name}: {before:.0f} ms before, {now:.0f} ms now, ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
