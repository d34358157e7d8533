"""Scores of untrained networks: the worth of an architecture, from a batch of images, before anything is trained.

One file is one score: a frozen, keyword-only dataclass with `score`. `proxies.get("robust_ntk")()`. The larger a score,
the better the network is expected to become: a quantity that is better when small has its sign turned in its own file.
Scores of different proxies have nothing in common but that; they are for ranks (`robust_nas.studies.ranking`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from robust_nas.core.registry import Group

if TYPE_CHECKING:
    from torch import Tensor, nn

    from robust_nas.threat import ThreatModel


@runtime_checkable
class Proxy(Protocol):
    """A score of untrained networks."""

    def score(self, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, *, seed: int = 0) -> float:
        """Return a finite number, the larger the better.

        `model` maps [0, 1] images [B, C, H, W] to logits [B, K] and is mostly untrained; its mode, parameters,
        gradients and buffers are left as they were. `labels` is [B]. Clean scores do not look at `threat`. Equal
        arguments give equal scores.

        Raises:
            InputError: for fewer than two images, or a network whose logits are not finite.
        """


_GROUP = Group(__name__, "Proxy", "score")
get, names = _GROUP.get, _GROUP.names
