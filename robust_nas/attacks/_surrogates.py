"""Other models, for attacks that transfer."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from robust_nas.intake import check_model, files_of, load_models


def load_surrogates(surrogates: Sequence[str | nn.Module], device: torch.device) -> list[nn.Module]:
    """Return the models in evaluation mode: those given, and those that `intake.load_models` finds by name.

    Raises:
        InputError: for a name of no model, and for TorchScript.
    """
    models: list[nn.Module] = []
    for surrogate in surrogates:
        if isinstance(surrogate, nn.Module):
            check_model(surrogate)
            models.append(surrogate)
        else:
            changed = tuple((file, file.stat().st_mtime_ns) for file in files_of(surrogate))
            models += _load(surrogate, changed, device)
    return models


@functools.lru_cache(maxsize=16)
def _load(surrogate: str, changed: tuple[tuple[Path, int], ...], device: torch.device) -> list[nn.Module]:
    """Return models by their name; `changed` is when their files were, so that no other files' models are kept."""
    return list(load_models(surrogate, device=device).values())
