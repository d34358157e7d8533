"""The contract of searches."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from robust_nas import searches, spaces
from robust_nas.core import config
from robust_nas.core.errors import InputError
from robust_nas.datasets import load
from robust_nas.runtime.distributed import World
from robust_nas.runtime.progress import Progress
from robust_nas.runtime.stages import Stage
from robust_nas.threat import ThreatModel

QUICK = {"epochs": 1, "batch_size": 16, "validation_attack": {"name": "fgsm"}}
SMALL = {**QUICK, "trials": 3, "sharing": QUICK, "attack": {"name": "fgsm"}}
"""The settings that make a search quick, where it has such a field."""


SPACES = [
    spaces.load("nasbench201", channels=2, cells_per_stage=1, stages=1),
    spaces.load("elastic-resnet-small", stage_depths=[[1, 2], [1], [1]], stage_widths=[[0.25, 0.5], [0.25], [0.25]]),
]
"""Spaces with a supernet of mixtures and with an elastic one; a search takes the first that is for it."""


def _takes(search: searches.Search, space: spaces.Space) -> bool:
    try:
        search.check(space)
    except InputError:
        return False
    return True


@pytest.mark.parametrize("name", searches.names())
def test_a_search_gives_a_distribution_over_operations_on_every_edge_without_the_test_split(name: str) -> None:
    digits = load("digits")
    data = dataclasses.replace(digits, train=digits.train[:32], validation=digits.validation[:16], test=None)
    fields = {field.name for field in dataclasses.fields(searches.get(name))}
    search = config.build(searches.get(name), {key: value for key, value in SMALL.items() if key in fields}, "search")
    space = next(space for space in SPACES if _takes(search, space))
    found = search.search(space, data, ThreatModel(epsilon=0.1), Stage("search", 0, World(), Progress(quiet=True)))
    assert [len(row) for row in found.probabilities] == [len(options) for options in space.choices.values()]
    assert all(abs(sum(row) - 1) < 1e-5 and min(row) >= 0 for row in found.probabilities)
    log_posteriors = [log_posterior for _, log_posterior in itertools.islice(found.ranked(), 50)]
    if "measured" not in found.record:
        assert log_posteriors == sorted(log_posteriors, reverse=True)
    assert {"trajectory", "seconds"} <= found.record.keys()
