"""Names that a stranger, or a file system, has chosen: they are shown, and do nothing."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome, ChromeOptions, ChromeService

from robust_nas.architectures.cell import OPERATIONS
from robust_nas.core import config
from robust_nas.core.figures import figure_of, styled
from robust_nas.report import attack_plots, write_attack_report, write_report
from robust_nas.report._elements import element, identifier
from robust_nas.report.plots import to_svg
from robust_nas.runtime.run_folder import RunFolder
from robust_nas.runtime.states import load_state, save_state

MARKS = "\u202e$5_$^{\x1b[31m\n\x00\ud800\udcff&amp;"
HOSTILE = f"\"'><script>document.title='bad'</script><img src=x onerror=\"document.title='bad'\"> id=\"{MARKS}"
HARMLESS = re.sub(r"[^ \[]", "x", HOSTILE)  # as many words: some names are written in two lines

# What the page computes with, or looks things up by; records refuse other norms.
KEPT = {*OPERATIONS, "cell", "nasbench201", "smoothing", "interval", "linf", "l2", "best"}
NAMED_BY_KEY = {"models", "other_epochs", "left_out", "packages"}


def valid(text: str) -> str:
    """Return text without what is no UTF-8."""
    return text.encode("utf-8", "ignore").decode()


def renamed(value: Any, suffix: str, key: str = "") -> Any:
    """Return a JSON value with `suffix` at the end of every string in it that is no other's business."""
    if isinstance(value, str):
        is_kept = value in KEPT or "~" in value or re.fullmatch(r"train-\d|\d+|\d{4}-\d\d-.*", value)
        return value if is_kept else value + suffix
    if isinstance(value, dict):
        named = key in NAMED_BY_KEY
        return {name + suffix if named else name: renamed(item, suffix, name) for name, item in value.items()}
    return [renamed(item, suffix) for item in value] if isinstance(value, list) else value


def rename(source: Path, folder: Path, suffix: str) -> Path:
    """Return a copy of a folder with other names in all of its files; TOML cannot have bytes that are no UTF-8."""
    shutil.copytree(source, folder)
    for path in folder.glob("*.json"):
        path.write_text(json.dumps(renamed(json.loads(path.read_text()), suffix)))
    for path in folder.glob("*.toml"):
        path.write_text(config.to_toml(renamed(tomllib.loads(path.read_text()), valid(suffix))))
    for path in folder.glob("checkpoints/examples*"):
        state = load_state(path)
        save_state(path, {**state, **{key: state[key] + suffix for key in ("model", "attack") if key in state}})
    return folder


class Structure(HTMLParser):
    """A page's elements with the names of their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, tuple[str, ...]]] = []
        self.words = ""
        self.ids: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        # An architecture's letters may be broken into lines where they are.
        if tag not in ("wbr", "tspan"):
            self.found.append((tag, tuple(name for name, _ in attrs)))
        self.ids += [str(value) for name, value in attrs if name == "id"]

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an attack with examples, curves, confusion and notes."""
    from tests.report.test_attack_page import write_folder

    return write_folder(tmp_path_factory.mktemp("attacks") / "attack-1a2b3c4d")


@pytest.fixture(scope="module")
def small_run(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run's folder with fewer figures to draw: two networks, and two epochs of search."""
    folder = tmp_path_factory.mktemp("small") / finished_run.name
    shutil.copytree(finished_run, folder)
    for name, key, cut in (
        ("search", "trajectory", slice(2)),
        ("train", "models", slice(1)),
        ("derive", "chosen", slice(1)),
    ):
        found = json.loads((folder / f"{name}.json").read_text())
        ends = {"epoch": 1} if name == "search" else {}
        (folder / f"{name}.json").write_text(json.dumps({**found, key: found[key][cut], **ends}))
    for name in ("evaluation", "certification"):
        found = json.loads((folder / f"{name}.json").read_text())
        found["models"] = {model: found["models"][model] for model in ("model-0", "ensemble")}
        (folder / f"{name}.json").write_text(json.dumps(found))
    return folder


def of_run(folder: Path) -> Path:
    """Write a run's report."""
    return write_report(RunFolder.open(folder))


@pytest.fixture(scope="module", params=["run", "attack"])
def pages(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the pages of two folders that differ in names only: harmless ones, and hostile ones."""
    source: Path = request.getfixturevalue("small_run" if request.param == "run" else "attacked")
    write: Callable[[Path], Path] = of_run if request.param == "run" else write_attack_report
    folder = tmp_path_factory.mktemp("named")
    harmless, hostile = (write(rename(source, folder / name, suffix)) for name, suffix in
                         {"harmless": HARMLESS, "hostile": HOSTILE}.items())  # fmt: skip
    return harmless, hostile


def test_hostile_names_in_every_file_add_no_element_and_no_attribute(pages: tuple[Path, Path]) -> None:
    harmless, hostile = (Structure(page.read_text(encoding="utf-8")) for page in pages)
    assert hostile.found == harmless.found
    assert len(set(hostile.ids)) == len(hostile.ids) == len(harmless.ids)
    assert not {tag for tag, _ in hostile.found} & {"script", "iframe", "object", "base", "form"}
    assert "<script>document.title='bad'</script>" in hostile.words  # as text
    assert r"\u202e$5_$^{\x1b[31m" in hostile.words
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e]", hostile.words)


def test_every_page_forbids_scripts_and_addresses(pages: tuple[Path, Path]) -> None:
    for page in pages:
        head = page.read_text(encoding="utf-8").partition("<title>")[0]
        assert "default-src &#x27;none&#x27;" in head and "script-src" not in head


def test_a_browser_shows_hostile_names_under_the_policy_and_runs_nothing(pages: tuple[Path, Path]) -> None:
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("there is no browser: install chromium and chromium-driver")
    options = ChromeOptions()
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options=options, service=ChromeService(shutil.which("chromedriver")))
    try:
        driver.get(pages[1].as_uri())
        assert driver.title != "bad"
        assert driver.execute_script("return getComputedStyle(document.querySelector('nav ul')).display") == "flex"
        assert all(driver.execute_script("return [...document.images].map(image => image.naturalWidth)"))
        assert not driver.get_log("browser")  # what a policy refuses is complained of here
    finally:
        driver.quit()


def test_names_of_figures_become_ids_that_differ(finished_run: Path) -> None:
    assert identifier("model-0_a") == "model-0_a"
    assert len({identifier(text) for text in ('a"', "a'", "a.22.", "a ", "a")}) == 5
    figure = styled(lambda: to_svg(figure_of(200, 200)[0], '"><script>', "name"))()
    assert "<script>" not in figure


def test_long_and_foreign_names_are_drawn_in_the_room_that_there_is() -> None:
    names = ["a" * 5000, "狗と猫", "Ω$x_1^2$", "\N{GRINNING FACE}"]
    counts = [[3, 1, 0, 0], [0, 4, 0, 0], [0, 0, 4, 0], [0, 0, 2, 2]]
    drawn = attack_plots.confusion_plot(counts, names, "confusion", "name")
    width = float(re.findall(r"--natural:([\d.]+)px", drawn)[0])
    assert width < 700
    assert "$x_1^2$" in drawn and "狗と猫" in drawn and "a" * 21 not in drawn


def test_what_an_element_holds_is_text() -> None:
    assert element("p", "<b>\x07\udcff", title='"') == '<p title="&quot;">&lt;b&gt;\\x07\\xff</p>'
