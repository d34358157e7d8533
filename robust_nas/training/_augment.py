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
