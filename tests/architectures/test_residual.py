import pytest

from robust_nas.architectures import AnyArchitecture
from robust_nas.architectures.residual import ResidualArchitecture
from robust_nas.core.errors import InputError

TEXT = "depths=2-3-1 widths=16-32-64 kernel=3 activation=silu norm=batch se=none block=basic stem=16"


def test_an_architecture_is_read_as_it_is_written():
    read = ResidualArchitecture.parse(TEXT)
    assert str(read) == read.canonical == read.family == TEXT
    assert (read.depths, read.widths, read.kernel, read.stem) == ((2, 3, 1), (16, 32, 64), 3, 16)
    assert (read.activation, read.norm, read.se, read.block) == ("silu", "batch", "none", "basic")
    assert isinstance(read, AnyArchitecture) and read.is_connected


def test_the_order_of_the_keys_and_zeros_in_front_change_nothing():
    other = ResidualArchitecture.parse(" ".join(reversed(TEXT.replace("stem=16", "stem=016").split())))
    assert other == ResidualArchitecture.parse(TEXT) and hash(other) == hash(ResidualArchitecture.parse(TEXT))


@pytest.mark.parametrize(
    ("wrong", "right", "sentence"),
    [
        ("silu", "sillu", "activation of a residual network is one of relu, silu, gelu, softplus, but got 'sillu'"),
        ("norm=", "nrm=", "Did you mean 'norm'?"),
        (" stem=16", "", "has no stem"),
        ("stem=16", "stem=16 stem=8", "has several"),
        ("2-3-1", "2-3", "2 depths and 3 widths"),
        ("2-3-1", "2--1", r"depths of a residual network is written in numbers, such as 2-3-1, but got '2--1'"),
        ("2-3-1", "2-0-1", "depths of a residual network must be at least 1, but got 0"),
        ("kernel=3", "kernel=4", "must be odd and at least 3, but got 4"),
        ("kernel=3", "kernel=3-5", "kernel of a residual network is one number, but got 2"),
        ("block=basic", "basic", "is written depths=2-3-1 .*, but got 'basic'"),
    ],
)
def test_what_is_wrong_with_a_string_is_named(wrong, right, sentence):
    with pytest.raises(InputError, match=sentence):
        ResidualArchitecture.parse(TEXT.replace(wrong, right))
