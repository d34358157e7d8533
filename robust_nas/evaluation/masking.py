"""The checks that expose gradient masking (after Athalye et al. 2018, arXiv:1802.00420, section 3.1)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robust_nas.attacks import Attack
from robust_nas.attacks.apgd import APGD
from robust_nas.attacks.autoattack import AutoAttack
from robust_nas.attacks.fab import FAB
from robust_nas.attacks.fgsm import FGSM
from robust_nas.attacks.pgd import PGD
from robust_nas.attacks.square import Square
from robust_nas.core.seeds import generator_at
from robust_nas.datasets import ImageSet
from robust_nas.evaluation._chunks import Chunks, stage_or_alone
from robust_nas.models.frozen import frozen
from robust_nas.models.losses import Loss, cross_entropy, margin, per_sample
from robust_nas.models.scores import NoGradient, gradient_at, input_gradient, logits_of, scores
from robust_nas.runtime.stages import Stage
from robust_nas.threat import ThreatModel

_BY_GRADIENTS = (FGSM, PGD, APGD, FAB)
"""Attacks that follow gradients alone: what AutoAttack breaks, its black box may have broken."""

_REPEATS = 10
_RADII = (0.25, 0.5, 1.0, 2.0, 4.0)  # in multiples of epsilon

_CHANCE = 0.01
_BY_CHANCE = f"(what a sign test gives {_CHANCE:g} or more passes as chance)"

# The step along which the loss's linearity is measured, as a share of epsilon, and the largest mean error let pass.
# Small networks on digits and CIFAR-10 (JPEG) have at most 0.05, masked ones in linf at least 0.72
# (benchmarks/results/linearity.md).
_LINEAR_STEP = 0.125
_LINEARITY_ERROR = 0.35


@dataclass(frozen=True)
class MaskingCheck:
    """One check for gradient masking (after Athalye et al. 2018, arXiv:1802.00420, section 3.1).

    Args:
        check: the sign of a trustworthy evaluation, as a sentence.
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
    known: Sequence[tuple[Attack, Tensor]] = (),
    stage: Stage | None = None,
) -> list[MaskingCheck]:
    """Return the checks that expose attacks which fail for lack of useful gradients.

    An image costs at most 605 forward and backward passes (607 in l1) and about `queries` + 41 further forward passes
    (the black box looks at some proposals in vain). It is less where attacks succeed, and where their outcome is
    known. One further pass of one image tells whether there are gradients.

    Args:
        seed: of the choice of images and of the attacks; the stage's seed if not given.
        num_images: number of random images of `data`, few to keep the checks cheap.
        queries: forward passes per image of the black-box attack.
        known: attacks at this threat model that were run on all of `data` before, and whether each image is still
            classified correctly after them, [N]. None is run again. An image that gradients alone broke needs no
            further proof that they reach it, and one on which a black box has failed is not given to one again.
        stage: shares the work out among processes; nothing is kept.
    """
    whole = stage_or_alone(stage, seed)
    stage = whole.within("masking")
    draw = generator_at("cpu", stage.seed if seed is None else seed, "masking")
    subset = torch.randperm(len(data), generator=draw)[:num_images].sort().values
    data = data[subset.to(data.labels.device)]
    run = Chunks(_Attached(model), data, math.ceil(len(data) / 2), seed, stage)
    left = run.clean().nonzero().squeeze(1)
    if len(left) == 0:
        detail = f"0 of {len(data)} images are classified correctly, so that no other check can be made"
        return [MaskingCheck("Some images are classified correctly.", False, detail)]
    own = [(attack, stands.cpu()[subset][left.cpu()]) for attack, stands in known]
    sample = _Sample(run, left, threat, own)
    checks: tuple[Callable[[_Sample], MaskingCheck], ...] = (
        # Randomness makes every later number doubtful.
        _same_logits,
        _unbounded,
        _larger_balls,
        _more_steps,
        _one_step,
        partial(_black_box, queries=queries),
        _noise,
        _gradients,
        _linearity,
    )
    title = f"{whole.name}: checks for gradient masking on {len(data)} images"
    return [check(sample) for check in whole.progress.steps(checks, title)]


class _Attached(nn.Module):
    """A model whose logits, if nothing ties them to the images, have the gradient zero instead of none."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.tied: bool | None = None  # not looked at yet

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        if not images.requires_grad:
            return logits
        if self.tied is None:
            self.tied = logits.requires_grad and self._has_gradient(images[:1])
        return logits if self.tied else logits.detach() + 0 * images.flatten(1).sum(1, keepdim=True)

    def _has_gradient(self, image: Tensor) -> bool:
        """Ask torch, as the logits of quantised layers claim to have one."""
        point = image.detach().requires_grad_()
        try:
            return gradient_at(point, logits_of(self.model, point).sum()) is not None
        except NoGradient:
            return False


@dataclass(frozen=True)
class _Sample:
    """The correctly classified images that the checks look at.

    Args:
        run: the model and the images.
        left: the correctly classified ones, [B] by index.
        threat: the threat model of the evaluation that is to be trusted.
        known: attacks that were run before, with the images that each has left, [B] booleans.
    """

    run: Chunks
    left: Tensor
    threat: ThreatModel
    known: Sequence[tuple[Attack, Tensor]] = ()

    @property
    def of(self) -> str:
        return f"of {len(self.left)} correctly classified images"

    @property
    def tolerance(self) -> int:
        """An attack that depends on chance may miss a few images that another one finds."""
        return max(1, len(self.left) // 50)

    @property
    def largest_radius(self) -> float:
        """The largest distance between two images: the ball at it holds all images."""
        num_pixels = self.run.images(self.left[:1]).numel()
        return {
            "linf": 1.0,
            "l2": min(math.sqrt(num_pixels), 100.0),
            "l1": min(float(num_pixels), 10_000.0),
        }[self.threat.norm]

    def after(self, attack: Attack, name: str, threat: ThreatModel | None = None) -> Tensor:
        """Return a mask of the images still classified correctly, [B]. Under one name an attack is run only once."""
        if threat is None and (before := self.before(attack)) is not None:
            return before
        return self.run.survivors(self.left, threat or self.threat, attack, name)[0]

    def before(self, attack: Attack) -> Tensor | None:
        """Return the images that an attack has left before; None if it has not been run."""
        return next((stands for known, stands in self.known if known == attack), None)

    def after_many_steps(self, threat: ThreatModel | None = None) -> Tensor:
        """Return a mask of the images that PGD with 40 steps leaves, [B]; the other attacks are compared with it."""
        return self.after(PGD(steps=40), "many steps", threat)


def _same_logits(sample: _Sample) -> MaskingCheck:
    """Dropout, noise or resizing at test time: attacks and judgements see other models (section 4.2 of the paper)."""
    run = sample.run

    def differ(chunk: Tensor, _: int) -> Tensor:
        images = run.images(chunk)
        with frozen(run.model, fold=False):
            passes = torch.stack([scores(run.model, images) for _ in range(_REPEATS)])
        # One device's rounding may depend on what else it is doing; chance that protects a model is far above it.
        spread = (passes.amax(0) - passes.amin(0)).amax(1)
        predictions = passes.argmax(2)
        return torch.stack([spread > 1e-5 * passes.abs().amax((0, 2)), (predictions != predictions[0]).any(0)], dim=1)

    logits, predictions = run.judged(sample.left, "same logits", differ)[0].sum(0).tolist()
    return MaskingCheck(
        "The same images always get the same logits.",
        logits == 0,
        f"{_REPEATS} passes give different logits for {logits} and different predictions for {predictions} {sample.of}"
        + ("" if logits == 0 else "; the model is random at test time, so that no number below can be relied on"),
    )


def _unbounded(sample: _Sample) -> MaskingCheck:
    radius = sample.largest_radius
    # From the image itself: in a ball that holds all images, a random start alone would fool most models.
    attack = PGD(steps=50, random_start=False)
    left = int(sample.after(attack, "unbounded", sample.threat.with_epsilon(radius)).sum())
    return MaskingCheck(
        "An unbounded attack leaves nothing.",
        left == 0,
        f"PGD with 50 steps from the image at {sample.threat.norm} radius {radius:g} leaves {left} {sample.of}",
    )


def _larger_balls(sample: _Sample) -> MaskingCheck:
    """Every radius is attacked from scratch: the check is that the balls contain each other."""
    radii = sorted({min(share * sample.threat.epsilon, sample.largest_radius) for share in _RADII})
    left = [sample.after_many_steps(sample.threat.with_epsilon(radius)) for radius in radii]
    leaves = ", ".join(f"{int(stand.sum())} at {radius:.3g}" for stand, radius in zip(left, radii, strict=True))
    return MaskingCheck(
        "A larger ball leaves no more images.",
        not any(_stronger_beyond_chance(small, large) for small, large in combinations(left, 2)),
        f"PGD with 40 steps leaves {leaves}, {sample.of} {_BY_CHANCE}",
    )


def _more_steps(sample: _Sample) -> MaskingCheck:
    fewer, more = sample.after(PGD(steps=10), "few steps"), sample.after_many_steps()
    return MaskingCheck(
        "More steps never help the defender.",
        not _stronger_beyond_chance(fewer, more),
        f"PGD leaves {int(fewer.sum())} after 10 steps and {int(more.sum())} after 40, {sample.of} {_BY_CHANCE}",
    )


def _stronger_beyond_chance(one: Tensor, other: Tensor) -> bool:
    """Return whether an attack leaves fewer images than another, image by image, and not by chance.

    The exact sign test of the images at which they differ (McNemar 1947, doi:10.1007/BF02295996): random starts decide
    about those near the edge of what is possible, for one attack as often as for the other.

    Args:
        one: the images that the first attack leaves, [B] booleans.
        other: the images that the second attack leaves, [B] booleans.
    """
    only_one, only_other = int((~one & other).sum()), int((one & ~other).sum())
    differ = only_one + only_other
    chance = sum(math.comb(differ, count) for count in range(only_one, differ + 1)) / 2**differ
    return chance < _CHANCE


def _one_step(sample: _Sample) -> MaskingCheck:
    many, one = sample.after_many_steps(), sample.after(FGSM(), "one step")
    return MaskingCheck(
        "One step is not stronger than many.",
        not _stronger_beyond_chance(one, many),
        f"FGSM breaks {int((many & ~one).sum())} that PGD with 40 steps does not, and PGD {int((one & ~many).sum())} "
        f"that FGSM does not, {sample.of} {_BY_CHANCE}",
    )


def _black_box(sample: _Sample, queries: int) -> MaskingCheck:
    # White-box strength is what all gradient attacks reach together: on rough losses one start of one attack misses
    # images that chance finds, which says nothing about the model.
    white = sample.after_many_steps() & sample.after(PGD(steps=10), "few steps") & sample.after(FGSM(), "one step")
    failed = torch.zeros_like(white)
    for attack, stands in sample.known:
        if isinstance(attack, _BY_GRADIENTS):
            white &= stands
        elif _proposes(attack, queries, sample.threat):
            failed |= stands
    left = white & ~failed
    for name, attack in (
        ("restarts", PGD(steps=40, restarts=3)),
        ("margin", PGD(steps=40, restarts=3, loss="margin")),
        ("apgd", APGD()),
    ):
        if sample.before(attack) is None:
            left[left.clone()] = sample.run.survivors(sample.left[left], sample.threat, attack, name)[0]
    black = sample.run.survivors(sample.left[left], sample.threat, Square(queries=queries), "black box")[0]
    only_black = int((~black).sum())
    return MaskingCheck(
        "The black box never beats the white box.",
        only_black <= sample.tolerance,
        f"Square with {queries} queries breaks {only_black} of {len(black) + int((white & failed).sum())} that the "
        f"gradient attacks leave, {sample.of} (up to {sample.tolerance} would be chance)",
    )


def _proposes(attack: Attack, queries: int, threat: ThreatModel) -> bool:
    """Whether an attack is a black box of at least so many queries, or ends with one."""
    parts = attack.attacks(threat.norm) if isinstance(attack, AutoAttack) else (attack,)
    return any(isinstance(part, Square) and part.queries >= queries for part in parts)


def _noise(sample: _Sample) -> MaskingCheck:
    only_noise = int((sample.after_many_steps() & ~sample.after(PGD(steps=0, restarts=10), "noise")).sum())
    return MaskingCheck(
        "Random noise is not stronger than gradients.",
        only_noise <= sample.tolerance,
        f"10 random points break {only_noise} that PGD with 40 steps does not, {sample.of} (up to {sample.tolerance} "
        "would be chance)",
    )


def _gradients(sample: _Sample) -> MaskingCheck:
    """Both with the cross-entropy of this package's attacks and with the one that most other tools attack."""
    run = sample.run

    def look(chunk: Tensor, number: int) -> Tensor:
        images, labels = run.images(chunk), run.labels(chunk)
        with frozen(run.model, fold=False):
            _, _, own = input_gradient(run.model, images, labels, cross_entropy)
            _, plain_loss, plain = input_gradient(run.model, images, labels, _plain_cross_entropy)
        zero_entries = (own == 0).flatten(1).double().mean(1)
        return torch.stack([_vanishes(own), _vanishes(plain), plain_loss == 0, zero_entries], dim=1)

    found = run.judged(sample.left, "gradients", look)[0]
    zero_own, zero_plain, rounded = found[:, :3].sum(0).int().tolist()
    return MaskingCheck(
        "The input gradients are not zero.",
        max(zero_own, zero_plain) <= sample.tolerance,
        f"the cross-entropy's gradient vanishes at {zero_own} {sample.of}, that of the usual single-precision form, "
        f"which other tools attack, at {zero_plain} (up to {sample.tolerance} are let pass); the usual form itself "
        f"rounds to zero at {rounded}; {100 * float(found[:, 3].mean()):.1f} % of the gradients' entries are exactly "
        "zero",
    )


def _plain_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), labels, reduction="none")


def _vanishes(gradient: Tensor) -> Tensor:
    """Return whether no entry of a gradient reaches the smallest normal number, [B]: zero, or soon rounded to it."""
    return gradient.abs().flatten(1).amax(1) < torch.finfo(gradient.dtype).tiny


def _linearity(sample: _Sample) -> MaskingCheck:
    run = sample.run
    threat = sample.threat.with_epsilon(_LINEAR_STEP * sample.threat.epsilon)

    def error(chunk: Tensor, _: int) -> Tensor:
        with frozen(run.model, fold=False):
            return linearity_error(run.model, run.images(chunk), run.labels(chunk), threat)

    mean = float(run.judged(sample.left, "linearity", error)[0].mean())
    return MaskingCheck(
        "The loss is locally linear.",
        mean <= _LINEARITY_ERROR,
        f"over a step of {_LINEAR_STEP:g} epsilon along its gradient, the margin's rise differs from what it promises "
        f"by {mean:.2f} on average {sample.of} (0: it is as promised; 1: the gradient is zero or points the wrong way; "
        f"up to {_LINEARITY_ERROR:g} is let pass)",
    )


def linearity_error(
    model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, loss: Loss = margin
) -> Tensor:
    """Return the difference between the loss's rise and its first-order expansion, in [0, 1], [B].

    |l(x + d) - l(x) - <d, g>| / (|l(x + d) - l(x)| + |<d, g>|), with g the gradient at x and d the step of steepest
    ascent to the edge of the ball: the local linearity error of Qin et al. 2019 (arXiv:1907.02610) in the attack's own
    direction, divided such that no scale of the logits changes it. In l1, d is along the gradient: the steepest step
    there takes single pixels to their ends, over which no network is linear.
    """
    _, before, gradient = input_gradient(model, images, labels, loss)
    ball = threat.around(images)
    if threat.norm == "l1":
        # Scaled first: the sum of a sure model's tiny entries would round to zero.
        direction = gradient / per_sample(gradient.abs().flatten(1).amax(1).clamp_min(1e-37))
        length = direction.abs().flatten(1).sum(1).clamp_min(1e-12)
        points = ball.project(images + threat.epsilon * direction / per_sample(length))
    else:
        points = ball.ascend(images, gradient, threat.epsilon)
    rise = (loss(scores(model, points), labels) - before).double()
    promised = ((points - images).double() * gradient.double()).flatten(1).sum(1)
    error = (rise - promised).abs() / (rise.abs() + promised.abs())
    # Where nothing is promised and nothing happens, the gradient is zero, or [0, 1] leaves no room to move.
    return torch.where(_vanishes(gradient), 1.0, error.nan_to_num(0.0))
