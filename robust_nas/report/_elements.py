"""HTML that is escaped by construction: text becomes markup in one place only."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape


class Html(str):
    """Markup; any other string is text and is escaped when it enters a page."""


Content = str | Html | Iterable["Content"] | None
"""What an element can hold: text, markup, any of them in a row, or nothing."""

_EMPTY = ("img", "meta", "wbr")


def element(tag: str, *content: Content, **attributes: str | int | None) -> Html:
    """Return an element; `class_` and `for_` are written without the underscore, `aria_label` with a hyphen."""
    written = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    if tag in _EMPTY:
        return Html(f"<{tag}{written}>")
    return Html(f"<{tag}{written}>{join(content)}</{tag}>")


def join(content: Content) -> Html:
    """Return content as markup."""
    if content is None:
        return Html("")
    if isinstance(content, Html):
        return content
    if isinstance(content, str):
        return Html(escape(content))
    return Html("".join(join(item) for item in content))
