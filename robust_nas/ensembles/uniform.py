"""The uniform average."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from robust_nas.bounds import LinearMargins
from robust_nas.ensembles import EnsembleWeights
from robust_nas.ensembles._objective import MarginHinge
from robust_nas.threat import ThreatModel


@dataclass(frozen=True, kw_only=True)
class Uniform:
    """Equal weights: what RobBoost starts from and is compared with.

    Args:
        normalise: divide each member's logits by its scale, as RobBoost does; otherwise average the logits as they
            are.
    """

    normalise: bool = True

    def fit(
        self,
        bounds: Sequence[LinearMargins],
        threat: ThreatModel,
        *,
        parameters: Sequence[int] | None = None,
        multiply_adds: Sequence[int] | None = None,
    ) -> EnsembleWeights:
        """Return 1/T for every member, with RobBoost's objective at these weights; costs play no part.

        Raises:
            InputError: for no members, members bounded on different images, or bounds that are not finite.
        """
        hinge = MarginHinge.of(bounds, threat, normalise=self.normalise)
        weights = [1 / hinge.num_members] * hinge.num_members
        return hinge.result(weights, [hinge.at(weights)])
