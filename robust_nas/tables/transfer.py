"""The transfer of tables: fetch, import, merge, export.

A published table becomes one Parquet file (`_store.place`), with the source's numbering in its metadata
(`_schema.numbering`). The downloaded files stay beside the tables' folder, in downloads/NAME.
"""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from itertools import groupby
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from robust_nas.architectures.cell import Architecture
from robust_nas.core.errors import InputError, suggest
from robust_nas.core.registry import Named
from robust_nas.core.writing import atomic_path, remove_leftovers
from robust_nas.runtime.progress import Progress
from robust_nas.tables import cards, formats, local
from robust_nas.tables._schema import SCHEMA, Row, numbering
from robust_nas.tables._store import home, place, read
from robust_nas.tables.cards import Card, File

_ROW_GROUP = 1 << 17
"""Rows that are written at once, and so in memory. Each row group repeats the architectures: fewer are read faster."""

_BLOCK = 1 << 16
_TIMEOUT = 30.0
_ATTEMPTS = 5


# --- published tables -------------------------------------------------------------------------------------------------


def fetch(name: str, *, progress: Progress | None = None, pause: float = 1.0) -> Path:
    """Download a published table's files, check them, and return where the table is then.

    A download that was cut off goes on where it ended, in this call or a later one. Proxies are taken from the
    environment. Of several processes that fetch the same table, one downloads and the others wait.

    Args:
        name: the table's card, or a file with a card (`cards.load`).
        progress: the display of the download's progress.
        pause: seconds before the second attempt at a broken connection; doubled with each further one.

    Raises:
        InputError: if the card is unknown or has no addresses; if a file is not there, cannot be reached, arrives cut
            off again and again, or is not the one that the card describes; or if it cannot be stored.
    """
    card, progress = cards.load(name), progress or Progress()
    if not all(file.url for file in card.files):
        raise InputError(f"'{card.name}' cannot be fetched: {card.how_to_get()}.")
    folder = home().parent / "downloads" / card.name
    with _storing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("w") as lock:
            fcntl.lockf(lock, fcntl.LOCK_EX)
            for file in card.files:
                if not (folder / file.name).is_file() or _sha256(folder / file.name) != file.sha256:
                    _download(file, folder / file.name, progress, pause)
            return _convert(folder, card, card.format, progress)


def import_published(
    source: Path, *, format: str | None = None, name: str | None = None, check: bool = True,
    progress: Progress | None = None,
) -> Path:  # fmt: skip
    """Make a published table of local copies of its files, and return where it is then.

    Args:
        source: the folder with the files.
        format: the files' format.
        name: the table's card, or a file with a card (`cards.load`); not needed, if only one card has files of these
            names, or this format.
        check: whether files must be the ones that the card describes, as far as it states their SHA-256.
        progress: the display of its progress.

    Raises:
        InputError: if no card or more than one fits, or a file is missing, damaged or another.
    """
    card, progress = _card_of(format, name, source), progress or Progress()
    if not source.is_dir():
        raise InputError(f"There is no folder {source}; give the one with the files of '{card.name}'.")
    with _storing(home()):
        for file in card.files:
            path = source / file.name
            if check and file.sha256 and path.is_file() and (found := _sha256(path)) != file.sha256:
                raise InputError(
                    f"{path} has the sha256 {found}, but the card of '{card.name}' says {file.sha256}: it is damaged "
                    "or of another version; get it again, or leave the check out (--no-check) if you trust it."
                )
        # Who names the format as well as the card has named the code.
        return _convert(source, card, Named(format) if format and "." in format else card.format, progress)


def _card_of(format: str | None, name: str | None, source: Path) -> Card:
    """Return the card that is meant by a format, a name, or both, or else by the files that there are."""
    wanted = format if format and "." in format else format and format.replace("_", "-")
    if wanted and wanted not in formats.names() and "." not in wanted:
        raise InputError(f"There is no format '{format}'. {suggest(wanted, formats.names())}")
    if name:
        card = cards.load(name)
        if wanted not in (None, card.format):
            raise InputError(
                f"The table '{name}' is of the format '{card.format}', but got '{format}'; leave --format out."
            )
        return card
    fitting = [card for card in map(cards.load, cards.names()) if wanted in (None, card.format)]
    present = [card for card in fitting if all((source / file.name).is_file() for file in card.files)]
    if len(present) == 1 or (len(fitting) == 1 and not present):
        return (present or fitting)[0]
    names = ", ".join(card.name for card in present or fitting)
    found = f"The files in {source} may be" if present else f"{source} has not all files of any table; they may be"
    raise InputError(f"{found} those of {names}; say which: --name {(present or fitting)[0].name}.")


def _convert(folder: Path, card: Card, format: str, progress: Progress) -> Path:
    """Write the table of the files in `folder` to its place, measure by measure, and read back how long it is."""
    published = formats.component(format, f"The card of '{card.name}'")().read(folder, card)
    canonical = dict.fromkeys(Architecture.parse(digits).canonical for digits in published.index)
    schema = SCHEMA.with_metadata({**SCHEMA.metadata, **numbering(published.index, canonical)})
    lengths: list[int] = []
    remove_leftovers(home().glob(".*"))
    with atomic_path(place(card.name)) as temporary:
        with pq.ParquetWriter(temporary, schema, compression="lz4") as writer:
            waiting: list[pa.Table] = []
            for measure in progress.steps(published.measures, f"{card.name}: measures"):
                if waiting and sum(map(len, waiting)) + len(measure) > _ROW_GROUP:
                    writer.write_table(pa.concat_tables(waiting))
                    waiting.clear()
                if not lengths and len(measure) < len(canonical):
                    # The metadata state the classes in the order in which they appear, and are written first.
                    raise InputError(f"{folder} has no quantity that is known of all architectures; get it again.")
                waiting.append(measure.replace_schema_metadata(schema.metadata))
                lengths.append(len(measure))
            if not waiting:
                raise InputError(f"{folder} has nothing that the card of '{card.name}' explains; name another card.")
            writer.write_table(pa.concat_tables(waiting))
        if (written := pq.read_metadata(temporary).num_rows) != sum(lengths):
            raise InputError(f"{place(card.name)} has {written} rows of {sum(lengths)}; import '{card.name}' again.")
    if shorter := sum(length < len(canonical) for length in lengths):
        progress.say(f"{card.name}: {shorter} measures lack values of some architectures.")
    if published.left_out:
        progress.say(f"{card.name}: left out, because the card does not explain it: {', '.join(published.left_out)}.")
    return place(card.name)


# --- downloads --------------------------------------------------------------------------------------------------------


def _download(file: File, path: Path, progress: Progress, pause: float) -> None:
    """Download one file to `path`; an earlier attempt's `path`.partial is continued."""
    partial = path.with_name(f"{path.name}.partial")
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(pause * 2 ** (attempt - 1))
        try:
            _receive(file, partial, progress)
        except urllib.error.HTTPError as error:
            if error.code == 416:
                # The part that is there is no beginning of the file.
                partial.unlink()
            elif error.code < 500 and error.code not in (408, 429):
                raise InputError(
                    f"The server answered {error.code} {error.reason} for {file.url}; look for the file's new address, "
                    "and import it from a local copy."
                ) from None
            problem = f"{error.code} {error.reason}"
        except _ConnectionLost as error:
            problem = str(error)
        else:
            break
    else:
        raise InputError(
            f"{file.url} could not be downloaded in {_ATTEMPTS} attempts ({problem}); check the network and the "
            "proxy's settings and fetch again, which goes on where this ended, or import a local copy "
            "(robust-nas table import --name NAME --source FOLDER)."
        )
    if (found := _sha256(partial)) != file.sha256:
        partial.unlink()
        raise InputError(
            f"{file.url} has the sha256 {found}, but the card says {file.sha256}: it was damaged on its way or has "
            "changed, and is removed; fetch again."
        )
    partial.replace(path)


def _receive(file: File, partial: Path, progress: Progress) -> None:
    """Append the missing part of the file to `partial`, as far as the connection lasts."""
    done = partial.stat().st_size if partial.exists() else 0
    if done and done == file.bytes:
        return
    request = urllib.request.Request(file.url, headers={"User-Agent": "robust-nas", "Accept-Encoding": "identity"})
    if done:
        request.add_header("Range", f"bytes={done}-")
    with _connected():
        response = urllib.request.build_opener().open(request, timeout=_TIMEOUT)
    with response:
        is_rest = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {done}-")
        # A server that knows no ranges sends the whole file again.
        done = done if is_rest else 0
        missing = response.headers.get("Content-Length")
        total = done + int(missing) if missing and missing.isdecimal() else file.bytes
        title, count = f"{file.name}, in blocks of 64 KiB", -(-total // _BLOCK) or None
        with partial.open("ab" if done else "wb") as out:
            for block in progress.steps(_blocks(response), title, total=count, done=done // _BLOCK):
                out.write(block)
                out.flush()
                done += len(block)
                if file.bytes and done > file.bytes:
                    break  # the check of the hash says the rest
    if done < total:
        raise _ConnectionLost(f"the connection ended after {done} of {total} bytes")


def _blocks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    while True:
        with _connected():
            block = response.read(_BLOCK)
        if not block:
            return
        yield block


class _ConnectionLost(Exception):
    """A connection that could not be made or ended early, which another attempt may mend."""


@contextmanager
def _connected() -> Iterator[None]:
    """Turn what can happen to a connection into `_ConnectionLost`, so that a full disk is not taken for it."""
    try:
        yield
    except urllib.error.HTTPError:
        raise
    except (OSError, http.client.HTTPException) as error:
        raise _ConnectionLost(str(getattr(error, "reason", None) or error or type(error).__name__)) from None


@contextmanager
def _storing(folder: Path) -> Iterator[None]:
    """Say the operating system's objection in one sentence."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{error.filename or folder} cannot be used ({error.strerror or error}); make space or give access, or "
            "name another folder with the environment variable ROBUST_NAS_HOME."
        ) from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- tables of one's own ----------------------------------------------------------------------------------------------


def merge(sources: Sequence[Path], into: Path) -> tuple[int, int]:
    """Unite tables of own runs, such as those of several machines.

    Returns how many networks were written, and how many there are then.

    A network (`source` and `model`) that is in several tables with equal rows is taken once. Where its rows differ, the
    record of the run that started last is kept. Everything is read and compared before anything is written; each
    network is then written in one step, and networks that others append meanwhile stay as they are.

    Args:
        sources: folders of tables, or single files of them.
        into: the folder of the united table; what it has already is kept.

    Raises:
        InputError: if a table cannot be read, has no network, is a published one, or has a network that differs in
            another while neither started later; or if `into` cannot be written.
    """
    united = _networks(into) if any(into.glob("part-*.parquet")) else {}
    new: dict[tuple[str, str], list[Row]] = {}
    for path in sources:
        networks = _networks(path)
        if not networks:
            raise InputError(
                f"{path} has no networks: a table of one's own is a folder of files part-*.parquet, such as runs/table."
            )
        for network, rows in networks.items():
            known = united.get(network)
            if known is not None:
                if set(known) == set(rows):
                    continue
                before, after = _started(known), _started(rows)
                if before is None or after is None or before == after:
                    raise InputError(
                        f"{path} has other rows of {'/'.join(network)} than the table before, and neither run started "
                        "later; remove the file of one of them."
                    )
                if before > after:
                    continue
            united[network] = new[network] = rows
    local.append(into, [row for rows in new.values() for row in rows])
    return len(new), len(united)


def _networks(path: Path) -> dict[tuple[str, str], list[Row]]:
    """Return a table's rows by source and model."""
    rows = [Row(**row) for row in read(path).to_pylist()]
    if not rows and not any(path.glob("part-*.parquet")):
        raise InputError(f"{path} has no networks, so it is no table; give the folder of one, such as runs/table.")
    if any(row.model is None for row in rows):
        raise InputError(f"{path} is a published table, which is not merged; give tables of your own runs.")

    def network(row: Row) -> tuple[str, str]:
        return row.source, str(row.model)

    return {key: list(group) for key, group in groupby(sorted(rows, key=network), key=network)}


def _started(rows: Sequence[Row]) -> datetime | None:
    return max((row.started for row in rows if row.started), default=None)


def export(table: pa.Table, out: Path) -> None:
    """Write rows to a Parquet, CSV or JSON file, by the ending of its name, replacing what is there.

    In CSV a missing value is empty. JSON is one array with an object for each row, a row on a line; a missing value
    is null. Moments are in ISO 8601.

    Raises:
        InputError: for another ending, or if the file cannot be written.
    """
    writers = {".parquet": _write_parquet, ".csv": _write_csv, ".json": _write_json}
    if out.suffix not in writers:
        raise InputError(f"A table is exported as .parquet, .csv or .json, but got '{out.name}'; change its ending.")
    try:
        with atomic_path(out) as temporary:
            writers[out.suffix](table, temporary)
    except OSError as error:
        raise InputError(f"{out} cannot be written ({error.strerror or error}); name another place.") from error


def _write_parquet(table: pa.Table, path: Path) -> None:
    pq.write_table(table, path, compression="zstd")


def _write_csv(table: pa.Table, path: Path) -> None:
    from pyarrow import csv

    csv.write_csv(table, path)


def _write_json(table: pa.Table, path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write("[")
        separator = "\n"
        for batch in table.to_batches(max_chunksize=10_000):
            for row in batch.to_pylist():
                file.write(separator + json.dumps(row, default=datetime.isoformat))
                separator = ",\n"
        file.write("\n]\n")
