"""Attack folders."""

from __future__ import annotations

from collections.abc import Iterator

from cases import DEEP, Case
from spoiling import as_folder, as_loop, cut, each, edit, put, swap, without


def attack_folders() -> Iterator[Case]:
    """Folders of `robust-nas attack`."""
    kind = "attack folders"
    file, settings = "attacked/evaluation.json", "attacked/attack.toml"
    for verb in ("info", "report"):
        for shape, change in {
            "evaluation.json is null": put(file, "null"),
            "evaluation.json is a list": put(file, "[]"),
            "evaluation.json is an empty object": put(file, "{}"),
            "evaluation.json: a model is a number": edit(file, lambda v: v["models"].update(Net=3)),
            "evaluation.json: no notes, no checks": edit(
                file, lambda v: (v["models"]["Net"].pop("masking"), v["models"]["Net"].update(masking=[{}]))
            ),
            "evaluation.json: an accuracy is NaN": edit(
                file, lambda v: v["models"]["Net"]["clean"].update(accuracy=float("nan"))
            ),
            "attack.toml is empty": put(settings, ""),
            "attack.toml is no TOML": put(settings, "{}"),
            "attack.toml is no text": put(settings, b"\xff\xfe"),
            "attack.toml: models are a number": swap(settings, r"(?s)models = \[.*?\]", "models = 3"),
            "attack.toml: nested thousands deep": swap(settings, r"seed = \d+", f"seed = {DEEP}"),
        }.items():
            yield Case(kind, f"{shape} ({verb})", [verb, "attacked"], change)
    for name, change in {
        "attack.toml is a folder": as_folder(settings),
        "evaluation.json is a folder": as_folder(file),
        "evaluation.json is a link to itself": as_loop(file),
        "environment.json is a list": put("attacked/environment.json", "[]"),
        "evaluation.json is missing": without(file),
        "evaluation.json is cut off": cut(file),
        "attack.toml: the seed is a list": swap(settings, r"seed = \d+", "seed = [1]"),
        "attack.toml: no data set": each(swap(settings, r"\[data\][^\[]*", ""), edit(file, lambda v: v.pop("data"))),
    }.items():
        yield Case(kind, f"{name} (report)", ["report", "attacked"], change)
