"""Tables, their cards and parts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from cases import DEEP, DIGITS, Case
from spoiling import as_folder, as_loop, column, cut, outcomes, part, put, renamed, swap


def tables() -> Iterator[Case]:
    """Tables, cards and parts of tables."""
    kind = "tables, cards, parts"
    top = ["table", "top", "runs/table", "clean"]

    def part_file(folder: Path) -> Path:
        return min((folder / "runs/table").glob("part-*"))

    for name, change in {
        "a part is empty": lambda folder: part_file(folder).write_bytes(b""),
        "a part is cut off": lambda folder: cut(str(part_file(folder).relative_to(folder)))(folder),
        "a part is text": lambda folder: part_file(folder).write_bytes(b"accuracy,1"),
        "a part is a folder": lambda folder: as_folder(str(part_file(folder).relative_to(folder)))(folder),
        "a part is a link to itself": lambda folder: as_loop(str(part_file(folder).relative_to(folder)))(folder),
        "a part of other columns": lambda folder: outcomes(str(part_file(folder).relative_to(folder)))(folder),
        "accuracies are words": column("accuracy", lambda v: ["high"] * len(v), "string"),
        "accuracies are whole numbers": column("accuracy", lambda v: [1] * len(v), "int64"),
        "accuracies are NaN": column("accuracy", lambda v: [float("nan")] * len(v), "float64"),
        "accuracies are infinite": column("accuracy", lambda v: [float("inf")] * len(v), "float64"),
        "accuracies are 7": column("accuracy", lambda v: [7.0] * len(v), "float64"),
        "accuracies are missing": column("accuracy", lambda v: [None] * len(v), "float64"),
        "accuracies are lists": part(
            lambda t: t.set_column(t.schema.get_field_index("accuracy"), "accuracy", [[[1.0]] * len(t)])
        ),
        "radii are words": column("epsilon", lambda v: ["big"] * len(v), "string"),
        "radii are NaN": column("epsilon", lambda v: [float("nan")] * len(v), "float64"),
        "seeds are words": column("seed", lambda v: ["x"] * len(v), "string"),
        "seeds are fractions": column("seed", lambda v: [0.5] * len(v), "float64"),
        "numbers of images are negative": column("num_images", lambda v: [-1] * len(v), "int64"),
        "canonical forms are numbers": column("canonical", lambda v: list(range(len(v))), "int64"),
        "architectures are missing": column("architecture", lambda v: [None] * len(v), "string"),
        "is_mean is a word": column("is_mean", lambda v: ["no"] * len(v), "string"),
        "the version is no number": part(lambda t: t, {"robust_nas.table.version": "one"}),
    }.items():
        yield Case(kind, name, top, change)
    yield Case(kind, "accuracies are words (info)", ["info", "runs/table"],
               column("accuracy", lambda v: ["high"] * len(v), "string"))  # fmt: skip
    yield Case(kind, "accuracies are words (merge)", ["table", "merge", "runs/table", "--into", "both"],
               column("accuracy", lambda v: ["high"] * len(v), "string"))  # fmt: skip
    yield Case(kind, "a table whose name is no text, bad", ["table", "top", os.fsdecode(b"t\xff"), "nothing"],
               renamed("runs/table", b"t\xff"))  # fmt: skip
    for name, change in {
        "a card is empty": put("card.toml", ""),
        "a card is no TOML": put("card.toml", "{"),
        "a card is no text": put("card.toml", b"\xff"),
        "a card: nested thousands deep": put("card.toml", f"x = {DEEP}"),
        "a card is a folder": as_folder("card.toml"),
        "a card: a link to itself": as_loop("card.toml"),
        "a card: rows are a number": swap("card.toml", r"\[rows\]", "rows = 3\n[other]"),
        "a card: a radius is a word": swap("card.toml", r'epsilon = "[^"]*"', 'epsilon = "big"'),
        "a card: a radius has 400 digits": swap("card.toml", r'epsilon = "[^"]*"', f"epsilon = {DIGITS}"),
        "a card: a file in another folder": swap("card.toml", r'name = "', 'name = "../'),
        "a card: a sha256 is short": swap("card.toml", r'sha256 = "[^"]*"', 'sha256 = "abc"'),
        "a card: caveats are words": swap("card.toml", r"(?s)caveats = \[.*?\]\n", 'caveats = "none"\n'),
        "a card: a title is a number": swap("card.toml", r'title = "[^"]*"', "title = 3"),
    }.items():
        yield Case(kind, name, ["table", "info", "card.toml"], change)
