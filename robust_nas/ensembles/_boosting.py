"""Boosting: a network trained for its contribution to others, which stay as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Self

from torch import Tensor, nn

from robust_nas.core.errors import InputError
from robust_nas.ensembles._ensemble import Ensemble
from robust_nas.evaluation import evaluate
from robust_nas.models.frozen import evaluating
from robust_nas.models.scores import probed
from robust_nas.training import TrainingResult, fit

if TYPE_CHECKING:
    from robust_nas.datasets import Dataset
    from robust_nas.runtime.stages import Stage
    from robust_nas.threat import ThreatModel
    from robust_nas.training import Training


class Boosted(Ensemble):
    """Frozen networks and one in training, with equal weights: bounds on this module are joint bounds.

    Args:
        frozen: trained networks f_1, ..., f_m; they stay in evaluation mode, and get no gradients any more.
        learner: f_(m+1).
    """

    def __init__(self, frozen: Sequence[nn.Module], learner: nn.Module) -> None:
        super().__init__([*frozen, learner])
        for member in frozen:
            member.requires_grad_(False)
        self.train(learner.training)

    def train(self, mode: bool = True) -> Self:
        """Set the learner's mode; the frozen networks normalise as they were trained to."""
        super().train(mode)
        for member in list(self.members)[:-1]:
            member.eval()
        return self


def fit_with(
    frozen: Sequence[nn.Module], model: nn.Module, data: Dataset, threat: ThreatModel, training: Training, stage: Stage
) -> TrainingResult:
    """Train `model` as the next member of an ensemble with frozen ones (RobBoost, arXiv:1910.14655, section 4).

    The loss, its attack or its bound are those of all of them together, so that the new network is best where the
    others are weak. Without others, this is `fit`.

    An attack that sees batch statistics sees those of the frozen networks too.

    Returns:
        The result of `fit`, for `model`. In the record, "validation" is of `model` alone, "beside" of all together, and
        so are "best" and "last", which say how the epochs compare.

    Raises:
        InputError: for frozen networks that do not fit `model`, a mixture of batch norms, or what `fit` raises.
    """
    if not frozen:
        return fit(model, data, threat, training, stage)
    if training.mixes:
        raise InputError("A mixture of batch norms is not trained beside other networks; set train.norm to 'batch'.")
    images = data.validation[:2].images
    shapes = {tuple(probed(evaluating(network), images).shape) for network in (*frozen, model)}
    if len(shapes) > 1:
        raise InputError(
            "A network and those it is trained beside must have the same classes, but outputs for two images are of "
            f"shapes {' and '.join(str(list(shape)) for shape in sorted(shapes))}."
        )
    fitted = fit(Boosted(frozen, model), data, threat, training, stage)
    alone = evaluate(
        evaluating(model), data.validation, threat, [training.selection_attack], stage=stage.within("alone")
    )
    record = replace(
        fitted.record,
        validation={"clean": alone.clean_accuracy, "robust": alone.robust_accuracy},
        beside=fitted.record.validation,
    )
    prefix = f"members.{len(frozen)}."

    def own(state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}

    return replace(fitted, model=model, best=own(fitted.best), last=own(fitted.last), record=record)
