"""Skeletons of a table's networks, which surround their cells: settings of a space, written channels=16,stages=3."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from robust_nas.core.errors import InputError

_CELL = ("name", "kind", "num_nodes", "operations")
"""Settings that say which cells there are, not what surrounds them."""


def written(space: Mapping[str, Any]) -> str:
    """Return the skeleton of a space's settings, keys in order, values as JSON."""
    # The stride that published skeletons have is not written, so that theirs are the same.
    left_out = {*_CELL, *(["stem_stride"] if space.get("stem_stride") == 1 else [])}
    pairs = ((key, value) for key, value in sorted(space.items()) if key not in left_out)
    return ",".join(f"{key}={json.dumps(value, separators=(',', ':'))}" for key, value in pairs)


def settings(skeleton: str) -> dict[str, Any]:
    """Return the settings that a skeleton writes, to build its space again.

    Raises:
        InputError: if it is written in another way.
    """
    found: dict[str, Any] = {}
    place = 0
    while place < len(skeleton):
        key = re.compile(r",?(\w+)=").match(skeleton, place)
        try:
            if key is None or (place == 0) == (skeleton[place] == ","):
                raise ValueError
            found[key[1]], place = json.JSONDecoder().raw_decode(skeleton, key.end())
        except ValueError:
            raise InputError(
                "The skeleton of a table's networks is written as settings of their space, such as "
                f"channels=16,stages=3, but got '{skeleton}'."
            ) from None
    return found
