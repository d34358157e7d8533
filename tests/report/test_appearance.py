"""The pages' looks: legible on light and dark paper, on a telephone and in print."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from robust_nas.core.palette import DARK, LIGHT
from robust_nas.report._style import STYLE

TEXT_ON = {
    "paper": {"ink", "muted", "accent", "bad", "clean", "attacked", "certified"}
    | {name for name in LIGHT if name.startswith("hue-")},
    "faint": {"ink", "muted", "accent", "clean", "attacked", "certified"},  # rows of ensembles, settings
    "warn": {"ink", "accent"},
    "right": {"ink"},  # the strongest shades of a heat map
    "wrong": {"ink"},
}
GRAPHICS_ON_PAPER = ("dim", "line", "edge")  # axes, lines of little weight, frames


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio of two colours by the formula of WCAG 2.2."""

    def luminance(colour: str) -> float:
        shares = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        red, green, blue = (share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_text_has_a_contrast_of_4_5_and_what_means_something_of_3(colours: dict[str, str]) -> None:
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)  # WCAG's own example of what falls short
    assert colours.keys() == LIGHT.keys()
    for below, names in TEXT_ON.items():
        for name in names:
            assert contrast(colours[name], colours[below]) >= 4.5, (name, below)
    for name in GRAPHICS_ON_PAPER:
        assert contrast(colours[name], colours["paper"]) >= 3, name


def test_figures_have_no_colours_but_the_page_s_which_are_dark_on_screens_only(finished_page: Path) -> None:
    text = finished_page.read_text(encoding="utf-8")
    _, _, body = text.partition("</style>")
    assert not re.findall(r"#[0-9a-fA-F]{6}\b|#[0-9a-fA-F]{3}\b|rgb\(", body)
    used = set(re.findall(r"var\(--([\w-]+)\)", text))
    assert {"clean", "attacked", "certified", "ink", "paper", "hue-0"} <= used <= {*LIGHT, "natural"}
    (dark,) = re.findall(r"@media ([^{]*prefers-color-scheme: dark[^{]*){", STYLE)
    assert dark.strip() == "screen and (prefers-color-scheme: dark)"


def show(browser: Any, page: Path, width: int, scheme: str = "light", media: str = "screen") -> None:
    """Open a page in a window of a width, in pixels."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})
    # As on a telephone, the bar lies over the page and takes no room from it.
    size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(page.resolve().as_uri())


def test_a_telephone_shows_worst_case_and_certificates_and_print_shows_all(finished_page: Path, browser: Any) -> None:
    try:
        show(browser, finished_page, 390, "dark")
        facts = browser.execute_script(
            """const heads = [...document.querySelectorAll("#results thead th")];
            const edge = (text) => heads.find((th) => th.textContent.startsWith(text)).getBoundingClientRect().right;
            const style = (selector) => getComputedStyle(document.querySelector(selector));
            return { width: document.documentElement.scrollWidth,
                     worst: edge("Worst case"), certified: edge("ε = 0.002"),
                     open: document.querySelectorAll("details[open]").length, paper: style("html").backgroundColor,
                     label: style("svg[role=img] text").fill,
                     setting: document.querySelector(".setup pre").checkVisibility({contentVisibilityAuto: true}) }"""
        )
        assert facts["width"] == 390 and facts["worst"] < facts["certified"] <= 390
        assert facts["open"] == 0 and not facts["setting"]
        as_rgb = {
            name: f"rgb({', '.join(str(int(DARK[name][place : place + 2], 16)) for place in (1, 3, 5))})"
            for name in ("paper", "muted")
        }
        assert (facts["paper"], facts["label"]) == (as_rgb["paper"], as_rgb["muted"])

        show(browser, finished_page, 672, "dark", "print")  # a page of A4 between its margins
        facts = browser.execute_script(
            """return { paper: getComputedStyle(document.documentElement).backgroundColor,
                widest: Math.max(...[...document.querySelectorAll("table, figure, pre")].map(
                    (item) => item.getBoundingClientRect().right)),
                setting: document.querySelector(".setup pre").getBoundingClientRect().height }"""
        )
        assert facts["paper"] == "rgb(255, 255, 255)" and facts["widest"] <= 672 and facts["setting"] > 100
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
