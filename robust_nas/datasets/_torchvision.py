"""The common parts of the data sets that torchvision reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from robust_nas.core.catalogue import expanded
from robust_nas.core.errors import InputError

DEFAULT_ROOT = Path("~/.cache/robust-nas/data")
"""The folder where data sets are looked for and downloaded to, unless the configuration says otherwise."""


def read(make: Callable[..., Any], root: Path, name: str, download: bool) -> tuple[Any, Any]:
    """Return torchvision's training and test set from `root`, downloaded there if they are missing.

    Raises:
        InputError: if they are missing and cannot be downloaded, or are damaged.
    """
    folder = expanded(root)
    try:
        return make(root=folder, train=True, download=False), make(root=folder, train=False, download=False)
    except RuntimeError:
        problem: object = "downloading is switched off (data.download = false)"
    except (OSError, ValueError, AssertionError) as error:
        raise InputError(
            f"{name} in {folder} is damaged ({str(error) or type(error).__name__}); delete it there and get it again."
        ) from None
    if download:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return make(root=folder, train=True, download=True), make(root=folder, train=False, download=True)
        except (OSError, RuntimeError) as error:
            problem = error
    raise InputError(
        f"{name} is not in {folder} and could not be downloaded ({problem}); "
        "put torchvision's files there, or name the folder that has them with --data-root."
    )
