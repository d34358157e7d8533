"""Components by file name: `Group("robust_nas.attacks", ...).get("pgd")` imports `robust_nas.attacks.pgd`.

A component is the one public class of its module that has the group's method. A dotted name is imported as it is,
so that a plugin can live in anybody's package. Files whose name starts with an underscore are shared code, not
components. Listing names imports nothing.
"""

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from robust_nas.errors import InputError, suggest

_GROUPS: dict[str, "Group"] = {}


@dataclass(frozen=True)
class Group:
    """A package of interchangeable components.

    Args:
        package: the package whose modules are the components, such as `robust_nas.attacks`.
        protocol: the name of the components' protocol, as written in the annotation of a field that holds one.
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
        """Return the component class called `name`.

        Raises:
            InputError: if there is no such component, or its module does not define exactly one.
        """
        dotted = "." in name
        if not dotted and name not in self.names():
            raise InputError(f"{self.package} has no '{name}'. {suggest(name, self.names())}")
        try:
            module = importlib.import_module(name if dotted else f"{self.package}.{name}")
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
        return found[0]

    def resolve(self, table: Mapping[str, Any]) -> tuple[type[Any], dict[str, Any]]:
        """Return the component class that a table names, and its options: those of the table, and of what it names."""
        return self.get(table["name"]), {key: value for key, value in table.items() if key != "name"}

    def identity(self, component: object) -> dict[str, str]:
        """Return what names a component in its table, beside its options."""
        return {"name": name_of(component)}


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
