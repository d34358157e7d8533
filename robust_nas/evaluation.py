"""Clean and attacked accuracy, image by image, and the checks that expose gradient masking.

Only correctly classified images are attacked. They are cut into chunks; a chunk's attack is seeded by the run's seed,
the attack's label and the chunk's number, so the outcome depends neither on the number of processes nor on
interruptions. Whether an image survives is judged by a forward pass of its own, after the returned image was found to
be inside the threat model. The model is left as it was.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import chain, zip_longest
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor, nn

from robust_nas import attacks as attack_group
from robust_nas.attacks import Attack
from robust_nas.attacks._model_state import cross_entropy, frozen, input_gradient, margin, misclassified, scores
from robust_nas.attacks.apgd import APGD
from robust_nas.attacks.fgsm import FGSM
from robust_nas.attacks.pgd import PGD
from robust_nas.attacks.square import Square
from robust_nas.datasets import ImageSet
from robust_nas.distributed import World
from robust_nas.errors import InputError
from robust_nas.progress import Progress
from robust_nas.registry import name_of
from robust_nas.run_dir import Stage
from robust_nas.seeds import generator_at, seed_at
from robust_nas.threat import ThreatModel

_BATCH_SIZE = 256


def wilson_interval(successes: int, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval of a proportion (Wilson 1927, JASA 22, 209-212).

    Raises:
        InputError: if `successes` is not in [0, count], or `count` is 0.
    """
    if not (0 <= successes <= count and count > 0):
        raise InputError(f"An interval needs 0 <= successes <= count, and count >= 1, but got {successes} of {count}.")
    z, share = NormalDist().inv_cdf((1 + confidence) / 2), successes / count
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    # At the ends the formula gives 0 and 1 exactly; rounding would not.
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == count else centre + half)


def _measured(correct: Tensor) -> dict[str, Any]:
    successes, count = int(correct.sum()), len(correct)
    low, high = wilson_interval(successes, count)
    return {"accuracy": successes / count, "low": low, "high": high, "count": count}


@dataclass(frozen=True)
class AttackOutcome:
    """What one attack left.

    Args:
        label: the attack's name, with the settings that tell it from another of the same name.
        correct: [N] booleans: the image was classified correctly and still is after the attack.
        seconds: wall time.
    """

    label: str
    correct: Tensor
    seconds: float


@dataclass(frozen=True)
class Evaluation:
    """The outcome of every attack on every image, all at one threat model. Tensors are on the CPU.

    Args:
        threat: the threat model of all attacks.
        labels: [N], int64.
        clean: [N] booleans: the image itself is classified correctly.
        attacks: one entry per attack, in the order asked for.
    """

    threat: ThreatModel
    labels: Tensor
    clean: Tensor
    attacks: tuple[AttackOutcome, ...]

    @property
    def worst_case(self) -> Tensor:
        """[N] booleans: the image is classified correctly and survives every attack."""
        return torch.stack([self.clean, *(attack.correct for attack in self.attacks)]).all(0)

    @property
    def clean_accuracy(self) -> float:
        """The share of images that are classified correctly."""
        return int(self.clean.sum()) / len(self.clean)

    @property
    def robust_accuracy(self) -> float:
        """The share of images that survive every attack."""
        return int(self.worst_case.sum()) / len(self.clean)

    def summary(self) -> dict[str, Any]:
        """Return accuracies with their 95 % Wilson intervals, as evaluation.json holds them for one model."""
        place = {"norm": self.threat.norm, "epsilon": self.threat.epsilon}
        seconds = sum(attack.seconds for attack in self.attacks)
        return {
            "clean": _measured(self.clean),
            "attacks": [
                {"name": attack.label, **place, **_measured(attack.correct), "seconds": attack.seconds}
                for attack in self.attacks
            ],
            "worst_case": {"name": "worst case", **place, **_measured(self.worst_case), "seconds": seconds},
        }

    def rows(self) -> list[dict[str, Any]]:
        """Return one row per image and attack, as evaluation.parquet holds them; "clean" is the attack at radius 0."""
        outcomes = [("clean", 0.0, self.clean)]
        outcomes += [(attack.label, self.threat.epsilon, attack.correct) for attack in self.attacks]
        labels = self.labels.tolist()
        return [
            {
                "attack": name,
                "norm": self.threat.norm,
                "epsilon": epsilon,
                "image": image,
                "label": label,
                "correct": survives,
            }
            for name, epsilon, correct in outcomes
            for image, (label, survives) in enumerate(zip(labels, correct.tolist(), strict=True))
        ]


def attack_labels(attacks: Sequence[Attack]) -> list[str]:
    """Return a name for every attack; those of one name get the settings in which they differ: "pgd[steps=100]".

    Raises:
        InputError: if two attacks are the same in every setting.
    """
    names, labels = [name_of(attack) for attack in attacks], []
    for name, attack in zip(names, attacks, strict=True):
        twins = [other for other, other_name in zip(attacks, names, strict=True) if other_name == name]
        settings = [field.name for field in fields(attack)] if len(twins) > 1 else []  # type: ignore[arg-type]
        differing = [key for key in settings if len({repr(getattr(twin, key)) for twin in twins}) > 1]
        suffix = ",".join(f"{key}={getattr(attack, key)}" for key in differing)
        labels.append(f"{name}[{suffix}]" if suffix else name)
    repeated = sorted({label for label in labels if labels.count(label) > 1})
    if repeated:
        raise InputError(f"The attack {repeated[0]} is listed twice with the same settings; list it once.")
    return labels


def evaluate(
    model: nn.Module,
    data: ImageSet,
    threat: ThreatModel,
    attacks: Sequence[Attack | str],
    *,
    labels: Sequence[str] | None = None,
    batch_size: int = _BATCH_SIZE,
    seed: int | None = None,
    stage: Stage | None = None,
) -> Evaluation:
    """Return what is classified correctly, and what is left of it by each attack on its own.

    Args:
        attacks: attacks, or the names of attacks with their default settings.
        labels: what the attacks are called in the result, and seeded by; `attack_labels` of them, if not given.
        batch_size: images in a chunk, the unit of work of one process.
        seed: root of the attacks' seeds; the stage's seed if not given.
        stage: shows progress, shares the chunks out among processes and keeps every finished round of them; after an
            interruption, the same call continues. The caller ends it (`stage.finish()`) when the result is written.

    Raises:
        InputError: for labels the model has no logit for, NaN logits, an attack listed twice or one that leaves the
            threat model, or an interrupted evaluation with other settings.
    """
    chosen = [attack_group.get(attack)() if isinstance(attack, str) else attack for attack in attacks]
    names, stage = attack_labels(chosen) if labels is None else list(labels), _stage(stage, seed)
    run = _Run(model, data, batch_size, seed, stage, (threat, chosen))
    clean = run.clean()
    left = clean.nonzero().squeeze(1)
    outcomes = []
    for name, attack in zip(names, chosen, strict=True):
        survived, seconds = run.survivors(left, threat, attack, name)
        outcomes.append(AttackOutcome(name, torch.zeros_like(clean).index_put((left,), survived), seconds))
    return Evaluation(threat, data.labels.cpu(), clean, tuple(outcomes))


def robustness_curve(
    model: nn.Module,
    data: ImageSet,
    threat: ThreatModel,
    epsilons: Sequence[float],
    attack: Attack | str,
    *,
    batch_size: int = _BATCH_SIZE,
    seed: int | None = None,
    stage: Stage | None = None,
) -> list[dict[str, float]]:
    """Return the accuracy under `attack` at every radius, ascending: [{"epsilon": ..., "accuracy": ...}].

    An image that has fallen at one radius counts as fallen at every larger one: the balls contain each other.

    Args:
        epsilons: radii in pixel units; 0 is the clean accuracy.
    """
    chosen: Attack = attack_group.get(attack)() if isinstance(attack, str) else attack
    stage, radii = _stage(stage, seed), sorted(set(epsilons))
    threats = [threat.with_epsilon(epsilon) for epsilon in radii if epsilon != 0]
    run = _Run(model, data, batch_size, seed, stage, (threats, chosen))
    left = run.clean().nonzero().squeeze(1)
    curve = [{"epsilon": 0.0, "accuracy": len(left) / len(data)}] if 0 in radii else []
    for allowed in threats:
        survived, _ = run.survivors(left, allowed, chosen, f"{name_of(chosen)}@{allowed.epsilon:g}")
        left = left[survived]
        curve.append({"epsilon": allowed.epsilon, "accuracy": len(left) / len(data)})
    return curve


@dataclass(frozen=True)
class MaskingCheck:
    """One check for gradient masking (after Athalye et al. 2018, arXiv:1802.00420, section 3.1).

    Args:
        check: what a trustworthy evaluation must show, as a sentence.
        passed: whether it does.
        detail: the numbers.
    """

    check: str
    passed: bool
    detail: str


def masking_checks(
    model: nn.Module,
    data: ImageSet,
    threat: ThreatModel,
    *,
    seed: int | None = None,
    num_images: int = 128,
    queries: int = 500,
    stage: Stage | None = None,
) -> list[MaskingCheck]:
    """Return the checks that expose attacks which fail for lack of useful gradients.

    Args:
        seed: of the choice of images and of the attacks; the stage's seed if not given.
        num_images: how many random images of `data` are used, to keep the checks cheap.
        queries: forward passes per image of the black-box attack.
        stage: shares the work out among processes; nothing is kept.
    """
    stage = _stage(stage, seed).within("masking")
    draw = generator_at("cpu", stage.seed if seed is None else seed, "masking")
    subset = torch.randperm(len(data), generator=draw)[:num_images].sort().values
    data = data[subset.to(data.labels.device)]
    run = _Run(model, data, math.ceil(len(data) / 2), seed, stage)
    left = run.clean().nonzero().squeeze(1)
    count = len(left)
    if count == 0:
        detail = f"0 of {len(data)} images are classified correctly, so that no other check can be made"
        return [MaskingCheck("Some images are classified correctly.", False, detail)]
    of = f"of {count} correctly classified images"
    # An attack that depends on chance may miss a few images that another one finds.
    tolerance = max(1, count // 50)

    def survivors(attack: Attack, name: str, allowed: ThreatModel = threat) -> Tensor:
        return run.survivors(left, allowed, attack, name)[0]

    # The largest distance between two images; the ball at it holds all images.
    num_pixels = data.images[0].numel()
    radius = {"linf": 1.0, "l2": min(math.sqrt(num_pixels), 100.0), "l1": min(float(num_pixels), 10_000.0)}[threat.norm]
    unbounded = survivors(PGD(steps=50, restarts=2), "unbounded", threat.with_epsilon(radius))
    fewer, more = survivors(PGD(steps=10), "fewer"), survivors(PGD(steps=40), "more")
    one_step, noise = survivors(FGSM(), "one step"), survivors(PGD(steps=0, restarts=10), "noise")
    # White-box strength is what all gradient attacks reach together: on rough losses one start of one attack misses
    # images that chance finds, which says nothing about the model.
    white = more & fewer & one_step
    for name, attack in (
        ("restarts", PGD(steps=40, restarts=3)),
        ("margin", PGD(steps=40, restarts=3, loss="margin")),
        ("apgd", APGD()),
    ):
        white[white.clone()] = run.survivors(left[white], threat, attack, name)[0]
    only_one_step, only_noise = int((more & ~one_step).sum()), int((more & ~noise).sum())
    zero = int(run.zero_gradients(left).sum())

    def black_box() -> MaskingCheck:
        black = run.survivors(left[white], threat, Square(queries=queries), "black box")[0]
        only_black = int(white.sum()) - int(black.sum())
        return MaskingCheck(
            "The black box never beats the white box.",
            only_black <= tolerance,
            f"Square with {queries} queries breaks {only_black} of {int(white.sum())} that the gradient attacks leave, "
            f"{of} (up to {tolerance} would be chance)",
        )

    return [
        MaskingCheck(
            "An unbounded attack leaves nothing.",
            not unbounded.any(),
            f"PGD with 50 steps and 2 restarts at {threat.norm} radius {radius:g} leaves {int(unbounded.sum())} {of}",
        ),
        MaskingCheck(
            "More steps never help the defender.",
            int(more.sum()) <= int(fewer.sum()) + tolerance,
            f"PGD leaves {int(fewer.sum())} after 10 steps and {int(more.sum())} after 40, {of} (up to {tolerance} "
            "more would be chance)",
        ),
        MaskingCheck(
            "One step is not stronger than many.",
            only_one_step <= tolerance,
            f"FGSM breaks {only_one_step} that PGD with 40 steps does not, {of} (up to {tolerance} would be chance)",
        ),
        *([] if threat.norm == "l1" else [black_box()]),  # Square knows no l1
        MaskingCheck(
            "Random noise is not stronger than gradients.",
            only_noise <= tolerance,
            f"10 random points break {only_noise} that PGD with 40 steps does not, {of} (up to {tolerance} would be "
            "chance)",
        ),
        MaskingCheck(
            "The input gradients are not zero.",
            zero <= tolerance,
            f"the cross-entropy's gradient is exactly zero at {zero} {of} (up to {tolerance} are let pass)",
        ),
    ]


def strongest_examples(
    model: nn.Module, data: ImageSet, threat: ThreatModel, attack: Attack | str, count: int = 10, *, seed: int = 0
) -> dict[str, Any]:
    """Return the adversarial examples of which the model is surest: correctly classified images that `attack` breaks.

    The surest of every class come first, then every class's second, and so on. In one process, on all of `data`.

    Returns:
        "originals" and "adversarial" [M, C, H, W], "labels", "predictions" and "clean_predictions" [M] with
        M <= `count`, on the CPU; the attack's name; epsilon.
    """
    chosen: Attack = attack_group.get(attack)() if isinstance(attack, str) else attack
    name, alone = name_of(chosen), Stage("examples", seed, World(), Progress(quiet=True))
    run = _Run(model, data, _BATCH_SIZE, seed, alone)
    left = run.clean().nonzero().squeeze(1)
    found = [run.attacked(part, threat, chosen, name, number) for number, part in enumerate(run.chunks(left))]
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
        "epsilon": threat.epsilon,
    }


def _stage(stage: Stage | None, seed: int | None) -> Stage:
    return stage or Stage("evaluation", seed or 0, World(), Progress(quiet=True))


class _Run:
    """One model under evaluation on one set of images, chunk by chunk, continuing where it was interrupted."""

    def __init__(
        self, model: nn.Module, data: ImageSet, batch_size: int, seed: int | None, stage: Stage, settings: object = None
    ) -> None:
        if len(data) == 0:
            raise InputError("An evaluation needs at least one image, but got none.")
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, but got {batch_size}.")
        self._model, self._data, self._batch_size, self._stage = model, data, batch_size, stage
        self._seed = stage.seed if seed is None else seed
        tensors = chain(model.parameters(), model.buffers())
        self._device = next((tensor.device for tensor in tensors), data.labels.device)
        # Only where something is kept can it be mistaken for another evaluation's.
        self._settings = _digest(model, data, batch_size, self._seed, settings) if stage.folder else ""
        self._step, state = stage.resume()
        # By label: how many chunks are done, what they found, and the seconds they took.
        self._done: dict[str, Any] = {}
        if state is not None:
            if state["settings"] != self._settings:
                raise InputError(
                    f"The evaluation {stage.name} was interrupted under other settings (model, images, attacks, batch "
                    "size or seed); restore them, or start a new run."
                )
            self._done = state["done"]

    def images(self, indices: Tensor) -> Tensor:
        """Return images [B, C, H, W] by index, on the model's device."""
        return self._data[indices.to(self._data.labels.device)].images.to(self._device)

    def labels(self, indices: Tensor) -> Tensor:
        """Return labels [B] by index, on the model's device."""
        return self._data.labels[indices.to(self._data.labels.device)].to(self._device)

    def chunks(self, indices: Tensor) -> list[Tensor]:
        """Return `indices` in parts of `batch_size`."""
        return list(indices.split(self._batch_size)) if len(indices) else []

    def clean(self) -> Tensor:
        """Return [N] booleans: whether each image is classified correctly."""

        def classify(chunk: Tensor, _: int) -> Tensor:
            labels = self.labels(chunk)
            with frozen(self._model, fold=False):
                logits = scores(self._model, self.images(chunk))
            if logits.isnan().any():
                raise InputError("The model's logits are NaN; check that its training did not diverge.")
            if int(labels.max()) >= logits.shape[1]:
                raise InputError(
                    f"The model has {logits.shape[1]} classes, but the images have the label {int(labels.max())}; "
                    "evaluate it on the data set it was trained for."
                )
            return ~misclassified(logits, labels)

        return self._sharded(torch.arange(len(self._data)), "clean", classify)[0]

    def survivors(self, indices: Tensor, threat: ThreatModel, attack: Attack, name: str) -> tuple[Tensor, float]:
        """Return which of the images `indices` are still classified correctly after `attack`, and the wall time."""

        def survive(chunk: Tensor, number: int) -> Tensor:
            _, logits = self.attacked(chunk, threat, attack, name, number)
            return ~misclassified(logits, self.labels(chunk))

        return self._sharded(indices, name, survive)

    def zero_gradients(self, indices: Tensor) -> Tensor:
        """Return at which of the images the cross-entropy's input gradient is exactly zero."""

        def vanish(chunk: Tensor, _: int) -> Tensor:
            with frozen(self._model, fold=False):
                gradient = input_gradient(self._model, self.images(chunk), self.labels(chunk), cross_entropy)[2]
            return (gradient == 0).flatten(1).all(1)

        return self._sharded(indices, "zero gradients", vanish)[0]

    def attacked(
        self, chunk: Tensor, threat: ThreatModel, attack: Attack, name: str, number: int
    ) -> tuple[Tensor, Tensor]:
        """Return one chunk's adversarial images [B, C, H, W] and their logits [B, K].

        Raises:
            InputError: if an image is not allowed by the threat model.
        """
        images = self.images(chunk)
        points = attack.perturb(self._model, images, self.labels(chunk), threat, seed=seed_at(self._seed, name, number))
        if points.shape != images.shape or not threat.around(images).contains(points).all():
            raise InputError(
                f"The attack {name} returned images outside the {threat.norm} ball of radius {threat.epsilon:g} or "
                "outside [0, 1]; its perturb() must end with a projection."
            )
        with frozen(self._model, fold=False):
            return points, scores(self._model, points)

    def _sharded(self, indices: Tensor, name: str, judge: Any) -> tuple[Tensor, float]:
        """Return `judge(chunk, number)` for all chunks of `indices`, joined [B], and the wall time.

        In rounds of one chunk per process and worker; a finished round is kept.
        """
        world, chunks = self._stage.world, self.chunks(indices)
        done = self._done.setdefault(name, {"chunks": 0, "outcome": torch.zeros(0, dtype=torch.bool), "seconds": 0.0})
        # The number of processes may have changed since the interruption: rounds are counted from what is done.
        size = world.size * world.workers
        starts = range(done["chunks"], len(chunks), size)
        title, finished = f"{self._stage.name}: {name}", done["chunks"] // size
        for first in self._stage.progress.steps(starts, title, total=finished + len(starts), done=finished):
            started = time.monotonic()
            numbers = range(first, min(first + size, len(chunks)))
            mine = world.each(lambda number: judge(chunks[number], number).cpu(), world.shard(numbers))
            outcomes = world.gather_shards(mine, len(numbers))
            done["outcome"] = torch.cat([done["outcome"], *outcomes])
            done["chunks"] = numbers.stop
            done["seconds"] += time.monotonic() - started
            self._step += 1
            self._stage.save(self._step, {"settings": self._settings, "done": self._done})
        return done["outcome"], done["seconds"]


def _digest(model: nn.Module, data: ImageSet, *settings: object) -> str:
    """Return a digest of weights, images and settings, by which an interrupted evaluation is recognised."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in [*model.state_dict().items(), ("pixels", data.pixels), ("labels", data.labels)]:
        digest.update(f"{name}{list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    digest.update(repr(settings).encode())
    return digest.hexdigest()
