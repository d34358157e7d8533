"""The plan of a scaling study beside a measured epoch: seconds and peak memory of three networks.

    python benchmarks/scaling_plan.py --out FILE.md                   # about ten minutes on one idle core
    python benchmarks/scaling_plan.py --images 128 --out FILE.md      # a try

Every network is planned in a process of its own, from its name and the form of the data, and then trained for an epoch
in another one, by PGD-5 with batches of 64, on scikit-learn's digits at 32 x 32 pixels in three colours. Seconds are
wall time of the epoch, validation included. Memory is the most that is resident above what was before the training,
when the libraries were loaded and the images read. Last, there is the time of a plan of ResNet-638 at 224 x 224 pixels.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

NETWORKS = {
    "cifar-resnet-20": {"net": "cifar-resnet", "depths": "20", "images": 2048},
    "resnet-50 width=0.5 stem=cifar": {
        "net": "resnet",
        "depths": "50",
        "widths": "0.5",
        "options": "stem=cifar",
        "images": 256,
    },
    "wrn-16-4": {"net": "wrn", "depths": "16", "widths": "4", "images": 256},
}
"""The words of each network's grid, and the images of its epoch."""

VALIDATION, SIDE, CLASSES = 64, 32, 10
SETTINGS = ["train.epochs=1", f"data.validation_size={VALIDATION}", "threads=1", "device=cpu"]


def grid_of(name: str) -> Any:
    """Return the grid of one network."""
    from robust_nas.studies import scaling

    words = {key: value for key, value in NETWORKS[name].items() if key != "images"}
    return scaling.from_words(SETTINGS, data="cifar10-small", size=SIDE, **words)


def planned(name: str, images: int, seconds: float) -> dict[str, Any]:
    """Return the plan's figures of a network, in this process."""
    from robust_nas.studies import scaling

    started = time.perf_counter()
    plan = scaling.plan(grid_of(name), size=SIDE, classes=CLASSES, num_images=images, seconds=seconds, attacks=False)
    (row,) = plan.networks
    return {"seconds": row.epoch_seconds, "memory": row.memory, "planning": time.perf_counter() - started}


def measured(name: str, images: int) -> dict[str, Any]:
    """Return the seconds and the memory of an epoch, in this process."""
    import torch
    from torch.nn import functional as F

    import robust_nas as rn
    from robust_nas.runtime.distributed import World
    from robust_nas.runtime.progress import Progress
    from robust_nas.runtime.stages import Stage
    from robust_nas.training import fit

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    digits = rn.datasets.load("digits").train
    places = torch.arange(images + VALIDATION) % len(digits)
    part = digits[places]
    pixels = F.interpolate(part.images, size=(SIDE, SIDE)).expand(-1, 3, -1, -1).contiguous()
    own, rest = slice(0, images), slice(images, None)
    data = rn.Dataset.from_arrays(
        (pixels[own], part.labels[own]), (pixels[rest], part.labels[rest]), (pixels[rest], part.labels[rest])
    )
    (cell,) = grid_of(name).cells()
    stage = Stage("train", 0, World(), Progress(quiet=True))
    small = rn.create("cifar-resnet-8 width=0.25", data)
    few = rn.Dataset.from_arrays(*[(pixels[:128], part.labels[:128])] * 3)
    fit(small, few, cell.recipe.threat, cell.recipe.train, stage)  # loads what torch loads when it first trains
    model = rn.create(name, data)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is from here on
    before = _resident("VmRSS")
    started = time.perf_counter()
    fit(model, data, cell.recipe.threat, cell.recipe.train, stage)
    weights = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    return {"seconds": time.perf_counter() - started, "memory": _resident("VmHWM") - before + weights}


def _resident(key: str) -> int:
    """Return bytes of /proc/self/status."""
    (found,) = re.findall(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(found)


def _elsewhere(what: str, name: str, images: int, seconds: float) -> dict[str, Any]:
    words = [sys.executable, __file__, "--what", what, "--name", name, "--images", str(images)]
    found = subprocess.run([*words, "--seconds", str(seconds)], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(found.stdout.splitlines()[-1])


def _deep(seconds: float) -> float:
    """Return the seconds in which ResNet-638 at 224 x 224 pixels is planned, from the start of the command."""
    words = "--depths 638 --data intriguing-imagenet --size 224 --classes 1000 --num-images 1280167 --no-attacks"
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "robust_nas", "scale", "plan", *words.split(), "--seconds", str(seconds), "threads=1"],
        check=True,
        capture_output=True,
    )
    return time.perf_counter() - started


def counted() -> None:
    """Count ResNet-638 at 224 x 224 pixels on the meta device: sizes, activations with and without checkpointing."""
    from robust_nas.datasets import DataForm
    from robust_nas.spaces import alone
    from robust_nas.studies.scaling import costs

    form = DataForm("imagenet", tuple(map(str, range(1000))), (3, 224, 224))
    found = costs.network_cost(costs.on_meta(alone("resnet-638").parse("resnet-638"), form), form.image_shape, 256, 250)
    print(found.size, round(found.activations), round(found.activations_checkpointed or 0))


def _counting() -> float:
    """Return the seconds in which ResNet-638 is counted, from the start of the process."""
    started = time.perf_counter()
    subprocess.run([sys.executable, __file__, "--what", "counted"], check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, help="images of an epoch, in place of each network's")
    parser.add_argument("--seconds", type=float, default=5.0, help="that the plan may spend on timing (5)")
    parser.add_argument("--out", type=Path, help="a file for the table")
    parser.add_argument("--what", choices=["planned", "measured", "counted"], help=argparse.SUPPRESS)
    parser.add_argument("--name", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.what == "counted":
        counted()
        return
    if given.what == "planned":
        print(json.dumps(planned(given.name, given.images, given.seconds)))
        return
    if given.what == "measured":
        print(json.dumps(measured(given.name, given.images)))
        return
    lines = [
        "| network | images | epoch, planned | measured | ratio | memory, planned | measured | ratio | planning |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, words in NETWORKS.items():
        images = given.images or int(words["images"])
        plan, real = (_elsewhere(what, name, images, given.seconds) for what in ("planned", "measured"))
        cells = [name, str(images)]
        cells += [f"{plan['seconds']:.1f} s", f"{real['seconds']:.1f} s", f"{plan['seconds'] / real['seconds']:.2f}"]
        cells += [f"{each['memory'] / 2**20:.0f} MiB" for each in (plan, real)]
        cells += [f"{plan['memory'] / real['memory']:.2f}", f"{plan['planning']:.1f} s"]
        lines.append(f"| {' | '.join(cells)} |")
        print(lines[-1], file=sys.stderr)
    deep = f"the plan as a whole {_deep(given.seconds):.1f} s, imports included"
    lines += ["", f"ResNet-638 at 224 x 224: counted on the meta device {_counting():.1f} s, {deep}"]
    text = "\n".join(lines) + "\n"
    print(text)
    if given.out is not None:
        given.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
