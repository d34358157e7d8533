"""Fetching survives bad networks, an imported table is the published one, and merging and exporting lose nothing."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from robust_nas import tables
from robust_nas.architectures.cell import Architecture
from robust_nas.core.errors import InputError
from robust_nas.runtime.progress import Progress
from robust_nas.tables import Row, cards, transfer
from robust_nas.tables._store import place

TABLE = "NAS-RobBench-201_html.json"
QUIET = Progress(quiet=True)


class Server(ThreadingHTTPServer):
    """Serves a folder on the loopback, as badly as `plans` says, one of them for each request."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.plans: list[dict[str, Any]] = []
        self.requests: list[tuple[str, str | None]] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.requests.append((self.path, wanted))
        plan = self.server.plans.pop(0) if self.server.plans else {}
        path = self.server.folder / self.path.rpartition("/")[2]
        if "status" in plan or not path.is_file():
            self.send_error(plan.get("status", 404))
            return
        content = path.read_bytes()
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and not plan.get("no_ranges") else 0
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        rest = content[start : plan.get("until")]
        for begin in range(0, len(rest), 1 << 16):
            self.wfile.write(rest[begin : begin + (1 << 16)])
            time.sleep(plan.get("pause", 0.0))

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""


@pytest.fixture
def server(extract: Path) -> Iterator[Server]:
    with Server(extract) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def card(server: Server, extract: Path, tmp_path: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a card whose files are on the server."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    text = Path(__file__).parents[2].joinpath("benchmarks/tables/nas-robbench-201.toml").read_text()
    for file in cards.load("nas-robbench-201").files:
        content = (extract / file.name).read_bytes()
        text = text.replace(file.url, f"{server.address}/files/{file.name}")
        text = text.replace(file.sha256, hashlib.sha256(content).hexdigest())
        text = text.replace(f"bytes = {file.bytes}", f"bytes = {len(content)}")
    path = tmp_path / "local-table.toml"
    path.write_text(text)
    return str(path)


@pytest.fixture
def downloads(own_home: Path) -> Path:
    return own_home / "downloads" / "local-table"


def check(path: Path, numbering: tuple[list[str], list[int]]) -> None:
    """Check that the table has what `extract` says: number n has (n + column) / 20,000."""
    table = pq.read_table(path)
    numbers = sorted(set(numbering[1]))
    expected = [str(Architecture.parse(numbering[0][number])) for number in numbers]
    assert table["architecture"].to_pylist() == 2 * expected
    assert table["accuracy"].to_pylist() == [(n + column) / 20_000 for column in range(2) for n in numbers]
    assert set(table["source"].to_pylist()) == {"local-table"}


# --- fetch ------------------------------------------------------------------------------------------------------------


def test_a_fetched_table_is_the_served_one_and_is_not_downloaded_again(
    card: str, server: Server, own_home: Path, numbering: tuple[list[str], list[int]]
) -> None:
    path = transfer.fetch(card, progress=QUIET)
    assert path == own_home / "tables" / "local-table.parquet" == place("local-table")
    check(path, numbering)
    assert server.requests == [(f"/files/{TABLE}", None), ("/files/ops.json", None)]
    assert transfer.fetch(card, progress=QUIET) == path
    assert len(server.requests) == 2


def test_a_truncated_download_goes_on_where_it_ended(
    card: str, server: Server, numbering: tuple[list[str], list[int]]
) -> None:
    server.plans = [{"until": 100_000}, {"status": 503}, {"until": 70_000}]
    check(transfer.fetch(card, progress=QUIET, pause=0.0), numbering)
    ranges = [wanted for path, wanted in server.requests if path.endswith(TABLE)]
    # The third answer begins at byte 100,000 and its content ends after byte 70,000 of the file, so it is empty.
    assert ranges == [None, "bytes=100000-", "bytes=100000-", "bytes=100000-"]


def test_a_server_without_ranges_sends_everything_again(
    card: str, server: Server, numbering: tuple[list[str], list[int]]
) -> None:
    server.plans = [{"until": 100_000}, {"no_ranges": True}]
    check(transfer.fetch(card, progress=QUIET, pause=0.0), numbering)


def test_a_connection_that_always_ends_early_is_given_up_and_gone_on_with_later(
    card: str, server: Server, downloads: Path, numbering: tuple[list[str], list[int]]
) -> None:
    server.plans = [{"until": 1_000 * (attempt + 1)} for attempt in range(5)]
    with pytest.raises(InputError, match=r"could not be downloaded in 5 attempts .*ended after 5000 of \d+ bytes"):
        transfer.fetch(card, progress=QUIET, pause=0.0)
    assert (downloads / f"{TABLE}.partial").stat().st_size == 5_000
    server.requests.clear()
    check(transfer.fetch(card, progress=QUIET), numbering)
    assert server.requests[0] == (f"/files/{TABLE}", "bytes=5000-")


def test_a_file_with_another_hash_is_refused_and_removed(
    card: str, server: Server, downloads: Path, numbering: tuple[list[str], list[int]]
) -> None:
    sound = Path(card).read_text()
    Path(card).write_text(re.sub('sha256 = "[0-9a-f]{4}', 'sha256 = "0000', sound))
    with pytest.raises(InputError, match=rf"{TABLE} has the sha256 [0-9a-f]{{64}}, but the card says 0000"):
        transfer.fetch(card, progress=QUIET)
    assert [path.name for path in downloads.iterdir()] == [".lock"] and not place("local-table").exists()
    Path(card).write_text(sound)
    check(transfer.fetch(card, progress=QUIET), numbering)


def test_a_damaged_beginning_is_found_by_the_hash(card: str, server: Server, downloads: Path) -> None:
    downloads.mkdir(parents=True)
    (downloads / f"{TABLE}.partial").write_bytes(b"something else")
    with pytest.raises(InputError, match="was damaged on its way or has changed, and is removed; fetch again"):
        transfer.fetch(card, progress=QUIET)
    assert server.requests == [(f"/files/{TABLE}", "bytes=14-")]
    transfer.fetch(card, progress=QUIET)


def test_a_beginning_longer_than_the_file_is_thrown_away(
    card: str, server: Server, downloads: Path, numbering: tuple[list[str], list[int]]
) -> None:
    downloads.mkdir(parents=True)
    (downloads / "ops.json.partial").write_bytes(bytes(1_000_000))
    check(transfer.fetch(card, progress=QUIET, pause=0.0), numbering)
    assert [wanted for path, wanted in server.requests if path.endswith("ops.json")] == ["bytes=1000000-", None]


def test_a_file_that_is_gone_is_said_at_once(card: str, server: Server) -> None:
    server.plans = [{"status": 404}]
    with pytest.raises(InputError, match=f"The server answered 404 Not Found for http://.*{TABLE}; look for"):
        transfer.fetch(card)
    assert len(server.requests) == 1


def test_no_network_is_said_in_one_sentence(card: str, server: Server) -> None:
    Path(card).write_text(Path(card).read_text().replace(server.address, "http://127.0.0.1:1"))
    with pytest.raises(InputError, match=r"could not be downloaded in 5 attempts .*refused.*; check the network"):
        transfer.fetch(card, progress=QUIET, pause=0.0)


def test_a_place_that_cannot_be_written_is_said_in_one_sentence(card: str, own_home: Path) -> None:
    own_home.write_text("a file where a folder should be")
    with pytest.raises(InputError, match=r"cannot be used .*ROBUST_NAS_HOME"):
        transfer.fetch(card, progress=QUIET)


def test_the_proxy_of_the_environment_is_used(
    card: str, server: Server, numbering: tuple[list[str], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", server.address)
    monkeypatch.setenv("no_proxy", "")
    Path(card).write_text(Path(card).read_text().replace(server.address, "http://tables.invalid"))
    check(transfer.fetch(card, progress=QUIET), numbering)
    assert server.requests[0] == (f"http://tables.invalid/files/{TABLE}", None)


def fetching(card: str) -> subprocess.Popen[str]:
    code = f"from robust_nas.tables import transfer; print(transfer.fetch({card!r}))"
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_download_goes_on_after_its_process_was_killed(
    card: str, server: Server, downloads: Path, numbering: tuple[list[str], list[int]]
) -> None:
    server.plans = [{"pause": 0.2}]
    process, partial = fetching(card), downloads / f"{TABLE}.partial"
    while not (partial.exists() and partial.stat().st_size >= 1 << 17):
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    size = partial.stat().st_size
    assert size < (server.folder / TABLE).stat().st_size
    assert not (downloads / TABLE).exists() and not place("local-table").exists()
    check(transfer.fetch(card, progress=QUIET), numbering)
    assert server.requests[1] == (f"/files/{TABLE}", f"bytes={size}-")


def test_of_two_processes_that_fetch_at_once_one_downloads(
    card: str, server: Server, numbering: tuple[list[str], list[int]]
) -> None:
    server.plans = [{"pause": 0.1}]
    processes = [fetching(card) for _ in range(2)]
    answers = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], answers
    assert len(server.requests) == 2
    check(place("local-table"), numbering)


def test_a_table_without_addresses_says_how_to_import_it(own_home: Path) -> None:
    with pytest.raises(
        InputError, match=r"no address of meta.zip, .* was found, .* table import --name robustness-dataset"
    ):
        transfer.fetch("robustness-dataset")


# --- import -----------------------------------------------------------------------------------------------------------


def test_an_imported_table_keeps_the_numbering_and_replaces_the_old_one_in_one_step(
    extract: Path, own_home: Path, numbering: tuple[list[str], list[int]], tmp_path: Path
) -> None:
    path = transfer.import_published(extract, format="nas_robbench_201_web", check=False, progress=QUIET)
    assert path == own_home / "tables" / "nas-robbench-201.parquet"
    before = path.read_bytes()
    table = tables.read(path)
    assert table.schema.metadata[b"robust_nas.table.index"].decode().split() == numbering[0]
    # A source that breaks in the middle leaves the table that was there.
    shutil.copytree(extract, tmp_path / "damaged")
    (tmp_path / "damaged" / TABLE).write_text((extract / TABLE).read_text().replace('"0": [0.0', '"0": [7.0'))
    with pytest.raises(InputError, match="which is not a fraction"):
        transfer.import_published(tmp_path / "damaged", name="nas-robbench-201", check=False, progress=QUIET)
    assert path.read_bytes() == before and [item.name for item in path.parent.iterdir()] == [path.name]


def test_another_file_than_the_card_describes_is_refused(extract: Path, own_home: Path) -> None:
    with pytest.raises(InputError, match=f"{TABLE} has the sha256 [0-9a-f]{{64}}, but the card .* says b3dc99b9"):
        transfer.import_published(extract, name="nas-robbench-201")
    assert not own_home.exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"name": "nas-robbench-201", "format": "robustness-dataset"}, "of the format 'nas-robbench-201-web', but got"),
        ({"format": "nas-robbench"}, "There is no format 'nas-robbench'. Did you mean 'nas-robbench-201'"),
        ({"name": "nas-robbench"}, "There is no card of a table 'nas-robbench'"),
    ],
)
def test_a_wrong_format_or_name_is_told(
    extract: Path, own_home: Path, arguments: dict[str, str], sentence: str
) -> None:
    with pytest.raises(InputError, match=re.escape(sentence)):
        transfer.import_published(extract, **arguments)


def test_the_files_themselves_tell_which_table_they_are_of_or_the_sentence_names_those_that_may_be(
    extract: Path, own_home: Path, tmp_path: Path
) -> None:
    assert transfer.import_published(extract, check=False).stem == "nas-robbench-201"
    (tmp_path / "empty").mkdir()
    sentence = "not all files of any table; they may be those of nas-robbench-201, .*; say which: --name nas-robbench"
    with pytest.raises(InputError, match=sentence):
        transfer.import_published(tmp_path / "empty")


def test_an_import_says_what_it_leaves_out(
    extract: Path, own_home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = (Path(__file__).parents[2] / "benchmarks" / "tables" / "nas-robbench-201.toml").read_text()
    (tmp_path / "less.toml").write_text(re.sub("(?m)^autoattack = .*$", "", card))
    path = transfer.import_published(extract, name=str(tmp_path / "less.toml"), check=False)
    assert pq.read_metadata(path).num_rows == 6_466
    said = " ".join(capsys.readouterr().err.split())
    assert "less: left out, because the card does not explain it: imagenet#autoattack." in said
    (tmp_path / "nothing.toml").write_text(re.sub("(?m)^(autoattack|val_acc) = .*$", "", card))
    with pytest.raises(InputError, match="has nothing that the card of 'nothing' explains"):
        transfer.import_published(extract, name=str(tmp_path / "nothing.toml"), check=False)


def test_a_folder_that_is_not_there_is_said(tmp_path: Path, own_home: Path) -> None:
    with pytest.raises(InputError, match=r"There is no folder .*nowhere"):
        transfer.import_published(tmp_path / "nowhere", name="nas-robbench-201")


def test_the_real_extract_is_imported_with_its_checksums(shared_data: Path, own_home: Path) -> None:
    folder = shared_data / "nas-robbench-201"
    if not folder.is_dir():
        pytest.skip("the published files of NAS-RobBench-201 are not there")
    path = transfer.import_published(folder, format="nas-robbench-201-web", progress=QUIET)
    table = tables.read(path, dataset="cifar10", attack="pgd", epsilon=8 / 255)
    assert max(table["accuracy"].to_pylist()) == pytest.approx(0.4811, abs=5e-5)
    assert pq.read_metadata(path).num_rows == 18 * 6_466


# --- export -----------------------------------------------------------------------------------------------------------

ROW = Row(
    architecture="|none~0|", space="nasbench201", skeleton='a=1,b="2"', dataset="digits", split="test", recipe="pgd_at",
    recipe_hash="0a", seed=0, attack="pgd", norm="linf", epsilon=8 / 255, evaluation_hash="0b", accuracy=0.1 + 0.2,
    num_images=360, version="0.1.0", hardware="cpu, 2 cores", source="run-a", model="model-0",
    canonical=None, started=datetime(2026, 1, 2, 3, 4, 5, 678900, tzinfo=UTC),
)  # fmt: skip
CLEAN = replace(ROW, attack="clean", norm=None, epsilon=None, started=None)


def as_table(*rows: Row) -> pa.Table:
    return pa.Table.from_pylist([vars(row) for row in rows], schema=tables.SCHEMA)


def test_an_exported_table_is_read_back_by_other_readers(tmp_path: Path) -> None:
    table = as_table(ROW, CLEAN)
    for ending in ("parquet", "csv", "json"):
        transfer.export(table, tmp_path / f"out.{ending}")
    assert pq.read_table(tmp_path / "out.parquet").equals(table)
    assert tables.read(tmp_path / "out.parquet").equals(table)
    found = json.loads((tmp_path / "out.json").read_text())
    assert [{**row, "started": row["started"] and datetime.fromisoformat(row["started"])} for row in found] == [
        vars(ROW),
        vars(CLEAN),
    ]
    with (tmp_path / "out.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert {key: first[key] for key in ("skeleton", "accuracy", "epsilon")} == {
        "skeleton": ROW.skeleton,
        "accuracy": repr(ROW.accuracy),
        "epsilon": repr(ROW.epsilon),
    }
    assert datetime.fromisoformat(first["started"]) == ROW.started
    assert second["norm"] == second["epsilon"] == second["started"] == ""


def test_no_rows_are_exported_as_no_rows(tmp_path: Path) -> None:
    transfer.export(as_table(), tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text()) == []


def test_an_unknown_ending_and_a_full_place_are_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\.parquet, \.csv or \.json, but got 'out\.xlsx'"):
        transfer.export(as_table(ROW), tmp_path / "out.xlsx")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        transfer.export(as_table(ROW), tmp_path / "file" / "out.csv")


# --- merge ------------------------------------------------------------------------------------------------------------


def found_in(folder: Path) -> list[tuple[str, str | None, str, float]]:
    return [(row["source"], row["model"], row["attack"], row["accuracy"]) for row in tables.read(folder).to_pylist()]


def test_tables_of_several_machines_are_united_and_equal_networks_taken_once(tmp_path: Path) -> None:
    tables.append(tmp_path / "a", [ROW, CLEAN, replace(ROW, model="model-1", accuracy=0.4)])
    tables.append(tmp_path / "b", [CLEAN, ROW, replace(ROW, source="run-b", accuracy=0.5)])
    tables.append(tmp_path / "into", [replace(ROW, source="run-c", accuracy=0.6)])
    assert transfer.merge([tmp_path / "a", tmp_path / "b"], tmp_path / "into") == (3, 4)
    assert sorted(found_in(tmp_path / "into")) == [
        ("run-a", "model-0", "clean", ROW.accuracy),
        ("run-a", "model-0", "pgd", ROW.accuracy),
        ("run-a", "model-1", "pgd", 0.4),
        ("run-b", "model-0", "pgd", 0.5),
        ("run-c", "model-0", "pgd", 0.6),
    ]
    # Doing it again, the target among the sources, changes nothing.
    assert transfer.merge([tmp_path / "b", tmp_path / "into", tmp_path / "a"], tmp_path / "into") == (0, 4)


@pytest.mark.parametrize("order", [("old", "new"), ("new", "old")])
def test_of_two_records_of_one_network_the_later_run_is_kept(tmp_path: Path, order: tuple[str, str]) -> None:
    tables.append(tmp_path / "old", [ROW, replace(ROW, attack="fgsm")])
    tables.append(tmp_path / "new", [replace(ROW, accuracy=0.7, started=datetime(2026, 1, 3, tzinfo=UTC))])
    transfer.merge([tmp_path / name for name in order], tmp_path / "into")
    assert found_in(tmp_path / "into") == [("run-a", "model-0", "pgd", 0.7)]


def test_two_records_of_one_network_from_the_same_time_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    tables.append(tmp_path / "a", [replace(ROW, source="run-b"), ROW])
    for name, started in (("b", ROW.started), ("c", None)):
        tables.append(tmp_path / name, [replace(ROW, accuracy=0.7, started=started)])
        with pytest.raises(
            InputError, match=rf"{name} has other rows of run-a/model-0 than .*; remove the file of one"
        ):
            transfer.merge([tmp_path / "a", tmp_path / name], tmp_path / "into")
    assert not (tmp_path / "into").exists()


def test_a_published_table_is_not_merged_into_own_runs(tmp_path: Path) -> None:
    pq.write_table(as_table(replace(ROW, model=None)), tmp_path / "published.parquet")
    with pytest.raises(InputError, match="published table, which is not merged"):
        transfer.merge([tmp_path / "published.parquet"], tmp_path / "into")


def test_a_folder_without_networks_is_no_table_to_merge(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty has no networks"):
        transfer.merge([tmp_path / "empty"], tmp_path / "into")
    assert not (tmp_path / "into").exists()


def test_networks_that_are_appended_during_a_merge_are_kept(tmp_path: Path) -> None:
    tables.append(tmp_path / "a", [replace(ROW, source=f"run-{number}") for number in range(40)])
    other = threading.Thread(
        target=lambda: [tables.append(tmp_path / "into", [replace(ROW, source=f"own-{n}")]) for n in range(40)]
    )
    other.start()
    assert transfer.merge([tmp_path / "a"], tmp_path / "into")[0] == 40
    other.join()
    expected = {f"run-{number}" for number in range(40)} | {f"own-{number}" for number in range(40)}
    assert {row[0] for row in found_in(tmp_path / "into")} == expected
