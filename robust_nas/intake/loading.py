"""Models by the words that name them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from robust_nas import records
from robust_nas.architectures import AnyArchitecture
from robust_nas.core import config
from robust_nas.core.catalogue import expanded
from robust_nas.core.checks import check_path
from robust_nas.core.errors import InputError
from robust_nas.core.registry import ModelParts, model_parts
from robust_nas.core.seeds import seeded
from robust_nas.datasets import Dataset, DataSource
from robust_nas.intake.diagnosis import check_model
from robust_nas.models.complexity import within_memory
from robust_nas.models.frozen import evaluating
from robust_nas.models.named import absolute_place, file_digest, named_model
from robust_nas.models.weights import PICKLED, check_weights_file, load_weights
from robust_nas.runtime.process import unchanged_process
from robust_nas.runtime.run_folder import RunFolder, is_run
from robust_nas.spaces import Space, described
from robust_nas.spaces.module import ModuleSpace


@unchanged_process()
def load_models(spec: str, *, device: torch.device | str = "cpu") -> dict[str, nn.Module]:
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
    return {_name_of(parts): named_model(parts)}


def own_model(spec: str) -> tuple[str, Path | None]:
    """Return the name of a model of one's own, from the root on and without weights, and the file of its weights.

    Weights that torchvision has by name stay a part of the name. The model is loaded once: what cannot be is refused.

    Raises:
        InputError: for what names no module, or what `load_models` raises.
    """
    check_named(spec)
    parts = model_parts(spec)
    if parts is None:
        raise InputError(
            f"'{spec}' names no model that can be made anew: give package.module:attribute, path/to/file.py:attribute "
            "or torchvision:NAME."
        )
    load_models(spec, device="cpu")
    weights = expanded(parts.weights).resolve() if parts.weights and _of_file(parts) else None
    return absolute_name(parts), weights


def absolute_name(parts: ModelParts) -> str:
    """Return a model's name from the root on, without weights of a file."""
    ending = f"@{parts.weights}" if parts.weights and not _of_file(parts) else ""
    return f"{absolute_place(parts)}:{parts.attribute}{ending}"


def _of_file(parts: ModelParts) -> bool:
    """Whether a name's weights are a file's, and not torchvision's by name."""
    return bool(parts.weights) and (parts.runs_code or bool(Path(str(parts.weights)).suffix))


def own_space(name: str, normalise: str | None = None) -> ModuleSpace:
    """Return the space of one model of one's own, by its name as `own_model` gives it, with its file as it is now."""
    parts = model_parts(name)
    digest = file_digest(parts) if parts else ""
    return ModuleSpace(name="own", models=(name,), normalise=normalise, sha256=(digest,) if digest else ())


def check_named(word: str) -> None:
    """Raise InputError for a word that names no model, and that is no folder."""
    path = expanded(word)
    if word.endswith(".py"):
        raise InputError(f"Name the model in {word}, a class or a function that makes one: {word}:NAME.")
    if ":" not in word and not path.exists():
        raise InputError(
            f"There is no {word}; name a run folder, weights in one, a saved ensemble, package.module:attribute, "
            "path/to/file.py:attribute or torchvision:NAME."
        )
    if model_parts(word) is None and path.suffix in (".safetensors", *PICKLED):
        check_weights_file(path)
        if not is_run(path.absolute().parent.parent):
            raise _without_network(path)


def _without_network(weights: Path) -> InputError:
    return InputError(
        f"{weights} lies in no run folder's checkpoints, so that its network is not known; give the model as "
        f"package.module:attribute@{weights}."
    )


def short_name(name: str) -> str:
    """Return the name of a model, as `own_model` gives it, in results and folders."""
    parts = model_parts(name)
    return _name_of(parts) if parts else name


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
        raise _without_network(path)
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
    again = "delete the file and the stage's JSON file, and resume the run"
    if isinstance(space, ModuleSpace):
        again = f"put what defines {architecture} back as it was when the run trained it"
    load_weights(network, weights, again)
    return network.eval()
