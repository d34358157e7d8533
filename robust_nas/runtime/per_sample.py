"""Per-image outcomes as Parquet files: one row per model, image and attack (or radius)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from robust_nas.core.errors import InputError, reason_of
from robust_nas.core.writing import atomic_path

_KEY = ("model", "image")
"""The columns that every file of outcomes has."""


def add_outcomes(path: Path, model: str, rows: Sequence[dict[str, Any]]) -> None:
    """Add a model's rows to a file, atomically; rows that the model has there already are replaced."""
    table = pa.Table.from_pylist([{"model": model, **row} for row in rows])
    if path.exists():
        kept = read_outcomes(path, _KEY)
        kept = kept.filter(pc.not_equal(kept["model"], model))
        table = pa.concat_tables([kept, table], promote_options="permissive")
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        pq.write_table(table, file)


def check_outcomes(path: Path) -> None:
    """Raise InputError before hours of work if their rows could not be added to a file that is there."""
    if path.exists():
        read_outcomes(path, _KEY)


def read_outcomes(path: Path, columns: Sequence[str] = ("model",)) -> pa.Table:
    """Read a file that `add_outcomes` wrote.

    Args:
        path: the file.
        columns: those that it must have.

    Raises:
        InputError: if it is missing or damaged.
    """
    try:
        # An open file, as the name of one may be no UTF-8.
        with path.open("rb") as file:
            table = pq.read_table(file)
        if missing := [name for name in columns if name not in table.column_names]:
            raise pa.ArrowInvalid(f"it has no column {missing[0]}")
        return table
    except FileNotFoundError:
        raise InputError(f"There is no {path.name} in {path.parent}; run the stage that writes it first.") from None
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{path} is damaged ({reason_of(error)}); delete it and the JSON file of its stage, and resume."
        ) from None


@dataclass(frozen=True)
class Consistency:
    """Whether certified <= attacked <= clean held.

    Args:
        comparisons: number of compared pairs of outcomes of one image.
        violations: a sentence for each pair of measurements that contradicts the order.
        contradictions: the same, where one of them is a proof.
        per_image: whether attack outcomes and certificates could be compared image by image at some radius.
    """

    comparisons: int
    violations: list[str]
    contradictions: list[str]
    per_image: bool


def compare_outcomes(attacked: Path, certified: Path) -> Consistency:
    """Compare clean, attacked and certified outcomes, image by image.

    An image that withstands an attack must be classified correctly when it is clean. An image that is certified at a
    radius must be classified correctly when it is clean, and under every attack of the same norm up to that radius.

    Args:
        attacked: a file of attacks' outcomes; nothing is compared with it if it is not there.
        certified: a file of certificates, of the same images; likewise.
    """
    correct, images = _attack_outcomes(attacked)
    comparisons, violations, contradictions, per_image = 0, list[str](), list[str](), False
    for (model, attack, norm, epsilon), withstood in correct.items():
        if attack == "clean":
            continue
        comparisons += len(images[model, attack, norm, epsilon])
        wrong = withstood - correct.get((model, "clean", None, None), withstood)
        if wrong:
            violations.append(
                f"{model}: {len(wrong)} images are classified wrongly when clean, and correctly under {attack}."
            )
    for (model, norm, radius), (proved, clean_correct) in _certificates(certified).items():
        comparisons += len(proved)
        if proved - clean_correct:
            contradictions.append(
                f"{model}: {len(proved - clean_correct)} images are certified at {radius:g} and "
                "classified wrongly when clean."
            )
        for (other, attack, attack_norm, epsilon), withstood in correct.items():
            if other != model or attack == "clean" or attack_norm != norm or epsilon is None or epsilon > radius:
                continue
            compared = proved & images[other, attack, attack_norm, epsilon]
            comparisons, per_image = comparisons + len(compared), True
            if compared - withstood:
                contradictions.append(
                    f"{model}: {len(compared - withstood)} images are certified at {radius:g} and broken by {attack} "
                    f"at {epsilon:g}."
                )
    return Consistency(comparisons, violations, contradictions, per_image)


_Measurement = tuple[str, str, str | None, float | None]


def _attack_outcomes(path: Path) -> tuple[dict[_Measurement, set[int]], dict[_Measurement, set[int]]]:
    """Return the images that were classified correctly, and all images, by (model, attack, norm, epsilon)."""
    correct: dict[_Measurement, set[int]] = defaultdict(set)
    images: dict[_Measurement, set[int]] = defaultdict(set)
    if path.exists():
        names = ("model", "attack", "norm", "epsilon", "image", "correct")
        table = read_outcomes(path, names)
        for *what, image, is_correct in zip(*(table[name].to_pylist() for name in names), strict=True):
            key: _Measurement = (what[0], what[1], None, None) if what[1] == "clean" else tuple(what)
            images[key].add(image)
            if is_correct:
                correct[key].add(image)
            else:
                correct[key]  # an attack that broke every image was run all the same
    return correct, images


def _certificates(path: Path) -> dict[tuple[str, str, float], tuple[set[int], set[int]]]:
    """Return the certified images and the cleanly correct ones, by (model, norm, epsilon)."""
    found: dict[tuple[str, str, float], tuple[set[int], set[int]]] = defaultdict(lambda: (set(), set()))
    names = ("model", "norm", "epsilon", "image", "certified", "clean_correct")
    # A smoothed classifier is no network: its certificates are compared with nothing.
    if path.exists() and "sigma" not in read_outcomes(path, ()).column_names:
        table = read_outcomes(path, names)
        for model, norm, epsilon, image, is_certified, is_correct in zip(
            *(table[name].to_pylist() for name in names), strict=True
        ):
            proved, correct = found[model, norm, epsilon]
            if is_certified:
                proved.add(image)
            if is_correct:
                correct.add(image)
    return found
