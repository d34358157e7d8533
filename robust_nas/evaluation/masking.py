"""The checks that expose gradient masking (after Athalye et al. 2018, arXiv:1802.00420, section 3.1)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robust_nas.attacks import Attack
from robust_nas.attacks._model_state import cross_entropy, frozen, input_gradient
from robust_nas.attacks.apgd import APGD
from robust_nas.attacks.fgsm import FGSM
from robust_nas.attacks.pgd import PGD
from robust_nas.attacks.square import Square
from robust_nas.datasets import ImageSet
from robust_nas.evaluation._chunks import Chunks, stage_or_alone
from robust_nas.run_dir import Stage
from robust_nas.seeds import generator_at
from robust_nas.threat import ThreatModel


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
    stage = stage_or_alone(stage, seed).within("masking")
    draw = generator_at("cpu", stage.seed if seed is None else seed, "masking")
    subset = torch.randperm(len(data), generator=draw)[:num_images].sort().values
    data = data[subset.to(data.labels.device)]
    run = Chunks(model, data, math.ceil(len(data) / 2), seed, stage)
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

    def vanish(chunk: Tensor, _: int) -> Tensor:
        with frozen(model, fold=False):
            gradient = input_gradient(model, run.images(chunk), run.labels(chunk), cross_entropy)[2]
        return (gradient == 0).flatten(1).all(1)

    zero = int(run.judged(left, "zero gradients", vanish)[0].sum())

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
