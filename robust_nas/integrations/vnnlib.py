"""Robustness at images as VNN-LIB files, and folders in VNN-COMP's layout, for other people's verifiers.

    rn.write_vnnlib("image-0.vnnlib", image, label=7, num_classes=10, threat=rn.ThreatModel(epsilon=0.03))

A file describes a counterexample: an image of the linf ball with another class (VNN-LIB 1.0; VNN-COMP's report,
arXiv:2312.16760, section 2). `unsat` says that there is none, and the label is verified; a tie counts as another class.

    FOLDER/
        onnx/NETWORK.onnx
        vnnlib/image-I-epsilon-E.vnnlib     I is the place in the data
        instances.csv                       network, property, seconds; no head
        export.json                         what was written with what, and how far onnxruntime is from torch

Properties do not depend on the network. An instance is one of an image that the network, as onnxruntime computes it,
classifies correctly, as in VNN-COMP: elsewhere the image itself is a counterexample.
"""

from __future__ import annotations

import contextlib
import csv
import io
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robust_nas import __version__
from robust_nas.certification.plan import plan_with
from robust_nas.core.checks import check_kinds, check_path, check_type
from robust_nas.core.errors import InputError
from robust_nas.core.pixels import unit_images
from robust_nas.core.seeds import generator_at
from robust_nas.core.writing import write_json, write_text
from robust_nas.datasets import ImageSet
from robust_nas.evaluation import file_name
from robust_nas.integrations.onnx import TOLERANCE, classify, export_onnx, require_packages
from robust_nas.jobs import certify_models
from robust_nas.pipeline import Job, load_models_and_ensembles
from robust_nas.runtime.distributed import World
from robust_nas.runtime.process import unchanged_process
from robust_nas.runtime.progress import Progress
from robust_nas.threat import ThreatModel

TIMEOUT = 300
"""Seconds that an instance asks a verifier to take at most."""

_POINTS_PER_IMAGE = 4
"""Random points of each ball at which the runtimes are compared."""


def write_vnnlib(path: Path | str, image: Tensor, label: int, num_classes: int, threat: ThreatModel | str) -> None:
    """Write the property of a counterexample at an image: X_0, ... in the box, and one Y_j that is at least Y_label.

    The numbers are written in full, and are float32: a reader in single or double precision has the same box. It is the
    smallest such box around the ball, cut with [0, 1], and so is up to one unit in the last place larger.

    Args:
        path: the file, which is replaced if it is there.
        image: [C, H, W] in [0, 1]; X is in this order.
        label: the class that is to be proved.
        num_classes: of the network.
        threat: gives the radius.

    Raises:
        InputError: for a norm other than linf, an image of another form, or a label that is no class.
    """
    check_path("path", path)
    check_kinds("write_vnnlib", image=(image, Tensor))
    threat = ThreatModel.of(threat)
    check_type("label", label, int, "a whole number")
    check_type("num_classes", num_classes, int, "a whole number")
    _check_box(threat)
    image = unit_images(image.unsqueeze(0)).squeeze(0)
    if not 0 <= label < num_classes or num_classes < 2:
        raise InputError(f"A label must be one of at least two classes, but got {label} of {num_classes}.")
    box = _box(image, threat.epsilon)
    others = [j for j in range(num_classes) if j != label]
    lines = [
        f"; Is there an image within {threat.epsilon!r} of this one, in linf, whose class is not {label}?",
        "; unsat: there is none, and the class is verified.",
        "",
        *(f"(declare-const X_{i} Real)" for i in range(len(box))),
        *(f"(declare-const Y_{j} Real)" for j in range(num_classes)),
        "",
        *(f"(assert (>= X_{i} {low}))\n(assert (<= X_{i} {high}))" for i, (low, high) in enumerate(box)),
        "",
        "(assert (or",
        *(f"    (and (>= Y_{j} Y_{label}))" for j in others),
        "))",
    ]
    write_text(Path(path), "\n".join(lines) + "\n")


def _check_box(threat: ThreatModel) -> None:
    if threat.norm != "linf":
        raise InputError(
            f"VNN-LIB describes boxes, which are linf balls, but the threat's norm is {threat.norm}; give one of linf."
        )


def _box(image: Tensor, epsilon: float) -> list[tuple[str, str]]:
    """Return, per pixel, the largest float32 below and the smallest above the ball's ends in [0, 1], as decimals."""
    radius = Fraction(epsilon)
    return [
        (
            _decimal(_float32(max(pixel - radius, Fraction(0)), -math.inf)),
            _decimal(_float32(min(pixel + radius, Fraction(1)), math.inf)),
        )
        for pixel in map(Fraction, image.double().flatten().tolist())
    ]


def _float32(value: Fraction, towards: float) -> float:
    """Return the float32 nearest to `value` that is not on its other side than `towards`."""
    rounded = np.float32(float(value))
    inwards = (Fraction(float(rounded)) - value) * int(math.copysign(1, towards)) < 0
    return float(np.nextafter(rounded, np.float32(towards))) if inwards else float(rounded)


def _decimal(value: float) -> str:
    """Return all digits, without an exponent: SMT-LIB's decimals have none."""
    digits = format(Decimal(value), "f")
    return digits if "." in digits else f"{digits}.0"


@unchanged_process()
def write_benchmark(
    models: Mapping[str, nn.Module],
    data: ImageSet,
    threats: Sequence[ThreatModel | str],
    folder: Path | str,
    *,
    timeout: int = TIMEOUT,
    about: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write networks and the properties of images in VNN-COMP's layout.

    Args:
        models: by name; they map [0, 1] images [B, C, H, W] to logits [B, K], and are left as they were.
        data: the images and labels.
        threats: linf balls.
        folder: gets its name when all of it is written; an earlier export there is replaced.
        timeout: seconds per instance.
        about: the origin of models and images, for export.json.

    Returns:
        The contents of export.json.

    Raises:
        InputError: for nothing to write, other norms, a folder with other files, or what `export_onnx` raises.
    """
    packages = require_packages()
    check_type("models", models, Mapping, "a dictionary of networks by name, such as run.models")
    for name in models:
        check_type("A model's name", name, str, "a text")
    check_kinds("write_benchmark", data=(data, ImageSet))
    check_type("threats", threats, Sequence, "a list of threat models, such as [rn.ThreatModel(epsilon=0.03)]")
    check_path("folder", folder)
    check_type("timeout", timeout, int, "a whole number of seconds")
    folder = Path(folder)
    if not (models and len(data) and threats) or timeout < 1:
        raise InputError(
            "An export needs at least one model, image and radius, and a timeout of at least 1 s, but got "
            f"{len(models)}, {len(data)}, {len(threats)} and {timeout}."
        )
    balls = list(map(ThreatModel.of, threats))
    for ball in balls:
        _check_box(ball)
    names = {name: f"onnx/{file_name(name)}.onnx" for name in models}
    if len(set(names.values())) < len(names):
        raise InputError(f"Models must have names that differ as files' names too, but got {', '.join(names)}.")
    radii = {ball.epsilon: ball for ball in balls}
    points, images, labels = _points(data, balls), data.images.cpu(), data.labels.cpu()
    networks: dict[str, Any] = {}
    instances: list[tuple[str, str, int]] = []
    with _whole(folder) as unfinished:
        for name, model in (progress or Progress(quiet=True)).steps(list(models.items()), "export: networks"):
            file = unfinished / names[name]
            written = export_onnx(model, file, data.image_shape, points=points)
            correct = classify(file, images).argmax(1) == labels
            networks[name] = {
                "file": names[name],
                "opset": written.opset,
                "operations": written.operations,
                "num_points": written.num_points,
                "largest_difference": written.largest_difference,
                "misclassified": (~correct).nonzero().flatten().tolist(),
            }
            for image in correct.nonzero().flatten().tolist():
                for epsilon, threat in radii.items():
                    property_file = f"vnnlib/image-{image}-epsilon-{epsilon!r}.vnnlib"
                    instances.append((names[name], property_file, timeout))
                    if not (unfinished / property_file).exists():
                        label = int(labels[image])
                        write_vnnlib(unfinished / property_file, images[image], label, written.num_classes, threat)
        table = io.StringIO()
        csv.writer(table, lineterminator="\n").writerows(instances)
        write_text(unfinished / "instances.csv", table.getvalue())
        found = {
            **(about or {}),
            "networks": networks,
            "num_images": len(data),
            "norm": "linf",
            "epsilons": list(radii),
            "instances": len(instances),
            "timeout": timeout,
            "tolerance": TOLERANCE,
            "versions": {"robust_nas": __version__, "torch": torch.__version__, **packages},
        }
        write_json(unfinished / "export.json", found)
    return found


def _points(data: ImageSet, threats: Sequence[ThreatModel]) -> Tensor:
    """Return the images, and random points of each ball."""
    images = data.images.cpu()
    generator = generator_at("cpu", 0, "export")
    balls = [threat.around(images) for threat in threats for _ in range(_POINTS_PER_IMAGE)]
    return torch.cat([images, *(ball.random(generator) for ball in balls)])


@contextlib.contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """Give an empty folder that replaces `folder` on success and is removed on failure."""
    folder = folder.resolve()
    if folder.exists():
        others = {path.name for path in folder.iterdir()} - {"onnx", "vnnlib", "instances.csv", "export.json"}
        if others:
            raise InputError(f"{folder} has other files than an export's, such as {min(others)}; choose another --out.")
    unfinished = folder.with_name(f".{folder.name}-unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        if folder.exists():
            shutil.rmtree(folder)
        unfinished.replace(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def export_run(
    job: Job,
    folder: Path,
    *,
    epsilons: Sequence[str] | None = None,
    images: int | None = None,
    timeout: int = TIMEOUT,
) -> str:
    """Write the trained models of a run, ensembles too, and the properties that its recipe certifies; return a summary.

    Args:
        job: the run, whose networks are trained.
        folder: as in `write_benchmark`.
        epsilons: other radii than the recipe certifies, as text.
        images: another number of test images.
        timeout: seconds per instance.

    Raises:
        InputError: for what is no radius or number of images, and what `write_benchmark` raises.
    """
    plan = plan_with(job.recipe.certification, epsilons=epsilons, images=images)
    threats = [job.recipe.threat.with_epsilon(epsilon) for epsilon in plan.epsilons]
    models, data = load_models_and_ensembles(job), job.data.test[: plan.num_images]
    about = {"run": job.folder.path.resolve().name, "data": job.data.name, "split": "test"}
    found = job.world.on_main(
        lambda: write_benchmark(models, data, threats, folder, timeout=timeout, about=about, progress=job.progress)
    )
    return _written(found, data, folder)


def export_models(
    names: Sequence[str],
    overrides: Sequence[str],
    folder: Path,
    *,
    timeout: int = TIMEOUT,
    progress: Progress | None = None,
    **words: Any,
) -> str:
    """Write any models, and the properties of balls around test images; return a summary.

    Images and radii that are not given are those of the first model's run, in which a saved ensemble may lie too.

    Args:
        names: of models, as `certify_models.from_words` takes them.
        overrides: settings KEY=VALUE.
        folder: as in `write_benchmark`.
        timeout: seconds per instance.
        words: the other words of `certify_models.from_words`.

    Raises:
        InputError: for models, images or radii that are not known, and what `write_benchmark` raises.
    """
    progress = progress or Progress(quiet=True)
    chosen = certify_models.from_words(names, overrides, **words)
    data = chosen.read(World())
    models, test = chosen.checked(data, chosen.certification.num_images, progress)
    about = {"models": ", ".join(chosen.models), "data": data.name, "split": "test"}
    found = write_benchmark(models, test, chosen.threats, folder, timeout=timeout, about=about, progress=progress)
    return _written(found, test, folder)


def _written(found: Mapping[str, Any], data: ImageSet, folder: Path) -> str:
    """Return in words what export.json says."""
    lines = [f"exported {found['instances']} instances of {len(data)} images: {folder}"]
    for name, network in found["networks"].items():
        right = len(data) - len(network["misclassified"])
        lines.append(
            f"{name}: {network['file']}, {right} of {len(data)} images right, logits within "
            f"{network['largest_difference']:.1e} of torch's at {network['num_points']} points"
        )
    return "\n".join(lines)
