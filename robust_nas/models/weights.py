"""Weights from safetensors files, and tensors from what `torch.save` wrote; nothing else is unpickled."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robust_nas.core.errors import InputError, reason_of
from robust_nas.runtime.states import load_state, named_in_utf8

PICKLED = (".pt", ".pth", ".ckpt", ".bin", ".pkl")
"""The names' ends of files that `torch.save` writes."""

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "weights")
"""The keys under which checkpoints have the weights, beside optimisers and epochs."""

_PREFIXES = ("module.", "_orig_mod.")
"""The names' beginnings that `DataParallel`, its distributed kin and `torch.compile` put before a network's own."""


def load_weights(model: nn.Module, path: Path, advice: str = "give weights that were saved from this model") -> None:
    """Load a file's weights into the model, every entry of both.

    The file is safetensors, one of ours or a plain state dict; or a state dict as `torch.save` writes it, of which
    nothing but tensors, numbers and text is read. Of a checkpoint, it is what is under "state_dict" or "model", and of
    a network that was wrapped, names without "module." or "_orig_mod."; a warning says both.

    Args:
        advice: what to do about weights that do not fit.

    Raises:
        InputError: if the file is missing, damaged, a pickled module or TorchScript, or does not fit; with the first
            key.
    """
    check_weights_file(path)
    state = _unwrapped(_read_pickled(path), path) if path.suffix in PICKLED else _read_weights(path)
    state = _without_prefixes(state, model, path)
    _check_types(model, state, path)
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        # The first line only says that there were errors.
        reason = str(error).splitlines()[1:2] or [str(error)]
        raise InputError(_misfit(path, reason[0].strip().rstrip("."), advice)) from None
    if missing:
        raise InputError(_misfit(path, f"'{missing[0]}' is missing{_and_more(missing)}", advice))
    if unexpected:
        raise InputError(_misfit(path, f"it has no '{unexpected[0]}'{_and_more(unexpected)}", advice))


def _check_types(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Raise InputError for a tensor that would be turned into another kind of number: whole ones into floats, or back.

    Quantised weights are whole numbers with a scale that is somewhere else. Floats of more or fewer digits are taken: a
    model may be stored in half precision, and computes in its own.
    """
    own = model.state_dict()
    for name, tensor in state.items():
        if isinstance(wanted := own.get(name), Tensor) and _kind(wanted) != _kind(tensor):
            raise InputError(
                f"'{name}' in {path} is {tensor.dtype}, but the model's is {wanted.dtype}, into which it cannot be "
                "turned without being another number; save the weights as the model computes with them (of a quantised "
                "model, dequantised)."
            )


def _kind(tensor: Tensor) -> str:
    """Return the kind of a tensor's numbers: counters, such as those of batch norm, are whole ones in both."""
    if tensor.is_complex() or tensor.dtype == torch.bool or tensor.is_quantized:
        return str(tensor.dtype)
    if not tensor.is_floating_point():
        return "whole"
    # Floats of 8 bits are made for weights with a scale, too.
    return "float" if tensor.itemsize > 1 else str(tensor.dtype)


def _misfit(path: Path, reason: str, advice: str) -> str:
    return f"The weights in {path} do not fit the model ({reason}); {advice}."


def _and_more(keys: Sequence[str]) -> str:
    return f", and {len(keys) - 1} more" if len(keys) > 1 else ""


def _read_weights(path: Path) -> Mapping[str, Tensor]:
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    try:
        with named_in_utf8(path) as name:
            with safe_open(name, framework="pt") as file:
                is_ours = "skeleton" in (file.metadata() or {})
            if not is_ours:
                return load_file(name)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}); check its permissions.") from None
    except (SafetensorError, ValueError) as error:
        raise InputError(f"{path} is damaged or no safetensors file ({error}); delete it and write it again.") from None
    state = load_state(path)
    if "weights" not in state:
        raise InputError(f"{path} is the state of a stage under way, not a model's weights; give those.")
    return state["weights"]


def _read_pickled(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InputError(
            f"{path} has more than tensors in it (a whole module?), and unpickling that would run code; where it was "
            "made, save the weights alone: torch.save(model.state_dict(), 'weights.pt')."
        ) from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}); check its permissions.") from None
    except Exception as error:  # torch reads a file of any bytes, and fails as it may
        raise InputError(f"{path} is damaged or none that torch.save wrote ({reason_of(error)}).") from None


def _unwrapped(found: Any, path: Path) -> Mapping[str, Tensor]:
    """Return the weights of a checkpoint, which may have them under a key beside other things."""
    for _ in range(2):
        key = next(
            (key for key in _WRAPPERS if isinstance(found, Mapping) and isinstance(found.get(key), Mapping)), None
        )
        if key is None:
            break
        warnings.warn(f"The weights of {path} are what it has under '{key}'.", stacklevel=4)
        found = found[key]
    entries = found if isinstance(found, Mapping) else {}
    odd = [str(key) for key, value in entries.items() if not isinstance(value, Tensor)]
    if odd or not entries:
        what = f"'{odd[0]}' is no tensor" if odd else "it has no tensors by name"
        raise InputError(
            f"{path} is no state dict ({what}); give one that torch.save(model.state_dict(), 'weights.pt') wrote."
        )
    return {str(key): value for key, value in entries.items()}


def _without_prefixes(state: Mapping[str, Tensor], model: nn.Module, path: Path) -> Mapping[str, Tensor]:
    """Return weights by the model's names, where a wrapper's stands before all of them."""
    own = model.state_dict().keys()
    while state and not state.keys() & own:
        prefix = next((prefix for prefix in _PREFIXES if all(name.startswith(prefix) for name in state)), None)
        if prefix is None:
            break
        warnings.warn(f"The names of the weights in {path} are taken without '{prefix}'.", stacklevel=4)
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def check_weights_file(path: Path) -> None:
    """Raise InputError unless `path` is a file of weights by its name, with what to do with another."""
    if not path.is_file():
        raise InputError(f"There are no weights {path}; check the path, or train the model first.")
    if _is_torchscript(path):
        raise InputError(
            f"{path} is TorchScript, which cannot be held still while it is attacked; give the nn.Module that it was "
            "made from as package.module:attribute@weights.safetensors, with the weights written by "
            "safetensors.torch.save_file(torch.jit.load(path).state_dict(), 'weights.safetensors')."
        )
    if path.suffix not in (".safetensors", *PICKLED):
        raise InputError(
            f"{path} is no file of weights by its name; name it .safetensors, or .pt if torch.save wrote it, and give "
            f"the model as package.module:attribute@{path.stem}.pt."
        )


def _is_torchscript(path: Path) -> bool:
    """Return whether a file is a zip with code, as torch.jit.save writes it and torch.save does not."""
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            inside = [name.partition("/")[2] for name in archive.namelist()]
    except zipfile.BadZipFile:
        return False
    return any(name == "constants.pkl" or name.startswith("code/") for name in inside)
