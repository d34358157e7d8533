import json
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from robust_nas.attacks import Attack
from robust_nas.attacks.fgsm import FGSM
from robust_nas.attacks.pgd import PGD
from robust_nas.core import config
from robust_nas.core.errors import InputError
from robust_nas.threat import Pixels, ThreatModel


@dataclass(frozen=True, kw_only=True)
class Inner:
    steps: int = 3


@dataclass(frozen=True, kw_only=True)
class Section:
    count: int
    length: Pixels = 0.1
    root: Path | None = None
    inner: Inner = field(default_factory=Inner)
    attack: Attack = field(default_factory=FGSM)
    attacks: tuple[Attack, ...] = ()
    radii: tuple[Pixels, ...] = ()


def test_a_table_becomes_the_dataclass_it_describes():
    built = config.build(
        Section,
        {
            "count": 2,
            "length": "8/255",
            "root": "somewhere",
            "inner": {"steps": 5},
            "attack": {"name": "pgd", "steps": 7, "step_size": "2/255"},
            "attacks": ["fgsm", {"name": "pgd", "steps": 1}],
            "radii": ["1/255", 0.5],
        },
    )
    assert built == Section(
        count=2,
        length=8 / 255,
        root=Path("somewhere"),
        inner=Inner(steps=5),
        attack=PGD(steps=7, step_size=2 / 255),
        attacks=(FGSM(), PGD(steps=1)),
        radii=(1 / 255, 0.5),
    )


def test_what_is_written_is_read_back_the_same():
    section = Section(count=1, attack=PGD(steps=3), attacks=(FGSM(random_start=True),), radii=(0.25,))
    text = config.to_toml(config.to_dict(section))
    assert config.build(Section, tomllib.loads(text)) == section
    assert tomllib.loads(text)["attack"]["name"] == "pgd"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"count": 1, "lenght": 0.1}, r"no key 'lenght'. Did you mean 'length'\?"),
        ({}, "must have the key 'count'"),
        ({"count": "two"}, "count must be a valid integer, but got 'two'"),
        ({"count": 1.5}, "count must be a valid integer"),
        ({"count": True}, "count must be a valid integer"),
        ({"count": 1, "inner": 3}, "inner must be a table, but got 3"),
        ({"count": 1, "inner": {"stpes": 3}}, r"section \[inner\] has no key 'stpes'. Did you mean 'steps'"),
        ({"count": 1, "attack": "pdg"}, "has no 'pdg'. Did you mean 'pgd'"),
        ({"count": 1, "attack": 3}, "attack must be a name or a table"),
        ({"count": 1, "attacks": "pgd"}, "attacks must be a list, but got 'pgd'"),
        ({"count": 1, "attacks": [{"name": "pgd", "stepz": 1}]}, r"section \[attacks\[0\]\] has no key 'stepz'"),
        ({"count": 1, "attack": {"name": "fgsm", "queries": 2}}, "no key 'queries'.* attack=fgsm leaves it out"),
        ({"count": 1, "attacks": [{"name": "fgsm", "queries": 2}]}, r"no key 'queries'\. Available: [a-z_, ]+\.$"),
        ({"count": 1, "length": "8/x"}, "length: .*fraction"),
    ],
)
def test_a_mistake_is_named_with_its_place(table, message):
    with pytest.raises(InputError, match=message):
        config.build(Section, table)


def test_overrides_are_toml_values_or_plain_text_at_dotted_keys():
    table = {"attack": "fgsm", "inner": {"steps": 3}, "list": [1]}
    changed = config.override(
        table, ["inner.steps=5", "attack.random_start=true", "length=8/255", "list=[2, 3]", "new.key=x"]
    )
    assert changed == {
        "attack": {"name": "fgsm", "random_start": True},
        "inner": {"steps": 5},
        "list": [2, 3],
        "length": "8/255",
        "new": {"key": "x"},
    }
    assert table == {"attack": "fgsm", "inner": {"steps": 3}, "list": [1]}


@pytest.mark.parametrize("assignment", ["epochs", "=3", "list.key=1"])
def test_an_override_that_makes_no_sense_is_refused(assignment):
    with pytest.raises(InputError, match="override"):
        config.override({"list": [1]}, [assignment])


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("pgd", {}),
        ("pgd[steps=100, loss=margin]", {"steps": 100, "loss": "margin"}),
        (
            "x[files=['a,b=1', 'c'],deep={p=[1, 2], q='}'},last=3]",
            {"files": ["a,b=1", "c"], "deep": {"p": [1, 2], "q": "}"}, "last": 3},
        ),
        ("""x[said="\\",a=1",path=it's]""", {"said": '",a=1', "path": "it's"}),
    ],
)
def test_a_component_in_a_word_has_settings_between_commas_that_are_not_quoted(text, settings):
    assert config.component(text) == {"name": text.partition("[")[0], **settings}


def test_a_component_is_read_as_it_was_written():
    settings = {"steps": 100, "epsilon": 0.5, "surrogates": ["a,b", "c=1"]}
    assert config.component(config.word("pgd", settings)) == {"name": "pgd", **settings}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("predictor(prior=none)", r"square brackets: write 'predictor\[prior=none\]', not 'predictor\(prior=none\)'"),
        ("pgd[steps=3", "name\\[key=value"),
        ("pgd[steps=3,steps=4]", "the setting steps twice"),
        ("pgd[steps]", "written as key=value"),
        ("[steps=3]", "written as a name"),
    ],
)
def test_a_component_that_is_written_otherwise_is_refused_with_the_right_spelling(text, message):
    with pytest.raises(InputError, match=message):
        config.component(text)


@pytest.mark.parametrize("value", ["9" * 400, "9" * 5000, "[" * 3000 + "]" * 3000, "1e400"])
def test_an_override_that_no_number_can_hold_costs_a_short_sentence(value):
    with pytest.raises(InputError, match="count must be ") as refused:
        config.build(Section, config.override({"count": 1}, [f"count={value}"]))
    assert len(str(refused.value)) < 300


def test_differences_name_the_keys_and_both_values():
    before, after = (
        {"train": {"epochs": 3, "batch": 1}, "seed": 0},
        {"train": {"epochs": 4, "batch": 1}, "seed": 0, "x": 1},
    )
    assert config.differences(before, after) == ["train.epochs (3 -> 4)", "x (None -> 1)"]


def test_damaged_toml_is_refused_with_its_line(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text("a = 1\nb = = 2\n")
    with pytest.raises(InputError, match="line 2"):
        config.read_toml(path)


def test_a_threat_model_is_a_section_like_any_other():
    built = config.build(ThreatModel, {"norm": "l2", "epsilon": "1/2"})
    assert built == ThreatModel(norm="l2", epsilon=0.5)
    assert json.dumps(config.to_dict(built)) == '{"norm": "l2", "epsilon": 0.5}'


def test_a_byte_order_mark_and_line_endings_of_windows_are_read_over(tmp_path):
    (tmp_path / "notepad.toml").write_bytes(b"\xef\xbb\xbfcount = 2\r\nname = 'a'\r\n")
    assert config.read_toml(tmp_path / "notepad.toml") == {"count": 2, "name": "a"}
