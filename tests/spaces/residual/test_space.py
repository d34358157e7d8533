import math
import random

import pytest

from robust_nas import spaces
from robust_nas.core.errors import InputError
from robust_nas.samplers import classes, draw
from robust_nas.searches import SearchResult
from robust_nas.spaces import MixedSpace, mixed

TINY = spaces.load(
    "robust-resnet-small", depths=((1, 2), (1,)), widths=((4,), (4, 8)), norms=("batch",), activations=("relu", "silu"),
    kernels=(3,), se=("none", "relu"), blocks=("basic",), stems=(4,),
)  # fmt: skip


def test_the_wide_residual_network_that_the_papers_change_is_in_the_declared_space():
    text = "depths=5-5-5 widths=160-320-640 kernel=3 activation=relu norm=batch se=none block=basic stem=16"
    assert str(spaces.load("robust-resnet").parse(text)) == text


def test_a_space_has_as_many_architectures_as_its_options_have_products():
    # Two first depths, two last widths, two activations, with and without squeeze-and-excitation.
    assert len(classes(TINY)) == 2**4


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"activations": ("relu", "sillu")}, "space.activations must be of relu, .*, but got 'sillu'. Did you mean"),
        ({"norms": ()}, r"space.norms must list one or more different options, but got \[\]"),
        ({"blocks": ("basic", "basic")}, r"space.blocks must list one or more different options"),
        ({"kernels": (3, 4)}, "space.kernels must be odd and at least 3, but got 4"),
        ({"stems": (0,)}, "space.stems must be at least 1, but got 0"),
        ({"depths": ((1, 0), (1,), (1,))}, r"space.depths\[0\] must be at least 1, but got 0"),
        ({"widths": ((4,), (4,))}, "one list of options for each stage, but got 3 and 2"),
        ({"widths": (4, 4, 4)}, r"space robust-resnet-small.widths\[0\] must be a list, but got 4"),
        ({"se_reduction": 0}, "space.se_reduction must be at least 1"),
        ({"kernel": (3,)}, "has no key 'kernel'. Did you mean 'kernels'?"),
    ],
)
def test_what_is_wrong_with_a_declaration_is_named_by_its_key(options, sentence):
    with pytest.raises(InputError, match=sentence):
        spaces.load("robust-resnet-small", **options)


@pytest.mark.parametrize(
    ("wrong", "right", "sentence"),
    [
        ("4-8", "4-6", "The width 2 of an architecture of robust-resnet-small is one of 4, 8, but '.*' has 6"),
        ("relu ", "gelu ", "The activation of an architecture .* is one of relu, silu, but '.*' has gelu"),
        ("=4-8", "=4-8-8", "2 depths and 3 widths"),
        ("=1-1 widths=4-8", "=1 widths=4", "has 2 stages, but '.*' has 1"),
    ],
)
def test_an_architecture_of_another_space_is_named(wrong, right, sentence):
    text = "depths=1-1 widths=4-8 kernel=3 activation=relu norm=batch se=none block=basic stem=4"
    assert str(TINY.parse(text)) == text
    with pytest.raises(InputError, match=sentence):
        TINY.parse(text.replace(wrong, right))


def test_a_belief_is_of_each_decision_on_its_own():
    rows = [[1.0 / len(values)] * len(values) for values in TINY.choices.values()]
    found = SearchResult(TINY, rows, None, {})
    assert sorted(str(architecture) for architecture, _ in found.ranked()) == sorted(map(str, classes(TINY)))
    rows[list(TINY.choices).index("activation")] = [0.25, 0.75]
    architecture, logarithm = next(SearchResult(TINY, rows, None, {}).ranked())
    assert architecture.activation == "silu"
    assert logarithm == pytest.approx(math.log(0.75 / 2**3))


def test_a_space_without_a_supernet_says_so_and_which_searches_work():
    assert not isinstance(TINY, MixedSpace) and isinstance(spaces.load("darts"), MixedSpace)
    assert mixed(spaces.load("nasbench201"), "dirichlet").name == "nasbench201"
    with pytest.raises(
        InputError, match=r"'dirichlet' trains a supernet, but the space .* has none.*'sampled'.*'given'"
    ):
        mixed(TINY, "dirichlet")


def test_random_architectures_differ():
    space = spaces.load("robust-resnet")
    drawn = {str(draw(space, random.Random(seed))) for seed in range(20)}
    assert len(drawn) == 20
