"""Tables of several recipes: what tells them apart is said by name, and one can be chosen."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from robust_nas import tables
from robust_nas.core.errors import InputError
from robust_nas.report.explorer import write_explorer
from robust_nas.tables import Row, Table, answers, local


def row(number: int, accuracy: float, attack: str = "pgd", **values: Any) -> Row:
    """Return a row of a run of the recipe digits, the runs one day after the other."""
    train = {"epochs": 10 * number, "method": {"name": "pgd_at"}}
    recipe = {"data": {"name": "digits"}, "threat": {"norm": "linf", "epsilon": 0.2}, "train": train}
    measured = {"num_images": 100}
    certified = attack.startswith("certified")
    given: dict[str, Any] = {
        "architecture": "|nor_conv_3x3~0|", "canonical": "(0)@nor_conv_3x3", "space": "nasbench201",
        "skeleton": "channels=8", "dataset": "digits", "split": "test", "recipe": "pgd_at",
        "recipe_hash": local.settings_hash(recipe), "recipe_name": "digits", "recipe_settings": json.dumps(recipe),
        "seed": 0, "attack": attack, "norm": "linf", "epsilon": 0.02 if certified else 0.2,
        "evaluation_hash": local.settings_hash(measured), "evaluation_settings": json.dumps(measured),
        "accuracy": accuracy, "num_images": 100, "version": "0", "hardware": "cpu", "model": "model-0",
        "source": f"2026010{number}-digits-00000{number}", "started": datetime(2026, 1, number, tzinfo=UTC),
    }  # fmt: skip
    return Row(**{**given, **values})


def table_of(path: Path, *rows: Row) -> Table:
    tables.append(path, rows)
    return tables.load(path)


def test_recipes_are_told_apart_by_name_and_key_and_are_never_mixed(tmp_path: Path) -> None:
    # The later run first: names are in the order of the runs.
    table = table_of(tmp_path / "table", row(2, 0.6), row(1, 0.5))
    sentence = (
        r"2 columns fit 'pgd@0\.2': they differ in recipe \(digits, digits-2, which differ in train\.epochs 10 or 20\)"
        r"; say which, such as recipe=digits\."
    )
    with pytest.raises(InputError, match=sentence):
        table.top(1, "pgd@0.2")
    with pytest.raises(InputError, match=sentence):
        answers.top(table, ["pgd@0.2"], 1)
    chosen = {"digits": 0.5, "digits-2": 0.6}
    for name, accuracy in chosen.items():
        (found,) = answers.top(table, ["pgd@0.2", f"recipe={name}"], 1).records
        assert (found["accuracy"], found["recipe_name"]) == (accuracy, name)
    assert answers.top(table, ["train.epochs=20"], 1).records[0]["accuracy"] == 0.6
    assert answers.top(table, ["recipe=pgd_at", "train.epochs=10"], 1).records[0]["accuracy"] == 0.5
    assert len(table.select("pgd@0.2", **{"threat.epsilon": "0.2"})) == 2
    text = answers.overview(table).text()
    assert "digits-2" in text and (row(1, 0.5).recipe_hash or "") not in text


def test_a_recipe_that_is_not_there_is_told_with_those_that_are(tmp_path: Path) -> None:
    table = table_of(tmp_path / "table", row(1, 0.5), row(2, 0.6))
    with pytest.raises(
        InputError, match=r"recipe=digits-3\. Did you mean 'digits-2'\? Available: digits, digits-2, pgd"
    ):
        table.top(1, recipe="digits-3")
    with pytest.raises(InputError, match=r"No network of the table has train\.epochs=7: it has 10 and 20"):
        table.top(1, **{"train.epochs": "7"})
    with pytest.raises(InputError, match=r"have no 'train\.epoch', or are not known"):
        table.top(1, **{"train.epoch": "10"})


def test_measurements_with_other_settings_are_told_by_key(tmp_path: Path) -> None:
    more = {"num_images": 200}
    other = {"evaluation_hash": local.settings_hash(more), "evaluation_settings": json.dumps(more)}
    limits = {"epsilons": [0.02]}
    certified = {"evaluation_hash": local.settings_hash(limits), "evaluation_settings": json.dumps(limits)}
    again = {"source": "again", "started": None}
    table = table_of(
        tmp_path / "table", row(1, 0.5), row(1, 0.1, "certified:crown", **certified), row(1, 0.4, **other, **again)
    )
    with pytest.raises(
        InputError, match=r"they differ in evaluation\.num_images 100 or 200; say which, such as evaluat"
    ):
        table.top(1, "pgd@0.2")
    assert table.top(1, "pgd@0.2", **{"evaluation.num_images": 200})[0].mean == 0.4
    assert table.top(1, "certified:crown@0.02")[0].mean == 0.1


def test_older_rows_are_named_by_their_runs_and_their_settings_read_there(tmp_path: Path) -> None:
    unknown = dict.fromkeys(["recipe_name", "recipe_settings", "evaluation_settings"])
    table = table_of(tmp_path / "table", row(1, 0.5, **unknown), row(2, 0.6, **unknown))
    with pytest.raises(InputError, match=r"recipe \(digits, digits-2, whose settings are not all known\); say which"):
        table.top(1, "pgd@0.2")
    assert table.top(1, "pgd@0.2", recipe="digits-2")[0].mean == 0.6
    for number in (1, 2):
        run = tmp_path / f"2026010{number}-digits-00000{number}"
        run.mkdir()
        (run / "config.toml").write_text(
            f'name = "mine"\ndata = {{name = "digits", root = "/elsewhere"}}\n[threat]\nnorm = "linf"\nepsilon = 0.2\n'
            f'[train]\nepochs = {10 * number}\nmethod = {{name = "pgd_at"}}\n[evaluation]\nnum_images = 100\n'
        )
    with pytest.raises(InputError, match=r"recipe \(mine, mine-2, which differ in train\.epochs 10 or 20\)"):
        tables.load(tmp_path / "table").top(1, "pgd@0.2")
    # A run folder that was begun anew says nothing about the row.
    (run / "config.toml").write_text((run / "config.toml").read_text().replace("epochs = 20", "epochs = 30"))
    with pytest.raises(InputError, match="whose settings are not all known"):
        tables.load(tmp_path / "table").top(1, "pgd@0.2")


def test_the_page_names_recipes_too(tmp_path: Path) -> None:
    table = table_of(tmp_path / "table", row(1, 0.5), row(2, 0.6))
    text = write_explorer(table, tmp_path / "page.html").read_text()
    assert '"digits pgd@0.2, recipe digits-2"' in text
