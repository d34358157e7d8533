"""The page of a stand-alone attack, and the figures that it shares with a run's: the folder's numbers, readable."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from robust_nas.core.errors import InputError
from robust_nas.evaluation import AttackOutcome, Evaluation
from robust_nas.report import write_attack_report
from robust_nas.report.attack_plots import confusion_plot
from robust_nas.runtime.states import save_state
from robust_nas.threat import ThreatModel

LINF, L2 = ThreatModel(norm="linf", epsilon="8/255"), ThreatModel(norm="l2", epsilon=0.5)
CLASSES = ["cat", "dog", "bird", "frog"]
DASH = "\N{EN DASH}"
CURVES = {
    "first": {
        "linf": [(2 / 255, 0.9), (6 / 255, 0.8), (8 / 255, 0.75), (12 / 255, 0.2), (16 / 255, 0.1)],
        "l2": [(0.25, 0.8), (0.5, 0.575)],
    },
    "second": {
        "linf": [(2 / 255, 1.0), (6 / 255, 0.9), (8 / 255, 0.9), (12 / 255, 0.2), (16 / 255, 0.1)],
        "l2": [(0.25, 0.95), (0.5, 0.85)],
    },
}
ENVIRONMENT = {
    "version": "0.1.0", "commit": None, "python": "3.13.1", "torch": "2.11.0", "packages": {}, "device": "cpu",
    "cpu": "A & B <CPU>", "cores": 2, "threads": 2, "world_size": 1, "arguments": [],
    "started": "2026-01-02T03:04:05+00:00",
}  # fmt: skip
SETTINGS = """\
models = ["first.safetensors", "second.safetensors"]
threats = [{ norm = "linf", epsilon = "8/255" }, { norm = "l2", epsilon = 0.5 }]
seed = 3  # <b>not bold</b>

[data]
name = "animals"
"""


def evaluation(clean_wrong: int, linf: dict[str, range], l2: dict[str, range]) -> Evaluation:
    """Return the outcome on 40 images when attacks break those of the given numbers, into the next class."""
    labels = torch.arange(40) % 4
    wrong = (labels + 1) % 4
    images = torch.arange(40)
    clean = torch.where(images < clean_wrong, wrong, labels)

    def outcome(name: str, threat: ThreatModel, broken: range) -> AttackOutcome:
        found = torch.where(torch.isin(images, torch.tensor(list(broken))), wrong, clean)
        return AttackOutcome(name, threat, found == labels, found, 1.5)

    attacks = [outcome(name, LINF, broken) for name, broken in linf.items()]
    attacks += [outcome(name, L2, broken) for name, broken in l2.items()]
    return Evaluation((LINF, L2) if l2 else (LINF,), labels, clean, tuple(attacks))


def change(folder: Path, **values: Any) -> None:
    """Set keys of evaluation.json."""
    path = folder / "evaluation.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def models_of(folder: Path) -> Any:
    return json.loads((folder / "evaluation.json").read_text())["models"]


def write_folder(folder: Path) -> Path:
    """Write what `robust-nas attack` leaves of two models at two threat models."""
    (folder / "checkpoints").mkdir(parents=True)
    # By hand: of 40 images the first model has 38 right; 30 are left at linf, 22 at l2, 20 at both; the second 40, 36,
    # 34, 34.
    first = evaluation(2, {"apgd": range(10), "fab": range(8)}, {"apgd": range(4, 20), "fab": range(4, 6)})
    second = evaluation(0, {"apgd": range(4), "fab": range(2)}, {"apgd": range(6), "fab": range(1)})
    for name, found in (("first", first), ("second", second)):
        found.save(folder, name)
    models = models_of(folder)
    for name, model in models.items():
        model["curve"] = [
            {"norm": norm, "epsilon": epsilon, "accuracy": value, "low": value - 0.05, "high": value, "count": 40}
            for norm, points in CURVES[name].items()
            for epsilon, value in points
        ]
        model["masking"] = [
            {
                "check": "More steps never help.",
                "passed": (name, threat.norm) != ("second", "l2"),
                "detail": f"{threat.norm} of {name}",
                "norm": threat.norm,
                "epsilon": threat.epsilon,
            }
            for threat in (LINF, L2)
        ]
        model["masking"].append({**model["masking"][0], "check": "The black box never wins."})  # not made at l2
        model["notes"] = ["Its outputs are probabilities."] if name == "first" else []
        quantiles = {"0.1": 0.0, "0.25": 0.0123456, "0.5": 0.5, "0.75": 1.25, "0.9": None}
        model["distortions"] = [{"attack": "fab", "norm": "l2", "quantiles": quantiles, "count": 40, "found": 31}]
    change(folder, split="test", num_images=40, data="animals", classes=CLASSES, models=models)
    (folder / "attack.toml").write_text(SETTINGS)
    (folder / "environment.json").write_text(json.dumps(ENVIRONMENT))
    for name in models:
        save_state(folder / "checkpoints" / f"examples-{name}.safetensors", {**examples(), "model": name})
    return folder


def examples() -> dict[str, Any]:
    """Return five examples, two of them of class 2: the first one is the stronger."""
    labels = torch.tensor([0, 1, 2, 3, 2])
    originals = torch.linspace(0.2, 0.8, 5 * 3 * 4).view(5, 3, 2, 2)
    change = torch.tensor([[1.0, -1.0], [0.5, 0.0]]) * LINF.epsilon
    return {
        "originals": originals, "adversarial": originals + change, "labels": labels,
        "predictions": (labels + 1) % 4, "clean_predictions": labels, "attack": "apgd", "norm": "linf",
        "epsilon": LINF.epsilon,
    }  # fmt: skip


class Page(HTMLParser):
    """A page's elements, text and table rows."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.rows: list[list[str]] = []
        self.cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self.cell = tag in ("td", "th") or (self.cell and tag != "tr")
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self.cell = self.cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self.cell:
            self.rows[-1][-1] += f" {data}"

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).replace("\N{NO-BREAK SPACE}", " ").split())


Build = Callable[[Path], tuple[str, Page]]


def build(folder: Path) -> tuple[str, Page]:
    text = write_attack_report(folder).read_text(encoding="utf-8")
    return text, Page(text)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("runs") / "attack-1a2b3c4d")


@pytest.fixture(scope="module")
def built(folder: Path) -> tuple[str, Page]:
    return build(folder)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> Build:
    """Return how to make a page without its figures, which take the time."""
    monkeypatch.setattr("robust_nas.report.attack_plots.to_svg", lambda figure, key, name: "")
    return build


def test_a_lead_sentence_quotes_the_union_with_its_interval_and_what_it_is_made_of(built: tuple[str, Page]) -> None:
    # Wilson's interval of 20 of 40: 0.5 -+ 1.96 / 2 / sqrt(40 + 1.96**2) = 0.352 to 0.648.
    sentence = "first: 50.0 % (35.2 to 64.8) of 40 test images withstand every attack of both threat models; "
    assert sentence in built[1].text
    lead = built[1].text[built[1].text.index(sentence) :]
    assert re.match(
        r".*?; 75\.0 % \([^)]*\) those at linf 8/255, 55\.0 % \([^)]*\) those at l2 0\.5; 65\.0 % on av", lead
    )
    assert "second: 85.0 % (" in built[1].text and "Clean: 95.0 % (" in lead


def test_accuracy_over_steps_is_drawn_and_said_with_its_intervals(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "stepped")
    models = models_of(tmp_path / "stepped")
    common = {"attack": "pgd", "norm": "linf", "epsilon": 8 / 255, "step_size": 1 / 255, "count": 40}
    for name, shift in (("first", 0.0), ("second", 0.1)):
        models[name]["steps"] = [
            {**common, "steps": steps, "accuracy": value + shift, "low": value, "high": 0.95, "last": value + shift}
            for steps, value in ((10, 0.75), (2000, 0.5))
        ]
    change(tmp_path / "stepped", models=models)
    text, page = build(tmp_path / "stepped")
    assert "Accuracy over steps" in page.text and "PGD, linf 8/255, steps of 1/255, 40 images" in page.text
    said = "first: 75.0 % (75.0 to 95.0) after 10 of 40 images, 50.0 % (50.0 to 95.0) after 2,000 of 40 images; second"
    assert said in text
    assert "Accuracy over steps" not in build(folder)[1].text
    # More images correct after an ascent than when clean are a defect.
    models["first"]["steps"][0] |= {"accuracy": 0.975}
    change(tmp_path / "stepped", models=models)
    assert "first: more images are correct under attack at 0.0313725 than when clean." in build(tmp_path / "stepped")[0]


def test_the_table_has_every_number_in_its_column(built: tuple[str, Page]) -> None:
    rows = [[cell.split()[0] for cell in row] for row in built[1].rows if len(row) == 10]
    # Clean; union and average; the worst case, APGD and FAB at linf, and again at l2. FAB at linf leaves 32 of 40, at
    # l2 the 38 correct ones but two.
    assert rows == [
        ["first", "95.0", "50.0", "65.0", "75.0", "75.0", "80.0", "55.0", "55.0", "90.0"],
        ["second", "100.0", "85.0", "87.5", "90.0", "90.0", "95.0", "85.0", "85.0", "97.5"],
    ]


def test_notes_and_failed_checks_stand_before_everything_else(built: tuple[str, Page]) -> None:
    header = built[0][: built[0].index("<nav")]
    assert "first: Its outputs are probabilities." in header
    assert "second: 1 check for gradient masking failed" in header


def test_a_check_says_at_which_threat_model_it_failed_or_was_made(built: tuple[str, Page]) -> None:
    verdicts = {row[0].strip(): [cell.split() for cell in row[1:]] for row in built[1].rows}
    assert verdicts["More steps never help."] == [["passed"], ["FAILED", "l2", "0.5"]]
    assert verdicts["The black box never wins."] == [["passed", "linf", "8/255"]] * 2


def test_distances_have_three_digits_and_what_was_not_found_is_marked(built: tuple[str, Page]) -> None:
    (row, other) = [[cell.strip() for cell in row] for row in built[1].rows if "FAB, l2" in row[1]]
    assert row == ["first", "FAB, l2", "0", "0.0123", "0.500", "1.25", DASH, "31 of 40"]
    assert other[0] == "second"


def line_of(text: str, norm: str, place: int) -> list[tuple[float, float]]:
    """Return the points of a model's line in the plot of a norm, in pixels of the figure."""
    found = re.search(rf'id="curves-{norm}-model-{place}">\s*<path d="([^"]*)"', text)
    assert found
    numbers = [float(number) for number in re.findall(r"-?[\d.]+", found[1])]
    return list(zip(numbers[::2], numbers[1::2], strict=True))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_all_models_are_drawn_to_scale_in_one_plot_per_norm(built: tuple[str, Page], norm: str) -> None:
    drawn, true = [], []
    for place, (name, clean) in enumerate((("first", 0.95), ("second", 1.0))):
        drawn += line_of(built[0], norm, place)
        true += [(0.0, clean), *CURVES[name][norm]]  # from the clean images at radius 0 on
    for axis in (0, 1):
        x, y = np.array(true)[:, axis], np.array(drawn)[:, axis]
        slope, start = np.polyfit(x, y, 1)
        np.testing.assert_allclose(y, slope * x + start, atol=1e-3)
        assert (slope > 0) == (axis == 0)  # pixels are counted from the top


def test_worst_cases_stand_at_the_threat_models_radius(built: tuple[str, Page]) -> None:
    for place in (0, 1):
        found = re.search(rf'id="curves-linf-worst-{place}".*?<use [^>]*x="([\d.]+)" y="([\d.]+)"', built[0], re.DOTALL)
        assert found
        # The worst cases, 30 and 36 of 40, are what the curves have at 8/255.
        at_threat = line_of(built[0], "linf", place)[3]
        assert (float(found[1]), float(found[2])) == pytest.approx(at_threat, abs=1e-3)


def test_a_confusions_row_is_the_class_and_has_percentages(built: tuple[str, Page]) -> None:
    cells = {
        (int(model), int(row), int(column)): number
        for model, row, column, number in re.findall(
            r'id="confusion-(\d)-cell-(\d)-(\d)">\s*<text[^>]*>([^<]*)</text>', built[0]
        )
    }
    # The first model's images below 20 fall into the next class, the second's below 6: 0, 4 and 1, 5 and 2 and 3.
    expected = {(0, own, read % 4): "50" for own in range(4) for read in (own, own + 1)}
    for own, fallen in enumerate((20, 20, 10, 10)):
        expected |= {(1, own, own): str(100 - fallen), (1, own, (own + 1) % 4): str(fallen)}
    assert cells == expected
    assert "Most often, cat is read as dog (5 of 10 images)." in built[1].text


def test_an_empty_class_and_many_classes_have_no_numbers() -> None:
    drawn = str(confusion_plot([[0, 0, 0], [1, 299, 0], [0, 0, 7]], ["a", "b", "c"], "key", "name"))
    numbers = re.findall(r'id="key-cell-(\d)-(\d)">\s*<text[^>]*>([^<]*)</text>', drawn)
    assert numbers == [("1", "0", "&lt;1"), ("1", "1", "100"), ("2", "2", "100")]
    thirteen = [[int(row == column) for column in range(13)] for row in range(13)]
    assert "key-cell" not in str(confusion_plot(thirteen, [str(own) for own in range(13)], "key", "name"))


def test_of_a_thousand_classes_the_most_frequent_confusions_are_listed(
    folder: Path, tmp_path: Path, undrawn: Build
) -> None:
    copy, counts = shutil.copytree(folder, tmp_path / "copy"), np.diag(np.full(1000, 10))
    counts[7, 3], counts[999, 0], counts[5, 6] = 30, 20, 1
    models = models_of(copy)
    for model in models.values():
        model["confusion"] = counts.tolist()
    change(copy, models=models, classes=[f"thing {own}" for own in range(1000)])
    text, page = undrawn(copy)
    rows = [[cell.strip() for cell in row] for row in page.rows if row[0].strip().startswith("thing")]
    expected = [["thing 7", "thing 3", "30", "75.0 %"], ["thing 999", "thing 0", "20", "66.7 %"]]
    assert rows == 2 * [*expected, ["thing 5", "thing 6", "1", "9.1 %"]]
    assert "confusion-0" not in text


def pictures(text: str) -> list[np.ndarray[Any, Any]]:
    found = re.findall(r'<img src="data:image/png;base64,([^"]*)"', text)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) for data in found]


def test_each_class_shows_its_strongest_example_between_original_and_adversarial(built: tuple[str, Page]) -> None:
    shown, state = pictures(built[0]), examples()
    assert len(shown) == 2 * 4 * 3, "two models, four classes, three pictures"
    assert built[1].text.count("APGD, linf 8/255; difference \N{MULTIPLICATION SIGN} 15.9") == 2  # 255 / 8 / 2
    for place in range(4):  # the fifth is the weaker one of class 2
        original, amplified, adversarial = shown[3 * place : 3 * place + 3]
        for picture, key in ((original, "originals"), (adversarial, "adversarial")):
            expected = (state[key][place].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
            np.testing.assert_array_equal(picture, expected)
        # A pixel moved by epsilon is white, by minus epsilon black, one that is left alone mid-grey.
        np.testing.assert_allclose(amplified[..., 0], [[255, 0], [191, 128]], atol=1)
    alternatives = [attributes["alt"] for tag, attributes in built[1].found if tag == "img"]
    assert alternatives[:3] == [
        "original image of class cat, read as cat",
        "amplified difference image of class cat, \N{MULTIPLICATION SIGN} 15.9",
        "adversarial image of class cat, read as dog",
    ]


def test_other_norms_are_amplified_by_the_largest_change(folder: Path, tmp_path: Path, undrawn: Build) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    for path in (copy / "checkpoints").iterdir():
        path.unlink()
    state = {**examples(), "norm": "l2", "epsilon": 0.5, "model": "second"}
    save_state(copy / "checkpoints" / "examples-second.safetensors", state)
    text, page = undrawn(copy)
    assert "APGD, l2 0.5; difference \N{MULTIPLICATION SIGN} 15.9" in page.text
    np.testing.assert_allclose(pictures(text)[1][..., 0], [[255, 0], [191, 128]], atol=1)


def test_one_threat_model_needs_no_union(folder: Path, tmp_path: Path, undrawn: Build) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "evaluation.json").unlink()
    evaluation(0, {"apgd": range(10)}, {}).save(copy, "only")
    change(copy, num_images=40)
    text, page = undrawn(copy)
    assert "only: 75.0 % (59.8 to 85.8) of 40 test images withstand every attack at linf 8/255." in page.text
    assert "Union" not in text and "on average" not in page.text
    assert [cell.split()[0] for cell in page.rows[-1]] == ["only", "100.0", "75.0", "75.0"]


def test_a_folder_of_an_older_version_has_a_page_too(folder: Path, tmp_path: Path, undrawn: Build) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    models = models_of(copy)
    for model in models.values():
        for key in ("threats", "average", "confusion", "distortions", "notes", "curve", "masking"):
            del model[key]
        model["worst_case"] |= {"norm": "linf", "epsilon": LINF.epsilon}
    (copy / "evaluation.json").write_text(json.dumps({"num_images": 40, "models": models}))
    shutil.rmtree(copy / "checkpoints")
    text, page = undrawn(copy)
    assert "Accuracy under attack on animals" in page.text and "The checks for gradient masking were not run." in text
    assert "Confusion" not in text and "Adversarial examples" not in text and "Smallest distortions" not in text


def test_the_page_loads_nothing_and_its_ids_are_there_once(built: tuple[str, Page]) -> None:
    text, page = built
    assert not re.search(r"https?://|@import|<script|<link", text)
    ids = [attributes["id"] for _, attributes in page.found if "id" in attributes]
    assert len(ids) == len(set(ids))
    references = set(re.findall(r'(?:href="|url\()#([^")]+)', text))
    assert references and references <= set(ids)
    for tag, attributes in page.found:
        if tag == "svg":
            assert attributes.get("aria-hidden") == "true" or attributes["aria-label"]
    assert "<b>not bold</b>" not in text and "A & B <CPU>" in page.text


def test_the_same_files_give_the_same_page(built: tuple[str, Page], folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / folder.name)
    assert build(copy)[0] == built[0]


@pytest.mark.parametrize("name", ["attack.toml", "evaluation.json"])
def test_a_folder_that_lacks_a_file_is_an_input_error(folder: Path, tmp_path: Path, name: str) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy", ignore=shutil.ignore_patterns(name, "report.html"))
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        write_attack_report(copy)
    assert not (copy / "report.html").exists()


@pytest.mark.parametrize("width", [420, 1200])
def test_a_page_fits_its_window_and_no_names_in_a_figure_overlap(
    built: tuple[str, Page], folder: Path, browser: Any, width: int
) -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get((folder / "report.html").resolve().as_uri())
    scroll, client = (
        browser.execute_script(f"return document.documentElement.{key}Width") for key in ("scroll", "client")
    )
    assert scroll == client <= width
    boxes = browser.execute_script(
        """return [...document.querySelectorAll("svg[role=img]")].map(figure => [...figure.querySelectorAll("text")]
        .map(text => { const box = text.getBoundingClientRect();
                       return [text.textContent, box.left, box.right, box.top, box.bottom]; }))"""
    )
    assert len(boxes) == 1 + 2 + 2, "the overview, a plot per norm and a heat map per model"
    for texts in boxes:
        for index, (name, left, right, top, bottom) in enumerate(texts):
            assert left >= 0 and right <= width, name
            for other, other_left, other_right, other_top, other_bottom in texts[:index]:
                apart = left >= other_right or right <= other_left or top >= other_bottom or bottom <= other_top
                # Slanted names have boxes that overlap where their letters do not.
                assert apart or {name, other} <= set(CLASSES), (name, other)
