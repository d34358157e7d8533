"""Saved ensembles."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cases import DEEP, Case
from spoiling import as_folder, cut, edit, put, without


def ensembles() -> Iterator[Case]:
    """Saved ensembles."""
    file, line = (
        "ensemble/config.json",
        ["attack", "ensemble", "--data", "digits", "--threat", "linf:0.1", "--attack", "fgsm", "--images", "4"],
    )

    def member(change: Callable[[Any], object]) -> Callable[[Path], object]:
        return edit(file, lambda value: change(value["members"][0]))

    for name, change in {
        "config.json is null": put(file, "null"),
        "config.json is a list": put(file, "[]"),
        "config.json is an empty object": put(file, "{}"),
        "config.json: version 99": edit(file, lambda v: v.update(version=99)),
        "config.json: members are a number": edit(file, lambda v: v.update(members=3)),
        "config.json: members are numbers": edit(file, lambda v: v.update(members=[3])),
        "config.json: no members": edit(file, lambda v: v.update(members=[], weights=[], scales=[])),
        "config.json: a member less": edit(file, lambda v: v["members"].append(v["members"][0])),
        "config.json: weights are words": edit(file, lambda v: v.update(weights=["x"])),
        "config.json: weights are NaN": edit(file, lambda v: v.update(weights=[float("nan")] * len(v["weights"]))),
        "config.json: scales are 0": edit(file, lambda v: v.update(scales=[0.0] * len(v["scales"]))),
        "config.json: no sha256": edit(file, lambda v: v.pop("sha256")),
        "config.json: an image is a word": member(lambda m: m["data"].update(image_shape="big")),
        "config.json: an image of 10^9 channels": member(lambda m: m["data"].update(image_shape=[10**9, 8, 8])),
        "config.json: an image of negative size": member(lambda m: m["data"].update(image_shape=[-1, 8, 8])),
        "config.json: classes are a number": member(lambda m: m["data"].update(classes=3)),
        "config.json: no classes": member(lambda m: m["data"].update(classes=[])),
        "config.json: an architecture is a number": member(lambda m: m.update(architecture=3)),
        "config.json: an architecture is none": member(lambda m: m.update(architecture="x")),
        "config.json: a space is a list": member(lambda m: m.update(space=[])),
        "config.json: a space of 10^9 channels": member(lambda m: m["space"].update(channels=10**9)),
        "config.json: a space of an unknown kind": member(lambda m: m["space"].update(kind="x")),
        "config.json is cut off": cut(file),
        "config.json is a folder": as_folder(file),
        "config.json: nested thousands deep": put(file, DEEP),
        "weights are missing": without("ensemble/model.safetensors"),
        "weights are another's": lambda folder: shutil.copy(
            folder / "net.safetensors", folder / "ensemble/model.safetensors"
        ),
        "weights are a folder": as_folder("ensemble/model.safetensors"),
    }.items():
        yield Case("saved ensembles", name, line, change)
