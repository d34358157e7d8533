"""Smoothing."""

from __future__ import annotations

from pathlib import Path

import torch
from checks import right_or_refused, same, situation, true
from small_models import answers, images, linear, small_network
from torch import nn

import robust_nas as rn
from robust_nas.datasets import ImageSet

KIND = "smoothing"


@situation(KIND, "locuslab/smoothing#8")
def too_few_samples_to_answer_are_refused(_: Path) -> None:
    model, points = linear(), images(4)
    nn.init.zeros_(model[1].weight)  # the same class under any noise
    smoothed = lambda: rn.smooth(model, sigma=0.56, num_samples=10, failure=0.001).predict(points)  # noqa: E731
    right_or_refused(lambda: same(smoothed(), answers(model, points), "the answers"), "num_samples")


@situation(KIND, "Adit-Jain-srm/NightmareNet#160")
def the_radius_of_a_sure_classifier_is_the_closed_form(_: Path) -> None:
    from scipy.stats import beta, norm

    model, points = linear(), images(4)
    nn.init.zeros_(model[1].weight)
    labels = answers(model, points)
    found = rn.smooth(model, sigma=0.5, num_samples=200).certify(ImageSet.of(points, labels))
    wanted = 0.5 * norm.ppf(beta.ppf(0.001, 200, 1))
    same(found.radius, torch.full((4,), wanted, dtype=torch.float64), "the radius", 1e-9)
    same(found.accuracy(wanted - 1e-6), 1.0, "the accuracy just inside")
    same(found.accuracy(wanted + 1e-6), 0.0, "the accuracy just outside")


@situation(KIND, "Adit-Jain-srm/NightmareNet#180")
def a_linear_classifier_s_radius_is_below_its_distance(_: Path) -> None:
    model, points = linear(2), images(20)
    labels = answers(model, points)
    found = rn.smooth(model, sigma=0.25, num_samples=400).certify(ImageSet.of(points, labels))
    rows = model[1].weight[0] - model[1].weight[1]
    logits = model(points).detach()
    distance = (logits[:, 0] - logits[:, 1]).abs() / rows.norm()
    # A linear smoothed classifier is the classifier: no radius is beyond the boundary.
    true((found.radius <= distance.double() + 1e-9).all(), "a radius is beyond the boundary")
    true((found.predictions == labels)[distance > 0.2].all(), "a wrong class, or none, far from the boundary")


@situation(KIND, "Trusted-AI/adversarial-robustness-toolbox#738")
def counts_do_not_depend_on_the_mode_or_on_the_other_images(_: Path) -> None:
    model, points = nn.Sequential(small_network(), nn.Dropout(0.5)).train(), images(6)
    labels = torch.zeros(6, dtype=torch.int64)
    smoothed = rn.smooth(model, sigma=0.25, num_samples=50)
    found = smoothed.certify(ImageSet.of(points, labels))
    same(rn.smooth(model.eval(), sigma=0.25, num_samples=50).certify(ImageSet.of(points, labels)).counts, found.counts)
    first = smoothed.certify(ImageSet.of(points[:2], labels[:2]))
    same(first.counts, found.counts[:2], "the counts of the first two alone")
