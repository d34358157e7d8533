"""The contract of samplers."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import numpy as np
import pytest

from robust_nas import samplers
from robust_nas.architectures.cell import Architecture
from robust_nas.core.errors import InputError
from robust_nas.spaces.cell import CellSpace

SPACE = CellSpace(name="three nodes", num_nodes=3, operations=("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3"))
CLASSES = {architecture.canonical for architecture in Architecture.enumerate(3, SPACE.operations)}


def value(architecture: Architecture, objective: int) -> float:
    return random.Random(f"{architecture.canonical} {objective}").random()


def history(name: str, num_objectives: int, seed: int, budget: int) -> list[str]:
    """Return the architectures that a search measures, in order."""

    def measure(architecture: Architecture) -> Sequence[float]:
        return [value(architecture, objective) for objective in range(num_objectives)]

    found = samplers.queries(samplers.get(name)(), SPACE, measure, num_objectives=num_objectives, seed=seed)
    return [str(architecture) for architecture, _ in itertools.islice(found, budget)]


@pytest.mark.parametrize("num_objectives", [1, 3])
@pytest.mark.parametrize("name", samplers.names())
def test_a_search_depends_on_its_seed_alone_and_touches_no_global_generator_or_objects_in_a_sentence(
    name: str, num_objectives: int
) -> None:
    before = random.getstate(), np.random.get_state()[1].tolist()
    try:
        found = history(name, num_objectives, 0, 25)
    except InputError as objection:
        assert num_objectives > 1
        assert f"'{name}' maximises one objective, but got 3" in str(objection)
        return
    assert found == history(name, num_objectives, 0, 25)
    assert found != history(name, num_objectives, 1, 25)
    assert all(str(SPACE.parse(text)) == text for text in found)
    assert before == (random.getstate(), np.random.get_state()[1].tolist())


@pytest.mark.parametrize("name", samplers.names())
def test_a_search_measures_every_class_once_and_then_ends(name: str) -> None:
    found = [SPACE.parse(text).canonical for text in history(name, 1, 0, 1000)]
    assert len(found) == len(CLASSES)
    assert set(found) == CLASSES


@pytest.mark.parametrize("name", samplers.names())
def test_with_three_questions_open_at_a_time_every_class_is_asked_once_and_equal_seeds_ask_alike(name: str) -> None:
    def asked() -> list[str]:
        questions = samplers.Questions(samplers.get(name)(), SPACE)
        found: list[Architecture] = []
        answered = 0
        while True:
            while len(found) - answered < 3 and (architecture := questions.ask()) is not None:
                found.append(architecture)
            if answered == len(found):
                return [architecture.canonical for architecture in found]
            questions.answer([value(found[answered], 0)])
            answered += 1

    first = asked()
    assert len(first) == len(CLASSES)
    assert set(first) == CLASSES
    assert asked() == first


@pytest.mark.parametrize("name", samplers.names())
def test_a_sampler_takes_values_of_architectures_that_it_did_not_ask_for(name: str) -> None:
    proposer = samplers.get(name)().start(SPACE, 1, 0)
    for architecture in itertools.islice(Architecture.enumerate(3, SPACE.operations), 40):
        proposer.tell(architecture, [value(architecture, 0)])
    proposer.tell(proposer.ask(), [1.0])
    assert SPACE.parse(str(proposer.ask())).num_nodes == 3
