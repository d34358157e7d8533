"""The run folder: its files, written atomically, and the resuming of stages.

    runs/<date>-<recipe>-<id>/
        config.toml            the fully resolved configuration
        data.json              digests of its images: others are refused
        environment.json       version, commit, packages, hardware, arguments; of each session, the last one first
        metrics.jsonl          one line per epoch and stage
        architecture.txt       the derived architectures, best first
        checkpoints/           *.safetensors: finished models, and the state of a stage under way
        study.journal          the trials of Optuna's samplers, for `optuna.load_study(study_name="search", ...)`
        trials/                the open trials of a search by several processes, while it lasts (searches/_trials.py)
        <stage>.json           a finished stage's result; a stage whose result exists is skipped
        ...                    the stages' own files (evaluation.parquet, certificates.parquet, report.html, ...)

Every file is written to a temporary name in the same folder and then renamed: a reader finds the whole file or none.
(metrics.jsonl and study.journal are appended to, a line at a time; a line that was cut off is dropped.)
Weights and training states are safetensors; nothing is ever unpickled. Rank 0 writes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from robust_nas import records
from robust_nas.core import config
from robust_nas.core.checks import check_path
from robust_nas.core.errors import InputError
from robust_nas.core.files import damaged, is_there, read_rows
from robust_nas.core.files import read_json as read_json
from robust_nas.runtime.process import HELD
from robust_nas.runtime.progress import Progress

if TYPE_CHECKING:
    from torch import Tensor

    from robust_nas.runtime.distributed import World

METRICS = "metrics.jsonl"

STAGE_FILES = {
    "search": "search.json",
    "derive": "derive.json",
    "train": "train.json",
    "attack": "evaluation.json",
    "certify": "certification.json",
    "ensemble": "ensemble.json",
    "record": "record.json",
}
"""The file that says that a stage has run."""


_TEMPORARY = re.compile(r"\..+\.robust-nas-\d+(\.\w+)?")

_MANY = 10**9

_UNFINISHED = re.compile(r"\.\d{8}-.+-[0-9a-f]{6}\.unfinished")


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; rename it to `path` on success, remove it on failure.

    The file is locked as long as it is written: what a killed process has left is no longer, and the next one takes it
    for its own.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, lock = _temporary(path)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        # Only here: after the file has got its name, the temporary one may be another process's.
        temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(lock)


def _temporary(path: Path) -> tuple[Path, int]:
    """Return an empty file beside `path` that no other process writes, and the descriptor that has it locked."""
    number = 1
    while True:
        # A long name leaves no room for more.
        temporary = path.with_name(f".{path.name[:150]}.robust-nas-{number}{path.suffix}")
        try:
            lock = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except PermissionError:
            if not os.path.lexists(temporary):
                raise
            number += 1  # another user's
            continue
        locked = _flock(lock) if os.fstat(lock).st_uid == os.geteuid() else False
        if locked is None and number < _MANY:
            number = _MANY + secrets.randbelow(_MANY)  # nobody else's, without a lock
        elif locked is False:
            number += 1
        else:
            # Before it was locked, who had it locked may have given it its name, or removed it.
            if _is_at(lock, temporary):
                os.ftruncate(lock, 0)
                return temporary, lock
        os.close(lock)


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def _flock(descriptor: int) -> bool | None:
    """Lock an open file or folder, unless another process has it; None where the file system has no such locks.

    Unlike `fcntl.lockf`, it holds although the same file is opened and closed elsewhere in this process.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def remove_leftovers(paths: Iterable[Path]) -> None:
    """Remove those of some files that processes which were killed have left half-written."""
    for path in paths:
        if _TEMPORARY.fullmatch(path.name):
            # Not there any more, or somebody else's.
            with contextlib.suppress(OSError), path.open("rb+") as file:
                if _flock(file.fileno()) and _is_at(file.fileno(), path):
                    path.unlink()


def make_folder(path: Path, advice: str) -> None:
    """Make a folder, unless it is there.

    Raises:
        InputError: if it cannot be made, with what is to be done.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"The folder {path} cannot be made ({error.strerror}); {advice}.") from None


def open_own(path: Path, mode: str) -> IO[str]:
    """Open a file that is written in place, but none somewhere else to which a link in a stranger's folder leads.

    Raises:
        InputError: if it is a link.
    """
    try:
        return open(
            path, mode, encoding="utf-8", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o666)
        )
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise InputError(f"{path} is a symbolic link, and files must stay in their folder; delete it.") from None


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(value, indent=1, allow_nan=True) + "\n")


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


@dataclass
class Stage:
    """One stage's place in a run: its state under way, its log, its progress display.

    Without a folder (the plain Python API) nothing is written, and a stage always starts from its beginning.

    Args:
        name: the stage's name, such as "search" or "train-0"; also the root of its seeds.
        seed: the run's seed.
        world: the processes at work.
        progress: the display of the stage's progress.
        folder: the run folder, or None.
    """

    name: str
    seed: int
    world: World
    progress: Progress
    folder: Path | None = None

    @property
    def checkpoint(self) -> Path | None:
        """The file of the state under way."""
        return self.folder and self.folder / "checkpoints" / f"{self.name}.state.safetensors"

    def within(self, name: str) -> Stage:
        """Return a silent stage for work inside a step of this one; it writes nothing and keeps no state."""
        return Stage(f"{self.name}-{name}", self.seed, self.world, Progress(quiet=True))

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Keep the state after `step` steps (epochs, chunks), replacing the one before. Rank 0 writes."""
        if self.checkpoint and self.world.is_main:
            save_state(self.checkpoint, {"step": step, "state": state})

    def resume(self) -> tuple[int, dict[str, Any] | None]:
        """Return the number of steps that are done and the state after them, or (0, None); forget later log entries."""
        path, step, state = self.checkpoint, 0, None
        if path and path.exists():
            step, state = _under_way(path)
        if self.folder and self.world.is_main:
            _forget_metrics(self.folder / METRICS, self.name, step)
        self.world.barrier()
        return step, state

    def finish(self) -> None:
        """Remove the state under way: the stage's result is written."""
        if self.checkpoint and self.world.is_main:
            self.checkpoint.unlink(missing_ok=True)

    def log(self, step: int, **values: Any) -> None:
        """Append a line of metrics for `step`, counted from 1; NaN and infinity are kept as such."""
        if self.folder and self.world.is_main:
            with open_own(self.folder / METRICS, "a") as file:
                file.write(json.dumps({"stage": self.name, "step": step, **values}) + "\n")


def _under_way(path: Path) -> tuple[int, dict[str, Any]]:
    saved = load_state(path)
    if type(saved.get("step")) is not int or not isinstance(saved.get("state"), dict):
        raise InputError(damaged(path, "it has no step with its state"))
    return saved["step"], saved["state"]


def check_states(folder: Path) -> None:
    """Raise InputError if a state under way in a run folder is damaged: before earlier stages are computed anew."""
    for path in sorted((folder / "checkpoints").glob("*.state.safetensors")):
        _under_way(path)


def _forget_metrics(path: Path, stage: str, step: int) -> None:
    """Drop a stage's lines after `step`, and a line that was cut off in the middle."""
    if not path.exists():
        return
    rows = read_metrics(path)
    kept = [row for row in rows if row["stage"] != stage or row["step"] <= step]
    write_text(path, "".join(json.dumps(row) + "\n" for row in kept))


def unfinished_stages(path: Path) -> list[str]:
    """Return the stages that a run has not finished, in their order; the report is the last.

    Attack, certify and ensemble add to their files model by model: that a file is there does not say they are done.

    Raises:
        InputError: if one of the files that say so is damaged.
    """
    files = {**STAGE_FILES, "report": "report.html"}
    found = {stage: is_there(path / name) for stage, name in files.items()}
    trained = (
        {model.name for model in records.read(path / "train.json", records.TrainingRecord).models}
        if found["train"]
        else set()
    )
    attacked = (
        records.read(path / files["attack"], records.EvaluationRecord).models.keys() if found["attack"] else set()
    )
    certified, left_out = set(), set()
    if found["certify"]:
        record = records.read(path / files["certify"], records.CertificationRecord)
        certified, left_out = set(record.models), set(record.left_out)
    found["attack"] &= trained <= attacked
    found["certify"] &= trained <= certified | left_out
    found["ensemble"] &= {"uniform", "ensemble"} <= attacked & certified
    # One network is no ensemble, nor are several of which some have no sound bounds.
    found["ensemble"] |= len(trained) == 1 or bool(left_out)
    return [stage for stage in files if not found[stage]]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a metrics file; a last line that was cut off is left out.

    Raises:
        InputError: if it cannot be read, or a row is not of an epoch of a stage.
    """
    return read_rows(path, _is_metrics, "a stage, a step and, if any, accuracies that are numbers")


def _is_metrics(row: Any) -> bool:
    if not isinstance(row, dict) or not isinstance(row.get("stage"), str) or type(row.get("step")) is not int:
        return False
    accuracies = [value for key, value in row.items() if key.startswith("validation_") and value is not None]
    return all(type(value) in (int, float) for value in accuracies)


def _no_folder(root: Path, error: OSError) -> InputError:
    return InputError(f"No run folder can be made in {root} ({error.strerror}); choose another place with --out.")


def is_run(path: Path | str) -> bool:
    """Whether a path is a run folder's."""
    return (Path(path) / "config.toml").is_file()


@dataclass
class RunDir:
    """The folder of a run, or of another job that is gone on with where it ended.

    A run has a name of its own (`making`); the others' names are digests of their settings (`open_or_create`). Both
    are locked while somebody works on them, and hold a job with one set of settings, from which nothing may differ.
    """

    path: Path
    _lock: IO[str] | None = field(default=None, repr=False)

    @classmethod
    def open_or_create(
        cls, path: Path, settings: Mapping[str, Any], world: World, *, file: str, free: Collection[str] = ()
    ) -> RunDir:
        """Make a job's folder with its settings, or open the one that is there; it is locked.

        Args:
            settings: what the job's results follow from.
            world: the processes at work, of which rank 0 has the lock.
            file: the name of the settings' file, JSON or TOML.
            free: the keys that may change from session to session, as no result follows from them.

        Raises:
            InputError: if it cannot be made, another process is at work on it, or it holds a job with other settings.
        """
        folder = cls(path)

        def begin() -> None:
            make_folder(path, "choose another place with --out")
            folder.lock()
            try:
                folder.settle(settings, file, free)
            except BaseException:
                folder.unlock()
                raise

        world.on_main(begin)
        return folder

    def settle(self, settings: Mapping[str, Any], file: str, free: Collection[str] = ()) -> None:
        """Write the settings, or compare them with those that are there.

        Raises:
            InputError: if they differ.
        """
        place, is_toml = self / file, file.endswith(".toml")
        if not is_there(place):
            write_text(place, config.to_toml(settings)) if is_toml else write_json(place, settings)
            return
        before = config.read_toml(place) if is_toml else read_json(place, "choose another folder with --out")
        if not isinstance(before, dict):
            raise InputError(damaged(place, "it must be a table", "choose another folder with --out"))
        self.check_unchanged(before, json.loads(json.dumps(settings)), free)

    def check_unchanged(self, before: Mapping[str, Any], now: Mapping[str, Any], free: Collection[str] = ()) -> None:
        """Raise InputError if two tables of settings differ in more than the keys that are free, naming them."""
        one, other = ({key: value for key, value in table.items() if key not in free} for table in (before, now))
        if changed := config.differences(one, other):
            raise InputError(
                f"{self.path} was begun with other settings: {', '.join(changed)}; go on with it without changes, or "
                "begin anew in another folder."
            )

    @classmethod
    @contextlib.contextmanager
    def making(cls, root: Path, recipe: str) -> Iterator[RunDir]:
        """Give a folder to fill, which becomes the run folder `<root>/<date>-<recipe>-<id>` at the end of the block.

        Until then its name is a hidden one. If the block fails, nothing is left; what processes that were killed in
        such a block have left in `root` is removed.

        Raises:
            InputError: if it cannot be made there.
        """
        path = root / f"{time.strftime('%Y%m%d')}-{recipe}-{secrets.token_hex(3)}"
        folder = cls(path.with_name(f".{path.name}.unfinished"))
        try:
            root.mkdir(parents=True, exist_ok=True)
            lock = os.open(root, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise _no_folder(root, error) from None
        try:
            # Everybody who makes a folder shares the lock: who has it alone finds only what is left.
            if _flock(lock):
                for left in root.glob(".*.unfinished"):
                    if _UNFINISHED.fullmatch(left.name) and (left / "checkpoints").is_dir():
                        shutil.rmtree(left, ignore_errors=True)
            with contextlib.suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_SH)
            try:
                (folder / "checkpoints").mkdir(parents=True)
            except OSError as error:
                raise _no_folder(root, error) from None
            yield folder
            folder.path = folder.path.rename(path)
        except BaseException:
            shutil.rmtree(folder.path, ignore_errors=True)
            raise
        finally:
            os.close(lock)

    @classmethod
    def open(cls, path: Path | str) -> RunDir:
        """Open an existing run folder.

        Raises:
            InputError: if `path` is not one.
        """
        check_path("A run folder", path)
        path = Path(path)
        if not is_run(path):
            raise InputError(
                f"{path} is not a run folder: it has no config.toml. Give a folder made by 'robust-nas run'."
            )
        return cls(path)

    def lock(self) -> None:
        """Keep other processes from working on this run until this one ends, however it ends.

        Raises:
            InputError: if another process is at work on it.
        """
        self.unlock()
        self._lock = open_own(self.path / ".lock", "w")
        try:
            # A POSIX lock, which forked workers do not inherit: it ends with this process even if they live on.
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.unlock()
            raise InputError(f"Another process is working on {self.path}; wait for it or stop it.") from None
        HELD.append(self)
        remove_leftovers(self.path.rglob(".*"))

    def unlock(self) -> None:
        """Let other processes work on this run."""
        if self._lock:
            self._lock.close()
            self._lock = None
        if self in HELD:
            HELD.remove(self)

    def __truediv__(self, name: str) -> Path:
        return self.path / name
