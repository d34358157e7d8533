import pytest

from robust_nas import datasets, spaces
from robust_nas.core.errors import InputError
from robust_nas.derivation import distinct
from robust_nas.runtime.distributed import World
from robust_nas.runtime.progress import Progress
from robust_nas.runtime.stages import Stage
from robust_nas.searches.given import Given
from robust_nas.threat import ThreatModel

CELL = "|nor_conv_3x3~0|+|skip_connect~0|nor_conv_3x3~1|+|nor_conv_1x1~0|avg_pool_3x3~1|nor_conv_3x3~2|"


def _found(architecture: str):
    stage = Stage("search", 0, World(), Progress(quiet=True))
    return Given(architecture=architecture).search(
        spaces.load("nasbench201"), datasets.load("digits"), ThreatModel(), stage
    )


def test_the_given_architecture_is_the_one_that_is_derived():
    assert str(_found(CELL).best) == CELL
    assert [str(candidate.architecture) for candidate in distinct(_found(CELL), 1)] == [CELL]
    # The published digits: 0 none, 1 skip, 2 1x1, 3 3x3, 4 average.
    assert str(_found("313243").best) == CELL


def test_an_architecture_of_another_space_is_refused():
    with pytest.raises(InputError, match="nor_conv_5x5"):
        _found(CELL.replace("nor_conv_3x3~2", "nor_conv_5x5~2"))


def test_a_cell_through_which_nothing_flows_is_refused():
    with pytest.raises(InputError, match="must lead from the input to the output"):
        _found("000000")


def test_nothing_but_the_given_architecture_is_derived_however_many_are_asked_for():
    assert len(distinct(_found(CELL), 3)) == 1
