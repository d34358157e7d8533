"""Wall time of a step of adversarial training: in one process, in two that share the batch, and concurrently in two.

    python benchmarks/conadv.py --data FOLDER --out benchmarks/results/conadv.md

All take the same loss of the same batches: half clean, half adversarial cross-entropy of a cell of NAS-Bench-201 with
mixture norms, one thread a process. Sequential training crafts in each step with its own weights, and two processes
have half of the batch each. Concurrent training is ConAdv (arXiv:2106.00221): one process takes the step with the whole
batch, and the other one crafts the next batch's examples with the weights from before it. FGSM is the paper's. The
first step of an epoch, for which nothing is crafted ahead, is not counted in any row. Images are of CIFAR-10, read from
the folder `cifar10-jpeg` in `--data`; without it they are random numbers, which take as long.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROWS = {
    "sequential, one process": (1, {"staleness": 0}),
    "sequential, two that share the batch": (2, {"staleness": 0}),
    "concurrent, two processes": (2, {"staleness": 1, "crafters": "others"}),
}
"""By name, the number of processes, and the method's settings."""

ATTACKS: dict[str, dict[str, Any]] = {
    "FGSM": {"name": "fgsm"},
    "PGD-3": {"name": "pgd", "steps": 3, "batch_norm": "batch"},
}


def measured(case: dict[str, Any]) -> dict[str, Any]:
    """Return the seconds of a step in each epoch, on the first process, and how long its start takes."""
    import torch

    import robust_nas as rn
    from robust_nas.core.config import build
    from robust_nas.core.seeds import seeded
    from robust_nas.runtime.distributed import World
    from robust_nas.runtime.environment import describe_environment, hardware
    from robust_nas.runtime.progress import Progress
    from robust_nas.runtime.stages import Stage
    from robust_nas.training import Training, trainer_of
    from robust_nas.training._batches import batches_of
    from robust_nas.training._concurrent import losses_of

    everyone, count = World.start("cpu", threads=1), case["batch"] * case["steps"]
    if case["data"]:
        kept = {"train_size": count, "validation_size": 16, "test_size": 16}
        data = rn.datasets.load("folder", root=Path(case["data"]) / "cifar10-jpeg", size=32, **kept)
    else:
        pixels = torch.rand(count + 16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        labels = torch.arange(len(pixels)) % 10
        data = rn.Dataset.from_arrays(
            *((pixels[part], labels[part]) for part in (slice(0, count), slice(count, None), slice(16)))
        )
    method = {"name": "conadv", "attack": case["attack"], **case["method"]}
    plan = build(Training, {"method": method, "batch_size": case["batch"], "learning_rate": 0.01}, "train")
    pair = everyone.pair() if plan.method.ahead else None
    world = everyone if pair is None else pair.world
    with seeded(0):
        cell = "|nor_conv_3x3~0|+|nor_conv_3x3~0|skip_connect~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_3x3~2|"
        model = rn.create(cell, data).train()
    trainer, stage = trainer_of(plan, model, world), Stage("measured", 0, world, Progress(quiet=True))
    each, first = [], []
    for epoch in range(case["repeats"] + 1):
        everyone.barrier()
        batches = batches_of(data, rn.ThreatModel(epsilon="8/255"), plan, trainer.memory, stage, epoch)
        ends = [time.perf_counter()]
        for _ in losses_of(trainer, batches, pair, plan.method.ahead, case["steps"]):
            ends.append(time.perf_counter())
        # The epoch before the first one counted warms up.
        each += [(ends[-1] - ends[1]) / (case["steps"] - 1)] if epoch else []
        first += [ends[1] - ends[0]] if epoch else []
    everyone.barrier()
    found = {
        "seconds": each,
        "first": statistics.median(first),
        "hardware": hardware(describe_environment(everyone, [])),
        "torch": torch.__version__,
    }
    everyone.stop()
    return found


def in_a_group(case: dict[str, Any], size: int) -> dict[str, Any]:
    """Return what `measured` does on rank 0 of as many processes."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}"]
        words = [__file__, "--case", json.dumps({**case, "answer": str(answer)})]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, *launch, *words], env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        found: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
        return found


def page(rows: list[str], found: dict[str, Any], words: argparse.Namespace) -> str:
    """Return the page, in Markdown."""
    command = shlex.join(word if not word.startswith("/") else "FOLDER" for word in sys.argv[1:])
    return "\n".join(
        [
            "# Adversarial training, one after the other and concurrently",
            "",
            f"    python benchmarks/conadv.py {command}",
            "",
            f"Wall time of a step of {words.batch} {'images of CIFAR-10' if words.data else 'random images'}, the "
            f"median of {words.repeats} epochs of {words.steps} steps without their first one, one thread a process. "
            f"{found['hardware']}, torch {found['torch']}.",
            "",
            "| attack | training | ms a step | from-to | times as fast as one process | ms of an epoch's first step |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


def main() -> None:
    """Print the rows, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder that has cifar10-jpeg in it; without it, random images")
    parser.add_argument("--out", type=Path, help="a Markdown file for the page")
    parser.add_argument("--batch", type=int, default=16, help="images of a step, all processes together")
    parser.add_argument("--steps", type=int, default=6, help="steps of an epoch")
    parser.add_argument("--repeats", type=int, default=2, help="epochs that are measured, after one that is not")
    parser.add_argument("--attacks", default=",".join(ATTACKS))
    parser.add_argument("--case", help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.case:
        case = json.loads(words.case)
        found = measured(case)
        if os.environ.get("RANK", "0") == "0":
            Path(case["answer"]).write_text(json.dumps(found), encoding="utf-8")
        return
    rows: list[str] = []
    for attack in words.attacks.split(","):
        alone = 0.0
        for name, (size, method) in ROWS.items():
            case = {
                "attack": ATTACKS[attack],
                "method": method,
                "data": str(words.data.resolve()) if words.data else "",
            }
            found = in_a_group({**case, **{each: getattr(words, each) for each in ("batch", "steps", "repeats")}}, size)
            seconds = statistics.median(found["seconds"])
            alone = alone or seconds
            spread = f"{1000 * min(found['seconds']):.0f}-{1000 * max(found['seconds']):.0f}"
            first = f"{1000 * found['first']:.0f}"
            cells = [attack, name, f"{1000 * seconds:.0f}", spread, f"{alone / seconds:.2f}", first]
            rows.append(f"| {' | '.join(cells)} |")
            print(rows[-1], flush=True)
            if words.out:
                words.out.write_text(page(rows, found, words), encoding="utf-8")


if __name__ == "__main__":
    main()
