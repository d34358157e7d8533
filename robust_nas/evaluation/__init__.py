"""Clean and attacked accuracy, image by image, and the checks that expose gradient masking.

`evaluate` gives every attack's outcome on every image, `robustness_curve` and `minimal_distortions` the accuracy over
epsilon, `accuracy_over_steps` that over the steps of one ascent, `masking_checks` the reasons to distrust them,
`strongest_examples` the images to look at, `transfers` the networks that share adversarial examples, and
`estimate_cost` the expected cost; an `EvaluationPlan` is all of these but transfer for one model. Each attack is a
value from `robust_nas.attacks`.
"""

from robust_nas.evaluation._chunks import BATCH_SIZE, digest_of
from robust_nas.evaluation.accuracy import AttackOutcome, Evaluation, attack_labels, evaluate, measured, wilson_interval
from robust_nas.evaluation.costs import Cost, calibration_images, costs_text, estimate_cost
from robust_nas.evaluation.curves import Curve, Distortions, minimal_distortions, robustness_curve
from robust_nas.evaluation.examples import file_name, save_examples, strongest_examples
from robust_nas.evaluation.masking import MaskingCheck, masking_checks
from robust_nas.evaluation.plan import Assessment, EvaluationPlan, notes
from robust_nas.evaluation.steps import STEPS, StepCurve, accuracy_over_steps
from robust_nas.evaluation.transfer import transfers

__all__ = [
    "BATCH_SIZE",
    "STEPS",
    "Assessment",
    "AttackOutcome",
    "Cost",
    "Curve",
    "Distortions",
    "Evaluation",
    "EvaluationPlan",
    "MaskingCheck",
    "StepCurve",
    "accuracy_over_steps",
    "attack_labels",
    "calibration_images",
    "costs_text",
    "digest_of",
    "estimate_cost",
    "evaluate",
    "file_name",
    "masking_checks",
    "measured",
    "minimal_distortions",
    "notes",
    "robustness_curve",
    "save_examples",
    "strongest_examples",
    "transfers",
    "wilson_interval",
]
