"""Trained models from run folders, for attacks that transfer."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from robust_nas import config
from robust_nas.datasets import DataSource
from robust_nas.errors import InputError
from robust_nas.run_dir import load_state, read_json
from robust_nas.spaces import Space


@dataclass(frozen=True, kw_only=True)
class _Sections:
    """What of a run's configuration its networks are built from."""

    data: DataSource
    space: Space


def load_surrogates(surrogates: Sequence[str | nn.Module], device: torch.device) -> list[nn.Module]:
    """Return the models in evaluation mode: those given, and those saved in the run folders and files named.

    Raises:
        InputError: for a place that is no run folder of ours, and no model's weights in one.
    """
    models: list[nn.Module] = []
    for surrogate in surrogates:
        if isinstance(surrogate, nn.Module):
            models.append(surrogate)
            continue
        path = Path(surrogate).expanduser()
        files = [path] if path.suffix == ".safetensors" else sorted(path.glob("checkpoints/model-*.safetensors"))
        files = [file for file in files if file.is_file()]
        if not files:
            raise InputError(
                f"The surrogate {surrogate} is neither a run folder with trained models nor the weights of one in it."
            )
        models += [_load(file.resolve(), file.stat().st_mtime_ns, device) for file in files]
    return models


@functools.lru_cache(maxsize=16)
def _load(path: Path, changed: int, device: torch.device) -> nn.Module:
    """Return a model of a run; `changed` is when its file was, so that no other file's model is kept for it."""
    run = path.parent.parent
    table = config.read_toml(run / "config.toml")
    sections = config.build(_Sections, {key: table[key] for key in ("data", "space") if key in table})
    chosen = read_json(run / "derive.json")["chosen"]
    number = path.stem.removeprefix("model-")
    if not number.isdecimal() or int(number) >= len(chosen):
        raise InputError(f"{path} is none of the models that {run / 'derive.json'} lists.")
    model = sections.space.network(sections.space.parse(chosen[int(number)]), sections.data.load_splits())
    try:
        model.load_state_dict(load_state(path)["weights"])
    except (RuntimeError, KeyError) as error:
        raise InputError(f"The weights in {path} do not fit the network of {run / 'config.toml'} ({error}).") from None
    return model.to(device).eval()
