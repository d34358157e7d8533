"""Labels and classes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
import torch.nn.functional as F
from checks import refused, right_or_refused, same, situation
from small_models import answers, attacked, certified, exact_margins, few_digits, images, linear, quiet

import robust_nas as rn
from robust_nas.datasets import ImageSet

KIND = "labels and classes"


@situation(KIND, "bethgelab/foolbox#575")
def one_hot_labels_are_refused(_: Path) -> None:
    points, model = images(), linear()
    labels = answers(model, points)
    for given in (F.one_hot(labels, 3), F.one_hot(labels, 3).float()):
        refused(lambda given=given: attacked(model, points, given), "labels")
    attack, threat = rn.attacks.get("pgd")(), rn.ThreatModel(epsilon=0.1)
    refused(lambda: attack.perturb(model, points, F.one_hot(labels, 3), threat), "labels")


@situation(KIND, "bethgelab/foolbox#647")
def labels_of_any_integer_type_are_labels(_: Path) -> None:
    points, model = images(), linear()
    labels = answers(model, points)
    wanted, proved = attacked(model, points, labels), certified(model, points, labels, bound="crown")
    for kind in (torch.int32, torch.int16, torch.int8, torch.uint8):
        same(attacked(model, points, labels.to(kind)), wanted, f"what survives with {kind}")
        same(certified(model, points, labels.to(kind), bound="crown"), proved, f"what is proved with {kind}")
    attack, threat = rn.attacks.get("pgd")(), rn.ThreatModel(epsilon=0.1)
    found = attack.perturb(model, points, labels, threat)
    right_or_refused(
        lambda: same(attack.perturb(model, points, labels.to(torch.int32), threat), found, "the examples"), "labels"
    )


@situation(KIND, "milesial/Pytorch-UNet#93")
def labels_that_are_floats_or_a_column_are_refused(_: Path) -> None:
    points, model = images(), linear()
    labels = answers(model, points)
    refused(lambda: attacked(model, points, labels.float()), "whole numbers")
    refused(lambda: attacked(model, points, labels.unsqueeze(1)), "labels")
    refused(lambda: attacked(model, points, labels[:-1]), "labels")


@situation(KIND, "pytorch/pytorch#15666")
def labels_that_count_from_one_are_refused(_: Path) -> None:
    points, model = images(), linear()
    labels = torch.arange(24) % 3 + 1
    refused(lambda: attacked(model, points, labels), "labels", "3")
    for bound in ("interval", "crown", "auto"):
        refused(lambda bound=bound: certified(model, points, labels, bound=bound), "labels", "0 to 2")
    data = few_digits()
    train = dataclasses.replace(data.train, labels=data.train.labels + 1)
    model, threat = linear(10, (1, 8, 8)), rn.ThreatModel(epsilon=0.1)
    refused(lambda: rn.train(model, dataclasses.replace(data, train=train), threat, batch_size=16, epochs=1), "label")


@situation(KIND, "pytorch/pytorch#1204")
def minus_one_is_no_label(_: Path) -> None:
    points, model = images(), linear()
    labels = answers(model, points)
    labels[3] = -1
    refused(lambda: attacked(model, points, labels), "-1")
    refused(lambda: certified(model, points, labels), "labels")
    smoothed = rn.smooth(model, sigma=0.25, num_samples=20)
    # -1 is the answer of a smoothed classifier that abstains: never right.
    right_or_refused(lambda: same(smoothed.certify(ImageSet.of(points, labels)).correct[3], False, "-1 is right"), "-1")


@situation(KIND, "bethgelab/foolbox#238")
def what_is_misclassified_from_the_start_stays_as_it_is(_: Path) -> None:
    points, model = images(), linear()
    labels = (answers(model, points) + 1) % 3
    for name in ("pgd", "apgd", "fab", "square", "opt", "sign_opt"):
        with quiet():
            result = rn.evaluate(model, points, labels, rn.ThreatModel(epsilon=0.1), attacks=[name])
        same(result.robust_accuracy, 0.0, f"the accuracy under {name}")
        same(result.attacks[0].predictions, answers(model, points), f"what is predicted after {name}")


@situation(KIND, "fra31/auto-attack#70")
def autoattack_with_two_classes_is_right_or_says_what_to_do(_: Path) -> None:
    points, model = images(), linear(2)
    labels = answers(model, points)
    wanted = exact_margins(model, points, labels, 0.1) > 0
    right_or_refused(
        lambda: same(attacked(model, points, labels, attacks=["autoattack"]), wanted, "what survives"), "classes"
    )


@situation(KIND, "fra31/auto-attack#76")
def autoattack_with_three_classes_is_right_or_says_what_to_do(_: Path) -> None:
    points, model = images(), linear(3)
    labels = answers(model, points)
    wanted = exact_margins(model, points, labels, 0.1) > 0
    right_or_refused(
        lambda: same(attacked(model, points, labels, attacks=["autoattack"]), wanted, "what survives"), "classes"
    )


@situation(KIND, "Trusted-AI/adversarial-robustness-toolbox#2399")
def the_dlr_loss_with_two_classes_is_refused(_: Path) -> None:
    points, model = images(), linear(2)
    labels, threat = answers(model, points), rn.ThreatModel(epsilon=0.1)
    for name in ("apgd", "pgd"):
        attack = rn.attacks.get(name)(loss="dlr")
        refused(lambda attack=attack: attack.perturb(model, points, labels, threat), "3 classes")
        refused(lambda attack=attack: attacked(model, points, labels, attacks=[attack]), "3 classes")


@situation(KIND, "Harry24k/adversarial-attacks-pytorch#152")
def every_other_attack_reaches_the_optimum_with_two_classes(_: Path) -> None:
    points, model = images(), linear(2)
    labels = answers(model, points)
    wanted = exact_margins(model, points, labels, 0.1)
    for name in ("fgsm", "pgd", "apgd", "fab"):
        same(attacked(model, points, labels, attacks=[name]), wanted > 0, f"what survives {name}")
    for bound in ("crown", "alpha_crown", "auto"):
        found = certified(model, points, labels, 0.1, bound=bound)
        same(found > 1e-6, wanted > 1e-6, f"what {bound} proves")


@situation(KIND, "milesial/Pytorch-UNet#375")
def a_class_without_images_is_a_class(_: Path) -> None:
    points, model = images(), linear(5)
    labels = answers(model, points)
    attack = rn.attacks.get("pgd")(loss="margin", targets=9)
    with quiet():
        result = rn.evaluate(model, points, labels, rn.ThreatModel(epsilon=0.1), attacks=[attack])
    same(torch.tensor(result.confusion(5)).sum(), 24, "the images in the confusion matrix")
    same(result.worst_case, exact_margins(model, points, labels, 0.1) > 0, "what survives")
