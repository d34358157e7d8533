"""Published tables are read as they were published: every alias, every number, and nothing that is not stated."""

from __future__ import annotations

import json
import shutil
import statistics
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from robust_nas.architectures.cell import Architecture
from robust_nas.core import catalogue
from robust_nas.core.errors import InputError
from robust_nas.tables import cards, formats, skeletons
from robust_nas.tables.formats import Published


def read(name: str, folder: Path) -> tuple[Published, list[dict[str, Any]], list[pa.Table]]:
    """Read a published table; return also all rows, and the tables of the measures."""
    card = cards.load(name)
    published = formats.get(card.format)().read(folder, card)
    measures = list(published.measures)
    return published, pa.concat_tables(measures).to_pylist(), measures


def literal(path: Path) -> Any:
    return json.loads(path.read_text().partition("=")[2])


# --- the real NAS-RobBench-201 ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def robbench(shared_data: Path) -> tuple[Published, list[dict[str, Any]], list[pa.Table]]:
    folder = shared_data / "nas-robbench-201"
    if not folder.is_dir():
        pytest.skip("the published files of NAS-RobBench-201 are not there")
    return read("nas-robbench-201", folder)


def column(measures: list[pa.Table], dataset: str, attack: str, epsilon: float | None = None) -> pa.Table:
    (found,) = (
        measure
        for measure in measures
        if (measure["dataset"][0].as_py(), measure["attack"][0].as_py(), measure["epsilon"][0].as_py())
        == (dataset, attack, epsilon)
    )
    return found


@pytest.mark.parametrize("number", range(18))
def test_every_one_of_the_15625_strings_has_its_published_row(
    robbench: tuple[Published, list[dict[str, Any]], list[pa.Table]], shared_data: Path, number: int
) -> None:
    published, _, measures = robbench
    entries = literal(shared_data / "nas-robbench-201" / "NAS-RobBench-201_html.json")
    measured = measures[number].to_pylist()
    rows = {row["canonical"]: row["accuracy"] for row in measured}
    # What is published is a count of images, over all trainings, but for the noise of float32.
    trials = measured[0]["num_images"] * measured[0]["num_seeds"]
    assert len(published.index) == 15_625 and len(rows) == 6_466
    for place, digits in enumerate(published.index):
        entry = entries[str(place)]
        expected = (entry if isinstance(entry, list) else entries[entry])[number]
        found = rows[Architecture.parse(digits).canonical]
        assert found == round(found * trials) / trials and abs(found - expected) < 1e-7


@pytest.mark.parametrize(
    ("attack", "epsilon", "mean", "median", "largest"),
    [
        ("clean", None, 67.76, 70.64, 79.56),
        ("pgd", 8 / 255, 40.75, 42.75, 48.11),
        ("autoattack", None, 36.65, 38.70, 44.38),
    ],
)
def test_the_columns_have_the_published_means_medians_and_maxima(
    robbench: tuple[Published, list[dict[str, Any]], list[pa.Table]],
    attack: str, epsilon: float | None, mean: float, median: float, largest: float,
) -> None:  # fmt: skip
    percent = [100 * value for value in column(robbench[2], "cifar10", attack, epsilon)["accuracy"].to_pylist()]
    found = statistics.mean(percent), statistics.median(percent), max(percent)
    assert found == pytest.approx((mean, median, largest), abs=0.0051)  # they are published with two decimals


def test_the_best_networks_have_their_published_ranks_numbers_and_digits(
    robbench: tuple[Published, list[dict[str, Any]], list[pa.Table]],
) -> None:
    published, _, measures = robbench

    def ranking(dataset: str) -> list[tuple[float, str, int]]:
        rows = column(measures, dataset, "pgd", 8 / 255).to_pylist()
        digits = [Architecture.parse(row["architecture"]).digits() for row in rows]
        scores = [round(100 * row["accuracy"], 2) for row in rows]
        return sorted(zip(scores, digits, map(published.index.index, digits), strict=True), reverse=True)

    best = ranking("cifar10")
    assert best[:2] == [(48.11, "323133", 2581), (47.79, "333133", 9930)] and best[2][1:] == ("323123", 1459)
    assert [best[rank - 1][0] for rank in (1, 10, 50, 100)] == [48.11, 47.63, 47.23, 46.99]
    assert ranking("cifar100")[0] == (24.67, "333123", 13714)
    assert ranking("imagenet16-120")[0] == (7.45, "333132", 6111)
    assert published.index[0] == "421211"


def test_number_1000_has_the_published_readers_answers_as_means_over_seeds(
    robbench: tuple[Published, list[dict[str, Any]], list[pa.Table]],
) -> None:
    published, rows, _ = robbench
    text = str(Architecture.parse(published.index[1000]))
    found = {
        row["attack"]: row["accuracy"]
        for row in rows
        if (row["architecture"], row["dataset"], row["epsilon"]) == (text, "cifar10", 3 / 255)
    }
    # The reader's documented answers are of one seed: .6730 and .6681.
    assert found == {"fgsm": pytest.approx(0.6716, abs=5e-5), "pgd": pytest.approx(0.6663, abs=5e-5)}


def test_what_the_extract_does_not_state_stays_missing(
    robbench: tuple[Published, list[dict[str, Any]], list[pa.Table]],
) -> None:
    published, rows, _ = robbench
    assert published.left_out == ()
    for row in rows:
        single = row["attack"] == "autoattack"
        assert row["epsilon"] is None if single or row["attack"] == "clean" else row["epsilon"] in (3 / 255, 8 / 255)
        assert (row["num_seeds"], row["is_mean"], row["seed"]) == ((1, False, None) if single else (3, True, None))
        # A mean of counts is a multiple of 1 / (images x trainings), up to the rounding to float32 before it.
        steps = row["accuracy"] * row["num_images"] * row["num_seeds"]
        assert steps == pytest.approx(round(steps), abs=2e-3)
    unknown = ("recipe_hash", "evaluation_hash", "model", "hardware", "version", "started", "severity")
    assert {tuple(row[name] for name in unknown) for row in rows} == {(None,) * 7}
    assert {(row["source"], row["recipe"], row["split"]) for row in rows} == {("nas-robbench-201", "pgd_at", "test")}


# --- the real extract of the robustness data set ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def standard(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Published, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("standard")
    for name in ("robustness-dataset/acc.json", "nas-robbench-201/ops.json"):
        if not (shared_data / name).is_file():
            pytest.skip(f"the published file {name} is not there")
        shutil.copy(shared_data / name, folder)
    return read("robustness-dataset-web", folder)[:2]


def test_the_standard_trained_networks_have_the_values_that_their_authors_document(
    standard: tuple[Published, list[dict[str, Any]]],
) -> None:
    published, rows = standard
    # The authors' notebook: what number 50 is, and accuracies of number 13433 on CIFAR-10 (PGD at 1/255).
    number_50 = "|nor_conv_1x1~0|+|nor_conv_3x3~0|nor_conv_1x1~1|+|nor_conv_3x3~0|skip_connect~1|nor_conv_1x1~2|"
    assert str(Architecture.parse(published.index[50])) == number_50
    canonical = Architecture.parse(published.index[13433]).canonical
    found = {row["attack"]: row for row in rows if (row["canonical"], row["dataset"]) == (canonical, "cifar10")}
    assert (found["clean"]["accuracy"], found["pgd"]["accuracy"]) == (0.893, 0.336)
    assert set(found) == {"clean", "apgd", "square", "fgsm", "pgd", "corruption:corr"}
    assert {(row["epsilon"], row["num_images"], row["recipe"]) for row in rows} == {(None, None, "standard")}
    assert len(rows) == 17 * 6_466 and published.left_out == ()


# --- the full releases, made up in their layout -----------------------------------------------------------------------


@pytest.fixture(scope="session")
def meta(numbering: tuple[list[str], list[int]]) -> dict[str, Any]:
    index, representatives = numbering
    entries = zip(index, representatives, strict=True)
    ids = {
        str(number): {"nb201-string": str(Architecture.parse(digits)), "isomorph": str(representative)}
        for number, (digits, representative) in enumerate(entries)
    }
    return {"ids": ids, "epsilons": {"fgsm@Linf": [0.1, 1.0, 255.0], "pgd@Linf": [1.0, 8.0]}}


def write_release(folder: Path, meta: dict[str, Any], networks: dict[str, Any]) -> None:
    (folder / "meta.json").write_text(json.dumps(meta))
    (folder / "NAS-RobBench-201_all.json").write_text(json.dumps({"cifar10": networks}))


def test_the_full_release_gives_a_row_for_each_seed_and_says_what_it_leaves_out(
    meta: dict[str, Any], numbering: tuple[list[str], list[int]], tmp_path: Path
) -> None:
    numbers = sorted(set(numbering[1]))
    networks: dict[str, Any] = {
        str(number): {
            "val_fgsm_3.0_acc": {"0": number / 20_000, "1": number / 40_000},
            "val_loss": {"0": 2.3},
        }
        for number in numbers
    }
    networks[str(numbers[7])]["val_autoattack_8.0_acc"] = {"1": 0.25}
    write_release(tmp_path, meta, networks)
    published, rows, measures = read("nas-robbench-201-seeds", tmp_path)
    assert published.index == tuple(numbering[0]) and published.left_out == ("cifar10#val_loss#0",)
    # Quantities that are known of all architectures come first.
    assert [len(measure) for measure in measures] == [6_466, 6_466, 1]
    for place, number in enumerate(numbers):
        for seed, divisor in ((0, 20_000), (1, 40_000)):
            row = measures[seed].slice(place, 1).to_pylist()[0]
            assert (row["seed"], row["num_seeds"], row["is_mean"]) == (seed, 1, False)
            assert Architecture.parse(row["architecture"]).digits() == numbering[0][number]
            assert (row["attack"], row["epsilon"], row["accuracy"]) == ("fgsm", 3 / 255, number / divisor)
    assert (rows[-1]["attack"], rows[-1]["epsilon"], rows[-1]["seed"]) == ("autoattack", 8 / 255, 1)


def write_robustness_dataset(folder: Path, meta: dict[str, Any], numbers: list[int], *, zipped: bool) -> None:
    def accuracies(dataset: str, key: str, entry: Any) -> str:
        return json.dumps({dataset: {key: {"accuracy": {str(number): entry(number) for number in numbers}}}})

    documents = {
        "meta.json": json.dumps(meta),
        "cifar10/clean_accuracy.json": accuracies("cifar10", "clean", lambda number: number / 20_000),
        "cifar10/fgsm@Linf_accuracy.json": accuracies("cifar10", "fgsm@Linf", lambda number: [0.3, 0.2, 0.1]),
        "cifar10/fog_accuracy.json": accuracies("cifar10", "fog", lambda number: [0.5, 0.4, 0.3, 0.2, 0.1]),
        "cifar10/rain_accuracy.json": accuracies("cifar10", "rain", lambda number: 0.5),
        "cifar10/clean_confidence.json": "no JSON, and never read",
        "ImageNet16-120/pgd@Linf_accuracy.json": accuracies("ImageNet16-120", "pgd@Linf", lambda number: [0.2, 0]),
    }
    for name, text in documents.items():
        if zipped:
            archive = folder / ("meta.zip" if name == "meta.json" else f"{name.split('/')[0]}-accuracies.zip")
            with zipfile.ZipFile(archive, "a") as content:
                content.writestr(name if name == "meta.json" else f"robustness-data/{name}", text)
        else:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text)


def test_an_archive_that_unpacks_to_far_more_than_was_published_is_refused(
    meta: dict[str, Any], numbering: tuple[list[str], list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_robustness_dataset(tmp_path, meta, sorted(set(numbering[1])), zipped=True)
    monkeypatch.setattr("robust_nas.tables.formats.robustness_dataset._LARGEST", 10)
    with pytest.raises(InputError, match="bytes, but the published files are far smaller"):
        read("robustness-dataset", tmp_path)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip files", "an unpacked folder"])
def test_the_robustness_data_set_gives_a_measure_for_each_epsilon_and_severity(
    meta: dict[str, Any], numbering: tuple[list[str], list[int]], tmp_path: Path, zipped: bool
) -> None:
    write_robustness_dataset(tmp_path, meta, sorted(set(numbering[1])), zipped=zipped)
    published, rows, measures = read("robustness-dataset", tmp_path)
    assert {len(measure) for measure in measures} == {6_466} and published.left_out == ("cifar10#rain",)
    names = ("dataset", "attack", "norm", "epsilon", "severity", "accuracy")
    last = [tuple(measure[name][0].as_py() for name in names) for measure in measures]
    clean = last.pop(next(place for place, row in enumerate(last) if row[1] == "clean"))
    assert clean[:5] == ("cifar10", "clean", None, None, None)
    assert last == [
        ("imagenet16-120", "pgd", "linf", 1 / 255, None, 0.2),
        ("imagenet16-120", "pgd", "linf", 8 / 255, None, 0.0),
        ("cifar10", "fgsm", "linf", 0.1 / 255, None, 0.3),
        ("cifar10", "fgsm", "linf", 1 / 255, None, 0.2),
        ("cifar10", "fgsm", "linf", 1.0, None, 0.1),
        *(("cifar10", "corruption:fog", None, None, level, (6 - level) / 10) for level in range(1, 6)),
    ]
    assert {(row["num_seeds"], row["num_images"], row["seed"]) for row in rows} == {(1, None, None)}
    found = {row["architecture"]: row["accuracy"] for row in rows if row["attack"] == "clean"}
    for number in sorted(set(numbering[1])):
        assert found[str(Architecture.parse(numbering[0][number]))] == number / 20_000


def test_an_encrypted_archive_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as content:
        for name in ("meta.json", "cifar10/clean_accuracy.json"):
            content.writestr(name, "{}")
    # Bit 0 of the flags says so, in the head of each file and in the list of files.
    stored = bytearray((tmp_path / "all.zip").read_bytes())
    for mark, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        start = stored.find(mark)
        while start >= 0:
            stored[start + place] |= 1
            start = stored.find(mark, start + 1)
    (tmp_path / "all.zip").write_bytes(stored)
    with pytest.raises(InputError, match=r"all\.zip is damaged \(.*encrypted"):
        read("robustness-dataset", tmp_path)


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "old", "new", "sentence"),
    [
        ("NAS-RobBench-201_html.json", "acc=", "", "does not assign 'acc'"),
        ("NAS-RobBench-201_html.json", "cifar10#val_acc", 'cifar10#val_acc", "', "a row that has not 3 values"),
        ("NAS-RobBench-201_html.json", '"0": [0.0', '"0": [1.5', r"has the accuracy 1\.5 for number 0"),
        ("NAS-RobBench-201_html.json", '"0": [0.0', '"0": [NaN', "has the accuracy nan for number 0"),
        ("NAS-RobBench-201_html.json", '"0": [0.0', '"0": [null', "has the accuracy None for number 0"),
        ("NAS-RobBench-201_html.json", '"15000"', '"15625"', "is damaged or of another format .KeyError: '15000'"),
        ("NAS-RobBench-201_html.json", "}", "", "is damaged or of another format .JSONDecodeError"),
        ("ops.json", '"000000"', '"000001"', "must number the 15625 architectures .* 15624 different ones in 15625"),
    ],
)
def test_a_damaged_extract_is_refused_in_one_sentence(
    extract: Path, tmp_path: Path, file: str, old: str, new: str, sentence: str
) -> None:
    shutil.copytree(extract, tmp_path / "damaged")
    path = tmp_path / "damaged" / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(InputError, match=sentence):
        read("nas-robbench-201", tmp_path / "damaged")


def test_an_alias_of_another_function_is_refused(
    extract: Path, numbering: tuple[list[str], list[int]], tmp_path: Path
) -> None:
    shutil.copytree(extract, tmp_path / "damaged")
    alias = next(number for number, representative in enumerate(numbering[1]) if number != representative)
    wrong = next(number for number in numbering[1] if number != numbering[1][alias])
    path = tmp_path / "damaged" / "NAS-RobBench-201_html.json"
    path.write_text(path.read_text().replace(f'"{alias}": "{numbering[1][alias]}"', f'"{alias}": "{wrong}"'))
    with pytest.raises(InputError, match=rf"gives {numbering[0][alias]} \(number {alias}\) the row of number {wrong},"):
        read("nas-robbench-201", tmp_path / "damaged")


def test_a_folder_without_the_files_says_which_is_missing(extract: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"NAS-RobBench-201_html\.json cannot be read"):
        read("nas-robbench-201", tmp_path)
    with pytest.raises(InputError, match=r"must have meta\.json and DATASET/KEY_accuracy\.json"):
        read("robustness-dataset", tmp_path)
    (tmp_path / "meta.zip").write_bytes(b"PK no archive")
    with pytest.raises(InputError, match=r"meta\.zip is damaged"):
        read("robustness-dataset", tmp_path)


def test_a_list_of_another_length_than_the_epsilons_is_refused(
    meta: dict[str, Any], numbering: tuple[list[str], list[int]], tmp_path: Path
) -> None:
    shorter = {**meta, "epsilons": {**meta["epsilons"], "fgsm@Linf": [0.1, 1.0]}}
    write_robustness_dataset(tmp_path, shorter, sorted(set(numbering[1])), zipped=False)
    with pytest.raises(InputError, match=r"fgsm@Linf_accuracy\.json is damaged .*3 values where 2 must be"):
        read("robustness-dataset", tmp_path)


# --- names ------------------------------------------------------------------------------------------------------------


def test_a_format_is_found_with_hyphens_and_with_underscores() -> None:
    assert {"nas-robbench-201-web", "robustness-dataset"} <= set(formats.names())
    for name in formats.names():
        assert formats.get(name) is formats.get(name.replace("-", "_"))
        assert isinstance(formats.get(name)(), formats.Format)
    with pytest.raises(InputError, match="Did you mean 'nas_robbench_201_web'"):
        formats.get("nas-robbench-201-wep")


def test_published_networks_have_the_skeleton_of_own_runs_of_the_published_size() -> None:
    space = tomllib.loads(catalogue.files("search_spaces")["nasbench201"].read_text())
    assert {cards.load(name).rows.skeleton for name in cards.names()} == {skeletons.written(space)}
