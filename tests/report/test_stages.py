"""Drawings of residual networks: their stages, to scale."""

import re

import pytest

from robust_nas import architectures
from robust_nas.report.drawing import draw, stages_of

OTHER = "depths=2-3-1 widths=16-32-64 kernel=3 activation=silu norm=batch se=none block=basic stem=16"


@pytest.mark.parametrize(
    ("text", "stages"),
    [
        ("resnet-50", [(3, 256), (4, 512), (6, 1024), (3, 2048)]),
        ("wrn-28 width=10-10-8", [(4, 160), (4, 320), (4, 512)]),
        (OTHER, [(2, 16), (3, 32), (1, 64)]),
        ("8:16:64", []),
    ],
)
def test_stages_are_drawn_as_broad_as_their_blocks_and_as_high_as_their_channels(text, stages):
    architecture = architectures.parse(text)
    assert stages_of(architecture) == stages
    drawing = "".join(map(str, draw(architecture, (), "key")))
    sizes = []
    for path in re.findall(r'id="key-stage-\d">\s*<path d="([^"]*)"', drawing):
        points = [tuple(map(float, point)) for point in re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", path)]
        across, down = zip(*points, strict=True)
        sizes.append((max(across) - min(across), max(down) - min(down)))
    assert len(sizes) == len(stages)
    for (breadth, height), (blocks, channels) in zip(sizes, stages, strict=True):
        assert breadth / sizes[0][0] == pytest.approx(blocks / stages[0][0], rel=1e-3)
        assert height / sizes[0][1] == pytest.approx(channels / stages[0][1], rel=1e-3)


def test_a_short_stage_beside_a_long_one_is_broad_enough_for_its_number():
    drawing = "".join(map(str, draw(architectures.parse("resnet-638"), (), "key")))
    assert "13 blocks of 256 channels, 34 blocks of 512 channels, 152 blocks of 1024 channels" in drawing
