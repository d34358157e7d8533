"""HTML that is escaped by construction: text becomes markup in one place only."""

from __future__ import annotations

import re
from collections.abc import Iterable

from robust_nas.core.text import escape


class Html(str):
    """Markup; any other string is text and is escaped when it enters a page."""


Content = str | Html | Iterable["Content"] | None
"""The contents of an element: text, markup, any of them in a row, or nothing."""

_EMPTY = ("img", "meta", "wbr")

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
"""The security policy of a page that runs nothing and loads nothing; figures have their styles in attributes."""


def identifier(text: str) -> str:
    """Return text as what an id may be, different texts as different ones; letters, digits, "-" and "_" stay."""
    return re.sub(r"[^A-Za-z0-9_-]", lambda found: f".{ord(found[0]):x}.", text)


def security_policy(policy: str = POLICY) -> Html:
    """Return the element that makes a browser keep to a policy; it stands before all that it is for."""
    return element("meta", http_equiv="Content-Security-Policy", content=policy)


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
