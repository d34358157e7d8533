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
import fcntl
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from robust_nas import records
from robust_nas.core import config
from robust_nas.core.checks import check_path
from robust_nas.core.errors import InputError
from robust_nas.core.files import damaged, is_there, read_json
from robust_nas.core.registry import model_parts
from robust_nas.core.writing import lock_alone, make_folder, open_own, remove_leftovers, write_json, write_text
from robust_nas.runtime.process import HELD

if TYPE_CHECKING:
    from robust_nas.runtime.distributed import World

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


def resume_words(run: Path) -> str:
    """Return the words behind the command's name that go on with a run.

    Models of one's own, which its files name, run only if that is allowed.
    """
    space = config.read_toml(run / "config.toml").get("space")
    models = space.get("models", ()) if isinstance(space, Mapping) else ()
    parts = [model_parts(name) for name in models if isinstance(name, str)]
    allowed = " --allow-code" if any(each and each.runs_code for each in parts) else ""
    return f"run --resume {run}{allowed}"


_UNFINISHED = re.compile(r"\.\d{8}-.+-[0-9a-f]{6}\.unfinished")


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


def _no_folder(root: Path, error: OSError) -> InputError:
    return InputError(f"No run folder can be made in {root} ({error.strerror}); choose another place with --out.")


def is_run(path: Path | str) -> bool:
    """Whether a path is a run folder's."""
    return (Path(path) / "config.toml").is_file()


@dataclass
class RunFolder:
    """The folder of a run, or of another job that is gone on with where it ended.

    A run has a name of its own (`making`); the others' names are digests of their settings (`open_or_create`). Both
    are locked while somebody works on them, and hold a job with one set of settings, from which nothing may differ.
    """

    path: Path
    _lock: IO[str] | None = field(default=None, repr=False)

    @classmethod
    def open_or_create(
        cls, path: Path, settings: Mapping[str, Any], world: World, *, file: str, free: Collection[str] = ()
    ) -> RunFolder:
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
    def making(cls, root: Path, recipe: str, path: Path | None = None) -> Iterator[RunFolder]:
        """Give a folder to fill, which becomes the run folder `<root>/<date>-<recipe>-<id>` at the end of the block.

        Until then its name is a hidden one. If the block fails, nothing is left; what processes that were killed in
        such a block have left in `root` is removed.

        Args:
            path: a name of its own in `root` instead.

        Raises:
            InputError: if it cannot be made there.
        """
        unique = f"{time.strftime('%Y%m%d')}-{recipe}-{secrets.token_hex(3)}"
        path, folder = path or root / unique, cls(root / f".{unique}.unfinished")
        try:
            root.mkdir(parents=True, exist_ok=True)
            lock = os.open(root, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise _no_folder(root, error) from None
        try:
            # Everybody who makes a folder shares the lock: who has it alone finds only what is left.
            if lock_alone(lock):
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
    def open(cls, path: Path | str) -> RunFolder:
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
