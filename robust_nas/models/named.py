"""Modules by the words that name them: somebody's module or file, and torchvision's classifiers; with weights."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from robust_nas.core.catalogue import expanded, has_home
from robust_nas.core.errors import InputError, reason_of, suggest
from robust_nas.core.registry import ModelParts
from robust_nas.models.preparation import Normalised
from robust_nas.models.weights import load_weights

_FOLDERS: set[Path] = set()
"""The folders of the files that models were made by."""

MADE_BY = "_robust_nas_made_by"
"""The attribute in which a model keeps the name that it was loaded by."""


def made_by(model: nn.Module) -> str | None:
    """Return the name by which a model of one's own was loaded, without weights; None if it was not."""
    name = vars(model).get(MADE_BY)
    return name if isinstance(name, str) else None


def named_model(parts: ModelParts) -> nn.Module:
    """Return the module of a name, on the CPU, as its maker left it; one of torchvision's with weights normalises.

    Raises:
        InputError: for a module that cannot be imported, an attribute that is missing or is no model, weights that do
            not fit or cannot be downloaded.
    """
    model = _of_module(parts) if parts.runs_code else _of_torchvision(parts)
    # How to make it again, for those who save it without what its weights are loaded into.
    made = model if parts.runs_code or not isinstance(model, Normalised) else model.model
    vars(made)[MADE_BY] = f"{absolute_place(parts)}:{parts.attribute}"
    return model


def file_digest(parts: ModelParts) -> str:
    """Return the sha256 of the file that defines a model; nothing for a module, or one of torchvision's."""
    path = expanded(parts.place)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.suffix == ".py" and path.is_file() else ""


def absolute_place(parts: ModelParts) -> str:
    """Return the place of a name, a file's from the root on: another folder may be the current one later."""
    return str(expanded(parts.place).resolve()) if parts.place.endswith(".py") else parts.place


# Modules of one's own


def _of_module(parts: ModelParts) -> nn.Module:
    path = expanded(parts.place).absolute()
    # A file's neighbours, as `python path/to/file.py` finds them, and what is in the current folder.
    with _importable(Path.cwd(), *([path.parent] if path.suffix == ".py" else [])):
        if path.suffix == ".py":
            _forget_neighbours_of_others(path.resolve().parent)
        model = _made(_attribute(_imported(parts.place), parts), parts)
    if parts.weights:
        load_weights(model, expanded(parts.weights))
    return model


@contextlib.contextmanager
def _importable(*folders: Path) -> Iterator[None]:
    """Let modules in these folders be imported, those in the last first."""
    before = list(sys.path)
    sys.path[:0] = [str(folder) for folder in reversed(folders)]
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = before


def _forget_neighbours_of_others(folder: Path) -> None:
    """Let a file's imports find its own neighbours, and not those of the same name beside another model's file.

    Python keeps imported modules by name; a model keeps those that it was made with.
    """
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        top = name.partition(".")[0]
        beside = {folder / f"{top}.py", folder / top / "__init__.py"}
        if file is None or not any(place.is_file() for place in beside):
            continue
        home = Path(file).resolve().parents[name.count(".") + (Path(file).name == "__init__.py")]
        if home in _FOLDERS - {folder}:
            del sys.modules[name]
    _FOLDERS.add(folder)


def _imported(place: str) -> ModuleType:
    path = expanded(place)
    if place.endswith(".py") and not path.is_file():
        raise InputError(
            f"There is no file {path}; give the one that defines the model, or put it back if a run's model is its."
        )
    try:
        return _run_file(path.resolve()) if place.endswith(".py") else importlib.import_module(place)
    # Whatever a file of the user's raises; ROBUST_NAS_TRACEBACK shows where.
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        advice = "mend it" if place.endswith(".py") else "check its name, PYTHONPATH and the current folder"
        raise InputError(f"{place} cannot be imported ({type(error).__name__}: {error}); {advice}.") from error


def _run_file(path: Path) -> ModuleType:
    # A name of its own: a file called types.py must not pass for the standard library's.
    name = f"robust_nas_intake_{path.stem}"
    found = importlib.util.spec_from_file_location(name, path)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module  # where dataclasses look for the annotations of a class
    found.loader.exec_module(module)
    return module


def _attribute(module: ModuleType, parts: ModelParts) -> Any:
    value: Any = module
    for name in parts.attribute.split("."):
        if not hasattr(value, name):
            own = [
                key
                for key, item in getattr(value, "__dict__", {}).items()
                if isinstance(item, nn.Module)
                or (callable(item) and getattr(item, "__module__", "") == module.__name__)
            ]
            raise InputError(f"{parts.place} has no '{parts.attribute}'. {suggest(name, own)}")
        value = getattr(value, name)
    return value


def _made(value: Any, parts: ModelParts) -> nn.Module:
    """Return the model that `value` is or makes."""
    name, made = f"{parts.place}:{parts.attribute}", value
    if not isinstance(value, nn.Module) and callable(value):
        try:
            inspect.signature(value).bind()
        except (TypeError, ValueError) as error:
            raise InputError(
                f"{name} cannot be called without arguments ({error}); name a function that makes the model."
            ) from None
        try:
            made = value()
        except (InputError, KeyboardInterrupt):
            raise
        except BaseException as error:
            raise InputError(f"{name} failed to make a model ({type(error).__name__}: {error}); mend it.") from error
    if not isinstance(made, nn.Module):
        verb = "is" if made is value else "returns"
        raise InputError(f"{name} must be an nn.Module or return one, but it {verb} a {type(made).__name__}.")
    return made


# torchvision


def _of_torchvision(parts: ModelParts) -> nn.Module:
    from torchvision import models

    wanted = re.fullmatch(r"(\w+)(?:\?num_classes=(\d+))?", parts.attribute)
    if wanted is None:
        raise InputError(
            "A model of torchvision's is written torchvision:NAME, torchvision:NAME?num_classes=K or "
            f"torchvision:NAME@WEIGHTS, but got 'torchvision:{parts.attribute}'."
        )
    name, options = wanted[1], {"num_classes": int(wanted[2])} if wanted[2] else {}
    known = models.list_models(module=models)
    if name not in known:
        raise InputError(f"torchvision has no classifier '{name}'. {suggest(name, known)}")
    if parts.weights is None or Path(parts.weights).suffix:
        model: nn.Module = models.get_model(name, weights=None, **options)
        if parts.weights:
            load_weights(model, expanded(parts.weights))
        return model
    members = models.get_model_weights(name).__members__
    if parts.weights not in members:
        raise InputError(f"torchvision has no weights '{parts.weights}' of {name}. {suggest(parts.weights, members)}")
    return _pretrained(name, members[parts.weights], options)


def _pretrained(name: str, weights: Any, options: Mapping[str, int]) -> nn.Module:
    from torchvision import models

    try:
        with _unpickling_nothing():
            model = models.get_model(name, weights=weights, **options)
    except ValueError as error:
        raise InputError(f"The weights {weights} are for another number of classes ({error}).") from None
    # No network, a download with another checksum, a file that is damaged or has more in it than weights.
    except Exception as error:
        raise InputError(
            f"The weights {weights} cannot be had ({reason_of(error)}); delete {torch.hub.get_dir()}/checkpoints/"
            f"{weights.url.rpartition('/')[2]} and try again, or give a file: torchvision:{name}@weights.safetensors."
        ) from error
    transforms = weights.transforms()
    return Normalised(model, transforms.mean, transforms.std, str(weights))


@contextlib.contextmanager
def _unpickling_nothing() -> Iterator[None]:
    """Have torch.load read weights only; torchvision asks it for everything."""
    wanted = {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1"}
    if not has_home() and not {"TORCH_HOME", "XDG_CACHE_HOME"} & {*os.environ}:
        wanted["TORCH_HOME"] = str(expanded("~/.cache/torch"))  # or torch makes a folder that is called "~"
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
