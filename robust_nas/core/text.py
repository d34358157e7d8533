"""Text for terminals and pages."""

from __future__ import annotations

import contextlib
import html
import re
from collections.abc import Sequence

_ACTING = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # control characters
    "\u2028\u2029\ud800-\udfff"  # ends of lines and paragraphs; what is no character
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]"  # the order in which what follows is read
)


def visible(text: str, *, keep: str = "\n\t") -> str:
    r"""Return text in which nothing acts instead of being shown.

    Control characters, marks of direction and bytes that are no UTF-8 (as file names may have) become escapes such as
    \x1b, but for those in `keep`; all other text, of whatever script, is as it was.
    """
    if text.isascii() and text.isprintable():
        return text
    # Where Python takes names of files for ASCII, UTF-8 is read as bytes.
    with contextlib.suppress(UnicodeEncodeError):
        text = text.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
    return _ACTING.sub(lambda found: found[0] if found[0] in keep else _escaped(found[0]), text)


def escape(text: str) -> str:
    r"""Return text as markup that shows it, what cannot be shown as an escape such as \x1b."""
    return html.escape(visible(text))


def percent(share: float) -> str:
    """Return a fraction as text in percent."""
    return f"{100 * share:.1f} %"


def shortened(title: str, longest: int) -> str:
    """Return a title without its middle, if it is too long: names often differ at one end only."""
    if len(title) <= longest:
        return title
    half = (longest - 1) // 2
    return f"{title[:half]}\N{HORIZONTAL ELLIPSIS}{title[-half:]}"


def _escaped(character: str) -> str:
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"  # a byte, as `surrogateescape` reads it
    return character.encode("unicode_escape", "surrogatepass").decode()


def aligned(lines: Sequence[Sequence[str]], *, left: int = 0) -> list[str]:
    """Return lines of cells as text in columns; the first `left` are aligned at the left, the others at the right."""
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


def warnings(notes: Sequence[str]) -> list[str]:
    """Return warnings as lines."""
    import textwrap

    return [line for note in notes for line in textwrap.wrap(f"beware: {note}", 118, subsequent_indent=" " * 8)]
