"""The report: self-contained, escaped, complete as far as the run is, and with the numbers of the run's files."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from robust_nas.architectures.cell import OPERATIONS, Architecture
from robust_nas.core.errors import InputError
from robust_nas.core.pixels import format_pixels
from robust_nas.report import write_report
from robust_nas.report._contents import Contents, format_attack
from robust_nas.report.drawing import draw_cell
from robust_nas.report.findings import check_consistency, compare_ensemble, limits, resolution
from robust_nas.runtime.run_folder import RunFolder

LATER = ("derive", "train", "evaluation", "certification", "ensemble", "record")
VOID = {"meta", "img", "wbr"}


class Page(HTMLParser):
    """A page's elements, ids, text and tables; asserts that every tag is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self.rows and {"td", "th"} & set(self.open):
            self.rows[-1][-1] += f" {data}"

    @property
    def text(self) -> str:
        return " ".join(self.words)


@pytest.fixture(scope="module")
def finished(finished_page: Path) -> tuple[str, Page]:
    text = finished_page.read_text(encoding="utf-8")
    return text, Page(text)


def read(run: Path, name: str) -> Any:
    return json.loads((run / f"{name}.json").read_text())


def test_the_page_loads_and_runs_nothing(finished: tuple[str, Page]) -> None:
    text, page = finished
    for tag, attributes in page.found:
        assert tag not in ("script", "link", "iframe", "object", "base")
        for name, value in attributes.items():
            assert not name.startswith("on"), "no handlers"
            if name in ("src", "href", "xlink:href", "srcset", "data"):
                assert value and value.startswith(("#", "data:image/png;base64,"))
    assert "@import" not in text and not re.search(r"url\((?!#)", text)
    assert not re.search(r"https?://", text)


def test_every_id_is_there_once_and_every_reference_meets_one(finished: tuple[str, Page]) -> None:
    text, page = finished
    ids = [attributes["id"] for _, attributes in page.found if "id" in attributes]
    assert len(ids) == len(set(ids))
    references = set(re.findall(r'(?:href="|url\()#([^")]+)', text))
    references |= {
        attributes["aria-labelledby"] or "" for _, attributes in page.found if "aria-labelledby" in attributes
    }
    assert references and references <= set(ids)


def test_pictures_have_names_and_table_heads_have_scopes(finished: tuple[str, Page]) -> None:
    for tag, attributes in finished[1].found:
        if tag == "img":
            assert attributes["alt"]
        if tag == "svg":
            assert attributes.get("aria-hidden") == "true" or (attributes["role"] == "img" and attributes["aria-label"])
        if tag == "th":
            assert attributes["scope"] in ("col", "row", "colgroup")


def test_text_from_the_run_is_escaped(finished: tuple[str, Page]) -> None:
    text, page = finished
    assert "<b>not bold</b>" not in text and '# <b>not bold</b> & "quoted"' in page.text
    assert "A & B <CPU>" in page.text


def test_the_configuration_is_there_word_for_word(finished: tuple[str, Page], finished_run: Path) -> None:
    assert (finished_run / "config.toml").read_text() in finished[1].words


def test_the_table_has_the_numbers_of_the_json_files(finished: tuple[str, Page], finished_run: Path) -> None:
    attacked, certified = (read(finished_run, name)["models"] for name in ("evaluation", "certification"))
    titles = {"uniform": "Uniform average", "ensemble": "RobBoost ensemble"}
    for model, result in attacked.items():
        named = [cells for cells in finished[1].rows if cells[0].strip().startswith(titles.get(model, model))]
        (row,) = [cells for cells in named if len(cells) == 11]
        by_name = {attack["name"]: attack for attack in result["attacks"]}
        measured = [result["clean"], *(by_name.get(name) for name in ("fgsm", "pgd", "apgd", "autoattack_reference"))]
        proved = [{**item, "accuracy": item["certified"]} for item in certified[model]]
        clean, *each = measured
        for cell, item in zip(row[1:], [clean, result["worst_case"], *proved, *each], strict=True):
            if item is None:
                assert cell.strip() == "\N{EN DASH}"
                continue
            numbers = [f"{100 * item[key]:.1f}" for key in ("accuracy", "low", "high")]
            assert cell.replace("\N{EN DASH}", " ").split()[:3] == numbers


def test_weights_scales_and_candidates_are_those_of_the_files(finished: tuple[str, Page], finished_run: Path) -> None:
    ensemble, derive = read(finished_run, "ensemble"), read(finished_run, "derive")
    rows = [[cell.strip() for cell in row] for row in finished[1].rows]
    for member, weight, scale in zip(ensemble["members"], ensemble["weights"], ensemble["scales"], strict=True):
        assert any(row[0].startswith(member) and row[1:3] == [f"{weight:.3f}", f"{scale:.4g}"] for row in rows)
    for candidate in derive["candidates"]:
        digits = Architecture.parse(candidate["architecture"]).digits()
        (row,) = [row for row in rows if row[1:2] == [digits]]
        assert row[-1] == f"{100 * candidate['validation_robust']:.1f}"


def test_candidates_that_were_chosen_for_diversity_show_their_transfer_rates(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in ("plots", "drawing"):
        monkeypatch.setattr(f"robust_nas.report.{part}.to_svg", lambda figure, key, name: "")
    run = shutil.copytree(finished_run, tmp_path / "run")
    derive = read(run, "derive")
    for number, candidate in enumerate(derive["candidates"]):
        candidate["transfer"] = {}
        candidate["transfer_rate"] = None if number == 0 else 0.1234 * number
    (run / "derive.json").write_text(json.dumps(derive))
    page = Page(write_report(RunFolder.open(run)).read_text(encoding="utf-8"))
    rows = [row for row in page.rows if "Transfer, %" in page.text and len(row) == 6 and row[2].strip()[1:2].isdigit()]
    assert [row[-1].strip() for row in rows] == ["\N{EN DASH}", "12.3", "24.7", "37.0"]


def test_the_last_derived_cell_is_the_one_of_the_largest_concentrations(
    finished: tuple[str, Page], finished_run: Path
) -> None:
    search = read(finished_run, "search")
    digits = ["".join(str(row.index(max(row))) for row in epoch["concentration"]) for epoch in search["trajectory"]]
    changes = [epoch for epoch in range(1, len(digits)) if digits[epoch] != digits[epoch - 1]]
    text = " ".join(finished[1].text.split())
    _, _, section = text.partition("The derived cell over time")
    assert re.search(rf"{digits[-1]} epochs? (\d+ to )?{search['trajectory'][-1]['epoch']}\b", section)
    if len(changes) >= 12:
        assert f"{len(changes) + 1 - 12} earlier ones left out" in section


def test_a_search_without_distributions_shows_its_mean_weights_and_its_collapse(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("robust_nas.report.plots.to_svg", lambda figure, key, name: "")
    monkeypatch.setattr("robust_nas.report.drawing.to_svg", lambda figure, key, name: "")
    run = shutil.copytree(finished_run, tmp_path / "run")
    search = read(run, "search")
    for row in search["trajectory"]:
        del row["concentration"]
    search["collapses"] = [{"epoch": 40, "reason": "it was said", "back_to": 35}]
    (run / "search.json").write_text(json.dumps(search))
    text = " ".join(Page(write_report(RunFolder.open(run)).read_text(encoding="utf-8")).text.split())
    assert "Mean weights of the operations on each edge" in text
    assert "collapsed in epoch 40 (it was said), after epoch 35, to which it went back" in text


def test_certificates_of_fewer_images_than_were_attacked_are_said_to_be_of_these(
    finished_run: Path, tmp_path: Path
) -> None:
    assert "of the first" not in write_report(RunFolder.open(finished_run)).read_text(encoding="utf-8")
    run = shutil.copytree(finished_run, tmp_path / "run")
    certification = read(run, "certification")
    for entries in certification["models"].values():
        for entry in entries:
            entry["count"] = 10
    (run / "certification.json").write_text(json.dumps(certification))
    text = " ".join(Page(write_report(RunFolder.open(run)).read_text(encoding="utf-8")).text.split())
    assert re.search(r"; of the first 10 images, [\d.]+ % \([^)]*\) are proved robust", text)


def test_the_thicker_line_of_an_edge_is_its_heading_s_also_after_a_collapse(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = {}

    def note(figure: Any, key: str, name: str) -> str:
        widths = [line.get_linewidth() for line in figure.axes[0].lines]
        drawn[key] = widths.index(max(widths)) if key.startswith("edge-") else None
        return ""

    monkeypatch.setattr("robust_nas.report.plots.to_svg", note)
    monkeypatch.setattr("robust_nas.report.drawing.to_svg", lambda figure, key, name: "")
    run = shutil.copytree(finished_run, tmp_path / "run")
    search = read(run, "search")
    count, rows = len(search["operations"]), search["trajectory"]
    for row, strongest in zip(rows[-2:], (0, 1), strict=True):
        row["concentration"] = [[2.0 if place == strongest else 1.0 for place in range(count)] for _ in search["edges"]]
    search["epoch"] = rows[-2]["epoch"]
    (run / "search.json").write_text(json.dumps(search))
    write_report(RunFolder.open(run))
    assert [drawn[f"edge-{edge}"] for edge in range(len(search["edges"]))] == [0] * len(search["edges"])


def test_a_failed_masking_check_stands_out(finished: tuple[str, Page]) -> None:
    page = finished[1]
    (row,) = [row for row in page.rows if "A black-box attack never beats a white-box one." in row[0]]
    assert [cell.strip() for cell in row[1:]] == ["passed", "passed", "FAILED", "passed", "passed"]
    assert "1 check failed" in page.text


def test_all_models_are_in_one_plot_which_comes_before_those_with_certificates(finished: tuple[str, Page]) -> None:
    text = finished[0]
    joint, single = text.index('id="curves-linf-'), text.index('id="radius-0-')
    assert joint < single
    assert sorted(re.findall(r'id="curves-linf-name-(\d)"', text)) == ["0", "1", "2", "3", "4"]


def test_what_newer_runs_measure_is_on_the_page(finished_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    evaluation = read(run, "evaluation")
    second = {"norm": "l2", "epsilon": 0.5, "accuracy": 0.123, "low": 0.1, "high": 0.2, "count": 360}
    for model in evaluation["models"].values():
        first = model["worst_case"]
        model["attacks"].append({"name": "apgd", **second})
        model["threats"] = [{"name": "worst case", **worst} for worst in (first, second)]
        model["worst_case"] = {"name": "worst-case union", "accuracy": 0.111, "low": 0.1, "high": 0.2, "count": 360}
        model["average"], model["notes"] = 0.222, ["It normalises pixels twice."]
        model["confusion"] = [[3, 1], [0, 4]]
    evaluation["classes"] = ["cat", "dog"]
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    page = Page(write_report(RunFolder.open(run)).read_text(encoding="utf-8"))
    (row,) = [row for row in page.rows if row[0].startswith(" RobBoost") and len(row) == 15]
    assert [cell.split()[0] for cell in row[2:4]] == ["11.1", "22.2"]
    assert [cell.split()[0] for cell in row[13:]] == ["12.3", "12.3"]
    assert "at linf 0.2 and l2 0.5 together" in page.text and "2 threats, l-infinity up to 0.2 and l2" in page.text
    assert "model-1: It normalises pixels twice." in page.text
    assert page.text.count("Most often, cat is read as dog (1 of 4 images).") == 5


def test_the_same_files_give_the_same_page(finished: tuple[str, Page], finished_run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(finished_run, tmp_path / finished_run.name)
    assert write_report(RunFolder.open(copy)).read_text(encoding="utf-8") == finished[0]


@pytest.mark.parametrize("done", range(len(LATER) + 1))
def test_a_run_under_way_gets_a_report_that_names_what_is_missing(
    finished_run: Path, tmp_path: Path, done: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The figures are the same as those of the finished run, and slow.
    monkeypatch.setattr("robust_nas.report.plots.to_svg", lambda figure, key, name: "")
    monkeypatch.setattr("robust_nas.report.attack_plots.to_svg", lambda figure, key, name: "")
    monkeypatch.setattr("robust_nas.report.drawing.to_svg", lambda figure, key, name: "")
    run = shutil.copytree(finished_run, tmp_path / "run")
    for name in LATER[done:]:
        (run / f"{name}.json").unlink()
    if done < 3:
        for name in ("evaluation.parquet", "certificates.parquet", "checkpoints/examples.safetensors"):
            (run / name).unlink()
    page = Page(write_report(RunFolder.open(run)).read_text(encoding="utf-8"))
    stages = ["derive", "train", "attack", "certify", "ensemble"][done:]
    assert ("This report is partial" in page.text) == bool(stages)
    for stage in stages:
        assert re.search(rf"Not yet run: [^.]*\b{stage}\b", page.text)
    headings = {attributes["id"] for tag, attributes in page.found if tag == "h2"}
    assert {"search-title", "what-was-and-was-not-measured-title", "configuration-and-environment-title"} <= headings
    assert ("results-title" in headings) == (done >= 3)
    assert ("training-title" in headings) == (done >= 2)
    assert ("ensemble-title" in headings) == (done >= 5)


def test_a_run_that_has_only_begun_gets_a_report_too(finished_run: Path, tmp_path: Path) -> None:
    for name in ("config.toml", "environment.json"):
        shutil.copy(finished_run / name, tmp_path / name)
    page = Page(write_report(RunFolder.open(tmp_path)).read_text(encoding="utf-8"))
    assert "Not yet run: search, derive, train, attack, certify and ensemble" in page.text


def test_a_damaged_file_is_an_input_error_and_leaves_no_page(finished_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run", ignore=shutil.ignore_patterns("report.html"))
    (run / "train.json").write_text('{"models": [')
    with pytest.raises(InputError, match=r"train\.json is damaged"):
        write_report(RunFolder.open(run))
    assert not (run / "report.html").exists()


@pytest.mark.parametrize("digits", ["323133", "302023", "000000", "431340", "111111"])
def test_a_drawing_has_one_named_element_per_edge_that_is_not_none(digits: str) -> None:
    architecture = Architecture.parse(digits)
    drawing = str(draw_cell(architecture, OPERATIONS, "cell", "a cell"))
    real = [(i, j, name) for i, j, name in architecture.edges if name != "none"]
    assert sorted(re.findall(r'id="cell-edge-(\d)-(\d)"', drawing)) == sorted((str(i), str(j)) for i, j, _ in real)
    assert len(re.findall(r'id="cell-none-\d-\d"', drawing)) == 6 - len(real)
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", drawing)
    assert sorted(texts) == sorted([name for *_, name in real] + ["in", "1", "2", "out"])


def test_edges_that_carry_nothing_are_grey() -> None:
    # Node 2 goes nowhere: 0-2 (3x3) and 1-2 (skip) are drawn like an edge without an operation.
    drawing = str(draw_cell(Architecture.parse("431340"), OPERATIONS, "cell", "a cell"))

    def stroke(edge: str) -> str:
        found = re.search(rf'id="cell-{edge}".*?stroke: (var\(--[\w-]+\))', drawing, flags=re.DOTALL)
        assert found
        return found[1]

    assert stroke("edge-0-2") == stroke("edge-1-2") == stroke("none-2-3")
    assert stroke("edge-0-3") != stroke("edge-0-2")


def _flip(path: Path, column: str, keep: dict[str, Any]) -> None:
    """Turn one outcome of a Parquet file round: the first row that agrees with `keep`."""
    rows = pq.read_table(path).to_pylist()
    row = next(row for row in rows if all(row[key] == value for key, value in keep.items()))
    row[column] = not row[column]
    pq.write_table(pa.Table.from_pylist(rows), path)


@pytest.mark.parametrize(
    ("file", "column", "keep", "sentence"),
    [
        ("evaluation", "correct", {"model": "model-0", "attack": "clean", "correct": True}, "wrongly when clean"),
        ("certificates", "certified", {"model": "model-1", "clean_correct": False}, "certified at 0.002"),
    ],
)
def test_an_outcome_against_the_order_is_found(
    finished_run: Path, tmp_path: Path, file: str, column: str, keep: dict[str, Any], sentence: str
) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    assert not check_consistency(Contents.read(RunFolder.open(run))).violations
    _flip(run / f"{file}.parquet", column, keep)
    found = check_consistency(Contents.read(RunFolder.open(run)))
    assert found.violations and all(keep["model"] in violation for violation in found.violations)
    assert sentence in found.violations[0]


def test_a_certified_image_that_an_attack_breaks_at_a_smaller_radius_is_found(
    finished_run: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    path = run / "evaluation.parquet"
    rows = pq.read_table(path).to_pylist()
    for row in rows:
        if row["attack"] == "pgd":
            row["epsilon"] = 0.001  # breaks far more images than certificates at 0.002 allow
    pq.write_table(pa.Table.from_pylist(rows), path)
    found = check_consistency(Contents.read(RunFolder.open(run)))
    assert found.per_image
    assert any("certified at 0.002 and broken by pgd at 0.001" in violation for violation in found.violations)
    assert not any("fgsm" in violation for violation in found.violations), "an attack at 0.2 says nothing about 0.002"


def test_the_ensemble_is_compared_only_on_what_both_were_measured_on(finished_run: Path) -> None:
    contents = Contents.read(RunFolder.open(finished_run))
    compared = compare_ensemble(contents)
    assert list(compared) == ["model-0", "uniform"]
    assert any(item.measurement.startswith("AutoAttack") for item in compared["model-0"])
    assert not any(item.measurement.startswith("AutoAttack") for item in compared["uniform"])
    models = read(finished_run, "evaluation")["models"]
    pgd = [models[name]["attacks"][1] for name in ("ensemble", "model-0")]
    (item,) = [item for item in compared["model-0"] if item.measurement.startswith("PGD")]
    assert item.points == pytest.approx(100 * (pgd[0]["accuracy"] - pgd[1]["accuracy"]))
    assert item.apart == (pgd[0]["low"] > pgd[1]["high"])


def test_the_limits_are_those_of_this_run(finished_run: Path) -> None:
    sentences = dict(limits(Contents.read(RunFolder.open(finished_run))))
    assert "one seed (0)" in sentences["Seeds"]
    assert "360 test images" in sentences["Sample size"]
    assert "on model-0 and the RobBoost ensemble only" in sentences["AutoAttack"]
    assert "0.2, is 10 times as large: nothing was proved there" in sentences["Certification"]
    assert "n = 359" in sentences["Selection"]


def test_weights_fitted_where_nothing_is_proved_are_called_so(finished_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    assert "Ensemble" not in dict(limits(Contents.read(RunFolder.open(run))))
    certification = read(run, "certification")
    for results in certification["models"].values():
        for item in results:
            item["certified"] = 0.0
    (run / "certification.json").write_text(json.dumps(certification))
    sentences = dict(limits(Contents.read(RunFolder.open(run))))
    assert "At radius 0.002, for which the weights were fitted, no image is proved" in sentences["Ensemble"]
    assert "prove 0.0 % at radius 0.002 and 0.0 % at the largest radius tried, 0.02." in sentences["Certification"]


def test_the_resolution_is_half_of_wilsons_interval_at_one_half() -> None:
    # scipy.stats.binomtest(50, 100).proportion_ci(method="wilson"): 0.40383 to 0.59617
    assert resolution(100) == pytest.approx((0.59617 - 0.40383) / 2, abs=1e-5)


def test_names_and_radii_are_written_as_people_write_them() -> None:
    assert [format_pixels(value) for value in (0.2, 8 / 255, 0.5 / 255, 0.0123456)] == [
        "0.2", "8/255", "0.5/255", "0.0123",
    ]  # fmt: skip
    assert format_attack("pgd[steps=100]") == "PGD[steps=100]" and format_attack("my.plugin") == "my.plugin"
