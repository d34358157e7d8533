"""Several processes that measure one search's trials: real ones, which are killed."""

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from robust_nas.architectures.cell import Architecture
from robust_nas.attacks.fgsm import FGSM
from robust_nas.core.errors import InputError
from robust_nas.core.writing import write_json
from robust_nas.proxies.num_params import NumParams
from robust_nas.runtime.distributed import World
from robust_nas.runtime.progress import Progress
from robust_nas.runtime.run_folder import RunFolder
from robust_nas.runtime.stages import Stage, read_metrics
from robust_nas.samplers.evolution import Evolution
from robust_nas.samplers.nsga2 import NSGA2
from robust_nas.samplers.tpe import TPE
from robust_nas.searches import _sharing
from robust_nas.searches._trials import Trials
from robust_nas.searches.random_sharing import RandomSharing
from robust_nas.searches.sampled import TrialSearch
from robust_nas.threat import ThreatModel

THREAT = ThreatModel(epsilon=0.02)
SHARING = RandomSharing(epochs=1, batch_size=16, validation_attack=FGSM())
FORK = multiprocessing.get_context("fork")
AGREED = {"version": "1", "labels": "2", "processes": 1, "supernet": None}
CELLS = [Architecture.parse(digits) for digits in ("321434", "323133", "333333")]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(_sharing, "POLL", 0.02)


def _stage(folder=None, **world):
    if folder is not None:
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    return Stage("search", 0, World(**world), Progress(quiet=True), folder)


def _scored(sampler, **options):
    """A search whose trials take milliseconds."""
    return TrialSearch(
        sampler=sampler, objectives=("score",), proxy=NumParams(), **{"trials": 9, "num_parallel": 3, **options}
    )


def _note_measurements(monkeypatch, log, before=lambda: None):
    """Write down who measures what, and do something before."""
    measure = TrialSearch._measure

    def noted(self, architecture, *rest):
        with log.open("a") as file:
            file.write(f"{os.getpid()} {architecture}\n")
        before()
        return measure(self, architecture, *rest)

    monkeypatch.setattr(TrialSearch, "_measure", noted)


@contextlib.contextmanager
def _workers(count, search, space, data, folder):
    """Processes that measure until the search is said to be over."""
    processes = [FORK.Process(target=search.work, args=(space, data, THREAT, _stage(folder))) for _ in range(count)]
    for process in processes:
        process.start()
    try:
        yield processes
    finally:
        write_json(folder / "search.json", {})
        for process in processes:
            process.join(20)
            process.kill()


def _await(path):
    end = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < end, f"no {path.name}"
        time.sleep(0.01)


def _await_processes(log, count):
    """Wait a little for as many processes to have a trial."""
    end = time.monotonic() + 10
    while len({line.split()[0] for line in log.read_text().splitlines()}) < count and time.monotonic() < end:
        time.sleep(0.01)


@pytest.mark.parametrize("sampler", [Evolution(population_size=4, sample_size=2), TPE(random_starts=3)])
@pytest.mark.parametrize("count", [1, 2])
def test_workers_measure_every_trial_once_and_the_result_is_that_of_one_process(
    space, data, tmp_path, monkeypatch, sampler, count
):
    search = _scored(sampler)
    alone = search.search(space, data, THREAT, _stage())
    _note_measurements(monkeypatch, tmp_path / "log", before=lambda: _await_processes(tmp_path / "log", count + 1))
    with _workers(count, search, space, data, tmp_path / "run") as processes:
        found = search.search(space, data, THREAT, _stage(tmp_path / "run"))
    assert found.record["trials"] == alone.record["trials"]
    lines = [line.split(" ", 1) for line in (tmp_path / "log").read_text().splitlines()]
    assert Counter(text for _, text in lines) == Counter(trial["architecture"] for trial in alone.record["trials"])
    assert {pid for pid, _ in lines} == {str(os.getpid()), *(str(process.pid) for process in processes)}
    assert [process.exitcode for process in processes] == [0] * count
    assert not (tmp_path / "run" / "trials").exists()


def test_workers_take_the_weights_of_the_supernet_that_the_search_has_trained(space, data, tmp_path, monkeypatch):
    sampler = Evolution(population_size=4, sample_size=2)
    search = TrialSearch(sampler=sampler, trials=6, sharing=SHARING, attack=FGSM(), num_parallel=3)
    alone = search.search(space, data, THREAT, _stage())
    _note_measurements(monkeypatch, tmp_path / "log", before=lambda: _await_processes(tmp_path / "log", 2))
    with _workers(1, search, space, data, tmp_path / "run"):
        found = search.search(space, data, THREAT, _stage(tmp_path / "run"))
    assert found.record["trials"] == alone.record["trials"]
    assert len({line.split()[0] for line in (tmp_path / "log").read_text().splitlines()}) == 2


def test_the_trial_of_a_worker_that_is_killed_is_measured_by_another_process(space, data, tmp_path, monkeypatch):
    search = _scored(Evolution(population_size=4, sample_size=2))
    run, marker, own = tmp_path / "run", tmp_path / "marker", os.getpid()
    alone = search.search(space, data, THREAT, _stage())

    def hang_in_the_worker():
        if os.getpid() == own:
            _await(marker)  # the worker has a trial
        else:
            marker.touch()
            time.sleep(60)

    _note_measurements(monkeypatch, tmp_path / "log", before=hang_in_the_worker)
    with _workers(1, search, space, data, run) as (worker,):

        def kill():
            _await(marker)
            time.sleep(0.3)
            os.kill(worker.pid, signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        found = search.search(space, data, THREAT, _stage(run))
        killer.join()
    assert worker.exitcode == -signal.SIGKILL
    assert found.record["trials"] == alone.record["trials"]
    lines = [line.split(" ", 1) for line in (tmp_path / "log").read_text().splitlines()]
    (lost,) = [text for pid, text in lines if pid != str(own)]
    assert [pid for pid, text in lines if text == lost] == [str(worker.pid), str(own)]


@pytest.mark.parametrize("killed_after", [0, 1, 5])
@pytest.mark.parametrize("others", [0, 1])
def test_a_search_that_is_killed_goes_on_to_the_same_trials(space, data, tmp_path, monkeypatch, killed_after, others):
    search, run = _scored(TPE(random_starts=3)), tmp_path / "run"
    alone = search.search(space, data, THREAT, _stage())
    _note_measurements(monkeypatch, tmp_path / "log")
    save = Stage.save

    def until_killed():
        def killed(self, done, state):
            if done > killed_after:
                os.kill(os.getpid(), signal.SIGKILL)
            save(self, done, state)

        Stage.save = killed
        search.search(space, data, THREAT, _stage(run))

    with _workers(others, search, space, data, run):
        first = FORK.Process(target=until_killed)
        first.start()
        first.join(20)
        assert first.exitcode == -signal.SIGKILL
        found = search.search(space, data, THREAT, _stage(run))
    assert found.record["trials"] == alone.record["trials"]
    rows = [row["architecture"] for row in read_metrics(run / "metrics.jsonl") if row["stage"] == "search"]
    measured = [trial["architecture"] for trial in alone.record["trials"]]
    assert rows == measured
    # What was measured before the kill is not measured again.
    lines = Counter(line.split(" ", 1)[1] for line in (tmp_path / "log").read_text().splitlines())
    assert lines == Counter(measured)


@pytest.mark.parametrize("sampler", [TPE(random_starts=3), NSGA2(population_size=4)])
@pytest.mark.parametrize("num_parallel", [1, 3])
def test_optuna_reads_the_journal_and_finds_the_values_of_the_trials(space, data, tmp_path, sampler, num_parallel):
    search = _scored(sampler, num_parallel=num_parallel, trials=12)
    found = search.search(space, data, THREAT, _stage(tmp_path))
    study = _study(tmp_path)
    assert study.directions == [optuna.study.StudyDirection.MAXIMIZE]
    assert all(trial.state == optuna.trial.TrialState.COMPLETE for trial in study.trials)
    values = {space.parse(trial["architecture"]).canonical: trial["values"] for trial in found.record["trials"]}
    read = [(space.parse(trial.user_attrs["architecture"]), trial) for trial in study.trials]
    # Equivalent architectures are trials of the study, and are told the values of the one that was measured.
    assert [values[architecture.canonical] for architecture, _ in read] == [trial.values for _, trial in read]
    assert {architecture.canonical for architecture, _ in read} == set(values)
    assert all(tuple(trial.params.values()) == space.decisions_of(architecture) for architecture, trial in read)
    assert study.best_value == max(values[key][0] for key in values)


def _study(folder):
    storage = JournalStorage(JournalFileBackend(str(folder / "study.journal")))
    return optuna.load_study(study_name="search", storage=storage)


def test_the_journal_goes_on_after_a_kill_in_the_middle_of_a_line(space, data, tmp_path, monkeypatch):
    search = _scored(TPE(random_starts=3))
    search.search(space, data, THREAT, _stage(tmp_path / "whole"))
    whole = [(trial.params, trial.values) for trial in _study(tmp_path / "whole").trials]
    save = Stage.save

    def killed(self, done, state):
        save(self, done, state)
        if done == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(Stage, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        search.search(space, data, THREAT, _stage(tmp_path))
    monkeypatch.undo()
    monkeypatch.setattr(_sharing, "POLL", 0.02)
    journal = tmp_path / "study.journal"
    journal.write_bytes(journal.read_bytes()[:-7])
    Path(f"{journal}.lock").touch()
    begun = _study(tmp_path).trials[0].datetime_complete
    search.search(space, data, THREAT, _stage(tmp_path))
    assert [(trial.params, trial.values) for trial in _study(tmp_path).trials] == whole
    assert _study(tmp_path).trials[0].datetime_complete == begun


@pytest.mark.parametrize(
    "damage",
    [
        lambda lines: [*lines[:3], lines[3][:20], *lines[4:]],
        lambda lines: [*lines[:2], b"", b"   ", *lines[2:]],
        lambda lines: [*lines, b"\xff\xfe"],
        lambda lines: [b"[]", b'{"op_code": 99}', *lines],
        lambda lines: [b"[" * 100_000],
        lambda lines: [line for line in lines if b"op_code" not in line] + [b'{"op_code": 0}'],
    ],
    ids=["torn", "blank", "no UTF-8", "of another kind", "nested", "bare"],
)
def test_a_journal_that_cannot_be_read_is_replaced_and_the_search_is_the_same(space, data, tmp_path, damage):
    search, journal = _scored(TPE(random_starts=3)), tmp_path / "study.journal"
    found = search.search(space, data, THREAT, _stage(tmp_path))
    trials = [(trial.params, trial.values) for trial in _study(tmp_path).trials]
    journal.write_bytes(b"".join(line + b"\n" for line in damage(journal.read_bytes().splitlines())))
    again = search.search(space, data, THREAT, _stage(tmp_path))
    assert again.probabilities == found.probabilities
    assert [(trial.params, trial.values) for trial in _study(tmp_path).trials] == trials


def test_links_in_a_folder_lead_no_writer_out_of_it(space, data, tmp_path):
    outside, folder = tmp_path / "outside", tmp_path / "run"
    outside.write_text("mine\n")
    folder.mkdir()
    (folder / "study.journal").symlink_to(outside)
    _scored(TPE(random_starts=3)).search(space, data, THREAT, _stage(folder))
    assert _study(folder).trials and not (folder / "study.journal").is_symlink()
    for name, write in {
        ".lock": lambda: RunFolder(folder).lock(),
        "metrics.jsonl": lambda: _stage(folder).log(1, loss=1.0),
    }.items():
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(outside)
        with pytest.raises(InputError, match="symbolic link"):
            write()
    assert outside.read_text() == "mine\n"


def test_a_journal_of_something_else_is_replaced(space, data, tmp_path):
    search = _scored(TPE(random_starts=3))
    other = optuna.create_study(
        study_name="search",
        storage=JournalStorage(JournalFileBackend(str(tmp_path / "study.journal"))),
        direction="maximize",
    )
    other.tell(other.ask({"x": optuna.distributions.FloatDistribution(0, 1)}), 1.0)
    found = search.search(space, data, THREAT, _stage(tmp_path))
    told = {trial.user_attrs["architecture"] for trial in _study(tmp_path).trials}
    assert {trial["architecture"] for trial in found.record["trials"]} <= told


def test_a_trial_is_claimed_by_one_process_until_it_ends_or_the_values_are_there(tmp_path):
    trials = Trials(tmp_path / "trials")
    trials.open(AGREED, [])
    for number, cell in enumerate(CELLS, start=1):
        trials.ask(number, cell)

    def hold():
        with trials.claim(1) as text:
            assert text == str(CELLS[0])
            (tmp_path / "held").touch()
            time.sleep(60)

    holder = FORK.Process(target=hold)
    holder.start()
    _await(tmp_path / "held")
    with trials.claim(1) as text:
        assert text is None
    assert trials.claimant(1).startswith(f"process {holder.pid} on ")
    holder.kill()
    holder.join()
    with trials.claim(1) as text:
        assert text == str(CELLS[0])
        trials.answer(1, CELLS[0], [0.1], 2.0)
    with trials.claim(1) as text:
        assert text is None
    assert trials.values(1) == [0.1]
    assert trials.numbers() == [2, 3]


def test_what_was_open_before_an_interruption_keeps_its_values_and_what_was_told_is_forgotten(tmp_path):
    trials = Trials(tmp_path / "trials")
    trials.open(AGREED, [])
    for number, cell in enumerate(CELLS, start=1):
        trials.ask(number, cell)
        trials.answer(number, cell, [float(number)], 1.0)
    (tmp_path / "trials" / ".3.asked.json.robust-nas-1.json").touch()  # what a killed process leaves
    trials.open(AGREED, [{}])
    trials.ask(2, CELLS[1])
    trials.ask(3, CELLS[0])  # another one than before
    assert [trials.values(number) for number in (1, 2, 3)] == [None, [2.0], None]
    assert trials.numbers() == [3]
    # What was measured for another question, or for one that is closed, is not an answer.
    trials.answer(3, CELLS[2], [3.0], 1.0)
    trials.answer(1, CELLS[0], [1.0], 1.0)
    assert trials.numbers() == [3]
    assert trials.values(1) is None


def test_who_cannot_take_part_is_told_so(space, data, tmp_path):
    search, trials = _scored(Evolution()), Trials(tmp_path / "trials")
    own = _sharing.to_agree_on(data)
    other = dataclasses.replace(data, train=data.train[:5])
    for agreed, message in [
        ({**own, "processes": 2}, "measured by 2 processes of torchrun together"),
        ({**own, "processes": 1, "versions": {"robust-nas": "0.0.1"}}, r"runs with robust-nas 0\.0\.1, but this is"),
        ({**own, "processes": 1, "device": "cuda"}, "runs on cuda, but this is cpu"),
        (
            {**own, "processes": 1, "data": other.fingerprint(("train", "validation"))},
            "here are not those of .*the train split has 64 images instead of 5",
        ),
    ]:
        trials.open({"supernet": None, **agreed}, [])
        with pytest.raises(InputError, match=message):
            search.work(space, data, THREAT, _stage(tmp_path))
    with pytest.raises(InputError, match="without torchrun"):
        search.work(space, data, THREAT, _stage(tmp_path, size=2))
    with pytest.raises(InputError, match=r"search\.num_parallel of .* is 1"):
        _scored(Evolution(), num_parallel=1).work(space, data, THREAT, _stage(tmp_path))


def test_a_sampler_that_asks_something_else_than_before_the_interruption_is_not_told_wrong_values(
    space, data, tmp_path
):
    search, stage = _scored(TPE(random_starts=3)), _stage(tmp_path)
    found = search.search(space, data, THREAT, stage)
    changed = [{**trial, "architecture": str(CELLS[0])} for trial in found.record["trials"][:2]]
    stage.save(2, {"trials": changed, "seconds": 1.0})
    with pytest.raises(InputError, match=r"Trial 1 of .* was .*, but the sampler would now ask for"):
        search.search(space, data, THREAT, stage)
