"""The robustness data set of NAS-Bench-201's standard-trained networks, whole: accuracies over epsilons, corruptions.

Zip files, or a folder with what is in them: `meta.json` and `DATASET/KEY_accuracy.json`, which is
`[dataset][key]["accuracy"][number]` with entries for the numbers that represent their class. An entry is a number; or
a list, for attacks over `meta["epsilons"][key]` in units of 1/255, for corruptions over the severities 1 to 5.
Confidences and confusion matrices, which have files of their own, are no accuracies and are not read.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa

from robust_nas.core.errors import InputError
from robust_nas.tables.cards import Card
from robust_nas.tables.formats import Published
from robust_nas.tables.formats._files import classes_of_meta, damage, parse_json

_ENDING = "_accuracy.json"


@dataclass(frozen=True, kw_only=True)
class RobustnessDataset:
    """The data of Jung et al. 2023 (arXiv:2306.06712). One file is in memory at a time."""

    def read(self, folder: Path, card: Card) -> Published:
        """Read the files of the data set in `folder`; its zip files need not be unpacked."""
        documents = _documents(folder)
        found = [name.removesuffix(_ENDING).partition("/")[::2] for name in sorted(documents) if name.endswith(_ENDING)]
        known = [name for name in found if card.knows(*name)]
        if "meta.json" not in documents or not known:
            raise InputError(
                f"{folder} must have meta.json and DATASET/KEY{_ENDING}, unpacked or in zip files, but it has "
                f"{', '.join(sorted(documents)[:3]) or 'none of them'}; download them from {card.homepage}."
            )
        meta = parse_json(documents["meta.json"](), "meta.json")
        classes = classes_of_meta(meta, "meta.json")

        def measures() -> Iterator[pa.Table]:
            for dataset, key in known:
                source = f"{dataset}/{key}{_ENDING}"
                with damage(source):
                    content = parse_json(documents[source](), source)[dataset][key]["accuracy"]
                    entries = {int(number): entry for number, entry in content.items()}
                    constants = list(_constants(card.constant(dataset, key), key, next(iter(entries.values())), meta))
                    for place, constant in enumerate(constants):
                        column = {number: _at(entry, place, len(constants)) for number, entry in entries.items()}
                        yield classes.table(constant, column, source)

        return Published(classes.index, measures(), tuple("#".join(name) for name in found if name not in known))


def _constants(
    constant: Mapping[str, Any], key: str, entry: Any, meta: Mapping[str, Any]
) -> Iterator[Mapping[str, Any]]:
    """Yield the columns that the rows of each place of the entries share, given one entry."""
    if not isinstance(entry, list):
        yield constant
    elif constant["norm"] is not None:
        # The epsilons end with 255, where accuracies are at chance level: the unit is a step of 8-bit pixels.
        yield from ({**constant, "epsilon": epsilon / 255} for epsilon in meta["epsilons"][key])
    else:
        yield from ({**constant, "severity": severity} for severity in range(1, 6))


def _at(entry: Any, place: int, count: int) -> Any:
    if isinstance(entry, list) and len(entry) != count:
        raise ValueError(f"{len(entry)} values where {count} must be")
    return entry[place] if isinstance(entry, list) else entry


_LARGEST = 1 << 30
"""Bytes that a file in an archive has at most."""


def _documents(folder: Path) -> dict[str, Callable[[], bytes]]:
    """Return a reader for each JSON file in `folder` and its zip files, by the last parts of its name."""
    found: dict[str, Callable[[], bytes]] = {}
    for archive in sorted(folder.glob("*.zip")):
        try:
            with zipfile.ZipFile(archive) as content:
                for name in content.namelist():
                    found[_short(PurePosixPath(name))] = partial(_unzip, archive, name)
        except (OSError, zipfile.BadZipFile) as error:
            raise InputError(f"{archive} is damaged ({error}); get it again.") from None
    found |= {_short(path.relative_to(folder)): path.read_bytes for path in sorted(folder.rglob("*.json"))}
    return {name: read for name, read in found.items() if name.endswith(".json")}


def _short(path: Path | PurePosixPath) -> str:
    """Return DATASET/KEY_accuracy.json or meta.json, wherever the folder of the data set begins."""
    return path.name if path.name == "meta.json" else "/".join(path.parts[-2:])


def _unzip(archive: Path, name: str) -> bytes:
    try:
        with zipfile.ZipFile(archive) as content:
            # More than this is not read, whatever a small archive unpacks to.
            if (size := content.getinfo(name).file_size) > _LARGEST:
                raise InputError(f"{name} in {archive} is of {size:,} bytes, but the published files are far smaller.")
            return content.read(name)
    # A file that is encrypted, or compressed in a way of its own, raises the last two.
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise InputError(f"{archive} is damaged ({error}); get it again.") from None
