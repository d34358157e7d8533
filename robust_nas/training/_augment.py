"""Augmentation on the device, image by image, for a whole batch at once."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def crop_and_flip(images: Tensor, padding: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Return randomly shifted and mirrored images [B, C, H, W].

    Args:
        images: the batch.
        padding: zeros added on every side before each image is cropped back at a place of its own.
        flip: whether each image is mirrored left to right with probability 1/2.
        generator: on the images' device.
    """
    batch, _, height, width = images.shape
    device = images.device
    if flip:
        mirrored = torch.rand(batch, device=device, generator=generator) < 0.5
        images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)
    if padding:
        top, left = torch.randint(0, 2 * padding + 1, (2, batch), device=device, generator=generator)
        rows = top.view(-1, 1, 1) + torch.arange(height, device=device).view(1, -1, 1)
        columns = left.view(-1, 1, 1) + torch.arange(width, device=device).view(1, 1, -1)
        padded = F.pad(images, (padding,) * 4)
        # Indexing the batch together with rows and columns gives [B, H, W, C].
        which = torch.arange(batch, device=device).view(-1, 1, 1)
        images = padded.permute(0, 2, 3, 1)[which, rows, columns].permute(0, 3, 1, 2).contiguous()
    return images


def cutout(images: Tensor, length: int, generator: torch.Generator) -> Tensor:
    """Return the images [B, C, H, W], each with a square hole of zeros (DeVries and Taylor 2017, arXiv:1708.04552).

    The hole's centre is uniform over the image's pixels, so that a part of the hole may lie outside.

    Args:
        images: the batch.
        length: the hole's side, in pixels.
        generator: on the images' device.
    """
    batch, _, height, width = images.shape
    inside = []
    for side in (height, width):
        centre = torch.randint(0, side, (batch, 1), device=images.device, generator=generator)
        # As in the authors' code for even lengths; there an odd one makes a hole that is a pixel smaller.
        first = centre - length // 2
        place = torch.arange(side, device=images.device)
        inside.append((place >= first) & (place < first + length))
    rows, columns = inside
    hole = rows.view(batch, 1, height, 1) & columns.view(batch, 1, 1, width)
    return images.masked_fill(hole, 0.0)


def mix_up(
    images: Tensor, labels: Tensor, num_classes: int, alpha: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return convex combinations of pairs of images and of their labels (Zhang et al. 2018, arXiv:1710.09412).

    One share, drawn from Beta(alpha, alpha), for the whole batch, and as partners the batch in another order, as in
    the authors' code. Each image keeps the larger share, which makes no difference to the pairs that come about: its
    label is then also what the mixed image shows most of, and what an attack on it leads away from.

    Args:
        images: [B, C, H, W].
        labels: [B].
        num_classes: K.
        alpha: above 0; the larger, the nearer the shares are to 1/2.
        generator: on the images' device.

    Returns:
        The images [B, C, H, W], and the probabilities of the classes [B, K].
    """
    concentrations = torch.full((2,), alpha, dtype=torch.float64, device=images.device)
    # Of two classes, the Dirichlet distribution is a beta distribution. torch.distributions takes no generator.
    share = torch._sample_dirichlet(concentrations, generator=generator).amax().to(images.dtype)
    partners = torch.randperm(len(images), device=images.device, generator=generator)
    targets = F.one_hot(labels, num_classes).to(images.dtype)
    return (
        share * images + (1 - share) * images[partners],
        share * targets + (1 - share) * targets[partners],
    )
