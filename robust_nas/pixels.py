"""Lengths in pixel units of [0, 1], as people write and read them: 0.2, "8/255". Imports nothing slow."""

from __future__ import annotations

import math

from robust_nas.errors import InputError


def parse_pixels(value: float | str) -> float:
    """Return a length in pixel units of [0, 1], from a number or a fraction as people write it: "8/255".

    Raises:
        InputError: if `value` is neither.
    """
    if isinstance(value, str):
        numerator, _, denominator = value.partition("/")
        try:
            length = float(numerator) / float(denominator or 1)
        except (ValueError, ZeroDivisionError):
            length = math.nan
    else:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        length = float(value) if is_number else math.nan
    if math.isnan(length):
        raise InputError(f"A length in pixels must be a number or a fraction such as '8/255', but got {value!r}.")
    return length


def format_pixels(length: float) -> str:
    """Return a length in pixel units as people write it: 0.2, 8/255."""
    # Three quarters of 0.2 are 0.15000000000000002.
    if math.isclose(round(length, 4), length, rel_tol=1e-9):
        return f"{round(length, 4):g}"
    in_bytes = length * 255
    for denominator in (1, 2, 4):
        numerator = in_bytes * denominator
        if abs(numerator - round(numerator)) < 1e-6:
            return f"{round(numerator) / denominator:g}/255"
    return f"{length:.3g}"
