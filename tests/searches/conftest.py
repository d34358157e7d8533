"""A few digits and the smallest space, on which a search takes seconds; there is no test split to look at."""

import dataclasses

import pytest

from robust_nas import datasets, spaces
from robust_nas.datasets import Dataset
from robust_nas.spaces import Space


@pytest.fixture(scope="session")
def data() -> Dataset:
    digits = datasets.load("digits")
    return dataclasses.replace(digits, train=digits.train[:64], validation=digits.validation[:32], test=None)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def space() -> Space:
    return spaces.load("nasbench201", channels=2, cells_per_stage=1, stages=1)
