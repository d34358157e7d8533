"""`robust-nas run --budget`: the time of a stage from a little of it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import robust_nas as rn
from robust_nas import recipes
from robust_nas.recipes import budget
from robust_nas.runtime.distributed import World
from robust_nas.runtime.stages import Stage


@pytest.mark.parametrize(("each", "tried"), [(2.0, 7), (8.0, 4)])
def test_steps_are_tried_for_twenty_seconds_and_all_but_the_first_count_for_all(each: float, tried: int) -> None:
    now, done = 0.0, []

    def work(stage: Stage) -> None:
        nonlocal now
        for step in stage.progress.steps(range(3, 10), "epochs", total=10, done=3):
            for _ in stage.progress.steps(range(4), "chunks within"):
                now += each / 4 if step > 3 else 50.0
            done.append(step)

    assert budget._timed(work, "train", 0, World(), lambda: now) == pytest.approx(10 * each)
    assert done == list(range(3, 3 + tried))


def test_work_without_steps_says_nothing_of_its_time() -> None:
    assert budget._timed(lambda stage: None, "search", 0, World()) is None


def test_a_little_of_the_data_has_as_great_a_share_of_each_part() -> None:
    data = rn.datasets.load("digits")
    little, share = budget._little(data, 32)
    assert len(little.train) == 2 * 32 and share == len(little.train) / len(data.train)
    assert len(little.validation) == pytest.approx(share * len(data.validation), abs=1)
    assert budget._little(data, 10_000)[1] == 1.0


TINY = ["space.channels=2", "space.stages=1", "search.epochs=2", "train.epochs=1", "evaluation.attacks=['fgsm']"]
TINY += ["evaluation.strongest=[]", "evaluation.num_images=20", "evaluation.masking_images=4", "workers=1"]
TINY += ["certification.bound=interval", "certification.num_images=10", "ensemble.num_images=10", "derive.count=2"]


def test_every_stage_of_a_recipe_has_a_time_and_attacks_as_if_no_image_fell(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, data, fallen = recipes.load("digits", TINY), rn.datasets.load("digits"), []
    evaluate = budget.EvaluationPlan.costs

    def looked_at(plan, model: nn.Module, images, threats, *more, **other):
        found = rn.evaluate(copy.deepcopy(model), images, threats[0], attacks=["pgd"], progress=False)
        fallen.append(found.clean_accuracy - found.robust_accuracy)
        return evaluate(plan, model, images, threats, *more, **other)

    monkeypatch.setattr(budget.EvaluationPlan, "costs", looked_at)
    before = torch.get_rng_state()
    found = {part.stage: part for part in budget.expected(recipe, data, World())}
    assert list(found) == ["search", "train", "attack", "certify"]
    assert all(part.seconds is not None and part.seconds > 0 for part in found.values())
    assert fallen and max(fallen) == 0.0
    words = budget.text(list(found.values()), World())
    assert words.splitlines()[0] == "expected, from a little of each stage, in 1 process:"
    assert len(words.splitlines()) == 1 + len(found) + 1
    assert torch.equal(before, torch.get_rng_state())


def test_certificates_of_operations_that_are_not_known_yet_have_no_known_time(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, data = recipes.load("digits", TINY), rn.datasets.load("digits")
    monkeypatch.setattr(budget, "refusal", lambda model, images: "an operation has no rule")
    found = budget._bounds(recipe, nn.Linear(1, 1), data, World())
    assert found.seconds is None and "more than" in budget.text([found], World())


def test_a_search_that_trains_nothing_takes_no_time() -> None:
    recipe = recipes.load("digits", [*TINY, "search={name='given', architecture='323133'}", "derive.count=1"])
    found = budget.expected(recipe, rn.datasets.load("digits"), World())
    assert (found[0].seconds, found[0].about) == (0.0, "nothing is trained")
