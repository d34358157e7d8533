"""Images a second, and bytes of a step, of one process and of two: a search's epoch, and PGD-7 training.

    python benchmarks/distributed.py --data FOLDER --out benchmarks/results/distributed.md

Each row is a group of processes of its own, started by torchrun, with one thread each. A process has the same batch
however many there are, so that with two of them twice the images are a step; efficiency is the images a second of two
over twice those of one. Trained is a cell of NAS-Bench-201 (pgd_at, 7 steps of the attack), with every compression of
gradients; searched its supernet (Dirichlet, first order; the objective is the same training method), with gradients as
they are. Counted bytes are those that one process hands to collectives and sends on a ring; bytes on the wire are what
the loopback device has carried, for each process, with the headers of packets and whatever else there is on it (on
Linux). Images are of CIFAR-10, read from the folder `cifar10-jpeg` in `--data`; without it they are random numbers,
which take as long.
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

COMPRESSIONS = ["none", "fp16", "bf16", "powersgd", "int8"]


def measured(case: dict[str, Any]) -> dict[str, Any]:
    """Return what a case takes in this process's group: seconds of each repeat, images and bytes of a step."""
    import torch

    import robust_nas as rn
    from robust_nas.runtime.distributed import World
    from robust_nas.runtime.environment import describe_environment, hardware
    from robust_nas.runtime.progress import Progress
    from robust_nas.runtime.stages import Stage

    world = World.start("cpu", threads=1)
    batch = case["batch"] * world.size
    count = batch * case["steps"]
    if case["data"]:
        kept = {"train_size": count, "validation_size": batch, "test_size": 16}
        data = rn.datasets.load("folder", root=Path(case["data"]) / "cifar10-jpeg", size=32, **kept)
    else:
        pixels = torch.rand(count + batch, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        labels = torch.arange(len(pixels)) % 10
        data = rn.Dataset.from_arrays(
            *((pixels[part], labels[part]) for part in (slice(0, count), slice(count, None), slice(16)))
        )
    stage = Stage("measured", 0, world, Progress(quiet=True))
    work = _search(case, world, data, stage) if case["kind"] == "search" else _training(case, world, data, stage)
    work()
    rounds = []
    for _ in range(case["repeats"]):
        world.barrier()
        wire, started = _on_the_wire(), time.perf_counter()
        counted = work()
        world.barrier()
        rounds.append((time.perf_counter() - started, counted, _on_the_wire() - wire))
    seconds = statistics.median(each[0] for each in rounds)
    found = {
        "images_per_second": count / seconds,
        "spread": [count / each[0] for each in rounds],
        "counted": statistics.median(each[1] for each in rounds) / case["steps"],
        "wire": statistics.median(each[2] for each in rounds) / case["steps"] / world.size,
        "hardware": hardware(describe_environment(world, [])),
        "torch": torch.__version__,
    }
    world.stop()
    return found


def _objective() -> dict[str, Any]:
    return {"name": "pgd_at", "attack": {"name": "pgd", "steps": 7, "batch_norm": "batch"}}


def _training(case: dict[str, Any], world: Any, data: Any, stage: Any) -> Any:
    """Return a function that takes some training steps, and returns the bytes that this process has sent in them."""
    import robust_nas as rn
    from robust_nas.core.config import build
    from robust_nas.core.seeds import seeded
    from robust_nas.training import Trainer, Training
    from robust_nas.training._batches import batches_of

    with seeded(0):
        model = rn.create(
            "|nor_conv_3x3~0|+|nor_conv_3x3~0|skip_connect~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_3x3~2|", data
        ).train()
    settings = {"batch_size": case["batch"] * world.size, "compression": case["compression"]}
    plan = build(Training, {"method": _objective(), "learning_rate": 0.01, **settings}, "train")
    trainer = Trainer(model, plan, world)

    def work() -> int:
        before = trainer.bytes_sent
        threat = rn.ThreatModel(epsilon="8/255")
        batches = batches_of(data, threat, plan, trainer.memory, stage, 0)
        for _, (progress, batch) in zip(range(case["steps"]), batches, strict=False):
            trainer.step(batch, progress)
        return trainer.bytes_sent - before

    return work


def _search(case: dict[str, Any], world: Any, data: Any, stage: Any) -> Any:
    """Return a function that searches for an epoch, and returns the bytes that this process has sent in it."""
    import robust_nas as rn
    from robust_nas.core.config import build
    from robust_nas.runtime.compression import ring_bytes
    from robust_nas.runtime.distributed import World
    from robust_nas.searches.dirichlet import Dirichlet

    options = {"epochs": 100, "batch_size": case["batch"] * world.size, "objective": _objective()}
    space = rn.spaces.load("nasbench201", cells_per_stage=1)
    plan = build(Dirichlet, options, "search")
    trainer = plan.trainer(space, data, rn.ThreatModel(epsilon="8/255"), stage)
    sent, real = [0], World.sum

    def counted(self: World, value: Any) -> Any:
        sent[0] += ring_bytes(self, value.numel() * value.element_size())
        return real(self, value)

    World.sum = counted  # type: ignore[method-assign]
    epochs = iter(range(100))

    def work() -> int:
        before = sent[0]
        trainer.learn(next(epochs))
        return sent[0] - before

    return work


def _on_the_wire() -> int:
    """Return the bytes that the loopback device has carried; 0 where the system does not say."""
    try:
        lines = Path("/proc/net/dev").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split(":")[1].split()[0]) for line in lines if line.strip().startswith("lo:")), 0)


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


def row(case: dict[str, Any], size: int, found: dict[str, Any], alone: float) -> str:
    """Return a row of the table."""
    low, high = min(found["spread"]), max(found["spread"])
    efficiency = "" if size == 1 else f"{found['images_per_second'] / size / alone:.1%}"
    cells = [case["kind"], case["compression"], str(size), f"{found['images_per_second']:.1f}", f"{low:.1f}-{high:.1f}"]
    sent = [f"{found[name] / 1e6:.3f}" for name in ("counted", "wire")] if size > 1 else ["0", ""]
    return f"| {' | '.join([*cells, efficiency, *sent])} |"


def page(rows: list[str], found: dict[str, Any], words: argparse.Namespace) -> str:
    """Return the page, in Markdown."""
    command = shlex.join(word if not word.startswith("/") else "FOLDER" for word in sys.argv[1:])
    images = "images of CIFAR-10" if words.data else "random images"
    return "\n".join(
        [
            "# One process and two",
            "",
            f"    python benchmarks/distributed.py {command}",
            "",
            f"{words.batch} images of a step in each process, {words.steps} steps at a time, the median of "
            f"{words.repeats} times, {images}, one thread a process. {found['hardware']}, torch {found['torch']}. "
            "Megabytes are those that one process sends in a step.",
            "",
            "| work | compression | processes | images/s | from-to | efficiency | MB counted | MB on the wire |",
            "|---|---|---|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


def main() -> None:
    """Print the rows, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder that has cifar10-jpeg in it; without it, random images")
    parser.add_argument("--out", type=Path, help="a Markdown file for the page")
    parser.add_argument("--batch", type=int, default=32, help="images of a step in each process")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--compressions", default=",".join(COMPRESSIONS))
    parser.add_argument("--kinds", default="search,training")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.case:
        case = json.loads(words.case)
        found = measured(case)
        if os.environ.get("RANK", "0") == "0":
            Path(case["answer"]).write_text(json.dumps(found), encoding="utf-8")
        return
    rows: list[str] = []
    for kind in words.kinds.split(","):
        alone = 0.0
        for compression in ["none"] if kind == "search" else words.compressions.split(","):
            # Nothing is compressed in one process: it is measured once.
            for size in (1, 2) if not alone else (2,):
                case = {
                    "kind": kind,
                    "compression": compression,
                    "data": str(words.data.resolve()) if words.data else "",
                }
                found = in_a_group(
                    {**case, **{name: getattr(words, name) for name in ("batch", "steps", "repeats")}}, size
                )
                alone = found["images_per_second"] if size == 1 else alone
                rows.append(row(case, size, found, alone))
                print(rows[-1], flush=True)
                if words.out:
                    words.out.write_text(page(rows, found, words), encoding="utf-8")


if __name__ == "__main__":
    main()
