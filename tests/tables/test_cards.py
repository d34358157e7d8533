"""Cards say what is known of a published table, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from robust_nas.core.errors import InputError
from robust_nas.tables import cards, formats
from robust_nas.tables.cards import Card

CARD = """
title = "A table"
format = "nas-robbench-201-web"
homepage = "http://example.org"
paper = "none"
license = "none"
units = "fractions"
training = "PGD"
measured = "PGD"
seeds = "one"
caveats = ["take care"]
[[files]]
name = "a.json"
url = "http://example.org/a.json"
sha256 = "0000000000000000000000000000000000000000000000000000000000000000"
[rows]
space = "nasbench201"
skeleton = "channels=16"
split = "test"
recipe = "pgd_at"
[datasets]
imagenet = { name = "imagenet16-120", num_images = 6_000 }
[columns]
pgd_8 = { attack = "pgd", norm = "linf", epsilon = "8/255", num_seeds = 3, is_mean = true }
aa = { attack = "autoattack", norm = "linf" }
"""


def card_of(folder: Path, text: str) -> Card:
    (folder / "a-table.toml").write_text(text)
    return cards.load(str(folder / "a-table.toml"))


def test_a_card_says_what_the_rows_of_a_quantity_share_and_leaves_out_what_is_not_stated(tmp_path: Path) -> None:
    card = card_of(tmp_path, CARD)
    shared = {
        "space": "nasbench201", "skeleton": "channels=16", "split": "test", "recipe": "pgd_at",
        "dataset": "imagenet16-120", "num_images": 6000, "source": "a-table", "norm": "linf",
    }  # fmt: skip
    pgd = {"attack": "pgd", "epsilon": 8 / 255, "num_seeds": 3, "is_mean": True}
    assert card.constant("imagenet", "pgd_8") == {**shared, **pgd}
    unknown = {"attack": "autoattack", "epsilon": None, "num_seeds": None, "is_mean": False}
    assert card.constant("imagenet", "aa") == {**shared, **unknown}


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ('title = "A table"', "", "lacks the key 'title'"),
        ("[rows]", "[rowz]", "has the unknown key 'rowz'. Did you mean 'rows'"),
        ('split = "test"\n', "", "rows lacks the key 'split'"),
        ("num_images = 6_000", 'num_images = "6000"', "datasets.imagenet, num_images must be of type int"),
        ('epsilon = "8/255"', "eps = 8", "columns.pgd_8 has the unknown key 'eps'. Did you mean 'epsilon'"),
        ('epsilon = "8/255"', 'epsilon = "8/x"', "A length in pixels must be a number or a fraction"),
        (
            'sha256 = "0000000000000000000000000000000000000000000000000000000000000000"',
            "",
            "an address must be of HTTP and come with a sha256",
        ),
        ('name = "', 'name = "../', "must be named without a folder"),
        ('url = "http:', 'url = "file:', "an address must be of HTTP and come with a sha256"),
        ('caveats = ["take care"]', "caveats = [1]", "caveats must be of type str, but got 1"),
        ("[[files]]", "[files]", "files must be of type list"),
        ("[rows]", "[rows", "is not valid TOML"),
    ],
)
def test_a_card_with_a_mistake_is_refused_in_one_sentence(tmp_path: Path, old: str, new: str, sentence: str) -> None:
    assert old in CARD
    with pytest.raises(InputError, match=sentence):
        card_of(tmp_path, CARD.replace(old, new))


def test_an_unknown_card_is_answered_with_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Did you mean 'nas-robbench-201'"):
        cards.load("nas-robench-201")
    with pytest.raises(InputError, match=r"There is no file .*none\.toml"):
        cards.load(str(tmp_path / "none.toml"))


@pytest.mark.parametrize("name", cards.names())
def test_every_card_describes_its_table_for_people(
    name: str, tmp_path: Path, own_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = cards.load(name)
    assert card.format in formats.names()
    text = card.describe()
    words = " ".join(text.split())
    for fact in (
        card.title,
        card.homepage,
        card.paper,
        card.license,
        *card.caveats,
        *(file.name for file in card.files),
    ):
        assert " ".join(fact.split()) in words
    assert "not on this machine; fetch it" in words or "address not found" in words
    assert max(map(len, text.splitlines())) <= 120
    (own_home / "tables").mkdir(parents=True)
    (own_home / "tables" / f"{name}.parquet").touch()
    assert "not on this machine" not in card.describe()


def test_the_cards_have_the_published_addresses_checksums_and_columns() -> None:
    card = cards.load("nas-robbench-201")
    page = "https://tt2408.github.io/nasrobbench201hp/files/"
    assert [file.url for file in card.files] == [f"{page}NAS-RobBench-201_html.json", f"{page}ops.json"]
    assert [file.sha256 for file in card.files] == [
        "b3dc99b96324de07b1dd9f3c39830fe0f82aae7fbd1b20eb0a6885cabd4f2388",
        "1797c0b1bd00d1769f18de3edd74a942ceb627f8f72315b7aa8eff06a28c7a5d",
    ]
    assert len(card.datasets) * len(card.columns) == 18
    # Of the 15 common corruptions of CIFAR-10-C (Hendrycks & Dietterich 2019, arXiv:1903.12261).
    names = {column.attack for column in cards.load("robustness-dataset").columns.values()}
    assert len([name for name in names if name.startswith("corruption:")]) == 15


def test_reading_a_card_imports_neither_pydantic_nor_anything_slow() -> None:
    code = """
import sys
from robust_nas.tables import cards
cards.load("nas-robbench-201").describe()
slow = ("pydantic", "rich", "torch", "pandas", "scipy", "sklearn", "matplotlib")
print([name for name in slow if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
