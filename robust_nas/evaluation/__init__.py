"""Clean and attacked accuracy, image by image, and the checks that expose gradient masking.

`evaluate` gives every attack's outcome on every image, `robustness_curve` and `minimal_distortions` the accuracy over
epsilon, `masking_checks` the reasons to distrust them, `strongest_examples` the images to look at, and `estimate_cost`
what it will cost. Each attack is a value from `robust_nas.attacks`.
"""

from robust_nas.evaluation.accuracy import AttackOutcome, Evaluation, attack_labels, evaluate, wilson_interval
from robust_nas.evaluation.costs import Cost, calibration_images, estimate_cost
from robust_nas.evaluation.curves import Distortions, minimal_distortions, robustness_curve
from robust_nas.evaluation.examples import strongest_examples
from robust_nas.evaluation.masking import MaskingCheck, masking_checks

__all__ = [
    "AttackOutcome",
    "Cost",
    "Distortions",
    "Evaluation",
    "MaskingCheck",
    "attack_labels",
    "calibration_images",
    "estimate_cost",
    "evaluate",
    "masking_checks",
    "minimal_distortions",
    "robustness_curve",
    "strongest_examples",
    "wilson_interval",
]
