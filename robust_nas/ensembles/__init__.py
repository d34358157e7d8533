"""Ensembles: weights for the average of several networks' logits, chosen on their certified margins.

One file is one rule: a frozen, keyword-only dataclass with `fit`. `ensembles.get("robboost")`.

An ensemble is F(x) = sum_t w_t f_t(x) / Z_t, with fixed weights w on the simplex and fixed positive scales Z, both from
validation data. So a bound on every member's margins is a bound on the ensemble's, and the weights do not depend on
the image that is certified.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from robust_nas.bounds import LinearMargins
from robust_nas.core.errors import InputError
from robust_nas.core.registry import Group, offered

if TYPE_CHECKING:
    from torch import Tensor

    from robust_nas.ensembles._boosting import fit_with as fit_with
    from robust_nas.ensembles._ensemble import Ensemble as Ensemble
    from robust_nas.threat import ThreatModel


@dataclass(frozen=True, kw_only=True, eq=False)
class EnsembleWeights:
    """A rule's result for T members.

    Args:
        weights: w, [T], float64, at least 0, with sum 1.
        scales: Z, [T], float64, above 0: what each member's logits are divided by.
        objectives: the objective at the start and after every step of the rule; the last one is the result's.
        lower: a lower bound of the objective for any weights of the members kept, or None if the rule does not know.
    """

    weights: Tensor
    scales: Tensor
    objectives: tuple[float, ...]
    lower: float | None = None

    @property
    def objective(self) -> float:
        """The objective at `weights`."""
        return self.objectives[-1]


@runtime_checkable
class EnsembleRule(Protocol):
    """An ensemble rule: it fits the members' weights."""

    def fit(
        self,
        bounds: Sequence[LinearMargins],
        threat: ThreatModel,
        *,
        parameters: Sequence[int] | None = None,
        multiply_adds: Sequence[int] | None = None,
    ) -> EnsembleWeights:
        """Return weights for the members whose margins are bounded by `bounds`, one per member.

        All members are bounded on the same validation images, over the same `threat`. The result depends on nothing
        but the arguments. The members' costs, `parameters` and `multiply_adds`, are for rules with limits on them.

        Raises:
            InputError: for no members, members bounded on different images, or bounds that are not finite.
        """


_GROUP = Group(__name__, "EnsembleRule", "fit")
get, names = _GROUP.get, _GROUP.names


def is_saved(folder: Path) -> bool:
    """Whether a folder has what `Ensemble.save` writes."""
    return all((folder / name).is_file() for name in ("config.json", "model.safetensors"))


def logit_factors(weights: Sequence[float] | Tensor, scales: Sequence[float] | Tensor, num_members: int) -> list[float]:
    """Return the factors of the members' logits: w_t / Z_t, divided by their sum.

    The division changes no prediction and no certificate, but keeps the logits at the members' own scale: on logits
    many times smaller, an attack on the cross-entropy is weaker, and the ensemble would look more robust than it is.

    Raises:
        InputError: unless these are weights and scales of an ensemble with `num_members` members.
    """
    try:
        weights, scales = [float(w) for w in weights], [float(z) for z in scales]
    except (TypeError, ValueError) as error:
        raise InputError(f"An ensemble's weights and scales must be lists of numbers ({error}).") from None
    if not num_members == len(weights) == len(scales):
        raise InputError(
            "An ensemble needs one weight and one scale per member, "
            f"but got {len(weights)} and {len(scales)} for {num_members}."
        )
    # A scale below 0 would turn a member round; NaN is neither above nor below.
    if not (all(w >= 0 for w in weights) and any(w > 0 for w in weights) and all(z > 0 for z in scales)):
        raise InputError(
            "An ensemble's weights must be at least 0 and not all 0, and its scales above 0, "
            f"but got weights {[*weights]} and scales {[*scales]}."
        )
    shares = [w / z for w, z in zip(weights, scales, strict=True)]
    return [share / sum(shares) for share in shares]


def joint_margins(
    bounds: Sequence[LinearMargins], weights: Sequence[float] | Tensor, scales: Sequence[float] | Tensor
) -> LinearMargins:
    """Return bounds on the margins of the ensemble F = sum_t a_t f_t from bounds on the members' margins.

    <sum_t a_t A_t, d> + sum_t a_t c_t is the weighted sum of the members' bounds at every perturbation d, so its
    minimum over the ball is at least the weighted sum of their minima. A member without slopes has slopes 0. The
    factors a are `logit_factors`. The clean margins are joined alike, where all members bring them.

    Args:
        bounds: the members' bounds, offsets [N, K] and slopes [N, K, D] or None. Those with slopes have the same
            images, or none has any.
        weights: w, [T], at least 0, not all 0; they need not sum to 1.
        scales: Z, [T], above 0.

    Raises:
        InputError: for negative weights, scales that are not positive, numbers of members that differ, or members
            bounded around different images.
    """
    factors = logit_factors(weights, scales, len(bounds))
    # A member of weight 0 is left out: 0 times the label's own +inf is not a number.
    members = [(factor, bound) for bound, factor in zip(bounds, factors, strict=True) if factor > 0]
    offsets = sum(factor * bound.offsets for factor, bound in members)
    slopes = sum(factor * bound.slopes for factor, bound in members if bound.slopes is not None)
    clean = sum(factor * bound.clean for factor, bound in members if bound.clean is not None)
    return LinearMargins(
        offsets,  # type: ignore[arg-type]
        None if isinstance(slopes, int) else slopes,
        clean=None if any(bound.clean is None for _, bound in members) else clean,  # type: ignore[arg-type]
        images=common_images([bound for _, bound in members]),
    )


def common_images(bounds: Sequence[LinearMargins]) -> Tensor | None:
    """Return the images that the members with slopes are bounded around, inside [0, 1], or None for the whole ball.

    Raises:
        InputError: if these differ, or some members with slopes have images and others do not.
    """
    sloped = [(t, bound.images) for t, bound in enumerate(bounds) if bound.slopes is not None]
    first, images = sloped[0] if sloped else (0, None)
    for t, own in sloped[1:]:
        if (own is None and images is None) or own is images:
            continue
        if own is None or images is None or own.shape != images.shape or bool((own != images).any()):
            raise InputError(
                f"Member {t} is bounded around other images than member {first}, or only one of them inside [0, 1]; "
                "bound all in the same way."
            )
    return images


__getattr__ = offered(
    __name__,
    {
        "Ensemble": "_ensemble",
        "fit_with": "_boosting",
    },
)
