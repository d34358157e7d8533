"""Sizes that a space can have; its memory is checked where its networks are built."""

from __future__ import annotations

from collections.abc import Mapping

from robust_nas.core.errors import InputError

LARGEST = {
    "channels": 4096,
    "final_channels": 4096,
    "num_nodes": 16,  # a cell's canonical form doubles in length with every node
    "stages": 10,  # each doubles the channels
    "stem_stride": 64,
    "cells_per_stage": 1000,
    "num_cells": 1000,
    "final_cells": 1000,
}
"""The largest values of a space's sizes; others have no limit of their own."""


def check_sizes(least: dict[str, int], sizes: Mapping[str, int | None]) -> None:
    """Raise InputError for a size that is below its least or above its largest value; None is not looked at."""
    for key, low in least.items():
        size, high = sizes[key], LARGEST.get(key)
        if size is not None and size < low:
            raise InputError(f"space.{key} must be at least {low}, but got {size}.")
        if size is not None and high is not None and size > high:
            raise InputError(f"space.{key} must be at most {high}, but got {size}.")
