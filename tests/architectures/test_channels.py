import pytest

from robust_nas.architectures import AnyArchitecture
from robust_nas.architectures.channels import ChannelConfiguration
from robust_nas.core.errors import InputError


def test_sizes_are_read_as_they_are_written():
    read = ChannelConfiguration.parse(" 8:16:64:48:32 ")
    assert read.channels == (8, 16, 64, 48, 32) and str(read) == read.canonical == read.family == "8:16:64:48:32"
    assert (
        isinstance(read, AnyArchitecture)
        and read.is_connected
        and hash(read) == hash(ChannelConfiguration.parse("8:16:64:48:32"))
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("8:16:x", "but '8:16:x' has 'x'"),
        ("8::16", "but '8::16' has ''"),
        ("", "but '' has ''"),
        ("8:-16", "has '-16'"),
        ("8:0", r"Layers have 1 channel or more, but got \[8, 0\]"),
    ],
)
def test_what_is_wrong_with_sizes_is_named(text, sentence):
    with pytest.raises(InputError, match=sentence):
        ChannelConfiguration.parse(text)
