"""Our linear bounds beside auto_LiRPA's on the same networks: processor time, memory, and what is certified.

    python benchmarks/bound_speed.py digits mnist cifar10
    python benchmarks/bound_speed.py cifar10-n5 --kinds crown_ibp    # a network of the published size
    python benchmarks/bound_speed.py limits 0.25 0.5 1 2     # GiB: how CROWN-IBP of a large network keeps to them
    python benchmarks/bound_speed.py limits crown 8          # and CROWN, of one image

auto_LiRPA (https://github.com/Verified-Intelligence/auto_LiRPA) has to be importable. Its average pooling counts the
padding, so that it gets networks whose pooling is rewritten, with the same logits. Networks are `attack_speed.py`'s
(NAS-Bench-201 cells), kept in `--weights`, trained on first use on the images in `--data`; or, with `--certified`,
trained for intervals. One thread; in every row both have a process of their own and take turns, and the ratio is the
median over the turns. A training step is the cross-entropy at CROWN-IBP's worst margins with its gradient for all
parameters, batch norms as they are. Memory is what resident memory grows by in all calls at most, over what it is when
both have bounded a small network, and the peer has made its own of the network (Linux).
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import ctypes
import gc
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from attack_speed import CELL, NETWORKS, load, trained
from torch import Tensor, nn
from torch.nn import functional as F

import robust_nas as rn
from robust_nas import bounds
from robust_nas.datasets import DataForm, Dataset
from robust_nas.models.average_pool import AveragePool3x3
from robust_nas.training._certified import worst_cross_entropy
from robust_nas.training.crown_ibp import linear

EPSILONS = {"digits": 0.01, "mnist": 0.01, "cifar10": 0.5 / 255, "cifar10-n5": 0.5 / 255}
LIMIT = 8 * 2**30
"""Bytes of data that a process may have; one that needs more fails."""
KINDS = {"crown_ibp": "CROWN-IBP", "crown": "CROWN", "training_step": "CROWN-IBP"}
"""The compared bounds, and auto_LiRPA's names for them. A training step is the gradient of a loss of the bounds."""


class CountedPool(nn.Module):
    """The function of `AveragePool3x3`, written with pooling that counts the padding."""

    counts: Tensor

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.register_buffer("counts", 1 / F.avg_pool2d(torch.ones(1, 1, height, width), 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 3, 1, 1) * self.counts


def rewritten(model: nn.Module, images: Tensor) -> nn.Module:
    """Return a network with the same logits that auto_LiRPA bounds soundly."""
    model = copy.deepcopy(model)
    sizes: dict[nn.Module, tuple[int, int]] = {}
    hooks = [
        module.register_forward_hook(lambda m, i, o: sizes.update({m: tuple(o.shape[2:])}))
        for module in model.modules()
        if isinstance(module, AveragePool3x3)
    ]
    model(images)
    for hook in hooks:
        hook.remove()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, AveragePool3x3):
                setattr(parent, name, CountedPool(*sizes[child]))
            elif isinstance(child, nn.AvgPool2d):
                setattr(parent, name, nn.AvgPool2d(2, 2))
    return model


def theirs(model: nn.Module, images: Tensor, labels: Tensor, epsilon: float, kind: str) -> Callable[[], Tensor]:
    """Return a call that gives auto_LiRPA's least margins [B], or takes the gradient and gives the loss."""
    from auto_LiRPA import BoundedModule, BoundedTensor, PerturbationLpNorm

    network = rewritten(model, images)
    assert torch.allclose(network(images), model(images), atol=1e-4)
    num_classes = model(images[:1]).shape[1]
    rows = F.one_hot(labels, num_classes).unsqueeze(1).float() - torch.eye(num_classes)
    rows = rows[~F.one_hot(labels, num_classes).bool()].view(len(labels), num_classes - 1, num_classes)
    # In its default mode of patches it fails on this topology.
    bounded = BoundedModule(network, torch.zeros_like(images[:1]), bound_opts={"conv_mode": "matrix"}, device="cpu")
    ball = PerturbationLpNorm(norm=float("inf"), x_L=(images - epsilon).clamp(0, 1), x_U=(images + epsilon).clamp(0, 1))

    def margins() -> Tensor:
        lower: Tensor
        lower, _ = bounded.compute_bounds(
            x=(BoundedTensor(images, ball),), C=rows, method=KINDS[kind], bound_upper=False
        )
        return lower

    def call() -> Tensor:
        with torch.no_grad():
            return margins().amin(1)

    def step() -> Tensor:
        # The label's own margin is 0.
        loss = F.cross_entropy(F.pad(-margins(), (1, 0)), torch.zeros_like(labels))
        bounded.zero_grad()
        loss.backward()
        return loss.detach()

    return step if kind == "training_step" else call


def our_step(model: nn.Module, images: Tensor, labels: Tensor, epsilon: float) -> Callable[[], Tensor]:
    """Return a call that takes the gradient of the loss at our bounds and gives the loss."""
    threat = rn.ThreatModel(epsilon=epsilon)

    def step() -> Tensor:
        loss = worst_cross_entropy(linear(model, images, threat), labels)
        model.zero_grad()
        loss.backward()
        return loss.detach()

    return step


def ours(model: nn.Module, images: Tensor, labels: Tensor, epsilon: float, kind: str) -> Callable[[], Tensor]:
    """Return a call that gives our least margins [B] in the same arithmetic, float32; or the loss of a step."""
    if kind == "training_step":
        return our_step(model, images, labels, epsilon)
    threat, bound = rn.ThreatModel(epsilon=epsilon), bounds.get(kind)(dtype="float32")

    def call() -> Tensor:
        least: Tensor = bound.margins(model, images, labels, threat).lower(threat).amin(1)
        return least

    return call


def network(name: str, data: Dataset, weights: Path, certified: bool) -> nn.Module:
    """Return the network of a data set: trained against PGD, or on intervals."""
    if not certified:
        return trained(name, data, weights)
    space = NETWORKS[name].space()
    path = weights / f"{name}-ibp.safetensors"
    threat = rn.ThreatModel(epsilon=EPSILONS[name])
    from safetensors.torch import load_file, save_file

    if path.exists():
        model = space.network(space.parse(CELL), data)
        model.load_state_dict(load_file(path))
        return model.eval()
    options: dict[str, Any] = {"epochs": 10, "batch_size": 64, "epsilon_ramp": 0.6, "learning_rate": 0.02}
    model = rn.train(CELL, data, threat, space=space, method="ibp", **options)
    save_file(model.state_dict(), path)
    return model.eval()


def warm(who: str, kind: str) -> None:
    """Bound one small image of a small network, so that the library's code is in memory before it is measured."""
    space = rn.spaces.load("nasbench201", channels=2, cells_per_stage=1)
    model = space.network(space.parse(CELL), DataForm("images", tuple("012"), (1, 8, 8))).eval()
    (ours if who == "ours" else theirs)(model, torch.rand(1, 1, 8, 8), torch.tensor([0]), 0.01, kind)()


def resident(what: str) -> float:
    """Return this process's resident memory (`VmRSS`), or its peak since it was last reset (`VmHWM`), in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(what))


def measure(words: str, folder: Path, weights: Path, certified: bool) -> None:
    """Answer with what is bounded; with the seconds of a turn, for every line that comes in; with the memory, as JSON.

    The words are network, kind, who and batch.
    """
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT))
    name, kind, who, size = words.split(",")

    def answer(value: object) -> None:
        print(json.dumps(value), file=sys.__stdout__, flush=True)

    # Packages print.
    with contextlib.redirect_stdout(sys.stderr):
        data = load(name, folder)
        model, part = network(name, data, weights, certified), data.test[torch.arange(int(size))]
        warm(who, kind)
        call = (ours if who == "ours" else theirs)(model, part.images, part.labels, EPSILONS[name], kind)
        # What is free goes back to the system, and the peak begins anew.
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before, found = resident("VmRSS"), call()
        answer({"certified": float((found > 1e-6).double().mean()), "mean": float(found.double().mean())})
        for _ in sys.stdin:
            started = time.process_time()
            call()
            answer(time.process_time() - started)
        answer(resident("VmHWM") - before)


def limit(gib: float, kind: str) -> str:
    """Return how a bound keeps a limit on NAS-Bench-201's own network: 16 channels, 5 cells a stage, 32 x 32 pixels.

    Its weights are those it begins with: what is in memory does not depend on them.
    """
    torch.set_num_threads(1)
    space = rn.spaces.load("nasbench201")
    model = space.network(space.parse(CELL), DataForm("images", tuple("0123456789"), (3, 32, 32))).eval()
    num_images = 1 if kind == "crown" else 32
    images = torch.rand(num_images, 3, 32, 32)
    labels, before = model(images).argmax(1), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    bounds.get(kind)(memory=gib).margins(model, images, labels, rn.ThreatModel(epsilon=1e-4))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    return f"| {gib:g} | {grown:.2f} | {(time.process_time() - started) / num_images:.2f} |"


def limits(words: list[str]) -> None:
    """Print a table of limits and what was taken, each in a process of its own."""
    kind, words = (words[0], words[1:]) if words[0] in KINDS else ("crown_ibp", words)
    print("| limit, GiB | taken, GiB | seconds an image |\n|---|---|---|", flush=True)
    for word in words:
        subprocess.run([sys.executable, "-W", "ignore", __file__, "--limit", word, kind], check=True)


def main() -> None:
    """Run the comparison named on the command line."""
    if sys.argv[1:2] == ["limits"]:
        limits(sys.argv[2:])
        return
    if sys.argv[1:2] == ["--limit"]:
        print(limit(float(sys.argv[2]), sys.argv[3]), flush=True)
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+", choices=sorted(EPSILONS))
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--weights", type=Path, default=Path("weights"))
    parser.add_argument("--kinds", nargs="+", choices=sorted(KINDS), default=sorted(KINDS, reverse=True))
    parser.add_argument("--sizes", nargs="+", type=int, default=[1, 16, 64])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--certified", action="store_true", help="networks trained on intervals, not against PGD")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        measure(options.one, options.data, options.weights, options.certified)
        return
    print("| network | bound | batch | ours, s | auto_LiRPA, s | ratio | ours, MiB | auto_LiRPA, MiB | certified, % |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    for name in options.networks:
        for kind in options.kinds:
            for size in options.sizes:
                words = ["--data", str(options.data), "--weights", str(options.weights)]
                words += ["--certified"] * options.certified
                both = [_started(name, f"{name},{kind},{who},{size}", words) for who in ("ours", "theirs")]
                print(_row(name, kind, size, *_in_turns(both, options.turns)), flush=True)


@dataclass
class Side:
    """One process, and what it has answered."""

    process: subprocess.Popen[str]
    found: dict[str, float] | None = None
    seconds: list[float] = field(default_factory=list)
    mib: float = 0.0

    def answer(self) -> Any:
        """Return the next answer, or None if the process has failed."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        return json.loads(line) if line else None


def _started(name: str, one: str, words: list[str]) -> Side:
    """Return a process that has made its first call."""
    command = [sys.executable, "-W", "ignore", __file__, name, "--one", one, *words]
    pipe = subprocess.PIPE
    with tempfile.TemporaryFile("w+") as errors:
        side = Side(subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=errors, text=True))
        side.found = side.answer()
        if side.found is None:
            errors.seek(0)
            print(one, (errors.read().strip().splitlines() or ["ended"])[-1], file=sys.stderr)
    return side


def _in_turns(both: list[Side], turns: int) -> list[Side]:
    """Let those that work take turns, each of them first every other time."""
    for turn in range(turns):
        for side in both if turn % 2 else both[::-1]:
            if side.found is not None and side.process.stdin is not None:
                print(file=side.process.stdin, flush=True)
                side.seconds.append(side.answer())
    for side in both:
        assert side.process.stdin is not None
        side.process.stdin.close()
        side.mib = side.answer() or 0.0
        side.process.wait()
    return both


def _row(name: str, kind: str, size: int, us: Side, them: Side) -> str:
    assert us.found is not None
    cells = [name, kind, str(size), f"{statistics.median(us.seconds):.3f}"]
    last = "" if kind == "training_step" else f"{100 * us.found['certified']:.0f}"
    if them.found is None:
        cells += ["failed", "", f"{us.mib:.1f}", "", last]
    else:
        # Equal bounds have an equal loss.
        ends = us.found["mean"], them.found["mean"]
        assert kind != "training_step" or abs(ends[0] - ends[1]) < 1e-3 * abs(ends[0]), ends
        ratios = [theirs / ours for ours, theirs in zip(us.seconds, them.seconds, strict=True)]
        cells += [f"{statistics.median(them.seconds):.3f}", f"{statistics.median(ratios):.2f}"]
        cells += [f"{us.mib:.1f}", f"{them.mib:.1f}"]
        cells.append(last and f"{last} / {100 * them.found['certified']:.0f}")
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
