"""Where the catalogues lie: declarations that are not code, found in a checkout, an editable install and a wheel alike.

In a checkout, search spaces and tables' cards are folders beside the package; a wheel carries them inside it, because a
top-level `search_spaces` in site-packages would collide with other people's. `setup.cfg` maps the one to the other.
"""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent

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
