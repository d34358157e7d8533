"""Lengths in pixel units, as people write them."""

from __future__ import annotations

import pytest

from robust_nas.errors import InputError
from robust_nas.pixels import format_pixels, parse_pixels


@pytest.mark.parametrize("length", [0.2, 8 / 255, 0.5 / 255, 1 / 255, 0.0001])
def test_what_is_written_is_read_back(length: float) -> None:
    assert parse_pixels(format_pixels(length)) == pytest.approx(length, rel=1e-12)


@pytest.mark.parametrize("wrong", ["eight", "8/0", "", "8/255/2", True, None])
def test_what_is_no_length_is_refused(wrong: object) -> None:
    with pytest.raises(InputError, match="must be a number or a fraction"):
        parse_pixels(wrong)  # type: ignore[arg-type]
