"""Per-image outcomes as Parquet files: one row per model, image and attack (or radius)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from robust_nas.errors import InputError
from robust_nas.run_dir import atomic_path


def add_outcomes(path: Path, model: str, rows: Sequence[dict[str, Any]]) -> None:
    """Add a model's rows to a file, atomically; rows that the model has there already are replaced."""
    table = pa.Table.from_pylist([{"model": model, **row} for row in rows])
    if path.exists():
        kept = read_outcomes(path)
        kept = kept.filter(pc.not_equal(kept["model"], model))
        table = pa.concat_tables([kept, table], promote_options="permissive")
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary)


def read_outcomes(path: Path) -> pa.Table:
    """Read a file that `add_outcomes` wrote.

    Raises:
        InputError: if it is missing or damaged.
    """
    try:
        return pq.read_table(path)
    except FileNotFoundError:
        raise InputError(f"There is no {path.name} in {path.parent}; run the stage that writes it first.") from None
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{path} is damaged ({str(error).splitlines()[0]}); delete it and the JSON file of its stage, and resume."
        ) from None
