"""Networks of images as people give them: the normalisation is inside."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from robust_nas.datasets import NetworkData
    from robust_nas.spaces import BuiltFrom


class ImageNetwork(nn.Module):
    """A network of images in [0, 1], so that a threat model's epsilon is in pixel units.

    Args:
        data: its channels' means and deviations normalise the images.
    """

    mean: Tensor
    std: Tensor
    built_from: BuiltFrom | None = None
    """The space, architecture and images that it was built from."""

    def __init__(self, data: NetworkData) -> None:
        super().__init__()
        for name, values in zip(("mean", "std"), data.channel_statistics, strict=True):
            self.register_buffer(name, values.view(1, -1, 1, 1))

    def normalised(self, images: Tensor) -> Tensor:
        """Return images with about mean 0 and variance 1 in each channel."""
        return (images - self.mean) / self.std
