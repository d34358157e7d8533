"""The good files that bad inputs spoil: a small run, an attack folder, an ensemble, a table, images, a network."""

from __future__ import annotations

import contextlib
import importlib
import io
import shutil
import sys
from pathlib import Path

from cases import ATTACK

TINY = [
    *("space.channels=2", "space.stages=1", "search.epochs=2", "search.batch_size=512", "derive.count=2"),
    *("derive.pool=3", "train.epochs=2", "train.batch_size=256", "train.method.attack.steps=1", "workers=1"),
    *("train.selection_attack=fgsm", "evaluation.attacks=['fgsm']", "evaluation.strongest=['pgd']"),
    *("evaluation.curve_epsilons=[0.05]", "evaluation.num_images=20", "evaluation.masking_images=8"),
    *("certification.num_images=4", "certification.epsilons=[0.00001, 0.01]", "certification.bound=interval"),
]
NET = """
from torch import nn
class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 10))
def two_logits():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
def other_images():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
def needs(argument):
    return Net()
def raises():
    raise RuntimeError("no weights here")
def returns_text():
    return "a network"
def image_out():
    return nn.Conv2d(1, 3, 3)
number = 3
"""


def command(words: list[str]) -> int:
    """Run robust-nas in this process and return its exit code."""
    from robust_nas import cli

    sys.argv = ["robust-nas", *words]
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0) if isinstance(end.code, int | None) else 1
    return 0


def catalogued(catalogue: str, name: str) -> Path:
    """A file of a catalogue, in this checkout or in one that has it at the top of the package."""
    try:
        from robust_nas.core.catalogue import files
    except ImportError:
        files = importlib.import_module("robust_nas.catalogue").files
    return files(catalogue)[name]


def prepare(base: Path) -> None:
    """Make the good files: RUN, attacked, ensemble, runs/table, images, net.py, weights, a space, a recipe, a card."""
    import numpy as np
    import torch
    from PIL import Image
    from safetensors.torch import save_file

    with contextlib.chdir(base), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        Path("net.py").write_text(NET)
        assert command(["run", "digits", *TINY]) == 0
        (run,) = Path("runs").glob("*-digits-*")
        run.rename("RUN")
        smooth = "smoothing[sigma=0.25,num_samples=20,num_selection_samples=4]"
        if command(["certify", "RUN", "--method", smooth, "--images", "4", "--epsilon", "0.25"]):
            assert command(["certify", "RUN", "--method", "smoothing[sigma=0.25,num_samples=20]", "--images", "4"]) == 0
        shutil.copytree("RUN/ensemble", "ensemble")
        started = ["search", "digits", *TINY, "search.epochs=1", "--out", "begun"]
        assert command(started) == 0
        (run,) = Path("begun").glob("*-digits-*")
        run.rename("BEGUN")
        assert command([*ATTACK, "--out", "out"]) == 0
        (attacked,) = Path("out").glob("attack-*")
        attacked.rename("attacked")
        for split in ("train", "validation", "test"):
            for place, name in enumerate(("cat", "dog")):
                folder = Path("images", split, name)
                folder.mkdir(parents=True)
                for number in range(6):
                    pixels = np.random.default_rng([place, number]).integers(0, 256, (8, 8, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(folder / f"{number}.png")
        state = {"1.weight": torch.zeros(10, 64), "1.bias": torch.zeros(10)}
        save_file(state, "net.safetensors")
        torch.save(torch.nn.Linear(64, 10), "net.pt")  # a whole module
        shutil.copy(catalogued("search_spaces", "nasbench201"), "space.toml")
        shutil.copy(catalogued("recipes", "digits"), "recipe.toml")
        shutil.copy(catalogued("tables", "nas-robbench-201"), "card.toml")
        for left in ("out", "begun"):
            shutil.rmtree(left)
