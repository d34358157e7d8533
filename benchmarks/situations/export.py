"""Export."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from checks import right_or_refused, same, situation, true
from small_models import answers, certified, images, sound
from torch import Tensor, nn

import robust_nas as rn

KIND = "export"


@situation(KIND, "pytorch/pytorch#42653")
def an_adaptive_pool_that_does_not_divide_is_exported_right_or_not_at_all(folder: Path) -> None:
    import onnxruntime

    torch.manual_seed(0)
    model = nn.Sequential(nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(9, 3)).eval()

    def call() -> None:
        rn.export_onnx(model, folder / "m.onnx", (1, 5, 4))
        session = onnxruntime.InferenceSession(folder / "m.onnx")
        points = images(5, (1, 5, 4))
        name = session.get_inputs()[0].name
        found = np.concatenate([session.run(None, {name: each[None].numpy()})[0] for each in points])
        same(torch.from_numpy(found), model(points).detach(), "the logits", 1e-5)

    right_or_refused(call)
    true((folder / "m.onnx").is_file() or not list(folder.glob("*m.onnx*")), "a part of a file is left")


@situation(KIND, "pytorch/pytorch#64806")
def a_pyramid_of_pools_is_exported_right_or_not_at_all(folder: Path) -> None:
    class Pyramid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pools = nn.ModuleList(nn.AdaptiveAvgPool2d(size) for size in (1, 2, 3, 6))
            self.last = nn.Linear(50, 3)

        def forward(self, points: Tensor) -> Tensor:
            logits: Tensor = self.last(torch.cat([pool(points).flatten(1) for pool in self.pools], 1))
            return logits

    model = Pyramid().eval()
    right_or_refused(lambda: rn.export_onnx(model, folder / "m.onnx", (1, 6, 6)))
    points = images(6, (1, 6, 6))
    labels = answers(model, points)
    right_or_refused(lambda: sound(model, points, certified(model, points, labels, bound="crown"), labels, 0.02))
