"""Trials in a journal, in SQLite and in a PostgreSQL server that is started here, with processes that are killed."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from robust_nas.cli import main
from robust_nas.core import secrets
from robust_nas.core.errors import InputError, Interrupted
from robust_nas.core.secrets import masked
from robust_nas.core.seeds import seed_at
from robust_nas.proxies.num_params import NumParams
from robust_nas.runtime import storages
from robust_nas.runtime.distributed import World
from robust_nas.runtime.progress import Progress
from robust_nas.runtime.stages import Stage
from robust_nas.samplers.evolution import Evolution
from robust_nas.samplers.nsga2 import NSGA2
from robust_nas.samplers.tpe import TPE
from robust_nas.searches import _sharing
from robust_nas.searches.sampled import TrialSearch, study_of
from robust_nas.threat import ThreatModel

THREAT = ThreatModel(epsilon=0.02)
FORK = multiprocessing.get_context("fork")
PASSWORD = "s3cr/t@horse"
KINDS = ["journal", "sqlite", "postgresql"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sharing, "POLL", 0.02)
    monkeypatch.delenv(secrets.PASSWORD, raising=False)


def _binary(name: str) -> str | None:
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((str(place / name) for place in places if (place / name).is_file()), shutil.which(name))


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """A PostgreSQL server of its own, with the user `nas`, who may make tables, and `guest`, who may not."""
    pytest.importorskip("psycopg", reason="no driver of PostgreSQL: pip install 'robust-nas[postgresql]'")
    initdb, postgres, psql = map(_binary, ("initdb", "postgres", "psql"))
    if not (initdb and postgres and psql):
        pytest.skip("no PostgreSQL server is installed (initdb, postgres, psql)")
    names = {user.pw_name for user in pwd.getpwall()}
    # A server refuses to be root's.
    who: dict[str, Any] = {}
    if os.getuid() == 0:
        user = pwd.getpwnam("postgres" if "postgres" in names else "nobody")
        who = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": [], "cwd": "/"}
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as place:
        if who:
            os.chown(place, who["user"], who["group"])
        folder, secret = f"{place}/base", Path(place, "password")
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        made = [
            initdb,
            "-D",
            folder,
            "-U",
            "nas",
            "-A",
            "scram-sha-256",
            f"--pwfile={secret}",
            "--no-sync",
            "-E",
            "UTF8",
        ]
        subprocess.run(made, check=True, capture_output=True, **who)
        options = ["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off", "-k", place, "-p", str(port)]
        running = subprocess.Popen(
            [postgres, "-D", folder, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **who
        )
        try:
            words = [psql, "-h", "127.0.0.1", "-p", str(port), "-U", "nas", "-d", "postgres", "-c"]
            words += ["create database trials; ", "-c", "create role guest login password 'pw'"]
            end = time.monotonic() + 60
            while subprocess.run(words, capture_output=True, env={**os.environ, "PGPASSWORD": PASSWORD}).returncode:
                assert time.monotonic() < end and running.poll() is None, "the server does not start"
                time.sleep(0.2)
            yield f"127.0.0.1:{port}"
        finally:
            running.send_signal(signal.SIGQUIT)
            running.wait(20)


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A storage of the kind that a test names."""
    if request.param == "postgresql":
        return f"postgresql://nas:s3cr%2Ft%40horse@{request.getfixturevalue('server')}/trials"
    return {"journal": f"{tmp_path}/trials.log", "sqlite": f"sqlite:///{tmp_path}/trials.db"}[request.param]


def _stage(folder: Path | None = None, **world: Any) -> Stage:
    if folder is not None:
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    return Stage("search", 0, World(**world), Progress(quiet=True), folder)


def _scored(sampler: Any, storage: str | None, **options: Any) -> TrialSearch:
    """A search whose trials take milliseconds."""
    proxy, several = NumParams(), {"trials": 7, "num_parallel": 3}
    return TrialSearch(sampler=sampler, objectives=("score",), proxy=proxy, storage=storage, **{**several, **options})


def _note_measurements(monkeypatch: pytest.MonkeyPatch, log: Path, before: Callable[[], object] = lambda: None) -> None:
    measure = TrialSearch._measure

    def noted(self: TrialSearch, architecture: Any, *rest: Any) -> list[float]:
        with log.open("a") as file:
            file.write(f"{os.getpid()} {architecture}\n")
        before()
        return measure(self, architecture, *rest)

    monkeypatch.setattr(TrialSearch, "_measure", noted)


@contextlib.contextmanager
def _worker(work: Callable[[], object]) -> Iterator[Any]:
    process = FORK.Process(target=work)
    process.start()
    try:
        yield process
    finally:
        process.join(20)
        process.kill()


def _await(found: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not found():
        assert time.monotonic() < end
        time.sleep(0.01)


def _await_processes(log: Path, count: int) -> None:
    end = time.monotonic() + 15
    while len({line.split()[0] for line in log.read_text().splitlines()}) < count and time.monotonic() < end:
        time.sleep(0.01)


def _study(place: str, name: str) -> optuna.Study:
    """The study as anybody reads it, with Optuna alone."""
    storage = place if "://" in place else JournalStorage(JournalFileBackend(place))
    if isinstance(storage, str) and storage.startswith("postgresql://"):
        storage = storage.replace("://", "+psycopg://", 1)
    return optuna.load_study(study_name=name, storage=storage)


@pytest.mark.parametrize(
    ("place", "sampler"),
    [
        ("journal", TPE(random_starts=3)),
        ("sqlite", Evolution(population_size=4, sample_size=2)),
        ("postgresql", NSGA2()),
    ],
    indirect=["place"],
)
def test_a_worker_takes_part_with_the_same_result_and_optuna_reads_the_study(
    space, data, tmp_path, monkeypatch, place, sampler
):
    alone = _scored(sampler, None).search(space, data, THREAT, _stage())
    search, run = _scored(sampler, place), _stage(tmp_path / "run")
    _note_measurements(monkeypatch, tmp_path / "log", before=lambda: _await_processes(tmp_path / "log", 2))
    with _worker(lambda: search.work(space, data, THREAT, run)) as worker:
        found = search.search(space, data, THREAT, run)
    assert worker.exitcode == 0
    assert found.record["trials"] == alone.record["trials"]
    lines = [line.split(" ", 1) for line in (tmp_path / "log").read_text().splitlines()]
    assert Counter(text for _, text in lines) == Counter(trial["architecture"] for trial in found.record["trials"])
    assert {pid for pid, _ in lines} == {str(os.getpid()), str(worker.pid)}
    trials = _study(place, "run").trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 7
    assert [trial.values for trial in trials] == [trial["values"] for trial in alone.record["trials"]]
    assert [trial.user_attrs["architecture"] for trial in trials] == [
        text["architecture"] for text in found.record["trials"]
    ]
    assert [trial.user_attrs["seed"] for trial in trials] == [
        seed_at(0, trial.user_attrs["architecture"]) for trial in trials
    ]
    for trial in trials:
        decided = space.decisions_of(space.parse(trial.user_attrs["architecture"]))
        assert trial.params == dict(zip(space.decisions, decided, strict=True))
    assert len({trial.user_attrs["process"] for trial in trials}) == 2
    assert _study(place, "run").best_value == max(trial["values"][0] for trial in found.record["trials"])


@pytest.mark.parametrize("place", ["journal", "postgresql"], indirect=True)
def test_a_killed_workers_trial_is_measured_again_under_its_number_and_seed(space, data, tmp_path, monkeypatch, place):
    monkeypatch.setattr(storages, "BEAT", 1)
    monkeypatch.setattr(storages, "GRACE", 2)
    sampler = Evolution(population_size=4, sample_size=2)
    alone = _scored(sampler, None).search(space, data, THREAT, _stage())
    search, run, own, marker = (
        _scored(sampler, place, study="killed"),
        _stage(tmp_path / "run"),
        os.getpid(),
        tmp_path / "has",
    )

    def hang_in_the_worker() -> None:
        if os.getpid() == own:
            _await(marker.exists)
        else:
            marker.touch()
            time.sleep(0.2)
            os.kill(os.getpid(), signal.SIGKILL)

    _note_measurements(monkeypatch, tmp_path / "log", before=hang_in_the_worker)
    with _worker(lambda: search.work(space, data, THREAT, run)) as worker:
        found = search.search(space, data, THREAT, run)
    assert worker.exitcode == -signal.SIGKILL
    assert found.record["trials"] == alone.record["trials"]
    trials = _study(place, "killed").trials
    (lost,) = [trial for trial in trials if trial.state == TrialState.FAIL]
    (again,) = [trial for trial in trials if trial.system_attrs.get("retry_history")]  # as Optuna marks them
    assert again.state == TrialState.COMPLETE and again.params == lost.params
    assert [again.user_attrs[name] for name in ("trial", "seed")] == [
        lost.user_attrs[name] for name in ("trial", "seed")
    ]
    assert lost.user_attrs["process"] == f"process {worker.pid} on {socket.gethostname()}"
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    assert sorted(trial.user_attrs["trial"] for trial in complete) == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("place", ["journal", pytest.param("postgresql", marks=pytest.mark.slow)], indirect=True)
def test_a_killed_search_goes_on_to_the_same_result_and_so_does_one_whose_storage_is_lost(
    space, data, tmp_path, monkeypatch, place
):
    sampler, run = TPE(random_starts=3), _stage(tmp_path / "run")
    alone = _scored(sampler, None).search(space, data, THREAT, _stage())
    search = _scored(sampler, place, study="resumed")
    _note_measurements(monkeypatch, tmp_path / "log")
    save = Stage.save

    def until_killed() -> None:
        def killed(self: Stage, done: int, state: Any) -> None:
            if done > 3:
                os.kill(os.getpid(), signal.SIGKILL)
            save(self, done, state)

        Stage.save = killed  # type: ignore[method-assign]
        search.search(space, data, THREAT, run)

    with _worker(until_killed) as first:
        first.join(30)
    assert first.exitcode == -signal.SIGKILL
    found = search.search(space, data, THREAT, run)
    assert found.record["trials"] == alone.record["trials"]
    lines = Counter(line.split(" ", 1)[1] for line in (tmp_path / "log").read_text().splitlines())
    assert lines == Counter(trial["architecture"] for trial in alone.record["trials"])  # nothing is measured twice
    elsewhere = dataclasses.replace(search, storage=f"{tmp_path}/another.log")
    assert elsewhere.search(space, data, THREAT, run).record["trials"] == alone.record["trials"]
    assert len(_study(f"{tmp_path}/another.log", "resumed").trials) == 7


def test_the_same_call_in_two_processes_shares_the_trials(space, data, tmp_path, monkeypatch):
    sampler, storage = TPE(random_starts=3), f"{tmp_path}/trials.log"
    alone = _scored(sampler, None).search(space, data, THREAT, _stage())
    search = _scored(sampler, storage)
    _note_measurements(monkeypatch, tmp_path / "log", before=lambda: _await_processes(tmp_path / "log", 2))
    with _worker(lambda: search.search(space, data, THREAT, _stage())) as other:
        found = search.search(space, data, THREAT, _stage())
    assert other.exitcode == 0
    assert found.record["trials"] == alone.record["trials"]
    assert len((tmp_path / "log").read_text().splitlines()) == 7


@pytest.mark.parametrize("storage", [None, "trials.log"])
def test_a_folder_that_two_machines_do_not_share_is_said_and_one_that_they_share_is_not(
    space, data, tmp_path, monkeypatch, storage
):
    sampler, run, other = Evolution(population_size=4, sample_size=2), tmp_path / "a" / "run", tmp_path / "b"
    monkeypatch.setattr(_sharing, "PATIENCE", 2.0)
    search = _scored(sampler, None if storage is None else f"{tmp_path}/a/{storage}", trials=3)
    there = _scored(sampler, None if storage is None else f"{other}/{storage}", trials=3)
    run.parent.mkdir()
    (tmp_path / "log").touch()
    _note_measurements(monkeypatch, tmp_path / "log", before=lambda: _await(lambda: (tmp_path / "told").exists()))

    def elsewhere() -> None:
        socket.gethostname = lambda: "node-2"
        _await(lambda: bool((tmp_path / "log").read_text()))
        shutil.copytree(tmp_path / "a", other)  # the same names, but another folder
        try:
            there.work(space, data, THREAT, _stage(other / "run"))
        except InputError as error:
            (tmp_path / "told").write_text(str(error))
        search.work(space, data, THREAT, _stage(run))  # the one that is shared: it measures, and ends with the search
        (tmp_path / "welcome").touch()

    with _worker(elsewhere) as guest:
        search.search(space, data, THREAT, _stage(run))
        _await((tmp_path / "told").exists)
        (run / "search.json").touch()
    assert guest.exitcode == 0 and (tmp_path / "welcome").exists()
    told = (tmp_path / "told").read_text()
    assert f"is not shared with {socket.gethostname()}, where process {os.getpid()} on" in told
    assert str(other) in told and "node-2" in told
    assert (tmp_path / "log").read_text().count(str(os.getpid())) >= 1


def test_a_journal_that_never_appears_is_said_in_a_minute_and_no_file_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(_sharing, "PATIENCE", 0.2)
    text = storages.normal(f"{tmp_path}/none.log")
    with pytest.raises(InputError, match=r"has not appeared on .* all its machines share"):
        study_of(text, None, Progress(quiet=True))
    assert not (tmp_path / "none.log").exists()


def test_a_server_that_does_not_answer_is_given_up_after_the_deadline(monkeypatch):
    pytest.importorskip("psycopg", reason="no driver of PostgreSQL: pip install 'robust-nas[postgresql]'")
    assert storages.DEADLINE + 5 < 60
    monkeypatch.setattr(storages, "DEADLINE", 1.0)
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as silent:  # takes the connection, and says nothing
        url = f"postgresql://nas:s3cr@127.0.0.1:{silent.getsockname()[1]}/trials"
        started = time.monotonic()
        with pytest.raises(InputError, match=r"nas:\*\*\*@127\.0\.0\.1:\d+/trials has not answered for 1 s") as told:
            TrialSearch(storage=url).reach()
    assert time.monotonic() - started < 5
    assert "s3cr" not in str(told.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("redis://host/0", "no storage of the kind 'redis'; write journal:///FOLDER/FILE"),
        ("postgresql://nas:s3cr@host", "names no database"),
        ("postgresql://nas:a@s3cr@host/base", "must be written %40"),
        ("postgresql://nas:s3cr@host:port/base", "is no storage"),
        ("postgresql://nas@host/base?password=s3cr", "belongs before the host"),
        ("sqlite://", "is a file that processes share"),
        ("/", "is a file in a folder"),
        (" ", "is a file or a URL"),
        ("/nowhere/at/all.log", "folder of the storage journal:///nowhere/at/all.log is not there"),
        ("postgresql+pg8000://nas:s3cr@host/base", "the driver 'pg8000'; use one of psycopg, psycopg2"),
        ("postgresql://nas:s3cr@127.0.0.1:1/base", r"cannot be used \(.*refused"),
    ],
)
def test_a_storage_that_is_none_is_refused_in_a_sentence_without_its_password(text, message):
    if "127.0.0.1" in text:
        pytest.importorskip("psycopg", reason="no driver of PostgreSQL: pip install 'robust-nas[postgresql]'")
    with pytest.raises(InputError, match=message) as told:
        TrialSearch(storage=text).reach()
    assert "s3cr" not in str(told.value) and "\n" not in str(told.value)


def test_a_driver_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(storages, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'robust-nas\[mysql\]'"):
        TrialSearch(storage="mysql://nas:s3cr@host/base").reach()


def test_what_a_server_refuses_and_another_searchs_study_are_said(space, data, tmp_path, server):
    good = f"postgresql://nas:s3cr%2Ft%40horse@{server}"
    for url, message in {
        f"postgresql://guest:pw@{server}/trials2": 'database "trials2" does not exist',
        f"postgresql://nas:wrong@{server}/trials": "password authentication failed",
        f"postgresql://guest:pw@{server}/postgres": "permission denied for schema public",
    }.items():
        with pytest.raises(InputError, match=message) as told:
            TrialSearch(storage=url).reach()
        assert "wrong" not in str(told.value) and ":pw@" not in str(told.value)
    _scored(Evolution(), f"{good}/trials", trials=2, study="taken").search(space, data, THREAT, _stage())
    with pytest.raises(InputError, match=r"The study taken in postgresql://nas:\*\*\*@.* is of another search"):
        _scored(Evolution(), f"{good}/trials", trials=3, study="taken").search(space, data, THREAT, _stage())
    optuna.create_study(study_name="foreign", storage=f"sqlite:///{tmp_path}/own.db").set_user_attr("mine", 1)
    with pytest.raises(InputError, match=r"The study foreign in .* is of another search"):
        _scored(Evolution(), f"sqlite:///{tmp_path}/own.db", study="foreign").search(space, data, THREAT, _stage())
    (tmp_path / "text.log").write_text("a shopping list\nbread\n")
    with pytest.raises(InputError, match=r"text\.log is no journal of Optuna"):
        TrialSearch(storage=f"{tmp_path}/text.log").reach()
    with pytest.raises(InputError, match="is run by one process"):
        _scored(Evolution(), f"{good}/trials").search(space, data, THREAT, _stage(size=2))


def test_a_password_is_written_nowhere_and_heard_again_from_the_environment(monkeypatch):
    monkeypatch.setattr(secrets, "_KNOWN", {})
    search = TrialSearch(storage="postgres://nas:s3cr%40t@host/base")
    assert search.storage == "postgresql://nas:***@host/base" and "s3cr" not in repr(search)
    assert secrets.password_of(search.storage) == "s3cr@t"
    monkeypatch.setattr(secrets, "_KNOWN", {})  # another process, which reads config.toml
    pytest.importorskip("psycopg", reason="no driver of PostgreSQL: pip install 'robust-nas[postgresql]'")
    with pytest.raises(InputError, match="ROBUST_NAS_STORAGE_PASSWORD, or in the URL again"):
        TrialSearch(storage=search.storage).reach()
    monkeypatch.setenv(secrets.PASSWORD, "other")
    assert secrets.password_of(search.storage) == "other"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("mysql://a:p@ss/w@h/b failed", "mysql://a:***@h/b failed"),
        (
            "--storage=postgresql+psycopg://u:pw@h:5432/b?sslmode=require",
            "--storage=postgresql+psycopg://u:***@h:5432/b?sslmode=require",
        ),
        ("x://h/b?password=pw&a=1", "x://h/b?password=***&a=1"),
        ("my_net.py:Net@weights.pt, see http://host:80/page", "my_net.py:Net@weights.pt, see http://host:80/page"),
    ],
)
def test_texts_are_masked(text, shown):
    assert masked(text) == shown


def _command(words: list[str], output: Path, environment: dict[str, str]) -> Callable[[], None]:
    """A command in a fork, which has torch already."""

    def typed() -> None:
        sys.argv[1:] = words
        os.environ.update(environment)
        with output.open("w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            main()

    return typed


def test_by_commands_alone_a_worker_measures_and_no_file_or_line_has_the_password(tmp_path, server):
    url = f"postgresql://nas:s3cr%2Ft%40horse@{server}/trials"
    search = ["search", "robust-resnet-small", "--data", "digits", "--storage", url, "--study", "commands", "threads=1"]
    search += ['search.objectives=["score"]', "search.proxy=num_params", "search.trials=4", "--out", f"{tmp_path}/runs"]
    work = ["work", url.replace(":s3cr%2Ft%40horse", ""), "--study", "commands"]
    with (
        _worker(_command(search, tmp_path / "first", {})) as first,
        _worker(_command(work, tmp_path / "second", {secrets.PASSWORD: PASSWORD})) as second,
    ):
        first.join(120)
        second.join(60)
    said = [(tmp_path / name).read_text() for name in ("first", "second")]
    assert (first.exitcode, second.exitcode) == (0, 0), said
    assert "The search of commands in" in said[1]
    study = _study(url, "commands")
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 4
    texts = [*said, str(study.user_attrs)]
    texts += [path.read_bytes().decode("latin-1") for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert any("postgresql://nas:***@" in text for text in texts[3:])
    assert not [text for text in texts if "s3cr" in text or "%2Ft" in text]


def test_a_storage_may_be_away_for_a_while_and_then_the_process_ends_as_one_that_lost_a_part(tmp_path, monkeypatch):
    opened = storages.opened(storages.normal(f"{tmp_path}/trials.log"))
    assert opened is not None
    answers = iter([ConnectionResetError("reset by peer"), optuna.exceptions.StorageInternalError("busy"), "here"])

    def call() -> str:
        if isinstance(answer := next(answers), Exception):
            raise answer
        return answer

    monkeypatch.setattr(storages.time, "sleep", lambda seconds: None)
    assert opened.call(call) == "here"
    monkeypatch.setattr(storages, "OUTAGE", 0.0)
    answers = iter([ConnectionResetError("reset by postgresql://a:pw@host/b")] * 2)
    with pytest.raises(Interrupted, match=r"has not answered for 0 s \(reset by postgresql://a:\*\*\*@host/b\)"):
        opened.call(call)
