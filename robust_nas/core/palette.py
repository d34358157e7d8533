"""The colours of pages and their figures, on light and on dark paper: figures are drawn in the light ones by name."""

from __future__ import annotations

import re

# Clean, attacked and certified are of Okabe and Ito's palette, which people with colour-blindness can tell apart. The
# hues, for operations and models, follow Paul Tol's muted palette, so that they are not taken for those three; where
# that is too pale for white paper, or too dark for black, they are another shade. What is written on paper, in hues
# too, has a contrast of 4.5 at least, and what else means something has 3 (WCAG 2.2, AA).
LIGHT = {
    "ink": "#1c2430",
    "muted": "#5b6573",
    "dim": "#868f9b",
    "rule": "#e3e7ec",
    "faint": "#f6f7f9",
    "paper": "#ffffff",
    "warn": "#fffaeb",
    "edge": "#a87600",
    "bad": "#a3260b",
    "line": "#828c99",
    "accent": "#0b4f86",
    "clean": "#0072b2",
    "attacked": "#bf4a00",
    "certified": "#00805e",
    "right": "#6db6e0",
    "wrong": "#f0965e",
    "hue-0": "#882255",
    "hue-1": "#1a7aa6",
    "hue-2": "#332288",
    "hue-3": "#707019",
    "hue-4": "#b8475b",
    "hue-5": "#1f7a6c",
    "hue-6": "#8a6a00",
    "hue-7": "#aa4499",
    "hue-8": "#117733",
}
DARK = {
    "ink": "#e4e8ee",
    "muted": "#a3aebb",
    "dim": "#6b7685",
    "rule": "#2c343f",
    "faint": "#1b222b",
    "paper": "#12171e",
    "warn": "#2b2413",
    "edge": "#d9a400",
    "bad": "#ff9b85",
    "line": "#6b7686",
    "accent": "#79b8f2",
    "clean": "#56b4e9",
    "attacked": "#f08a4b",
    "certified": "#3cbf95",
    "right": "#1f6a9e",
    "wrong": "#96440f",
    "hue-0": "#f08fb5",
    "hue-1": "#88ccee",
    "hue-2": "#a79bf0",
    "hue-3": "#c9c95a",
    "hue-4": "#e0808f",
    "hue-5": "#5cc9b5",
    "hue-6": "#ddcc77",
    "hue-7": "#d98bc9",
    "hue-8": "#6cc083",
}
HUES = tuple(colour for name, colour in LIGHT.items() if name.startswith("hue-"))
"""The light hues, for operations and models."""

_NAMES = {colour: name for name, colour in LIGHT.items()}
_IN_STYLE = re.compile(r"(?<=: )#[0-9a-f]{6}(?=[;\"])")


def declared(colours: dict[str, str]) -> str:
    """Return colours as a style sheet's variables."""
    return " ".join(f"--{name}: {colour};" for name, colour in colours.items())


def variable(colour: str) -> str:
    """Return the variable of one of the light colours, which is another colour on dark paper."""
    return f"var(--{_NAMES[colour]})"


def with_variables(tag: str) -> str:
    """Return a tag with the colours in its style as variables."""
    return _IN_STYLE.sub(lambda found: variable(found[0]), tag)
