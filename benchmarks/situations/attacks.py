"""Attacks: gradients, logits, batches, seeds."""

from __future__ import annotations

import contextlib
import io
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from checks import refused, right_or_refused, same, situation, true
from small_models import Wrapped, answers, attacked, certified, exact_margins, images, linear, quiet, small_network
from torch import Tensor, nn

import robust_nas as rn
from robust_nas.datasets import ImageSet

KIND = "attacks"


@situation(KIND, "cleverhans-lab/cleverhans#493")
def a_gradient_of_zero_makes_no_nan(_: Path) -> None:
    model, points = linear(), images()
    nn.init.zeros_(model[1].weight)
    labels = answers(model, points)
    for norm, epsilon in (("linf", 0.1), ("l2", 0.5), ("l1", 2.0)):
        threat = rn.ThreatModel(norm=norm, epsilon=epsilon)
        for name in ("pgd", "apgd", "fab", "square"):
            found = rn.attacks.get(name)().perturb(model, points, labels, threat)
            true(found.isfinite().all(), f"{name} in {norm} returns NaN")
            true(threat.around(points).contains(found).all(), f"{name} in {norm} leaves the ball")


@situation(KIND, "cleverhans-lab/cleverhans#1175")
def gradients_of_any_scale_lead_to_the_same_optimum(_: Path) -> None:
    points, threat = images(), rn.ThreatModel(norm="l2", epsilon=0.3)
    labels, wanted = answers(linear(2), points), _l2_survivors(linear(2), points, answers(linear(2), points), 0.3)
    for scale in (1e-12, 1e-6, 1.0, 1e5):
        model = linear(2)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter *= scale
        for name in ("pgd", "apgd"):
            with quiet():
                found = rn.evaluate(model, points, labels, threat, attacks=[name]).worst_case
            same(found, wanted, f"what survives {name} with logits x {scale:g}")


def _l2_survivors(model: nn.Sequential, points: Tensor, labels: Tensor, epsilon: float) -> Tensor:
    """Return which images no change of a length can fool, by the bound of the ball inside [0, 1], which is exact."""
    data = ImageSet.of(points, labels)
    threat = rn.ThreatModel(norm="l2", epsilon=epsilon)
    survives: Tensor = rn.certify(model, data, threat, bound="crown")[0].margin > 0
    return survives


@situation(KIND, "Trusted-AI/adversarial-robustness-toolbox#824")
def gradients_that_are_not_finite_are_named_or_make_no_harm(_: Path) -> None:
    model = Wrapped(linear(), before=torch.sqrt).eval()
    points = images()
    points[:, :, 0] = 0  # where the square root has no gradient
    labels = answers(model, points)
    # The margin of a linear model of square roots is least at a corner.
    low, high = ((points + sign * 0.1).clamp(0, 1).sqrt().flatten(1).double() for sign in (-1, 1))
    weight = model.model[1].weight.double()
    rows = weight[labels].unsqueeze(1) - weight
    bias = model.model[1].bias.double()
    worst = torch.where(rows > 0, low.unsqueeze(1), high.unsqueeze(1))
    margins = (worst * rows).sum(2) + bias[labels].unsqueeze(1) - bias
    corner = margins.scatter(1, labels[:, None], math.inf).amin(1) > 0
    for name in ("pgd", "apgd", "fab", "square"):

        def call(name: str = name) -> None:
            found = attacked(model, points, labels, attacks=[name])
            true(not (corner & ~found).any(), f"{name} fools what cannot be fooled")
            true(int((found & ~corner).sum()) <= 2, f"{name} leaves {int(found.sum())} of {int(corner.sum())}")

        right_or_refused(call, "nan")
    for norm, epsilon in (("l2", 0.3), ("l1", 1.0)):
        for name in ("pgd", "apgd", "fab"):

            def move(norm: Any = norm, epsilon: float = epsilon, name: str = name) -> None:
                threat = rn.ThreatModel(norm=norm, epsilon=epsilon)
                found = rn.attacks.get(name)().perturb(model, points, labels, threat)
                true(found.isfinite().all(), f"{name} in {norm} returns NaN")
                fooled = int((answers(model, found) != labels).sum())
                true(fooled > 0, f"{name} in {norm} fools nothing")

            right_or_refused(move, "nan")


@situation(KIND, "verivital/nnv#446")
def logits_that_are_not_finite_are_named(_: Path) -> None:
    model, points = linear(), images()
    labels = answers(model, points)
    with torch.no_grad():
        model[1].bias[1] = math.nan
    refused(lambda: attacked(model, points, labels), "nan")
    right_or_refused(lambda: true(not (certified(model, points, labels) > 0).any(), "NaN proves something"), "nan")


@situation(KIND, "Harry24k/adversarial-attacks-pytorch#59")
def a_batch_of_one_image_gives_what_a_large_batch_gives(_: Path) -> None:
    model, points = linear(4), images(17)
    labels = answers(model, points)
    wanted = exact_margins(model, points, labels, 0.1) > 0
    for size in (1, 16, 1000):
        same(attacked(model, points, labels, batch_size=size), wanted, f"what survives in chunks of {size}")
        found = attacked(model, points, labels, attacks=["autoattack"], batch_size=size)
        same(found, wanted, f"what survives AutoAttack in chunks of {size}")


@situation(KIND, "fra31/auto-attack#81")
def a_batch_in_which_nothing_is_left_to_fool_ends(_: Path) -> None:
    model, points = linear(4), images(6)
    labels, threat = answers(model, points), rn.ThreatModel(epsilon=1.0)
    wrong = (labels + 1) % 4
    for name in ("square", "autoattack", "opt", "sign_opt"):
        for given in (labels, wrong):
            found = rn.attacks.get(name)().perturb(model, points, given, threat)
            true((answers(model, found) != given).all(), f"{name} fools not all within a radius of 1")


@situation(KIND, "RobustBench/robustbench#7")
def the_examples_have_the_accuracy_that_is_reported(_: Path) -> None:
    model, points = small_network(5), images(20)
    labels, threat = answers(model, points), rn.ThreatModel(epsilon=0.05)
    for name in ("pgd", "apgd", "fab", "autoattack"):
        attack = rn.attacks.get(name)()
        examples = attack.perturb(model, points, labels, threat)
        again = answers(model, examples) == labels
        with quiet():
            examples = attack.perturb(model, points, labels, threat)
        same(answers(model, examples) == labels, again, f"what survives {name} the second time")
        single = torch.cat([answers(model, one[None]) for one in examples]) == labels
        same(single, again, f"what survives {name}, image by image")


@situation(KIND, "fra31/auto-attack#54")
def a_seed_decides_and_the_global_state_neither_matters_nor_moves(_: Path) -> None:
    model, points = small_network(5), images(12)
    labels, threat = answers(model, points), rn.ThreatModel(epsilon=0.05)
    square = rn.attacks.get("square")(queries=200)
    for attack in (*(rn.attacks.get(name)() for name in ("pgd", "apgd", "fab")), square):
        name, found = type(attack).__name__, []
        for state in (0, 1):
            torch.manual_seed(state)
            np.random.seed(state)
            random.seed(state)
            before = torch.get_rng_state()
            found.append(attack.perturb(model, points, labels, threat, seed=3))
            same(torch.get_rng_state(), before, f"torch's random state after {name}")
        same(found[1], found[0], f"the examples of {name}")


@situation(KIND, "Harry24k/adversarial-attacks-pytorch#6")
def every_example_is_in_the_ball_and_a_valid_image_exactly(_: Path) -> None:
    from fractions import Fraction

    model, points = small_network(5), images(12)
    labels = answers(model, points)
    for norm, epsilon in (("linf", "8/255"), ("l2", 0.3), ("l1", 1.0)):
        threat = rn.ThreatModel(norm=norm, epsilon=epsilon)
        for name in ("pgd", "apgd", "fab", "square"):
            found = rn.attacks.get(name)().perturb(model, points, labels, threat)
            true(found.min() >= 0 and found.max() <= 1, f"{name} in {norm} leaves [0, 1]")
            for one, image in zip(found.flatten(1).tolist(), points.flatten(1).tolist(), strict=True):
                changes = [abs(Fraction(a) - Fraction(b)) for a, b in zip(one, image, strict=True)]
                length = {"linf": max(changes), "l1": sum(changes), "l2": sum(change**2 for change in changes)}[norm]
                allowed = Fraction(threat.epsilon) ** (2 if norm == "l2" else 1)
                true(length <= allowed, f"{name} in {norm} leaves the ball by {float(length - allowed):g}")


@situation(KIND, "google-deepmind/deepmind-research#313")
def autoattack_agrees_with_the_authors_code(_: Path) -> None:
    from pyautoattack import AutoAttack

    model, points = small_network(10), images(8)
    labels = answers(model, points)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), quiet():
        found = AutoAttack(model, norm="Linf", eps=0.04, seed=0).run_standard_evaluation(points, labels)
    examples = found[0] if isinstance(found, tuple) else found
    theirs = answers(model, examples) == labels
    ours = attacked(model, points, labels, 0.04, attacks=["autoattack"])
    true(int(ours.sum()) <= int(theirs.sum()), f"{int(ours.sum())} survive, and {int(theirs.sum())} theirs")
