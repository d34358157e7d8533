"""A training step of a very deep network: seconds and peak memory, with and without checkpointing.

    python benchmarks/deep_step.py --data FOLDER --out benchmarks/results/deep_step.md

Each row is one step of PGD adversarial training (`pgd_at`, 2 steps of the attack) of ResNet-638, in a process of its
own, at its first step: weights, gradients and momentum are in its peak. Images are of CIFAR-10, read from the folder
`cifar10-jpeg` in `--data` and enlarged; without `--data` they are random numbers, which take as long. On a CPU the peak
is that of the resident memory of the whole process; "before" is what it was before the step, with the network in it. A
step that wants more than `--limit` GiB is ended and is in the table as such (on Linux). On an accelerator (`--device
cuda`) the peak is what torch has allocated, and 224 x 224 is among the sizes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

GIB = 2**30


def step_in_this_process(case: dict[str, Any]) -> dict[str, Any]:
    """Return the seconds, the peak of memory and the loss of one step, or that memory did not suffice."""
    import resource

    limit = int(case["limit"] * GIB)
    if case["device"] == "cpu":
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    import torch
    import torch.utils.checkpoint
    import torch._dynamo  # isort: skip  # checkpointing imports it, which takes seconds

    import robust_nas as rn
    from robust_nas.core.config import build
    from robust_nas.core.seeds import seeded
    from robust_nas.runtime.distributed import World
    from robust_nas.runtime.environment import describe_environment, hardware
    from robust_nas.training import Batch, Memory, Trainer, Training

    world, count, size = World.start(case["device"], threads=case["threads"]), case["batch"], case["size"]
    if case["data"]:
        kept = {"train_size": count, "validation_size": 10, "test_size": 10}
        data = rn.datasets.load("folder", root=Path(case["data"]) / "cifar10-jpeg", size=size, **kept)
    else:
        pixels = torch.rand(20 + 2 * count, 3, size, size, generator=torch.Generator().manual_seed(0))
        data = rn.Dataset.from_arrays((pixels, torch.arange(len(pixels)) % 10))
    with seeded(0):
        model = rn.create(case["architecture"], data).to(world.device).train()
    settings = {name: case[name] for name in ("checkpointing", "accumulate", "precision")}
    method = {"name": "pgd_at", "attack": {"name": "pgd", "steps": 2, "batch_norm": "batch"}}
    plan = build(Training, {"method": method, "batch_size": count, "learning_rate": 0.01, **settings}, "train")
    part, places = data.train[:count], torch.arange(count, device=world.device)
    images, labels = part.images.to(world.device), part.labels.to(world.device)
    threat = rn.ThreatModel(norm="linf", epsilon=8 / 255)
    batch = Batch(images, labels, labels, threat, 0, places, places, count, count, Memory())
    trainer, is_accelerator = Trainer(model, plan, world), world.device.type == "cuda"
    before = torch.cuda.memory_allocated() if is_accelerator else 1024 * _resident(resource)
    started, failure = time.perf_counter(), ""
    loss = float("nan")
    try:
        loss = float(trainer.step(batch, 0.1))
    except (RuntimeError, MemoryError) as error:
        if "allocate memory" not in str(error) and "out of memory" not in str(error):
            raise
        failure = f"over {case['limit']:g} GiB" if not is_accelerator else "out of memory"
    peak = torch.cuda.max_memory_allocated() if is_accelerator else 1024 * _resident(resource)
    return {
        "seconds": time.perf_counter() - started,
        "before": before / GIB,
        "peak": peak / GIB,
        "loss": loss,
        "failure": failure,
        "parameters": sum(each.numel() for each in model.parameters()),
        "threads": torch.get_num_threads(),
        "hardware": hardware(describe_environment(world, [])),
        "torch": torch.__version__,
    }


def _resident(resource: Any) -> int:
    """Return the largest resident memory so far, in KiB."""
    largest: int = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest // 1024 if sys.platform == "darwin" else largest


def in_a_process(case: dict[str, Any]) -> dict[str, Any]:
    """Return what `step_in_this_process` does in another process; that it was ended, if it was."""
    done = subprocess.run([sys.executable, __file__, "--case", json.dumps(case)], capture_output=True, text=True)
    if done.returncode < 0:
        return {"failure": f"ended by signal {-done.returncode}"}
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def row(case: dict[str, Any], found: dict[str, Any]) -> str:
    """Return a row of the table."""
    cells = [case["architecture"].partition("stem=")[2], f"{case['size']} x {case['size']}", str(case["batch"])]
    cells.append("yes" if case["checkpointing"] else "no")
    if found["failure"]:
        cells += ["", f"{found['before']:.2f}" if "before" in found else "", found["failure"], ""]
    else:
        cells += [f"{found['seconds']:.1f}", f"{found['before']:.2f}", f"{found['peak']:.2f}", f"{found['loss']:.4f}"]
    return f"| {' | '.join(cells)} |"


def page(rows: list[str], found: dict[str, Any], words: argparse.Namespace) -> str:
    """Return the page, in Markdown."""
    command = shlex.join(word if not word.startswith("/") else "FOLDER" for word in sys.argv[1:])
    images = "images of CIFAR-10, enlarged" if words.data else "random images"
    return "\n".join(
        [
            f"# A training step of {words.architecture}",
            "",
            f"    python benchmarks/deep_step.py {command}",
            "",
            f"One step of PGD adversarial training (2 steps of the attack) in {words.precision}, in {words.accumulate} "
            f"{'part' if words.accumulate == 1 else 'parts'}, of {images}, each in a process of its own. "
            f"{found.get('hardware', '')}, {found.get('threads', '')} threads, torch {found.get('torch', '')}; "
            f"{found.get('parameters', 0) / 1e6:.1f} million parameters.",
            "",
            "| stem | pixels | batch | checkpointing | seconds | GiB before | GiB at the peak | loss |",
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
    parser.add_argument("--architecture", default="resnet-638")
    parser.add_argument("--stems", default="imagenet,cifar")
    parser.add_argument("--sizes", help="pixels a side; 32,64, and 224 too on an accelerator")
    parser.add_argument("--batches", default="2,8,32")
    parser.add_argument("--checkpointing", default="no,yes", help="no, yes, or both")
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--limit", type=float, default=24.0, help="GiB that a process may take, on a CPU")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.case:
        print(json.dumps(step_in_this_process(json.loads(words.case))))
        return
    sizes = words.sizes or ("32,64" if words.device == "cpu" else "32,64,224")
    choices = [each.split(",") for each in (words.stems, sizes, words.batches, words.checkpointing)]
    rows, last = [], {}
    for stem, size, batch, checkpointing in itertools.product(*choices):
        case = {
            "architecture": f"{words.architecture} stem={stem}",
            "size": int(size),
            "batch": int(batch),
            "checkpointing": checkpointing == "yes",
            "data": str(words.data.resolve()) if words.data else "",
            **{name: getattr(words, name) for name in ("accumulate", "precision", "device", "threads", "limit")},
        }
        found = in_a_process(case)
        last = found if "hardware" in found else last
        rows.append(row(case, found))
        print(rows[-1], flush=True)
        if words.out:
            words.out.write_text(page(rows, last, words), encoding="utf-8")


if __name__ == "__main__":
    main()
