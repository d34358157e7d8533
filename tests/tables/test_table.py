"""Questions to a table: the expected answers are published numbers, brute force, or worked out by hand."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from robust_nas import tables
from robust_nas.architectures.cell import Architecture
from robust_nas.core.errors import InputError
from robust_nas.tables import ArchitectureNotInTable, Row, Table, answers, transfer
from robust_nas.tables._schema import SCHEMA, VERSION_KEY
from robust_nas.tables._table import non_dominated

PGD8: dict[str, Any] = {"dataset": "cifar10", "attack": "pgd", "epsilon": "8/255"}


def row(digits: str, accuracy: float, **other: Any) -> Row:
    cell = Architecture.parse(digits)
    given: dict[str, Any] = {
        "architecture": str(cell),
        "canonical": cell.canonical,
        "function": cell.function,
        "space": "nasbench201",
        "skeleton": "channels=8",
        "dataset": "digits",
        "split": "test",
        "recipe": "pgd_at",
        "recipe_hash": "abc",
        "seed": 0,
        "attack": "pgd",
        "norm": "linf",
        "epsilon": 0.2,
        "evaluation_hash": "def",
        "num_images": 100,
        "version": "0",
        "hardware": "cpu",
        "source": f"run-{digits}-{other.get('seed', 0)}",
        "model": "model-0",
        "started": None,
        "accuracy": accuracy,
    }
    return Row(**{**given, **other})


def table_of(folder: Path, *rows: Row) -> Table:
    tables.append(folder, rows)
    return tables.load(folder)


CLEAN: dict[str, Any] = {"attack": "clean", "norm": None, "epsilon": None}


# --- the published table ----------------------------------------------------------------------------------------------


def test_every_way_to_write_an_architecture_finds_the_published_number(robbench: Table) -> None:
    cell = Architecture.parse("323133")
    for written in (str(cell), "323133", cell, 2581, "2581", f" {cell} ", np.int64(2581)):
        result = robbench.query(written, **PGD8)
        assert result.mean == pytest.approx(0.4811, abs=5e-5)
        assert (result.rank, result.published_index, result.num_seeds, result.num_images) == (1, 2581, 3, 10_000)
    assert robbench.index[13714] == "333123"


def test_ranks_and_means_on_pgd_8_are_the_published_ones(robbench: Table) -> None:
    best = robbench.top(100, **PGD8)
    assert [round(100 * best[rank - 1].mean, 2) for rank in (1, 10, 50, 100)] == [48.11, 47.63, 47.23, 46.99]
    # Equal accuracies share a rank.
    assert [result.rank for result in best] == [1 + sum(o.mean > r.mean for o in best) for r in best]
    assert [robbench.index[result.published_index or 0] for result in best[:3]] == ["323133", "333133", "323123"]
    values = robbench.values(**PGD8)
    assert (np.mean(values), np.median(values)) == (pytest.approx(0.4075, abs=5e-5), pytest.approx(0.4275, abs=5e-5))
    assert best[0].percentile == 100


def test_query_and_query_many_give_what_the_published_file_says_of_every_string(
    robbench: Table, shared_data: Path
) -> None:
    text = (shared_data / "nas-robbench-201" / "NAS-RobBench-201_html.json").read_text()
    published = json.loads(text[text.index("{") :])
    place = published[""].index("cifar100#val_fgsm_3_acc")

    def value(index: int) -> float:
        found = published[str(index)]
        return float((published[found] if isinstance(found, str) else found)[place])

    criteria: dict[str, Any] = {"dataset": "cifar100", "attack": "fgsm", "epsilon": 3 / 255}
    # Means over 3 trainings and 10,000 images, written with the noise of float32; the table has the counts.
    counts = [round(30_000 * value(index)) for index in range(15_625)]
    assert max(abs(value(index) - count / 30_000) for index, count in enumerate(counts)) < 1e-7
    expected = [count / 30_000 for count in counts]
    assert robbench.query_many(np.arange(15_625), **criteria).tolist() == expected
    assert robbench.query_many(robbench.index, **criteria).tolist() == expected
    strings = [str(Architecture.parse(digits)) for digits in robbench.index]
    assert [robbench.query(string, **criteria).mean for string in strings] == expected


def test_the_noise_floor_of_pgd_8_is_the_published_one(robbench: Table) -> None:
    floor = robbench.noise_floor(**PGD8)
    assert floor is not None and floor.method == "identical functions"
    assert floor.std == pytest.approx(0.0032, abs=5e-5)
    assert robbench.query("323133", **PGD8).noise_floor == floor.std


def test_the_missing_radius_of_autoattack_stays_missing(robbench: Table) -> None:
    result = robbench.query("323133", dataset="cifar10", attack="autoattack")
    assert result.column.epsilon is None and result.column.label == "autoattack" and result.num_seeds == 1
    with pytest.raises(InputError, match=r"no column with epsilon=8/255 and the other criteria. Available: not stated"):
        robbench.query("323133", dataset="cifar10", attack="autoattack", epsilon="8/255")


def test_the_pareto_front_of_the_published_table_is_that_of_a_brute_force(robbench: Table) -> None:
    labels = ["clean", "pgd@8/255", "autoattack"]
    values = np.stack([robbench.values(label, dataset="cifar100") for label in labels], axis=1)
    expected = {
        robbench.architectures[place]
        for place, point in enumerate(values)
        if not ((values >= point).all(axis=1) & (values > point).any(axis=1)).any()
    }
    front = robbench.pareto(labels, dataset="cifar100")
    assert {results[0].architecture for results in front} == expected
    clean = [results[0].mean for results in front]
    assert clean == sorted(clean, reverse=True)


def test_a_query_names_what_it_lacks(robbench: Table) -> None:
    with pytest.raises(InputError, match=r"2 columns fit 'dataset=cifar10 attack=pgd'.* epsilon \(3/255, 8/255\)"):
        robbench.query("323133", dataset="cifar10", attack="pgd")
    with pytest.raises(InputError, match=r"no column with dataset=cifar\. Did you mean 'cifar10'\?"):
        robbench.query("323133", dataset="cifar", attack="pgd")
    with pytest.raises(InputError, match=r"not told apart by 'eps'.*epsilon"):
        robbench.query("323133", eps=8 / 255)
    with pytest.raises(
        InputError, match=r"has no column 'pgd@7/255' that fits the other criteria. Did you mean 'pgd@8/255'"
    ):
        robbench.query("323133", "pgd@7/255", dataset="cifar10")
    with pytest.raises(ArchitectureNotInTable, match="from 0 to 15624, but got 15625"):
        robbench.query(15_625, **PGD8)
    with pytest.raises(ArchitectureNotInTable, match="from 0 to 15624, but got -1"):
        robbench.query_many([3, -1], **PGD8)
    with pytest.raises(InputError, match="selects one value per criterion"):
        robbench.query("323133", dataset=["cifar10"])


def test_a_part_of_the_table_answers_as_the_whole(robbench: Table, tmp_path: Path) -> None:
    # Without the first classes, the others stand at other places than the source's numbering says.
    kept = robbench.architectures[100:150]
    transfer.export(robbench.rows(architecture=kept), tmp_path / "part.parquet")
    part = tables.load(tmp_path / "part.parquet")
    for architecture in kept:
        digits = Architecture.parse(architecture).digits()
        assert part.query(digits, **PGD8).mean == robbench.query(digits, **PGD8).mean
    with pytest.raises(ArchitectureNotInTable):
        part.query(robbench.architectures[0], **PGD8)
    with pytest.raises(InputError, match="does not number architectures"):
        part.query(2581, **PGD8)


@pytest.mark.parametrize("wrong", [True, 1.7, None, b"323133", "\u0663"])
def test_what_is_no_architecture_is_refused(robbench: Table, wrong: Any) -> None:
    with pytest.raises(InputError):
        robbench.query(wrong, **PGD8)


@pytest.mark.parametrize("wrong", ["323133", 7, [[1, 2]], None])
def test_query_many_takes_a_list(robbench: Table, wrong: Any) -> None:
    with pytest.raises(InputError, match="takes a list of architectures, but got an array of shape"):
        robbench.query_many(wrong, **PGD8)


def test_values_of_criteria_are_read_as_people_write_them(robbench: Table) -> None:
    assert len(robbench.dataframe(epsilon="8/255", dataset="cifar10")) == 2 * 6466
    with pytest.raises(InputError, match="No row of the table nas-robbench-201 has dataset=cifar11"):
        robbench.dataframe(dataset="cifar11")
    with pytest.raises(InputError, match=r"Did you mean 8/255\? Available: 3/255, 8/255"):
        robbench.query(1, dataset="cifar10", attack="pgd", epsilon=8)
    with pytest.raises(InputError, match="Did you mean 'cifar10'"):
        robbench.query(1, dataset="CIFAR10", attack="pgd", epsilon="8/255")
    with pytest.raises(InputError, match="unknown operation 'nor_conv_5x5'"):
        robbench.query(str(Architecture.parse("323133")).replace("3x3~0", "5x5~0"), **PGD8)
    with pytest.raises(InputError, match="at least 1"):
        robbench.top(0, **PGD8)


# --- tables of one's own ----------------------------------------------------------------------------------------------


def test_seeds_are_averaged_and_equivalent_architectures_are_one_class(tmp_path: Path) -> None:
    # An operation after a node that is zero is zero, in both of these.
    assert Architecture.parse("033330").is_equivalent(Architecture.parse("031330"))
    accuracies = {"033330": [0.50, 0.53, 0.59], "333333": [0.70, 0.74]}
    rows = [row(digits, value, seed=seed) for digits in accuracies for seed, value in enumerate(accuracies[digits])]
    rows[1] = row("031330", 0.53, seed=1)
    table = table_of(tmp_path, *rows)
    result = table.query("031330", "pgd@0.2")
    assert len(table) == 2 and result.rank == 2 and result.num_seeds == 3 and result.num_ranked == 2
    assert result.mean == pytest.approx(statistics.mean(accuracies["033330"]))
    assert result.std == pytest.approx(statistics.stdev(accuracies["033330"]))
    assert result.percentile == 50
    floor = table.noise_floor("pgd@0.2")
    assert floor is not None and floor.method == "seeds" and floor.num_groups == 2 and floor.num_members == 5
    # Pooled over the classes, weighted by degrees of freedom: 2 of a mean of three, 1 of a mean of two.
    variances = [statistics.variance(values) / len(values) for values in accuracies.values()]
    assert floor.std == pytest.approx(((2 * variances[0] + variances[1]) / 3) ** 0.5)


def test_the_noise_of_means_is_the_pooled_deviation_of_identical_functions(tmp_path: Path) -> None:
    groups: dict[str, list[str]] = {}
    seen: set[str] = set()
    for cell in Architecture.enumerate():
        if cell.canonical not in seen:
            seen.add(cell.canonical)
            groups.setdefault(cell.function, []).append(cell.digits())
    threes = [group for group in groups.values() if len(group) == 3]
    chosen = [*threes[:4], groups[Architecture.parse("333333").function]]
    generator = np.random.default_rng(0)
    values = [[float(value) for value in generator.uniform(0.3, 0.6, len(group))] for group in chosen]
    table = table_of(
        tmp_path,
        *(row(*pair) for group, of in zip(chosen, values, strict=True) for pair in zip(group, of, strict=True)),
    )
    floor = table.noise_floor("pgd@0.2")
    assert floor is not None and floor.num_groups == 4 and floor.num_members == 12
    assert floor.std == pytest.approx(statistics.mean(statistics.variance(of) for of in values[:4]) ** 0.5)


def test_one_class_alone_has_no_noise_floor(tmp_path: Path) -> None:
    assert table_of(tmp_path, row("333333", 0.5)).query("333333").noise_floor is None


def test_equal_accuracies_share_the_better_rank(tmp_path: Path) -> None:
    table = table_of(tmp_path, *(row(d, a) for d, a in [("333333", 0.5), ("323333", 0.6), ("223333", 0.5)]))
    assert [result.rank for result in table.top(3)] == [1, 2, 2]
    assert table.query("333333").percentile == pytest.approx(200 / 3)


def test_architectures_without_a_canonical_form_are_classes_of_their_own(tmp_path: Path) -> None:
    unknown: dict[str, Any] = {"canonical": None, "function": None}
    table = table_of(tmp_path, row("333333", 0.5, **unknown), row("222222", 0.6, **unknown), row("232323", 0.7))
    assert sorted(zip(table.values().tolist(), table.architectures, strict=True)) == [
        (accuracy, str(Architecture.parse(digits)))
        for accuracy, digits in ((0.5, "333333"), (0.6, "222222"), (0.7, "232323"))
    ]


def test_an_architecture_that_was_not_measured_is_told_with_the_nearest(tmp_path: Path) -> None:
    table = table_of(tmp_path, row("333333", 0.5), row("222222", 0.6), row("222222", 0.9, **CLEAN))
    with pytest.raises(
        ArchitectureNotInTable, match=r"neither .* nor an equivalent.* Nearest: .*1 other operation"
    ) as told:
        table.query("333332", "pgd@0.2")
    assert str(Architecture.parse("333333")) in str(told.value)
    with pytest.raises(ArchitectureNotInTable, match="in that column"):
        table.query("333333", "clean")
    with pytest.raises(ArchitectureNotInTable, match="in that column"):
        table.query_many(["222222", "333333"], "clean")
    with pytest.raises(InputError, match="does not number architectures"):
        table.query(7, "clean")
    assert [result.column.label for result in table.results("333333")] == ["pgd@0.2"]


def test_equal_seeds_in_another_order_are_a_tie(tmp_path: Path) -> None:
    seeds = {"333333": (0.1, 0.2, 0.3), "222222": (0.3, 0.2, 0.1)}
    rows = [row(digits, value, seed=seed) for digits, values in seeds.items() for seed, value in enumerate(values)]
    table = table_of(tmp_path, *rows, *(row(digits, 0.9, **CLEAN) for digits in seeds))
    assert [result.rank for result in table.top(2, "pgd@0.2")] == [1, 1]
    assert len(table.pareto(["clean", "pgd@0.2"])) == 2


def test_architectures_with_operations_that_we_cannot_read_are_found_by_their_own_words(tmp_path: Path) -> None:
    other: dict[str, Any] = {"architecture": "resnet-18", "canonical": None, "function": None, "source": "other"}
    table = table_of(tmp_path, row("333333", 0.5), row("333333", 0.8, **other))
    assert table.query("resnet-18").mean == 0.8 and table.top(1)[0].architecture == "resnet-18"
    assert "resnet-18" in answers.top(table, [], 2).text()
    with pytest.raises(InputError, match="malformed"):
        table.query("resnet-34")


def test_a_network_that_is_recorded_again_while_the_table_is_read_is_read_whole(tmp_path: Path) -> None:
    tables.append(tmp_path, [row("333333", 0.5), row("333333", 0.9, **CLEAN)])
    program = (
        "import sys; from robust_nas import tables\n"
        "rows = [tables.Row(**row) for row in tables.read(sys.argv[1]).to_pylist()]\n"
        "while True: tables.append(sys.argv[1], rows)"
    )
    writer = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)])
    try:
        for _ in range(300):
            assert len(tables.load(tmp_path).columns) == 2
    finally:
        writer.kill()
        writer.wait()


def test_what_cannot_be_read_is_not_called_damaged(tmp_path: Path) -> None:
    (tmp_path / "notes.parquet").write_text("no table")
    with pytest.raises(InputError, match=r"damaged, or no table .*; if it was one, fetch, import or record it again"):
        tables.load(tmp_path / "notes.parquet")
    tables.append(tmp_path / "own", [row("333333", 0.5)])
    (part,) = (tmp_path / "own").iterdir()
    wrong = pq.read_table(part)
    for accuracy, reason in {47.5: "accuracy must be at least 0 and at most 1", float("nan"): "no finite"}.items():
        changed = wrong.set_column(wrong.schema.names.index("accuracy"), "accuracy", pa.array([accuracy]))
        pq.write_table(changed.cast(wrong.schema), part)
        with pytest.raises(InputError, match=reason):
            tables.load(tmp_path / "own")


def test_labels_say_radius_norm_and_severity(tmp_path: Path) -> None:
    table = table_of(
        tmp_path,
        row("333333", 0.1, norm="l2", epsilon=0.5),
        row("333333", 0.2, norm="linf", epsilon=8 / 255),
        row("333333", 0.3, attack="corruption:fog", norm=None, epsilon=None, severity=3),
        row("333333", 0.4, attack="square", epsilon=None),
    )
    for label, accuracy in {"pgd@l2:0.5": 0.1, "pgd@8/255": 0.2, "corruption:fog@3": 0.3, "square": 0.4}.items():
        assert table.query("333333", label).mean == accuracy
    assert table.query("333333", f"pgd@{8 / 255}").mean == table.query("333333", "pgd@linf:8/255").mean == 0.2
    with pytest.raises(InputError, match=r"has no column 'pgd@0\.5'"):
        table.query("333333", "pgd@0.5")


def test_a_front_is_what_a_brute_force_over_all_pairs_leaves() -> None:
    generator = np.random.default_rng(0)
    for objectives in (2, 3):
        points = generator.integers(0, 6, (60, objectives)) / 6  # with many ties
        points[5, 0] = np.nan
        known = [place for place in range(60) if place != 5]
        beaten = {
            a
            for a, b in [*combinations(known, 2), *((b, a) for a, b in combinations(known, 2))]
            if (points[b] >= points[a]).all() and (points[b] > points[a]).any()
        }
        assert sorted(non_dominated(points)) == [place for place in known if place not in beaten]


def test_a_table_of_version_1_is_read(tmp_path: Path) -> None:
    tables.append(tmp_path, [row("333333", 0.5)])
    (part,) = tmp_path.iterdir()
    later = ["function", "num_seeds", "is_mean", "severity"]
    later += ["flops", "params", "recipe_name", "recipe_settings", "evaluation_settings"]
    old = pq.read_table(part).drop_columns(later)
    pq.write_table(old.replace_schema_metadata({VERSION_KEY: b"1"}), part)
    assert tables.read(tmp_path).to_pylist()[0].items() >= {"num_seeds": 1, "is_mean": False, "severity": None}.items()
    tables.append(tmp_path, [row("222222", 0.6)])
    table = tables.load(tmp_path)
    assert [table.query(digits).mean for digits in ("333333", "222222")] == [0.5, 0.6]
    assert table.functions == [Architecture.parse("222222").function, Architecture.parse("333333").canonical]


def test_a_table_that_is_not_there_is_told_how_to_get(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBUST_NAS_HOME", str(tmp_path))
    with pytest.raises(InputError, match="not on this machine; fetch it with 'robust-nas table fetch nas-"):
        tables.load("nas-robbench-201")
    with pytest.raises(InputError, match=r"no table 'nas-robench-201'.*Did you mean 'nas-robbench-201'"):
        tables.load("nas-robench-201")
    tables.append(tmp_path / "empty", [])
    (tmp_path / "empty").mkdir(exist_ok=True)
    with pytest.raises(InputError, match="has no rows"):
        tables.load(tmp_path / "empty")


def test_the_data_frame_is_the_long_form(tmp_path: Path) -> None:
    frame = table_of(tmp_path, row("333333", 0.5), row("222222", 0.6)).dataframe(attack="pgd")
    assert list(frame.columns) == [*SCHEMA.names, "digits", "published_index"]
    assert sorted(zip(frame["digits"], frame["accuracy"], strict=True)) == [("222222", 0.6), ("333333", 0.5)]
    assert isinstance(SCHEMA, pa.Schema)


def test_asking_a_table_imports_neither_pandas_nor_torch_nor_pyarrow_compute(tmp_path: Path) -> None:
    tables.append(tmp_path, [row("333333", 0.5, seed=seed) for seed in range(2)])
    program = (
        "import sys\nimport robust_nas as rn\n"
        f"print(rn.tables.load({str(tmp_path)!r}).query('333333').mean)\n"
        "print([m for m in ('pandas', 'torch', 'sklearn', 'scipy', 'pydantic', 'pyarrow.compute') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.split("\n")[:2] == ["0.5", "[]"]
