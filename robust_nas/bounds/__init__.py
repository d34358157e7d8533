"""Sound bounds on a network's margins over a ball of images.

One file is one kind of bound: a frozen, keyword-only dataclass with `margins`. `bounds.get("interval")`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from robust_nas.core.registry import Group, offered

if TYPE_CHECKING:
    from torch import Tensor, nn

    from robust_nas.bounds._box import Box as Box
    from robust_nas.bounds._box import NoRule as NoRule
    from robust_nas.bounds._costs import foretold_seconds as foretold_seconds
    from robust_nas.bounds._costs import slow_kind as slow_kind
    from robust_nas.bounds._margins import box_around as box_around
    from robust_nas.bounds._margins import check_arithmetic as check_arithmetic
    from robust_nas.bounds._margins import margin_bounds as margin_bounds
    from robust_nas.bounds._margins import own_logits as own_logits
    from robust_nas.bounds._rounding import Answers as Answers
    from robust_nas.bounds._rounding import check_gradients as check_gradients
    from robust_nas.bounds._rounding import own_answers as own_answers
    from robust_nas.threat import ThreatModel


TOLERANCE = 1e-6
"""A margin counts as positive above this: bounds hold up to rounding in float64. What the network's own rounding may
take of a margin comes on top, in certificates (`_rounding`)."""


@dataclass(frozen=True)
class LinearMargins:
    """Linear lower bounds of the margins: f_y(x + d) - f_j(x + d) >= <slopes_j, d> + offsets_j over the ball.

    Args:
        offsets: [N, K], one margin per image and class; the entry of the label's own class is +inf.
        slopes: [N, K, D] with D the number of pixels, or None for bounds that do not depend on d (interval bounds).
        clean: [N, K], the margins of the images themselves (d = 0), or None; an ensemble scales its members by them.
        images: [N, C, H, W], what the ball is around, where perturbed images are in [0, 1] as well; None for the whole
            ball, as in RobBoost's paper.
        methods: N names: the kind of bound that an image's are of, where there are several.
        answers: the network's own, where a kind of bound has looked at them.
    """

    offsets: Tensor
    slopes: Tensor | None = None
    clean: Tensor | None = None
    images: Tensor | None = None
    methods: tuple[str, ...] | None = None
    answers: Answers | None = None

    def lower(self, threat: ThreatModel) -> Tensor:
        """Return the margins' lower bounds [N, K]: offsets plus the least of <slopes, d> over the allowed changes d.

        Over the whole ball that is offsets - epsilon * |slopes|_q, q dual to p.
        """
        if self.slopes is None:
            return self.offsets
        if self.images is not None:
            return self.offsets + threat.around(self.images).least(self.slopes)
        dual = {"linf": 1.0, "l2": 2.0, "l1": math.inf}[threat.norm]
        return self.offsets - threat.epsilon * self.slopes.norm(p=dual, dim=-1)

    def packed(self) -> Tensor:
        """Return offsets, clean and slopes as one tensor [N, K, 3 + D], float64, to be sent to another process."""
        import torch

        clean = self.offsets if self.clean is None else self.clean
        columns = [self.offsets, clean, torch.full_like(clean, float(self.images is not None))]
        slopes = [] if self.slopes is None else [self.slopes]
        return torch.cat([torch.stack(columns, 2), *slopes], 2).double()

    @classmethod
    def unpacked(cls, packed: Tensor, images: Tensor) -> LinearMargins:
        """Return the margins of `packed`, and images [N, C, H, W] that they are around."""
        offsets, clean, cut = packed[..., :3].unbind(2)
        inside = images.to(packed) if bool(cut.any()) else None
        return cls(offsets, packed[..., 3:] if packed.shape[2] > 3 else None, clean, inside)


@runtime_checkable
class Bound(Protocol):
    """A kind of bound: sound lower bounds of the margins over balls."""

    def margins(self, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel) -> LinearMargins:
        """Return linear lower bounds of the margins of `model` over the ball around each of `images` [N, C, H, W].

        `model` is used in evaluation mode and left as it was; `labels` is [N].
        """


_GROUP = Group(__name__, "Bound", "margins")
get, names = _GROUP.get, _GROUP.names

__getattr__ = offered(
    __name__,
    {
        "Box": "_box",
        "NoRule": "_box",
        "box_around": "_margins",
        "margin_bounds": "_margins",
        "Answers": "_rounding",
        "check_gradients": "_rounding",
        "own_answers": "_rounding",
        "foretold_seconds": "_costs",
        "slow_kind": "_costs",
        "check_arithmetic": "_margins",
        "own_logits": "_margins",
    },
)
