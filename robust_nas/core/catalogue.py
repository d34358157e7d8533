"""Catalogues: declarations that are not code, found in a checkout, an editable install and a wheel alike.

In a checkout, search spaces and tables' cards are folders beside the package; a wheel carries them inside it, because a
top-level `search_spaces` in site-packages would collide with other people's. `setup.cfg` maps the one to the other.
"""

import os
import tempfile
from pathlib import Path

from robust_nas.core.errors import InputError

_PACKAGE = Path(__file__).resolve().parents[1]

# A catalogue is the first of its folders that is there.
_FOLDERS = {
    "recipes": (_PACKAGE / "recipes",),
    "search_spaces": (_PACKAGE / "catalogue_data" / "search_spaces", _PACKAGE.parent / "search_spaces"),
    "tables": (_PACKAGE / "catalogue_data" / "tables", _PACKAGE.parent / "benchmarks" / "tables"),
}


def files(kind: str) -> dict[str, Path]:
    """Return a catalogue's TOML files by name (the file's name without `.toml`), sorted.

    Args:
        kind: "recipes", "search_spaces" or "tables".
    """
    for folder in _FOLDERS[kind]:
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.toml"))}
    return {}


def expanded(path: Path | str) -> Path:
    """Return a path with `~` as the user's home folder.

    A process without HOME whose user has no entry, as in many containers, has none: a folder of that user's own among
    the temporary ones stands in for it.

    Raises:
        InputError: if that folder is another user's, or `~NAME` is of no user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        first, *rest = Path(path).parts
        if first != "~":
            raise InputError(f"There is no user '{first[1:]}', whose home folder {path} would be in.") from None
        return _stand_in().joinpath(*rest)


def has_home() -> bool:
    """Whether the user has a home folder."""
    try:
        Path.home()
    except RuntimeError:
        return False
    return True


def _stand_in() -> Path:
    folder = Path(tempfile.gettempdir()) / f"robust-nas-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise InputError(f"There is no home folder, and {folder} is another user's; set HOME or ROBUST_NAS_HOME.")
    return folder
