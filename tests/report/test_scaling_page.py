"""The page of a scaling study: every cell is on it, and it opens anywhere."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from robust_nas.core.palette import DARK
from robust_nas.records.reading import Reading
from robust_nas.report.scaling_page import write_scaling_report
from robust_nas.report.size_plots import in_short
from robust_nas.studies.scaling import measured, reading

HOSTILE = "<script>document.title='bad'</script>\u202e"


@pytest.fixture(scope="module")
def found(made_study: Callable[..., Any]) -> Reading:
    """The reading of a study of two settings, with cells that did not finish."""

    def true(depth: int, width: float, **own: str) -> float:
        return 0.3 + 1 / depth + 0.03 / width - 0.05 * (own["train.norm"] == "mixture")

    varied = [{"train.norm": "batch"}, {"train.norm": "mixture"}]
    study = made_study(true, (8, 14, 26, 50), (1, 2), varied=varied, noise=0.02)
    nothing: dict[str, Any] = {"clean": None, "robust": None, "attacks": {}, "steps": {}, "seconds": None}
    cells = list(study.cells)
    cells[-1] = replace(cells[-1], status="out of memory", reason=HOSTILE, **nothing)
    cells[-2] = replace(cells[-2], status="waiting", **nothing)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measured, "RESAMPLES", 30)  # how many draws there are does not matter here
        return reading.read(replace(study, cells=tuple(cells)), command="robust-nas scale report runs/scale-made")


@pytest.fixture(scope="module")
def page(found: Reading, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its page."""
    return write_scaling_report(found, tmp_path_factory.mktemp("study") / "scaling.html")


def test_the_page_has_every_cell_and_sentence_and_what_made_it(found: Reading, page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert all(f">{row.name}<" in text for row in found.study.cells)
    plain = text.replace("\N{NO-BREAK SPACE}", " ")
    assert all(sentence.replace("'", "&#x27;") in plain for sentence in found.findings)
    assert found.command in text and "robust-nas scale run --data digits" in text and "a processor, 2 cores" in text
    assert "ran out of memory" in text and "<script>" not in text and "&lt;script&gt;" in text


def test_published_points_are_named_as_such_and_are_in_a_section_of_their_own(page: Path) -> None:
    before, _, rest = page.read_text(encoding="utf-8").partition('id="published-points"')
    section, _, after = rest.partition("</section>")
    assert "ResNet-638" not in before + after
    assert section.count(">published<") == 2 and "in none of this study&#x27;s numbers" in section


def test_the_page_opens_on_dark_and_light_screens_and_telephones_without_errors(
    page: Path, new_browser: Callable[..., Any]
) -> None:
    browser = new_browser(loggingPrefs={"browser": "ALL"})
    try:
        for width, scheme in ((390, "dark"), (1280, "light")):
            features = [{"name": "prefers-color-scheme", "value": scheme}]
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "screen", "features": features})
            size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": True}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            browser.get(page.resolve().as_uri())
            facts = browser.execute_script(
                """return { width: document.documentElement.scrollWidth, title: document.title,
                    paper: getComputedStyle(document.documentElement).backgroundColor,
                    figures: [...document.querySelectorAll("svg[role=img]")].map(
                        (item) => item.getBoundingClientRect().right),
                    ids: [...document.querySelectorAll("[id]")].map((item) => item.id) }"""
            )
            assert facts["width"] == width and facts["title"].startswith("scale-made")
            assert len(facts["figures"]) >= 10 and max(facts["figures"]) <= width
            assert len(facts["ids"]) == len({*facts["ids"]})
            dark = tuple(int(DARK["paper"][place : place + 2], 16) for place in (1, 3, 5))
            assert (facts["paper"] == f"rgb{dark}") is (scheme == "dark")
        assert browser.get_log("browser") == []
    finally:
        browser.quit()


def test_the_page_has_no_colours_but_the_palette_s_and_loads_nothing(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    _, _, body = text.partition("</style>")
    assert not re.findall(r"#[0-9a-fA-F]{6}\b|rgb\(", body)
    assert not re.findall(r'(?:src|href)="(?!#|data:)', body)


def test_sizes_are_written_in_short() -> None:
    assert [in_short(size) for size in (0.5, 24, 999.99, 24190, 999_999, 2.3e13, 8.6e14)] == [
        "0.5", "24", "1 k", "24.19 k", "1 M", "23 T", "860 T",
    ]  # fmt: skip
