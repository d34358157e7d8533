"""Training methods: how examples are crafted and what the loss is; one loop (`fit`) trains with any of them.

One file is one method: a frozen, keyword-only dataclass with `craft` and `loss`. `trainings.get("pgd_at")`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from robust_nas.registry import Group

if TYPE_CHECKING:
    from torch import Tensor, nn

    from robust_nas.threat import ThreatModel


@runtime_checkable
class Method(Protocol):
    """What every training method does."""

    def craft(self, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, *, seed: int) -> Tensor:
        """Return the images [B, C, H, W] to train on, made from a training batch; `model` is left as it was."""

    def loss(self, forward: nn.Module, crafted: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """Return the batch's scalar loss.

        `forward` is the model in training mode, possibly wrapped for several processes: call it exactly once.
        """


_GROUP = Group(__name__, "Method", "craft")
get, names = _GROUP.get, _GROUP.names
