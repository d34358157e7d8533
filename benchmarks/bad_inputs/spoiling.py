"""Ways to spoil good files: each gives a change of a folder."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any


def put(name: str, content: str | bytes) -> Callable[[Path], object]:
    """Replace a file's content."""
    data = content if isinstance(content, bytes) else content.encode()
    return lambda folder: (folder / name).write_bytes(data)


def edit(name: str, change: Callable[[Any], object]) -> Callable[[Path], object]:
    """Change what a JSON file says."""

    def apply(folder: Path) -> None:
        value = json.loads((folder / name).read_text())
        change(value)
        (folder / name).write_text(json.dumps(value))

    return apply


def swap(name: str, old: str, new: str) -> Callable[[Path], object]:
    """Replace some text of a file; it must be there."""

    def apply(folder: Path) -> None:
        text = (folder / name).read_text()
        assert re.search(old, text), (name, old)
        (folder / name).write_text(re.sub(old, lambda _: new, text, count=1))

    return apply


def cut(name: str, share: float = 0.5) -> Callable[[Path], object]:
    """Cut a file off."""
    return lambda folder: (folder / name).write_bytes((data := (folder / name).read_bytes())[: int(len(data) * share)])


def flip(name: str) -> Callable[[Path], object]:
    """Change a byte at the end of a file."""

    def apply(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[-5] ^= 0xFF
        (folder / name).write_bytes(data)

    return apply


def as_folder(name: str) -> Callable[[Path], object]:
    """Put a folder where a file should be."""

    def apply(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()

    return apply


def as_loop(name: str) -> Callable[[Path], object]:
    """Put a link to itself where a file should be."""

    def apply(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to((folder / name).name)

    return apply


def without(name: str) -> Callable[[Path], object]:
    """Remove a file or a folder."""

    def apply(folder: Path) -> None:
        shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()

    return apply


def renamed(name: str, new: bytes) -> Callable[[Path], object]:
    """Give a file or a folder another name, which may be no text."""
    return lambda folder: os.rename(os.fsencode(folder / name), os.fsencode(folder) + b"/" + new)


def each(*changes: Callable[[Path], object]) -> Callable[[Path], object]:
    """Do several changes."""
    return lambda folder: [change(folder) for change in changes]


def part(change: Callable[[Any], Any], metadata: dict[str, str] | None = None) -> Callable[[Path], object]:
    """Change the rows, a pyarrow table, of a part of runs/table; its version is kept, unless other metadata are given."""

    def apply(folder: Path) -> None:
        import pyarrow.parquet as pq

        path = min((folder / "runs" / "table").glob("part-*"))
        table = pq.read_table(path)
        pq.write_table(change(table).replace_schema_metadata(metadata or table.schema.metadata), path)

    return apply


def column(name: str, values: Callable[[list[Any]], list[Any]], kind: str | None = None) -> Callable[[Path], object]:
    """Change a column of a part of runs/table, and its type."""

    def change(table: Any) -> Any:
        import pyarrow as pa

        place = table.schema.get_field_index(name)
        array = pa.array(values(table[name].to_pylist()), type=getattr(pa, kind)() if kind else None)
        return table.set_column(place, name, array)

    return part(change)


def outcomes(name: str) -> Callable[[Path], object]:
    """Replace a Parquet file by one of other columns."""

    def apply(folder: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"a": [1, 2]}), folder / name)

    return apply


def weights(name: str, **tensors: tuple[int, ...]) -> Callable[[Path], object]:
    """Write a safetensors file with tensors of other shapes."""

    def apply(folder: Path) -> None:
        import torch
        from safetensors.torch import save_file

        state = {key.replace("_", ".", 1): torch.zeros(shape) for key, shape in tensors.items()}
        save_file(state, folder / name)

    return apply
