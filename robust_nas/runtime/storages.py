"""Storages of trials: an Optuna journal in a shared folder, SQLite, PostgreSQL or MySQL.

A storage is written as people write it, checked, and opened within a minute or refused in one sentence. Passwords are
in no text that leaves this module (`core.secrets`).
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from robust_nas.core import secrets
from robust_nas.core.errors import InputError, Interrupted, reason_of
from robust_nas.core.secrets import masked

if TYPE_CHECKING:
    from optuna.storages import BaseStorage
    from sqlalchemy.engine import URL

T = TypeVar("T")

DEADLINE = 45.0
"""Seconds that a storage has to answer when it is opened."""

OUTAGE = 60.0
"""Seconds for which a storage may be away while it is at work, as when its server is started again."""

BEAT = 15
"""Seconds between two signs of life of whoever measures a trial."""

GRACE = 60
"""Seconds without a sign of life after which a trial is taken for lost, and measured again."""

JOURNAL = "journal"

DRIVERS = {
    "sqlite": {"pysqlite": "sqlite3"},
    "postgresql": {"psycopg": "psycopg", "psycopg2": "psycopg2"},
    "mysql": {"mysqldb": "MySQLdb", "pymysql": "pymysql"},
}
"""The packages that speak with a kind of server, the preferred one first, by SQLAlchemy's names of them."""

_MADE_MEANWHILE = re.compile("already exists|unique|duplicate", re.IGNORECASE)

_ALIASES = {"postgres": "postgresql", "mariadb": "mysql"}

_WRITTEN = (
    "write journal:///FOLDER/FILE, or that file's path, for a journal in a shared folder; sqlite:///FILE; "
    "postgresql://USER@HOST/BASE or mysql://USER@HOST/BASE"
)


def normal(text: str) -> str:
    """Return a storage in full, such as journal:///absolute/path, without its password, which this process remembers.

    Raises:
        InputError: if it is none.
    """
    scheme, separator, rest = text.partition("://")
    if not text.strip() or "\n" in text:
        raise InputError(f"A storage is a file or a URL, but got {masked(text)!r}; {_WRITTEN}.")
    if not separator or scheme == JOURNAL:
        return f"{JOURNAL}://{_file(rest if separator else text)}"
    if rest.partition("?")[0].count("@") > 1:
        raise InputError(f"In the storage '{masked(text)}' an @ of the password must be written %40.")
    url = _parsed(text)
    kind, _, driver = url.drivername.partition("+")
    kind = _ALIASES.get(kind, kind)
    if kind not in DRIVERS:
        raise InputError(f"There is no storage of the kind '{url.drivername}'; {_WRITTEN}.")
    if secrets.masked(f"?{text.partition('?')[2]}") != f"?{text.partition('?')[2]}":
        raise InputError("A storage's password belongs before the host, USER:PASSWORD@HOST, and not behind a '?'.")
    if kind == "sqlite":
        if not url.database or url.database == ":memory:":
            raise InputError(f"A storage in SQLite is a file that processes share, but got '{text}'; {_WRITTEN}.")
        return f"sqlite:///{_file(url.database)}"
    if not url.database:
        raise InputError(f"The storage '{masked(text)}' names no database; {_WRITTEN}.")
    full = url.set(drivername=f"{kind}+{driver}" if driver else kind)
    hidden = full.render_as_string(hide_password=True)
    if url.password and str(url.password) != secrets.HIDDEN:
        secrets.keep(hidden, str(url.password))
    return hidden


def _parsed(text: str) -> URL:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        return make_url(text)
    except (ArgumentError, ValueError):
        raise InputError(f"'{masked(text)}' is no storage; {_WRITTEN}.") from None


def _file(text: str) -> Path:
    path = Path(text).expanduser()
    if not text.strip() or "\0" in text or path.is_dir():
        raise InputError(f"A storage is a file in a folder that the processes share, but got '{text}'; {_WRITTEN}.")
    return path.absolute()


def is_url(text: str) -> bool:
    """Whether a word is a storage and not a run folder: a URL, or a file."""
    return "://" in text or Path(text).is_file()


@dataclass(frozen=True)
class Opened:
    """A storage that has answered.

    Args:
        text: it in words, without a password.
        storage: Optuna's.
        in_folder: whether it is a file, which another machine may have another one of.
    """

    text: str
    storage: BaseStorage
    in_folder: bool

    def call(self, what: Callable[[], T]) -> T:
        """Return the answer to a call, which is repeated while the storage is away.

        Raises:
            Interrupted: if it is away for longer than `OUTAGE` seconds.
        """
        end = time.monotonic() + OUTAGE
        while True:
            try:
                with quiet():
                    return what()
            except _outages() as error:
                if time.monotonic() > end:
                    raise Interrupted(
                        f"The storage {self.text} has not answered for {OUTAGE:.0f} s ({_said(error)})."
                    ) from None
                time.sleep(1.0)


def opened(text: str, *, make: bool = True) -> Opened | None:
    """Open a storage.

    Args:
        text: as `normal` gives it.
        make: whether a journal or file that is not there is made; without it, None is returned.

    Raises:
        InputError: if it does not answer in a minute, or cannot be used.
    """
    scheme, _, rest = text.partition("://")
    if scheme == JOURNAL:
        return _journal(text, Path(rest), make=make)
    path = Path(rest.removeprefix("/")) if scheme == "sqlite" else None
    if path is not None:
        _check_folder(text, path)
        if not make and not path.exists():
            return None
    url = _parsed(text)
    driver, engine = _driver(url, text), _engine(url)
    password = secrets.password_of(text)
    if url.password is not None and password is None:
        raise InputError(
            f"The password of {text} is in no file; give it in the variable {secrets.PASSWORD}, or in the URL again."
        )
    if url.username is not None and password is not None:
        url = url.set(password=password)

    def connect() -> BaseStorage:
        from optuna.storages import RDBStorage

        with quiet():
            full = url.set(drivername=driver).render_as_string(hide_password=False)
            full = full.replace("{", "{{").replace("}", "}}")  # Optuna formats it
            return RDBStorage(full, engine_kwargs=dict(engine), heartbeat_interval=BEAT, grace_period=GRACE)

    return Opened(text, _in_time(text, connect), path is not None)


def _journal(text: str, path: Path, *, make: bool) -> Opened | None:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

    _check_folder(text, path)
    if not make and not path.exists():
        return None
    lock = JournalFileSymlinkLock(str(path))

    def read() -> BaseStorage:
        if make and path.exists():
            _mend(path, lock)
        return JournalStorage(JournalFileBackend(str(path), lock))

    return Opened(text, _in_time(text, read), True)


def _mend(path: Path, lock: Any) -> None:
    """Cut off the end of a line whose writer was killed: Optuna reads nothing after it."""
    lock.acquire()
    try:
        lines = path.read_bytes()
        if not lines.endswith(b"\n") and b"\n" in lines:
            with path.open("r+b") as file:
                file.truncate(lines.rfind(b"\n") + 1)
    finally:
        lock.release()


def _check_folder(text: str, path: Path) -> None:
    if not path.parent.is_dir():
        raise InputError(
            f"The folder of the storage {text} is not there; make it, or name one that all machines share."
        )


def _driver(url: URL, text: str) -> str:
    """Return the kind of server with the package that speaks with it, such as postgresql+psycopg."""
    kind, _, driver = url.drivername.partition("+")
    known = DRIVERS[kind]
    if driver and driver not in known:
        raise InputError(f"The storage {text} asks for the driver '{driver}'; use one of {', '.join(known)}.")
    for name in [driver] if driver else known:
        if find_spec(known[name]):
            return f"{kind}+{name}"
    wanted = {"psycopg2": "psycopg2-binary", "mysqldb": "mysqlclient"}.get(driver)
    advice = f"pip install {wanted}" if wanted else f"pip install 'robust-nas[{kind}]'"
    raise InputError(f"The storage {text} needs a package that is not installed: {advice}.")


def _engine(url: URL) -> dict[str, Any]:
    """Return SQLAlchemy's settings for a kind of server: how long it may be silent, and no connection that is kept.

    Evaluations fork; a connection that both processes have would be closed by one of them.
    """
    from sqlalchemy.pool import NullPool

    settings: dict[str, Any] = {"connect_timeout": 20}
    if url.drivername.startswith("postgresql"):  # a network that is gone says nothing: 40 s of silence end a connection
        settings |= {"keepalives_idle": 15, "keepalives_interval": 5, "keepalives_count": 5, "tcp_user_timeout": 40_000}
    elif url.drivername.startswith("mysql"):
        settings |= {"read_timeout": 40, "write_timeout": 40}
    else:
        settings = {"timeout": 30}
    return {"poolclass": NullPool, "connect_args": settings}


def _in_time(text: str, connect: Callable[[], T]) -> T:
    """Return what `connect` returns, if it does so before the deadline, whatever it waits for."""
    found: list[T] = []
    failed: list[Exception] = []

    def attempt() -> None:
        for left in (2, 1, 0):
            try:
                found.append(connect())
                return
            except Exception as error:
                # Of processes that make the tables at the same time all but one are refused; then they are there.
                if not left or not _MADE_MEANWHILE.search(_said(error)):
                    failed.append(error)
                    return
                time.sleep(0.5)

    thread = threading.Thread(target=attempt, daemon=True, name="storage")
    thread.start()
    thread.join(DEADLINE)
    if found:
        return found[0]
    if not failed:
        raise InputError(
            f"The storage {text} has not answered for {DEADLINE:.0f} s; check its host, and whether it runs."
        )
    if isinstance(failed[0], InputError):
        raise failed[0]
    if text.startswith(JOURNAL):
        raise InputError(f"{text.partition('://')[2]} is no journal of Optuna ({_said(failed[0])}); name another file.")
    raise InputError(
        f"The storage {text} cannot be used ({_said(failed[0])}); check that it runs, its name, and the user's rights."
    )


def _said(error: BaseException) -> str:
    """Return what a server said, in one line and without a password."""
    while error.__cause__ is not None or getattr(error, "orig", None) is not None:
        error = getattr(error, "orig", None) or error.__cause__  # type: ignore[assignment]
    return masked(" ".join(reason_of(error).split()))


def _outages() -> tuple[type[Exception], ...]:
    """The errors of a storage that is away, which may be back soon."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import InterfaceError, OperationalError

    return StorageInternalError, OperationalError, InterfaceError, OSError


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Leave out what Optuna says about itself: a line for every study, and which of its parts are new."""
    import optuna

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)
