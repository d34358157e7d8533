import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from robust_nas.core.catalogue import expanded
from robust_nas.core.errors import InputError
from robust_nas.core.files import read_json
from robust_nas.core.writing import atomic_path, write_json, write_text
from robust_nas.runtime.distributed import World
from robust_nas.runtime.progress import Progress
from robust_nas.runtime.run_folder import RunFolder
from robust_nas.runtime.stages import Stage, check_states, read_metrics
from robust_nas.runtime.states import load_state, save_state
from robust_nas.tables._store import home


def _stage(folder: Path, name: str = "search") -> Stage:
    (folder / "checkpoints").mkdir(exist_ok=True)
    return Stage(name, 0, World(), Progress(quiet=True), folder)


def test_a_training_state_comes_back_as_it_was(tmp_path):
    model = torch.nn.Linear(3, 2)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.1)
    model(torch.ones(1, 3)).sum().backward()
    optimiser.step()
    save_state(
        tmp_path / "s.safetensors", {"o": optimiser.state_dict(), "m": model.state_dict(), "n": [1, None, 2.5, "a"]}
    )
    state = load_state(tmp_path / "s.safetensors")
    other = torch.nn.Linear(3, 2)
    other.load_state_dict(state["m"])
    resumed = torch.optim.Adam(other.parameters(), lr=0.1)
    resumed.load_state_dict(state["o"])
    for network, optim in ((model, optimiser), (other, resumed)):
        optim.zero_grad()
        network(torch.full((1, 3), 2.0)).square().sum().backward()
        optim.step()
    assert torch.equal(model.weight, other.weight)
    assert state["n"] == [1, None, 2.5, "a"]


@pytest.mark.parametrize("size", [0, 5, 60, -1])
def test_a_cut_or_foreign_checkpoint_is_refused_in_one_sentence(tmp_path, size):
    path = tmp_path / "s.safetensors"
    save_state(path, {"weights": torch.ones(100)})
    path.write_bytes(path.read_bytes()[:size] if size >= 0 else os.urandom(300))
    with pytest.raises(InputError, match="damaged or not one of ours"):
        load_state(path)
    with pytest.raises(InputError, match="no checkpoint"):
        load_state(tmp_path / "missing.safetensors")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    with pytest.raises(TypeError):
        write_json(path, {"new": object()})
    assert read_json(path) == {"old": 1}
    assert [child.name for child in tmp_path.iterdir()] == ["a.json"]


def test_a_half_written_json_is_refused(tmp_path):
    (tmp_path / "a.json").write_text('{"a": [1, 2')
    with pytest.raises(InputError, match="damaged"):
        read_json(tmp_path / "a.json")


def test_a_stage_resumes_from_its_last_state_and_forgets_what_was_logged_later(tmp_path):
    stage = _stage(tmp_path)
    assert stage.resume() == (0, None)
    for step in (1, 2):
        stage.log(step, loss=1.0 / step)
        stage.save(step, {"value": step})
    stage.log(3, loss=0.1)
    _stage(tmp_path, "other").log(7, loss=9.0)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "search", "st')
    assert _stage(tmp_path).resume() == (2, {"value": 2})
    kept = [(row["stage"], row["step"]) for row in read_metrics(tmp_path / "metrics.jsonl")]
    assert kept == [("search", 1), ("search", 2), ("other", 7)]
    stage.finish()
    assert stage.resume() == (0, None)


@pytest.mark.parametrize("line", [b'{"stage": \n', b'\xff\xfe{"stage"\n', b"\x0c{\n"])
def test_a_line_with_an_end_that_is_no_row_is_damage_and_no_line_that_was_cut_off(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(line)
    with pytest.raises(InputError, match="line 1 must have a stage"):
        read_metrics(path)
    path.write_bytes(line.rstrip(b"\n"))
    assert read_metrics(path) == []


def test_a_damaged_state_under_way_is_said_before_a_run_does_anything(tmp_path: Path) -> None:
    stage = _stage(tmp_path)
    stage.save(1, {"value": 1})
    check_states(tmp_path)
    assert stage.checkpoint is not None
    stage.checkpoint.write_bytes(b"garbage")
    with pytest.raises(InputError, match="damaged or not one of ours"):
        check_states(tmp_path)


def _write_for_ever(path: Path) -> None:
    number = 0
    while True:
        write_text(path, f"{number:06d}\n" * 20_000)
        number += 1


def test_a_reader_never_sees_half_a_file_though_the_writer_is_killed(tmp_path):
    path = tmp_path / "a.txt"
    for _ in range(3):
        writer = multiprocessing.get_context("fork").Process(target=_write_for_ever, args=(path,))
        writer.start()
        deadline = time.monotonic() + 0.3
        while time.monotonic() < deadline:
            if path.exists():
                lines = path.read_text().splitlines()
                assert len(lines) == 20_000 and len(set(lines)) == 1
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        lines = path.read_text().splitlines()
        assert len(lines) == 20_000 and len(set(lines)) == 1


def _lock(path: Path, outcome) -> None:
    try:
        RunFolder(path).lock()
        outcome.put("locked")
    except InputError as error:
        outcome.put(str(error))


def _locked_elsewhere(path: Path) -> str:
    """Return what another process is told that wants to lock a folder."""
    context = multiprocessing.get_context("fork")
    outcome = context.Queue()
    other = context.Process(target=_lock, args=(path, outcome))
    other.start()
    found = outcome.get(timeout=10)
    other.join()
    return str(found)


def test_two_processes_cannot_work_on_one_run(tmp_path):
    with RunFolder.making(tmp_path, "digits") as run:
        pass
    run.lock()
    assert "Another process is working on" in _locked_elsewhere(run.path)


@pytest.mark.parametrize("file", ["settings.json", "attack.toml"])
def test_a_job_goes_on_in_its_folder_with_its_settings_alone(tmp_path: Path, file: str) -> None:
    def begin(settings: dict[str, Any]) -> RunFolder:
        return RunFolder.open_or_create(tmp_path / "job", settings, World(), file=file, free=("workers",))

    settings = {"data": {"name": "digits"}, "seeds": [0, 1], "workers": 1}
    begin(settings).unlock()
    written = (tmp_path / "job" / file).read_text()
    begin({**settings, "workers": 2}).unlock()
    for changed, named in (({"seeds": [0]}, "seeds"), ({"data": {"name": "mnist"}}, r"data\.name")):
        with pytest.raises(InputError, match=rf"begun with other settings: {named} "):
            begin({**settings, **changed})
    assert (tmp_path / "job" / file).read_text() == written
    held = begin(settings)  # whoever is refused leaves the folder free
    try:
        assert _locked_elsewhere(held.path).startswith("Another process is working on")
    finally:
        held.unlock()


def test_settings_that_are_no_table_are_refused_and_the_folder_is_free(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text("[1]")
    for _ in range(2):
        with pytest.raises(InputError, match="must be a table"):
            RunFolder.open_or_create(tmp_path, {"seed": 0}, World(), file="settings.json")


def test_a_folder_that_is_no_run_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="not a run folder"):
        RunFolder.open(tmp_path)


def test_without_a_home_folder_one_among_the_temporary_ones_stands_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(_: object) -> None:
        raise KeyError("uid not found")

    assert expanded("~/x") == Path.home() / "x"
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    own = tmp_path / f"robust-nas-{os.getuid()}"
    assert expanded("~/.cache/x") == own / ".cache" / "x" and expanded(tmp_path) == tmp_path
    assert own.stat().st_mode & 0o777 == 0o700
    assert home() == own / ".cache" / "robust-nas" / "tables"
    with pytest.raises(InputError, match="no user 'nobody-of-that-name'"):
        expanded("~nobody-of-that-name/x")
    own.rmdir()
    own.symlink_to(tmp_path / "somewhere")
    (tmp_path / "somewhere").mkdir()
    with pytest.raises(InputError, match="set HOME"):
        expanded("~/x")


def test_what_killed_processes_have_left_is_removed_and_nothing_else(tmp_path):
    with RunFolder.making(tmp_path, "digits") as run:
        write_json(run / "a.json", 1)
    mine = [run / name for name in (".notes.txt", ".a.json.bak.json", ".a.json.robust-nas-x.json")]
    mine += [tmp_path / ".20260101-digits-aaaaaa.unfinished.txt", tmp_path / ".my-unfinished"]
    for path in mine:
        path.write_text("mine")
    folder = tmp_path / ".my.unfinished"
    folder.mkdir()

    def write(barrier) -> None:
        with RunFolder.making(tmp_path, "digits"), atomic_path(run / "a.json"), atomic_path(run / "new" / "b.npy"):
            barrier.wait()
            time.sleep(60)

    def left() -> list[str]:
        found = [path.name for path in tmp_path.rglob(".*") if path not in (*mine, folder)]
        return sorted(name if "unfinished" not in name else "unfinished" for name in found if name != ".lock")

    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    writer = context.Process(target=write, args=(barrier,))
    writer.start()
    barrier.wait()
    written = [".a.json.robust-nas-1.json", ".b.npy.robust-nas-1.npy", "unfinished"]
    # Another process that writes the same file takes another name, and takes nothing from who is at it.
    write_json(run / "a.json", 2)
    run.lock()
    with RunFolder.making(tmp_path, "digits"):
        assert left() == [*written, "unfinished"]
    assert left() == written and read_json(run / "a.json") == 2
    writer.kill()
    writer.join()
    assert left() == written
    write_json(run / "a.json", 3)
    assert left() == written[1:] and read_json(run / "a.json") == 3
    run.lock()
    assert left() == written[2:]
    with RunFolder.making(tmp_path, "digits"):
        assert left() == ["unfinished"]
    assert left() == []
    run.unlock()
    assert all(path.read_text() == "mine" for path in mine) and folder.is_dir()


def test_a_run_folder_appears_whole_or_not_at_all(tmp_path):
    root = tmp_path / "runs"
    with pytest.raises(KeyboardInterrupt), RunFolder.making(root, "digits") as run:
        write_json(run / "config.toml", 1)
        assert not [path for path in root.iterdir() if not path.name.startswith(".")]
        raise KeyboardInterrupt
    assert list(root.iterdir()) == []
