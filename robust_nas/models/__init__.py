"""Networks: [0, 1] images in, logits out; each normalises its own input.

What a network may offer to its training, any `nn.Module` may: it has the attributes of the protocols here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import nn


@runtime_checkable
class DropsPaths(Protocol):
    """A network that in training drops each of its paths with a probability, which the training sets."""

    drop_path: float


@runtime_checkable
class OffersAuxiliaryHead(Protocol):
    """A network with a second classifier, which helps to train it and is no part of it (arXiv:1806.09055, A.2)."""

    @property
    def auxiliary_at(self) -> nn.Module:
        """The module whose output the head classifies."""

    def auxiliary_head(self) -> nn.Module:
        """Return a new head."""
