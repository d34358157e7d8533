"""The counting of queries."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest

from robust_nas import samplers
from robust_nas.architectures.cell import Architecture
from robust_nas.core.errors import InputError
from robust_nas.samplers._cells import classes, draw_unmeasured, neighbours
from robust_nas.spaces import Space
from robust_nas.spaces.cell import CellSpace

SPACE = CellSpace(name="no pooling", num_nodes=4, operations=("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3"))


@dataclass(frozen=True, kw_only=True)
class Scripted:
    """Asks what it is given, then the last one again and again, and keeps what it is told."""

    script: tuple[str, ...]
    told: list[tuple[str, float]]

    def start(self, space: Space, num_objectives: int, seed: int) -> Scripted:
        object.__setattr__(self, "asked", self._asked())
        return self

    def _asked(self) -> Iterator[Architecture]:
        yield from (Architecture.parse(text) for text in self.script)
        while True:
            yield Architecture.parse(self.script[-1])

    def ask(self) -> Architecture:
        return next(self.asked)

    def tell(self, architecture: Architecture, values: Sequence[float]) -> None:
        self.told.append((architecture.digits(), values[0]))


def test_an_architecture_equivalent_to_a_measured_one_is_answered_from_memory_and_not_counted() -> None:
    # The first two differ only on an edge that does not reach the output.
    script = ("300100", "310100", "333333")
    sampler = Scripted(script=script, told=[])
    measured: list[str] = []

    def measure(architecture: Architecture) -> Sequence[float]:
        measured.append(architecture.digits())
        return [float(len(measured))]

    found = list(itertools.islice(samplers.queries(sampler, SPACE, measure), 2))
    assert Architecture.parse(script[0]).is_equivalent(Architecture.parse(script[1]))
    assert measured == ["300100", "333333"]
    assert [values for _, values in found] == [[1.0], [2.0]]
    assert sampler.told == [("300100", 1.0), ("310100", 1.0), ("333333", 2.0)]


def test_after_too_many_known_ones_in_a_row_a_random_unmeasured_one_is_measured_and_told() -> None:
    sampler = Scripted(script=("333333",), told=[])
    found = list(itertools.islice(samplers.queries(sampler, SPACE, lambda _: [0.5]), 3))
    assert len({architecture.canonical for architecture, _ in found}) == 3
    assert len(sampler.told) == 3 + 2 * samplers.PATIENCE
    assert sampler.told[1 + samplers.PATIENCE][0] == found[1][0].digits() != "333333"


def test_nothing_is_measured_beyond_what_is_taken() -> None:
    calls: list[Architecture] = []

    def measure(architecture: Architecture) -> Sequence[float]:
        calls.append(architecture)
        return [0.0]

    list(itertools.islice(samplers.queries(samplers.get("random")(), SPACE, measure), 7))
    assert len(calls) == 7


def test_nasbench201_has_6466_classes_and_every_architecture_24_neighbours() -> None:
    space = CellSpace(name="nasbench201", num_nodes=4, operations=(*SPACE.operations, "avg_pool_3x3"))
    assert len(classes(space)) == 6466  # REFERENCES: NAS-Bench-201's own count
    near = neighbours(space, Architecture.parse("323133"))
    assert len(set(near)) == 24
    assert all(sum(a != b for a, b in zip(cell.digits(), "323133", strict=True)) == 1 for cell in near)


def test_a_space_too_large_to_enumerate_is_drawn_from_all_the_same() -> None:
    import random

    space = CellSpace(name="six nodes", num_nodes=6, operations=SPACE.operations)
    generator = random.Random(0)
    first = draw_unmeasured(space, {}, generator)
    assert first is not None
    second = draw_unmeasured(space, {first.canonical}, random.Random(0))
    assert second is not None
    assert second.canonical != first.canonical


def test_open_questions_are_answered_in_their_order_and_one_like_an_open_one_waits_for_its_values() -> None:
    # The second is equivalent to the first.
    sampler = Scripted(script=("300100", "310100", "333333", "323133", "123123"), told=[])
    questions = samplers.Questions(sampler, SPACE)

    def ask() -> str | None:
        architecture = questions.ask()
        return None if architecture is None else architecture.digits()

    assert [ask(), ask(), ask()] == ["300100", None, None]
    questions.answer([0.1])
    assert [ask(), ask()] == ["333333", "323133"]
    assert sampler.told == [("300100", 0.1), ("310100", 0.1)]
    questions.answer([0.3])
    assert ask() == "123123"
    questions.answer([0.4])
    assert sampler.told[2:] == [("333333", 0.3), ("323133", 0.4)]


def test_questions_end_when_all_classes_are_measured_or_open() -> None:
    space = CellSpace(name="two nodes", num_nodes=2, operations=("skip_connect", "nor_conv_1x1", "nor_conv_3x3"))
    questions = samplers.Questions(samplers.get("random")(), space)
    asked = set()
    for _ in range(30):
        if (architecture := questions.ask()) is not None:
            asked.add(architecture.canonical)
        if len(asked) == 3:
            break
        if architecture is None:
            questions.answer([0.0])
    assert len(asked) == 3
    assert questions.ask() is None


def test_a_value_that_is_not_a_number_is_refused() -> None:
    found = samplers.queries(Scripted(script=("300100",), told=[]), SPACE, lambda architecture: [math.nan])
    with pytest.raises(InputError, match="is worth nan"):
        next(found)
