import pytest

from robust_nas import spaces
from robust_nas.core.errors import InputError
from robust_nas.samplers import classes
from robust_nas.spaces import mixed


def test_the_declared_space_has_as_many_architectures_as_the_benchmark():
    space = spaces.load("nasbench201-size")
    assert len(classes(space)) == 32_768
    assert space.reduces == [False, True, False, True, False]
    assert list(space.decisions) == ["layer 1", "layer 2", "layer 3", "layer 4", "layer 5"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"cell": "323"}, None),
        ({"cell": "32"}, "space.cell: A cell of n nodes has n"),
        ({"cell": "|conv~0|"}, "space.cell: .* has the unknown operation 'conv'"),
        ({"cell": "000000"}, "space.cell must lead from its input to its output"),
        ({"channels": (8, 8)}, r"space.channels must list one or more different options, but got \[8, 8\]"),
        ({"channels": (8, 0)}, "space.channels must be at least 1, but got 0"),
        ({"stages": 0}, "space.stages must be at least 1, but got 0"),
        ({"cells_per_stage": 0}, "space.cells_per_stage must be at least 1, but got 0"),
    ],
)
def test_what_is_wrong_with_a_declaration_is_named_by_its_key(options, sentence):
    if sentence is None:
        assert spaces.load("nasbench201-size", **options).cell == "323"
        return
    with pytest.raises(InputError, match=sentence):
        spaces.load("nasbench201-size", **options)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("8:16:64", "An architecture of nasbench201-size has 5 layers, but '8:16:64' has 3"),
        ("8:16:64:48:33", "The layer 5 of an architecture of nasbench201-size is one of 8, .*, but '.*' has 33"),
        ("323133", "has 5 layers, but '323133' has 1"),
    ],
)
def test_an_architecture_of_another_space_is_named(text, sentence):
    with pytest.raises(InputError, match=sentence):
        spaces.load("nasbench201-size").parse(text)


def test_it_has_no_supernet():
    with pytest.raises(InputError, match="the space nasbench201-size has none"):
        mixed(spaces.load("nasbench201-size"), "gumbel")
