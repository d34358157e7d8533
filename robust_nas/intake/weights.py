"""Weights from safetensors files; nothing is unpickled."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from robust_nas.core.errors import InputError
from robust_nas.runtime.states import load_state, named_in_utf8

PICKLED = (".pt", ".pth", ".ckpt", ".bin", ".pkl")


def load_weights(model: nn.Module, path: Path, advice: str = "give weights that were saved from this model") -> None:
    """Load a safetensors file, one of ours or a plain state dict, into the model, every entry of both.

    Args:
        advice: what to do about weights that do not fit.

    Raises:
        InputError: if the file is missing, damaged, pickled or TorchScript, or does not fit; with the first key.
    """
    check_weights_file(path)
    state = _read_weights(path)
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


def check_weights_file(path: Path) -> None:
    """Raise InputError unless `path` is a safetensors file, with what to do with another."""
    if not path.is_file():
        raise InputError(f"There are no weights {path}; check the path, or train the model first.")
    if _is_torchscript(path):
        raise InputError(
            f"{path} is TorchScript, which cannot be held still while it is attacked; give the nn.Module that it was "
            "made from as package.module:attribute@weights.safetensors, with the weights written by "
            "safetensors.torch.save_file(torch.jit.load(path).state_dict(), 'weights.safetensors')."
        )
    if path.suffix != ".safetensors":
        raise InputError(
            f"{path} is not a safetensors file, and nothing is unpickled here; convert a state dict with "
            "safetensors.torch.save_file(torch.load(path, weights_only=True), 'weights.safetensors') and give the "
            "model as package.module:attribute@weights.safetensors."
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
