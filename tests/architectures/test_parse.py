"""A text says by itself of which kind its architecture is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from robust_nas import architectures
from robust_nas.architectures.cell import Architecture
from robust_nas.architectures.channels import ChannelConfiguration
from robust_nas.architectures.genotype import Genotype
from robust_nas.architectures.residual import ResidualArchitecture
from robust_nas.architectures.resnet import ResNetArchitecture
from robust_nas.cli import listing
from robust_nas.core.errors import InputError

CELL = "|nor_conv_3x3~0|+|none~0|skip_connect~1|"
GENOTYPE = (
    "Genotype(normal=[('skip_connect', 0), ('sep_conv_3x3', 1)], normal_concat=range(2, 3), "
    "reduce=[('max_pool_3x3', 1), ('dil_conv_5x5', 0)], reduce_concat=range(2, 3))"
)
RESIDUAL = "depths=2-1 widths=16-32 kernel=3 activation=silu norm=batch se=none block=basic stem=16"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (CELL, Architecture),
        ("301", Architecture),
        (GENOTYPE, Genotype),
        (RESIDUAL, ResidualArchitecture),
        ("resnet-152 width=2", ResNetArchitecture),
        ("wrn-28-10", ResNetArchitecture),
        ("8:16:64", ChannelConfiguration),
    ],
)
def test_a_text_is_read_by_its_kind_which_reads_its_string_again(text: str, kind: type) -> None:
    for written in (text, f" {text}\n"):
        found = architectures.parse(written)
        assert type(found) is kind and found == kind.parse(text)
        assert architectures.parse(str(found)) == found


def test_digits_count_in_the_operations_that_are_given() -> None:
    names = ("skip_connect", "none")
    found = architectures.parse("010", names)
    assert isinstance(found, Architecture) and found.operations == ("skip_connect", "none", "skip_connect")
    assert found.short(names) == "010"
    assert architectures.parse(GENOTYPE, names) == Genotype.parse(GENOTYPE)


@pytest.mark.parametrize(
    "text", ["", "pgd", "8:", "runs/2026", "genotype", "resnet", "my-resnet-18", "\N{SUPERSCRIPT TWO}"]
)
def test_a_text_of_no_kind_is_refused_with_the_forms_that_there_are(text: str) -> None:
    assert architectures.kind_of(text) is None
    with pytest.raises(
        InputError,
        match=r"is no architecture.*nor_conv_3x3~0.*8:16:64:48:32.*Genotype.*depths=2-3-1.*resnet-152 width=2",
    ):
        architectures.parse(text)


@pytest.mark.parametrize("text", ["|nor_conv_3x3~1|", "Genotype(normal=1)", "depths=2", "0:16", "resnet-1"])
def test_a_malformed_text_is_refused_by_its_kind(text: str) -> None:
    kind = architectures.kind_of(text)
    assert kind is not None
    with pytest.raises(InputError) as refused:
        kind.parse(text)
    with pytest.raises(InputError) as here:
        architectures.parse(text)
    assert str(here.value) == str(refused.value)


def test_reading_an_architecture_imports_neither_torch_nor_pydantic() -> None:
    code = "import sys; from robust_nas import architectures; architectures.parse('8:16'); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "pydantic", "numpy"} & set(loaded)


def test_a_new_kind_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "depth.py").write_text(
        """
from dataclasses import dataclass
from robust_nas.architectures import AnyArchitecture

@dataclass(frozen=True)
class Depth(AnyArchitecture):
    layers: int
    form = "layers:4"

    def __str__(self):
        return f"layers:{self.layers}"

    @classmethod
    def recognises(cls, text):
        return text.startswith("layers:")

    @classmethod
    def parse(cls, text):
        return cls(int(text.removeprefix("layers:")))
"""
    )
    monkeypatch.setattr(architectures, "__path__", [*architectures.__path__, str(tmp_path)])
    found = architectures.parse("layers:7")
    assert (str(found), found.canonical, found.family, found.is_connected) == (*3 * ("layers:7",), True)
    assert listing.describe("layers:7") == "string     layers:7"
