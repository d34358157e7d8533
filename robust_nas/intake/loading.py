"""Models by the words that name them."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from robust_nas import records
from robust_nas.architectures import AnyArchitecture
from robust_nas.core import config
from robust_nas.core.catalogue import expanded, has_home
from robust_nas.core.checks import check_path
from robust_nas.core.errors import InputError, reason_of, suggest
from robust_nas.core.registry import ModelParts, model_parts
from robust_nas.core.seeds import seeded
from robust_nas.datasets import Dataset, DataSource
from robust_nas.intake.diagnosis import check_model
from robust_nas.intake.preparation import Normalised
from robust_nas.intake.weights import PICKLED, check_weights_file, load_weights
from robust_nas.models.complexity import within_memory
from robust_nas.models.frozen import evaluating
from robust_nas.runtime.process import unchanged_process
from robust_nas.runtime.run_folder import RunFolder, is_run
from robust_nas.spaces import Space, described


@unchanged_process()
def load_models(spec: str, *, device: torch.device | str) -> dict[str, nn.Module]:
    """Return the models that `spec` names, by name, in evaluation mode on `device`.

    Parameters that no weights give are initialised from a fixed seed. A module or a file that is named is run: where a
    name is from a file, `registry.check_model_name` comes first.

    Args:
        spec: a run folder, weights in one, "module:attribute" or "torchvision:NAME", as in `robust_nas.intake`.

    Raises:
        InputError: for what is none of these, TorchScript, pickled weights, a module that cannot be imported, an
            attribute that is missing or is no model, weights that do not fit or cannot be downloaded, and a run folder
            without trained models.
    """
    check_path("What names models", spec)
    try:
        place = torch.device(device)
    except (RuntimeError, TypeError):
        raise InputError(f"device must be one of torch's, such as 'cpu' or 'cuda', but got {device!r}.") from None
    with seeded(0, "intake"):
        models = _named(str(spec))
    for model in models.values():
        check_model(model)
    return {name: evaluating(model.to(place)) for name, model in models.items()}


def _named(spec: str) -> dict[str, nn.Module]:
    path, parts = expanded(spec), model_parts(spec)
    if path.is_dir():
        return _of_run(path)
    if (path.is_file() and path.suffix != ".py") or (parts is None and path.suffix in (".safetensors", *PICKLED)):
        return _of_weights(path)
    if parts is None:
        raise InputError(
            f"{spec} is neither a run folder nor weights in one, nor written as package.module:attribute, "
            "path/to/file.py:attribute or torchvision:NAME."
        )
    model = _of_torchvision(parts) if not parts.runs_code else _of_module(parts)
    # How to make it again, for those who save it without what its weights are loaded into.
    place = str(expanded(parts.place).resolve()) if parts.place.endswith(".py") else parts.place
    made = model if parts.runs_code or not isinstance(model, Normalised) else model.model
    vars(made)[MADE_BY] = f"{place}:{parts.attribute}"
    return {_name_of(parts): model}


MADE_BY = "_robust_nas_made_by"
"""The attribute in which a model keeps the name that it was loaded by."""


def made_by(model: nn.Module) -> str | None:
    """Return the name by which a model of one's own was loaded, without weights; None if it was not."""
    name = vars(model).get(MADE_BY)
    return name if isinstance(name, str) else None


def files_of(spec: str) -> list[Path]:
    """Return the files that the models of `spec` are read from, as far as they exist: where they changed, it did."""
    path, parts = expanded(spec), model_parts(spec)
    places = [path, *path.glob("config.toml"), *path.glob("derive.json"), *_weights_in(path)]
    places += [expanded(place) for place in (parts.place, parts.weights) if place] if parts else []
    return [place.resolve() for place in places if place.is_file()]


def _name_of(parts: ModelParts) -> str:
    """Return the name of a model in results."""
    name = parts.attribute.partition("?")[0]
    return f"{name}@{Path(parts.weights).stem}" if parts.weights else name


# Run folders of ours


@dataclass(frozen=True, kw_only=True)
class _Sections:
    """The sections of a run's configuration that its networks are built from."""

    data: DataSource
    space: Space


def _weights_in(run: Path) -> list[Path]:
    """Return the weights of a run's trained models, in the models' order; not those of the last epoch."""
    found = [path for path in run.glob("checkpoints/model-*.safetensors") if path.stem[len("model-") :].isdecimal()]
    return sorted(found, key=lambda path: int(path.stem[len("model-") :]))


def _of_run(run: Path) -> dict[str, nn.Module]:
    RunFolder.open(run)
    weights = _weights_in(run)
    if not weights:
        raise InputError(f"The run {run} has no trained models; 'robust-nas train {run}' trains them.")
    return _from_run(run, weights)


def _of_weights(path: Path) -> dict[str, nn.Module]:
    check_weights_file(path)
    run = path.absolute().parent.parent
    if not is_run(run):
        raise InputError(
            f"{path} lies in no run folder's checkpoints, so that its network is not known; give the model as "
            f"package.module:attribute@{path}."
        )
    return _from_run(run, [path])


def _from_run(run: Path, weights: Sequence[Path]) -> dict[str, nn.Module]:
    """Return the models of a run that `weights`, files in its checkpoints, belong to."""
    table = config.read_toml(run / "config.toml")
    sections = config.build(_Sections, {key: table[key] for key in ("data", "space") if key in table})
    chosen = chosen_networks(run, sections.space)
    for path in weights:
        if path.stem.removesuffix("-last") not in chosen:
            raise InputError(f"{path} is none of the models that {run / 'derive.json'} lists.")
    data = sections.data.load_splits()
    return {path.stem: trained_network(*chosen[path.stem.removesuffix("-last")], data, path) for path in weights}


def chosen_architectures(run: Path, space: Space) -> dict[str, AnyArchitecture]:
    """Return a run's derived architectures by model name ("model-0", ...), best first.

    Raises:
        InputError: if none have been derived.
    """
    return {name: architecture for name, (_, architecture) in chosen_networks(run, space).items()}


def chosen_networks(run: Path, space: Space) -> dict[str, tuple[Space, AnyArchitecture]]:
    """Return a run's architectures by model name, each with its space: `space`, unless it came from another run.

    Raises:
        InputError: if none have been derived.
    """
    derived = records.read(run / "derive.json", records.DerivationRecord)
    own = [space] * len(derived.chosen) if derived.spaces is None else [described(table) for table in derived.spaces]
    return {
        f"model-{index}": (each, each.parse(text))
        for index, (each, text) in enumerate(zip(own, derived.chosen, strict=True))
    }


def trained_network(space: Space, architecture: AnyArchitecture, data: Dataset, weights: Path) -> nn.Module:
    """Return an architecture's network with the weights of a file, on the CPU, in evaluation mode.

    Raises:
        InputError: if the file is missing, damaged, or does not fit.
    """
    with within_memory(f"The network of {space.name}", copies=1):
        network = space.network(architecture, data)
    load_weights(network, weights, "delete the file and the stage's JSON file, and resume the run")
    return network.eval()


# Modules of one's own


def _of_module(parts: ModelParts) -> nn.Module:
    path = expanded(parts.place).absolute()
    # A file's neighbours, as `python path/to/file.py` finds them, and what is in the current folder.
    with _importable(Path.cwd(), *([path.parent] if path.suffix == ".py" else [])):
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


def _imported(place: str) -> ModuleType:
    path = expanded(place)
    if place.endswith(".py") and not path.is_file():
        raise InputError(f"There is no file {path}; give the one that defines the model.")
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
