"""States: nested mappings of tensors and JSON values, each one safetensors file; nothing is ever unpickled."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robust_nas.core.errors import InputError
from robust_nas.core.writing import atomic_path

if TYPE_CHECKING:
    from torch import Tensor


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a nested mapping of tensors and JSON values as one safetensors file, atomically.

    Keys may be strings or integers; an integer key comes back as an integer.
    """
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {}
    skeleton = _split_tensors(state, "", tensors)
    with atomic_path(path) as temporary:
        # Not save_file: what it raises on a full disk does not say which error it was.
        metadata = {"skeleton": json.dumps(skeleton), "digest": _digest(tensors)}
        temporary.write_bytes(save(tensors, metadata=metadata))


@contextlib.contextmanager
def named_in_utf8(path: Path) -> Iterator[Path]:
    """Give a name of an existing file for libraries that take no names with bytes that are no UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        with path.open("rb") as file:
            yield Path(f"/proc/self/fd/{file.fileno()}")
    else:
        yield path


def load_state(path: Path) -> dict[str, Any]:
    """Read what `save_state` wrote, tensors on the CPU.

    Raises:
        InputError: if the file is missing, half-written, damaged or from somewhere else.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with named_in_utf8(path) as name, safe_open(name, framework="pt") as file:
            metadata = file.metadata() or {}
            skeleton = json.loads(metadata["skeleton"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
        if metadata["digest"] != _digest(tensors):
            raise KeyError("its checksum does not fit")
        result: dict[str, Any] = _join_tensors(skeleton, tensors)
    except FileNotFoundError:
        raise InputError(f"There is no checkpoint {path}; run the stage that writes it first.") from None
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror or error}); check the path and its permissions."
        ) from None
    except (SafetensorError, KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"The checkpoint {path} is damaged or not one of ours ({error}); delete it and resume the run."
        ) from None
    return result


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """Return a checksum of names and values; safetensors has none, and changed bits would pass for weights."""
    import torch

    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _split_tensors(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    import torch

    if isinstance(value, torch.Tensor):
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, Mapping):
        # A list of pairs keeps integer keys (optimisers number their parameters) apart from strings.
        return {"map": [[key, _split_tensors(item, f"{name}/{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return {"list": [_split_tensors(item, f"{name}/{i}", tensors) for i, item in enumerate(value)]}
    return {"value": value}


def _join_tensors(node: Any, tensors: Mapping[str, Tensor]) -> Any:
    ((kind, value),) = node.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "map":
        return {key: _join_tensors(item, tensors) for key, item in value}
    if kind == "list":
        return [_join_tensors(item, tensors) for item in value]
    return value
