"""Components by file name: `Group("robust_nas.attacks", ...).get("pgd")` imports `robust_nas.attacks.pgd`.

A component is the one public class of its module that has the group's method. A dotted name is imported as it is,
so that a plugin can live in anybody's package. Files whose name starts with an underscore are shared code, not
components. Listing names imports nothing.

A dotted name runs the module that it imports, and a file may be a stranger's: `check_code` lets only those names pass
that the person at work has written (`Named`), and all of them within `allowing_code`. A string that comes from a file
is not `Named`.
"""

import contextlib
import importlib
import os
import pkgutil
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from types import ModuleType
from typing import Annotated, Any, Protocol

from robust_nas.core.errors import InputError, suggest

_GROUPS: dict[str, "Group"] = {}

_ALLOWED: ContextVar[bool] = ContextVar("code that files name is allowed", default=False)


class Named(str):
    """A name that the person at work has written, in Python or on the command line, or of what is in memory already.

    The code that it names may run. Strings of files are none, nor are strings made of one (a part, another spelling): a
    name whose origin was forgotten on its way is refused.
    """


def named(value: Any) -> Any:
    """Return a value of a call, with tables and lists in it, whose strings are all `Named`."""
    if isinstance(value, Mapping):
        return {key: named(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(named, value))
    return Named(value) if isinstance(value, str) else value


@contextlib.contextmanager
def allowing_code(allowed: bool = True) -> Iterator[None]:
    """Let files name code, as `--allow-code` does; what was allowed before stays so."""
    token = _ALLOWED.set(allowed or _ALLOWED.get())
    try:
        yield
    finally:
        _ALLOWED.reset(token)


_NAMES: ContextVar[frozenset[str]] = ContextVar("names of code that files may have", default=frozenset())


@contextlib.contextmanager
def allowing_names(names: Iterable[str]) -> Iterator[None]:
    """Let files name this code: what the person at work has named, and a job has written down since."""
    token = _NAMES.set(_NAMES.get() | frozenset(names))
    try:
        yield
    finally:
        _NAMES.reset(token)


def check_code(name: str, where: str) -> None:
    """Raise InputError for code that a file names, unless that is allowed.

    Args:
        name: the name, as it came.
        where: the place that names it, such as a key.
    """
    if not isinstance(name, Named) and not _ALLOWED.get() and name not in _NAMES.get():
        raise InputError(
            f"{where} names code that is not robust-nas's own, '{name}', which would run. From a file that is taken "
            "only if you say so: if you trust it, repeat this with --allow-code (in Python, allow_code=True)."
        )


@dataclass(frozen=True)
class _NamesModels:
    """The mark of a field of a component whose string names a model, as `intake.load_models` takes it."""


ModelName = Annotated[str, _NamesModels()]
"""The type of such a field; `config.build` refuses code in it that a file names."""


def holds_models(annotation: Any) -> bool:
    """Whether an annotation is `ModelName`."""
    return any(isinstance(mark, _NamesModels) for mark in getattr(annotation, "__metadata__", ()))


@dataclass(frozen=True)
class ModelParts:
    """The parts of a model's name, PLACE:ATTRIBUTE@WEIGHTS, of which the weights may be missing."""

    place: str
    attribute: str
    weights: str | None

    @property
    def runs_code(self) -> bool:
        """Whether the place is somebody's module or file, and not torchvision."""
        return self.place != "torchvision"


def model_parts(name: str) -> ModelParts | None:
    """Return the parts of a model's name; None if it has none, as a run folder's."""
    found = re.fullmatch(r"(.+?):([\w.]+(?:\?[^@]*)?)(?:@(.+))?", name)
    return ModelParts(*found.groups()) if found else None


def check_model_name(name: str, where: str) -> None:
    """Raise InputError for the name of a model, as `intake.load_models` takes it, that `check_code` refuses."""
    parts = model_parts(name)
    if parts is not None and parts.runs_code:
        check_code(name, where)


@dataclass(frozen=True)
class Group:
    """A package of interchangeable components.

    Args:
        package: the package whose modules are the components, such as `robust_nas.attacks`.
        protocol: the name of the components' protocol or base class, as written in the annotation of a field that holds
            one.
        method: the method that every component has and nothing else in its module does.
    """

    package: str
    protocol: str
    method: str

    def __post_init__(self) -> None:
        _GROUPS[f"{self.package}.{self.protocol}"] = self

    def names(self) -> list[str]:
        """Return the names of the group's own components, sorted, without importing them."""
        path = importlib.import_module(self.package).__path__
        return sorted(module.name for module in pkgutil.iter_modules(path) if not module.name.startswith("_"))

    def get(self, name: str) -> type[Any]:
        """Return the component class called `name`, by whoever calls this: a name in a file is for `component`.

        Raises:
            InputError: if there is no such component, its module does not define exactly one, or lacks a base.
        """
        return self.component(Named(name), self.package)

    def component(self, name: str, where: str) -> type[Any]:
        """Return the component class called `name`; a dotted one only if `check_code` lets it pass.

        Args:
            name: the name, as it came.
            where: the place that names it, such as a key.

        Raises:
            InputError: if it is refused, or for what `get` raises.
        """
        dotted = is_module_name(name)
        if dotted:
            check_code(name, where)
        elif name not in self.names():
            raise InputError(f"{self.package} has no '{name}'. {suggest(name, self.names())}")
        try:
            module = _import(name) if dotted else importlib.import_module(f"{self.package}.{name}")
        except ModuleNotFoundError as error:
            if not dotted or not name.startswith(str(error.name)):
                raise
            raise InputError(
                f"{self.package}: the module '{name}' cannot be imported ({error}); check its name and PYTHONPATH."
            ) from None
        found = [
            value
            for key, value in vars(module).items()
            if isinstance(value, type)
            and value.__module__ == module.__name__
            and not key.startswith("_")
            and callable(getattr(value, self.method, None))
        ]
        if len(found) != 1:
            raise InputError(
                f"{module.__name__} must define exactly one public class with a method '{self.method}', "
                f"but it defines {len(found)}."
            )
        self.check_base(found[0])
        return found[0]

    def check_base(self, component: type[Any]) -> None:
        """Raise InputError unless a class inherits the group's base class, where there is more than a protocol."""
        base = getattr(importlib.import_module(self.package), self.protocol, Protocol)
        if Protocol not in base.__mro__ and not issubclass(component, base):
            raise InputError(
                f"{component.__module__}.{component.__name__} must inherit {self.package}.{self.protocol}, which has "
                "the defaults of all that it does not say itself."
            )

    def resolve(self, table: Mapping[str, Any], where: str) -> tuple[type[Any], dict[str, Any]]:
        """Return the component class that a table names, and its options: those of the table, and of what it names."""
        return self.component(table["name"], where), {key: value for key, value in table.items() if key != "name"}

    def identity(self, component: object) -> dict[str, str]:
        """Return the keys that name a component in its table, beside its options."""
        return {"name": name_of(component)}


def _import(name: str) -> ModuleType:
    """Import a module from where Python finds modules, or from the current folder, which it need not look into."""
    folder = os.getcwd()
    if {folder, ""} & {*sys.path}:
        return importlib.import_module(name)
    sys.path.append(folder)
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(name)
    except BaseException:
        sys.path.remove(folder)
        raise
    # Modules in the folder may import their neighbours later.
    if not str(getattr(module, "__file__", None)).startswith(f"{folder}{os.sep}"):
        sys.path.remove(folder)
    return module


def is_module_name(name: str) -> bool:
    """Whether a name could be a module's in somebody's package, as a path with dots, such as ../images, is not."""
    return re.fullmatch(r"[^\W\d][\w-]*(\.[\w-]+)+", name) is not None


def group_of(annotation: Any) -> Group | None:
    """Return the group whose protocol is `annotation`, or None."""
    if not isinstance(annotation, type):
        return None
    return _GROUPS.get(f"{annotation.__module__}.{annotation.__qualname__}")


def name_of(component: object) -> str:
    """Return the name under which a component is found: its own, its file's, or the dotted module of a plugin."""
    own = getattr(component, "name", None)
    if isinstance(own, str):
        return own
    module = type(component).__module__
    package, _, name = module.rpartition(".")
    return name if any(group.package == package for group in _GROUPS.values()) else module


def offered(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a package's `__getattr__`, which imports a name from the private module that holds it when first asked.

    A group's `__init__.py` imports nothing slow, and its central classes and functions are found in it all the same.

    Args:
        homes: the module of each name.
    """

    def find(name: str) -> Any:
        if name in homes:
            return getattr(importlib.import_module(f"{package}.{homes[name]}"), name)
        raise AttributeError(f"module '{package}' has no attribute '{name}'")

    return find
