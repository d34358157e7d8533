"""The adversarial examples of which a model is surest, for the eye."""

from __future__ import annotations

import hashlib
import re
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robust_nas import attacks as attack_group
from robust_nas.attacks import Attack
from robust_nas.core import config
from robust_nas.core.registry import name_of
from robust_nas.datasets import ImageSet
from robust_nas.evaluation._chunks import BATCH_SIZE, Chunks
from robust_nas.models.losses import margin
from robust_nas.models.scores import misclassified
from robust_nas.runtime.distributed import World
from robust_nas.runtime.progress import Progress
from robust_nas.runtime.stages import Stage
from robust_nas.runtime.states import save_state
from robust_nas.threat import ThreatModel

_LONGEST = 120
"""Bytes of a file's name that are a model's; file systems take 255, with what stands before and after it."""


def strongest_examples(
    model: nn.Module,
    data: ImageSet,
    threat: ThreatModel,
    attack: Attack | str,
    count: int = 10,
    *,
    seed: int = 0,
    num_images: int = 512,
) -> dict[str, Any]:
    """Return the adversarial examples of which the model is surest: correctly classified images that `attack` breaks.

    The surest of every class come first, then every class's second, and so on. In one process.

    Args:
        num_images: number of images of `data` to look at, the first ones.

    Returns:
        "originals" and "adversarial" [M, C, H, W], "labels", "predictions" and "clean_predictions" [M] with
        M <= `count`, on the CPU; the attack's name; norm and epsilon.
    """
    data = data[:num_images]
    chosen: Attack = config.made(attack_group.get, attack, "attack")
    name, alone = name_of(chosen), Stage("examples", seed, World(), Progress(quiet=True))
    run = Chunks(model, data, BATCH_SIZE, seed, alone)
    left = run.clean().nonzero().squeeze(1)
    found = [run.attacked(part, threat, chosen, name, number) for number, part in enumerate(run.split(left))]
    images, labels = run.images(left), run.labels(left)
    adversarial = torch.cat([points for points, _ in found]) if found else images
    logits = torch.cat([logits for _, logits in found]) if found else torch.zeros(0, 1, device=labels.device)
    fooled = misclassified(logits, labels)
    by_class: dict[int, list[int]] = {}
    for index in margin(logits, labels).argsort(descending=True, stable=True).tolist():
        if fooled[index]:
            by_class.setdefault(int(labels[index]), []).append(index)
    rounds = zip_longest(*(by_class[own] for own in sorted(by_class)))
    picked = torch.tensor([index for index in chain(*rounds) if index is not None][:count], dtype=torch.int64)
    picked = picked.to(labels.device)
    return {
        "originals": images[picked].cpu(),
        "adversarial": adversarial[picked].cpu(),
        "labels": labels[picked].cpu(),
        "predictions": logits[picked].argmax(1).cpu(),
        "clean_predictions": labels[picked].cpu(),
        "attack": name,
        "norm": threat.norm,
        "epsilon": threat.epsilon,
    }


def save_examples(
    folder: Path,
    name: str,
    model: nn.Module,
    data: ImageSet,
    threat: ThreatModel,
    attack: Attack,
    *,
    num_classes: int,
    seed: int,
) -> None:
    """Write the strongest example of every class (of up to 20) to a run folder, unless it is there."""
    path = folder / "checkpoints" / f"examples-{file_name(name)}.safetensors"
    if not path.is_file():
        examples = strongest_examples(model, data, threat, attack, min(max(num_classes, 9), 20), seed=seed)
        save_state(path, {**examples, "model": name})


def file_name(model: str) -> str:
    """Return a model's name as a part of a file's name, with a digest for what is cut off of a long one."""
    name = re.sub(r"[^\w.-]+", "-", model).strip("-.")
    if 0 < len(name.encode()) <= _LONGEST:
        return name
    digest = hashlib.blake2b(model.encode(errors="surrogatepass"), digest_size=4).hexdigest()
    start = name.encode()[: _LONGEST - len(digest) - 1].decode(errors="ignore")
    return f"{start}-{digest}" if start else digest
