"""Accuracy over size: the sizes, the front, and names that do not cover each other."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.text import Text

from robust_nas.report import size_plots
from robust_nas.report._contents import Contents
from robust_nas.report._elements import Html, join
from robust_nas.report._size import over_size
from robust_nas.report.size_plots import Sized, size_plot
from robust_nas.runtime.run_folder import RunFolder


def section(run: Path) -> str:
    """Return the section's markup."""
    return str(join(over_size(Contents.read(RunFolder.open(run)))))


def change(run: Path, name: str, key: str, **values: Any) -> None:
    """Change an entry in a record of a run: of each network in train.json, of the whole elsewhere."""
    record = json.loads((run / name).read_text())
    for entry in record[key] if key else [record]:
        entry.update(values)
    (run / name).write_text(json.dumps(record))


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


def test_an_ensemble_is_as_large_as_its_members_with_a_weight_and_the_front_is_that_of_all_pairs(run: Path) -> None:
    change(run, "ensemble.json", "", weights=[0.6, 0.0, 0.4])
    text = section(run)
    # The networks have 21,482, 22,482 and 23,482 parameters.
    sizes = {"model-0": 21_482, "model-1": 22_482, "model-2": 23_482, "uniform": 67_446, "ensemble": 44_964}
    titles = {"uniform": "Uniform average", "ensemble": "RobBoost ensemble"}
    models = json.loads((run / "evaluation.json").read_text())["models"]
    names = re.findall(r'aria-label="([^"]* over the number of parameters[^"]*)"', text)
    assert [name.split(" over")[0] for name in names] == ["Clean", "Worst case at linf 0.2", "Certified at 0.002"]
    for key, name in zip(("clean", "worst_case"), names[:2], strict=True):
        points = {model: (sizes[model], models[model][key]["accuracy"]) for model in sizes}
        for model, (size, accuracy) in points.items():
            assert f"{titles.get(model, model)} {100 * accuracy:.1f} % with {size:,}" in name
        beaten = {
            one
            for one, (size, accuracy) in points.items()
            for other in points.values()
            if other[0] <= size and other[1] >= accuracy and other != (size, accuracy)
        }
        front = name.partition("On the Pareto front: ")[2]
        assert {model for model in sizes if titles.get(model, model) in front} == sizes.keys() - beaten


def test_models_of_one_size_are_said_to_be_so_and_one_model_is_not_drawn(run: Path) -> None:
    (run / "ensemble.json").unlink()
    change(run, "train.json", "models", parameters=1234)
    assert "All measured models have the same number of parameters" in section(run) and "<svg" not in section(run)
    (run / "evaluation.json").unlink()
    (run / "certification.json").unlink()
    assert section(run) == ""


@pytest.mark.parametrize("count", [3, 7, 25])
def test_no_name_covers_another_a_point_or_an_interval_and_those_without_room_are_told(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = []
    monkeypatch.setattr(size_plots, "to_svg", lambda figure, key, name: figures.append(figure) or Html())
    random = np.random.default_rng(count)
    points = [
        Sized(
            f"model-{place} of many",
            int(random.choice([4_000, 8_000, 90_000])),
            level,
            level - 0.05,
            level + 0.05,
            True,
        )
        for place, level in enumerate(random.uniform(0.4, 0.6, count))
    ]
    points[1] = replace(points[0], title="its twin")
    _, unnamed = size_plot(points, "attacked", "size", "a plot")
    (axes,) = figures[0].axes
    figures[0].draw_without_rendering()
    # Without the lines that lead to them.
    boxes = {text.get_text(): Text.get_window_extent(text) for text in axes.texts}
    assert sorted([*boxes, *unnamed]) == sorted(point.title for point in points)
    assert count > 7 or not unnamed
    assert not [pair for pair in combinations(boxes, 2) if boxes[pair[0]].overlaps(boxes[pair[1]])]
    for title, box in boxes.items():
        for point in points:
            line = axes.transData.transform([(point.size, level) for level in np.linspace(point.low, point.high, 50)])
            assert not any(box.contains(*place) for place in line), (title, point.title)
