"""Pixels and radii: ranges, units, normalisation, memory orders."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from checks import refused, right_or_refused, same, situation, true
from small_models import (
    Wrapped,
    answers,
    attacked,
    certified,
    exact_margins,
    images,
    linear,
    quiet,
    small_network,
    sound,
)
from torch import Tensor, nn

import robust_nas as rn
from robust_nas.datasets import ImageSet

KIND = "pixels and radii"


@situation(KIND, "MadryLab/robustness#19")
def an_epsilon_in_units_of_255_is_refused_with_the_fraction(_: Path) -> None:
    refused(lambda: rn.ThreatModel(norm="linf", epsilon=3.0), "3/255")
    refused(lambda: rn.ThreatModel.parse("linf:8"), "8/255")
    same(rn.ThreatModel(epsilon="3/255").epsilon, 3 / 255, "3/255 as a number")


@situation(KIND, "Trusted-AI/adversarial-robustness-toolbox#582")
def an_epsilon_of_numpy_is_a_number(_: Path) -> None:
    for given, wanted in (
        (np.float64(0.1), 0.1),
        (np.float32(0.1), 0.1),
        (np.int64(1), 1.0),
        (np.array([0.1])[0], 0.1),
    ):
        same(rn.ThreatModel(epsilon=given).epsilon, wanted, f"{given!r} as a radius", 1e-7)
    refused(lambda: rn.ThreatModel(epsilon=True), "number")


@situation(KIND, "fra31/auto-attack#86")
def normalised_images_are_refused(_: Path) -> None:
    points = (images() - 0.4914) / 0.2023
    refused(lambda: attacked(linear(), points, answers(linear(), points)), "[0, 1]")
    refused(lambda: certified(linear(), points, answers(linear(), points)), "[0, 1]")


@situation(KIND, "fra31/auto-attack#16")
def images_in_minus_one_to_one_are_refused_and_a_wrapper_does_it(_: Path) -> None:
    points, model = images(), linear()
    refused(lambda: attacked(model, 2 * points - 1, answers(model, points)), "[0, 1]")
    wrapped = Wrapped(model, before=lambda given: 2 * given - 1).eval()
    labels = answers(wrapped, points)
    plain = linear()
    with torch.no_grad():
        plain[1].bias -= plain[1].weight.sum(1)
        plain[1].weight *= 2
    same(attacked(wrapped, points, labels, 0.05), exact_margins(plain, points, labels, 0.05) > 0, "what survives")


@situation(KIND, "RobustBench/robustbench#155")
def normalisation_inside_the_model_is_that_of_torchvision(_: Path) -> None:
    from torchvision.transforms.functional import normalize

    mean, std = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
    points, model = images(24, (3, 4, 4)), linear(shape=(3, 4, 4))
    text = f"{','.join(map(str, mean))}/{','.join(map(str, std))}"
    prepared = rn.intake.prepared(model, normalise=text)
    with torch.no_grad():
        same(prepared(points), model(normalize(points, mean, std)), "the logits", 1e-5)


@situation(KIND, "RobustBench/robustbench#115")
def a_model_of_other_pixels_is_recognised(_: Path) -> None:
    data = rn.datasets.load("digits")
    pixels, labels = (255 * data.train.images).flatten(1), data.train.labels
    means = torch.stack([pixels[labels == digit].mean(0) for digit in range(10)])
    model = linear(10, (1, 8, 8))  # the nearest mean of a class, in bytes
    model[1].load_state_dict({"weight": means, "bias": -means.square().sum(1) / 2})
    share = lambda given: float((answers(model, given) == data.test.labels).double().mean())  # noqa: E731
    true(share(255 * data.test.images) > 0.8 > 0.3 > share(data.test.images), "the situation is none")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        rn.evaluate(model, data.test, rn.ThreatModel(epsilon=0.01), attacks=["fgsm"])
    true(any("255" in str(each.message) for each in said), "nothing is said of other pixels")


@situation(KIND, "locuslab/convex_adversarial#31")
def epsilon_is_in_pixels_also_where_the_model_normalises(_: Path) -> None:
    points, model, std = images(), linear(), 0.225
    prepared = rn.intake.prepared(model, normalise=f"0.5,{std}")
    plain = linear()
    with torch.no_grad():
        plain[1].bias -= plain[1].weight.sum(1) * 0.5 / std
        plain[1].weight /= std
    labels = answers(plain, points)
    for epsilon in (0.01, 0.1):
        wanted = exact_margins(plain, points, labels, epsilon)
        found = certified(prepared, points, labels, epsilon, bound="crown")
        same(found, wanted, f"the proved margins at {epsilon}", 1e-4)
        same(attacked(prepared, points, labels, epsilon), wanted > 0, f"what survives {epsilon}")


@situation(KIND, "bethgelab/foolbox#367")
def bytes_are_the_same_images(_: Path) -> None:
    model, pixels = linear(), (255 * images()).round().to(torch.uint8)
    points = pixels.float() / 255
    labels = answers(model, points)
    same(attacked(model, pixels, labels), attacked(model, points, labels), "what survives")
    same(certified(model, pixels, labels), certified(model, points, labels), "the proved margins")
    refused(lambda: attacked(model, pixels.float(), labels), "[0, 1]")


@situation(KIND, "Trusted-AI/adversarial-robustness-toolbox#874")
def double_images_are_attacked_by_every_attack(_: Path) -> None:
    model, points = linear(), images().double()
    labels = answers(linear(), images())
    wanted = exact_margins(linear(), images(), labels, 0.1) > 0
    same(attacked(model, points, labels), wanted, "what survives")
    for attack in ("apgd", "fab", "square"):
        found = attacked(model, points, labels, attacks=[attack])
        true(not (wanted & ~found).any(), f"{attack} fools what cannot be fooled")
    for norm in ("l2", "l1"):
        with quiet():
            threat = rn.ThreatModel(norm=norm, epsilon=0.5)
            for attack in ("square", "apgd"):
                rn.evaluate(model, points, labels, threat, attacks=[attack])


@situation(KIND, "Trusted-AI/adversarial-robustness-toolbox#288")
def images_with_channels_last_are_refused(_: Path) -> None:
    model, points = small_network(channels=3), images(8, (4, 4, 3))
    labels = torch.zeros(8, dtype=torch.int64)
    refused(lambda: attacked(model, points, labels), "channels come last")
    refused(lambda: certified(model, points, labels))
    refused(lambda: rn.smooth(model, sigma=0.25).predict(points[:1]), "4 x 4 x 3")


@situation(KIND, "davidstutz/disentangling-robustness-generalization#2")
def images_in_another_memory_order_are_the_same_images(_: Path) -> None:
    class Viewed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = linear(shape=(3, 4, 4))

        def forward(self, points: Tensor) -> Tensor:
            logits: Tensor = self.model[1](points.view(len(points), -1))
            return logits

    points, model = images(24, (3, 4, 4)), Viewed().eval()
    labels = answers(model, points)
    wanted = exact_margins(model.model, points, labels, 0.1) > 0
    others = {
        "channels last": points.contiguous(memory_format=torch.channels_last),
        "transposed twice": points.transpose(2, 3).contiguous().transpose(2, 3),
        "every second": points.repeat_interleave(2, dim=0)[::2],
    }
    for name, given in others.items():
        call = lambda given=given, name=name: same(attacked(model, given, labels), wanted, f"what survives, {name}")  # noqa: E731
        right_or_refused(call, "view")


@situation(KIND, "bethgelab/foolbox#293")
def images_without_a_channel_axis_are_refused(_: Path) -> None:
    labels = torch.zeros(8, dtype=torch.int64)
    refused(lambda: attacked(linear(), images(8, (4, 4)), labels), "C, H, W]")
    refused(lambda: rn.smooth(linear(), sigma=0.25).predict(images(8, (4, 4))), "C, H, W]")


@situation(KIND, "bethgelab/foolbox#307")
def one_image_without_a_batch_axis_is_refused(_: Path) -> None:
    refused(lambda: attacked(linear(), images()[0], torch.tensor([0])), "C, H, W]")
    refused(lambda: rn.Ensemble([linear()]).predict(images()[0]), "C, H, W]")
    refused(lambda: ImageSet.of(images()[0], torch.tensor(0)), "C, H, W]")


@situation(KIND, "Trusted-AI/adversarial-robustness-toolbox#1244")
def square_attacks_images_that_are_not_square(_: Path) -> None:
    for shape in ((1, 12, 3), (1, 3, 12), (3, 16, 1), (1, 1, 1)):
        model, points = linear(shape=shape), images(24, shape)
        labels = answers(model, points)
        wanted = exact_margins(model, points, labels, 0.1)
        found = attacked(model, points, labels, attacks=["square"])
        # Random search may miss a margin that is all but 0.
        true((found | (wanted < 0) | ~found).all() and not (found & (wanted < -0.05)).any(), f"{shape}: it misses some")
        true(not (~found & (wanted > 1e-5)).any(), f"{shape}: it fools what cannot be fooled")


@situation(KIND, "fra31/auto-attack#95")
def square_in_l2_moves_images_of_any_form(_: Path) -> None:
    for shape in ((3, 6, 17), (1, 37, 5), (1, 4, 4), (3, 2, 2)):
        model, points = linear(shape=shape), images(8, shape)
        labels, threat = answers(model, points), rn.ThreatModel(norm="l2", epsilon=0.5)
        found = rn.attacks.get("square")(queries=200).perturb(model, points, labels, threat)
        lengths = (found.double() - points.double()).flatten(1).norm(dim=1)
        true(found.isfinite().all() and (lengths <= 0.5).all(), f"{shape}: outside the ball")
        true((found != points).flatten(1).any(1).float().mean() > 0.5, f"{shape}: most images are not moved")


@situation(KIND, "Verified-Intelligence/auto_LiRPA#67")
def black_and_white_images_have_room_in_one_direction_only(_: Path) -> None:
    model = linear()
    points = torch.cat([torch.zeros(8, 1, 4, 4), torch.ones(8, 1, 4, 4), images(8).round()])
    labels = answers(model, points)
    wanted = exact_margins(model, points, labels, 0.1)
    for bound in ("crown", "alpha_crown"):
        same(certified(model, points, labels, 0.1, bound=bound), wanted, f"the margins of {bound}", 1e-5)
    same(attacked(model, points, labels), wanted > 0, "what survives")
    sound(model, points, certified(model, points, labels, 0.1, bound="interval"), labels, 0.1)
