"""Passwords in URLs: taken out before anything is written or printed, and known to this process alone.

What is left, `postgresql://user:***@host/base`, stands in run folders, messages and logs. A process that goes on with a
run hears the password again, from the URL or from `ROBUST_NAS_STORAGE_PASSWORD`.
"""

from __future__ import annotations

import os
import re

HIDDEN = "***"
"""It stands where a password was."""

PASSWORD = "ROBUST_NAS_STORAGE_PASSWORD"
"""The variable of the environment with the password of a storage."""

_KNOWN: dict[str, str] = {}

# To the last @: a password may have one, where somebody has not written it as %40.
_IN_URL = re.compile(r"(\b[a-zA-Z][\w+.-]*://[^\s:/@]*:)[^\s]*@")
_IN_QUERY = re.compile(r"([?&](?:password|passwd|passphrase|sslpassword)=)[^&\s]*", re.IGNORECASE)


def masked(text: str) -> str:
    """Return a text without the passwords of the URLs in it."""
    return _IN_QUERY.sub(rf"\1{HIDDEN}", _IN_URL.sub(rf"\1{HIDDEN}@", text))


def keep(text: str, password: str) -> None:
    """Remember, in this process, the password of a masked URL."""
    _KNOWN[text] = password


def password_of(text: str) -> str | None:
    """Return the password of a masked URL, or None if this process has heard none."""
    return _KNOWN.get(text) or os.environ.get(PASSWORD) or None
