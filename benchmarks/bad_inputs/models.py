"""Weights files, and the words that name models."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

from cases import ATTACK, DEEP, DIGITS, Case
from spoiling import as_folder, as_loop, cut, each, flip, put, renamed, weights, without


def weights_files() -> Iterator[Case]:
    """Weights, of a network of one's own and of a run."""
    kind = "weights files"
    own = ["attack", "net.py:Net@net.safetensors", *ATTACK[2:]]
    file = "net.safetensors"
    for name, change in {
        "empty": put(file, ""),
        "text": put(file, "weights"),
        "cut off": cut(file),
        "a header of 2^63 bytes": put(file, b"\xff" * 8 + b"{}"),
        "a header that is no JSON": put(file, b"\x02\0\0\0\0\0\0\0[[" + b"\0" * 100),
        "a header nested thousands deep": put(file, (2 * 3000).to_bytes(8, "little") + DEEP.encode()),
        "a folder": as_folder(file),
        "a link to itself": as_loop(file),
        "missing": without(file),
        "tensors of other shapes": weights(file, **{"1_weight": (3, 3), "1_bias": (10,)}),
        "another tensor": weights(file, **{"1_weight": (10, 64), "1_bias": (10,), "2_bias": (1,)}),
        "a tensor less": weights(file, **{"1_weight": (10, 64)}),
        "no tensors": weights(file),
    }.items():
        yield Case(kind, name, own, change)
    nan = "import torch, safetensors.torch as s\ns.save_file({'1.weight': torch.full((10, 64), float('nan')), '1.bias': torch.zeros(10)}, 'net.safetensors')"
    yield Case(kind, "NaN", own, lambda folder: exec(nan.replace("'net.safe", f"'{folder}/net.safe")))
    yield Case(kind, "pickled", ["attack", "net.py:Net@net.pt", *ATTACK[2:]])
    yield Case(kind, "of no run", ["attack", "net.safetensors", *ATTACK[2:]])
    yield Case(
        kind,
        "a name that is no text, missing",
        ["attack", "net.py:Net@" + os.fsdecode(b"n\xff.safetensors"), *ATTACK[2:]],
    )
    yield Case(kind, "a name that is no text", ["attack", "net.py:Net@" + os.fsdecode(b"n\xff.safetensors"), *ATTACK[2:]],
               renamed(file, b"n\xff.safetensors"), True)  # fmt: skip
    run = ["attack", "RUN", "--threat", "linf:0.1", "--images", "4", "--attack", "fgsm"]
    model = "RUN/checkpoints/model-0.safetensors"
    for name, change in {
        "of a run, a changed bit": flip(model),
        "of a run, cut off": cut(model),
        "of a run, of another network": lambda folder: shutil.copy(folder / file, folder / model),
        "of a run, a folder": as_folder(model),
        "of a run, another's": lambda folder: shutil.copy(
            folder / "RUN/checkpoints/supernet.safetensors", folder / model
        ),
    }.items():
        yield Case(kind, name, run, change)
    yield Case(
        kind,
        "of a run, the last epoch's without the model",
        ["attack", "RUN/checkpoints/supernet.safetensors", *run[2:]],
    )


def models() -> Iterator[Case]:
    """Names of models."""
    for spec in (
        "net.py", "net.py:", ":Net", "net.py:Nett", "net.py:number", "net.py:needs", "net.py:raises", "net.py:returns_text",
        "net.py:two_logits", "net.py:other_images", "net.py:image_out", "other.py:Net", "net:Net.x", "no.such.module:x",
        "torchvision:resnet", "torchvision:resnet18@NOTHING", "torchvision:resnet18?num_classes=x", "torchvision:",
        "torchvision:resnet18?num_classes=0", f"torchvision:resnet18?num_classes={DIGITS}", "net.py:Net@", "images:Net",
        "os:getcwd", "net.py:__class__", "images", "net.py:Net@net.py", "", "  ", "a" * 5000, "syntax.py:Net", "null.py:Net",
    ):  # fmt: skip
        spoil = each(put("syntax.py", "def"), put("null.py", b"\0\xff"))
        yield Case("model specs", spec[:60] or "nothing", ["attack", spec, *ATTACK[2:]], spoil)
    yield Case("model specs", "a file named like a module", ["attack", "net.py:Net", "net.py:Net", *ATTACK[2:]])
