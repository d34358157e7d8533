"""From TOML and `key=value` overrides to frozen dataclasses, and back.

A component's fields are its configuration section: the Python API, the TOML and the record of a run have one source.
A field whose type is a component's protocol (such as `Attack`) is a table with the component's `name`, or the bare
name. Unknown keys are errors.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import tomli_w

from robust_nas.core.checks import check_utf8
from robust_nas.core.errors import InputError, suggest
from robust_nas.core.files import DEEPEST, parse_toml
from robust_nas.core.files import read_toml as read_toml
from robust_nas.core.registry import Named, check_model_name, group_of, holds_models, named

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")

RENAMED = {"at_once": "num_parallel", "beside": "frozen_members"}
"""Keys by the names that they had; they are refused with the ones that they have."""


class Section:
    """A part of a component's settings, which checks its own fields in `__post_init__`, after the parts before it.

    A component inherits its parts, its first fields' last: keys, files and overrides know nothing of parts.
    """

    def __post_init__(self) -> None:
        """Have nothing to check: here the parts' chain of `super().__post_init__()` ends."""


def parts(component: type) -> list[type]:
    """Return a component's sections that have fields of their own, in the order of the fields."""
    return [
        part
        for part in reversed(component.__mro__[1:])
        if issubclass(part, Section) and part.__annotations__ and dataclasses.is_dataclass(part)
    ]


LARGEST = 2**63 - 1
"""The largest whole number of a setting: what a TOML file must be able to hold, and torch can."""


def build(cls: type[T], section: Mapping[str, Any], where: str = "", name: str | None = None) -> T:
    """Return the dataclass `cls` with the values of `section`.

    Code is run for names that are `registry.Named` only, as those of `override` and `component` are; what a file says
    is not.

    Args:
        cls: a dataclass.
        section: values by field name, as TOML has them.
        where: the section's dotted place, for messages.
        name: the component's, if the section has named it.

    Raises:
        InputError: for an unknown or missing key, a wrong type, or code that a file names; naming its place.
    """
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    for key in section:
        if key not in fields:
            hint = f"It is called '{RENAMED[key]}' now." if key in RENAMED else suggest(key, fields)
            if name is not None and not {"[", " "} & {*where} and not hint.startswith("Did you mean"):
                hint = f"{hint} If it was for another component than '{name}', {where}={name} leaves it out."
            raise InputError(f"{_place(where)} has no key '{key}'. {hint}")
    for key, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and key not in section:
            raise InputError(f"{_place(where)} must have the key '{key}', but it is missing.")
    hints = _hints(cls)
    values = {key: _convert(hints[key], value, f"{where}.{key}".lstrip(".")) for key, value in section.items()}
    return cls(**values)


def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls, include_extras=True)


def _convert(annotation: Any, value: Any, where: str) -> Any:
    """Return `value`, as TOML has it, as a value of the annotated type."""
    group = group_of(annotation)
    if group is not None and dataclasses.is_dataclass(value) and callable(getattr(value, group.method, None)):
        group.check_base(type(value))
        return value  # a component already, from Python
    if group is not None:
        table = {"name": value} if isinstance(value, str) else value
        if not isinstance(table, Mapping) or not isinstance(table.get("name"), str):
            raise InputError(f"{where} must be a name or a table with a 'name', but got {_shown(value)}.")
        component, options = group.resolve(table, where)
        return build(component, options, where, table.get("name"))
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        if not isinstance(value, Mapping):
            raise InputError(f"{where} must be a table, but got {_shown(value)}.")
        return build(annotation, value, where)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise InputError(f"{where} must be a list, but got {_shown(value)}.")
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(value) != len(kinds):
            raise InputError(f"{where} must be a list of {len(kinds)}, but got {_shown(value)}.")
        pairs = zip(kinds, value, strict=True)
        return tuple(_convert(kind, item, f"{where}[{index}]") for index, (kind, item) in enumerate(pairs))
    if isinstance(value, str) and any(map(holds_models, (annotation, *arguments))):
        check_model_name(value, where)
    if origin in (typing.Union, types.UnionType) and type(None) in arguments:
        (inner,) = (argument for argument in arguments if argument is not type(None))
        return None if value is None else _convert(inner, value, where)
    if isinstance(value, str):
        check_utf8(where, value)
    if isinstance(value, int) and abs(value) > LARGEST:
        raise InputError(f"{where} must be a number of at most 19 digits, but got {_shown(value)}.")
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{where} must be a finite number, but got {value}.")
    from pydantic import ValidationError

    try:
        return _adapter(annotation).validate_python(value)
    except ValidationError as error:
        detail = error.errors()[0]
        cause = detail.get("ctx", {}).get("error")
        if isinstance(cause, InputError):
            raise InputError(f"{where}: {cause}") from None
        message = detail["msg"].removeprefix("Input should be ")
        raise InputError(f"{where} must be {message}, but got {_shown(value)}.") from None


def _shown(value: Any) -> str:
    """Return a value as messages show it: what is long is cut off."""
    if isinstance(value, int) and abs(value) > LARGEST:
        return f"one of about {value.bit_length() * math.log10(2):.0f}"
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


@functools.cache
def _adapter(annotation: Any) -> TypeAdapter[Any]:
    from pydantic import ConfigDict, TypeAdapter

    return TypeAdapter(annotation, config=ConfigDict(strict=annotation is not Path))


def _place(where: str) -> str:
    return f"The section [{where}]" if where else "The configuration"


def to_dict(component: Any) -> dict[str, Any]:
    """Return a dataclass as the table that `build` reads: components with their names, nothing that is None.

    The components that it names are in memory already, and may be built again: its strings are `registry.Named`.
    """
    table: dict[str, Any] = {}
    hints = _hints(type(component))
    for field in dataclasses.fields(component):
        value = getattr(component, field.name)
        if field.init and value is not None:
            table[field.name] = _plain(hints[field.name], value)
    return table


def _plain(annotation: Any, value: Any) -> Any:
    if isinstance(value, tuple):
        inner = (typing.get_args(annotation) or (None,))[0]
        return [_plain(inner, item) for item in value]
    if isinstance(value, str | Path):
        return Named(value)
    if not dataclasses.is_dataclass(value):
        return value
    table = to_dict(value)
    choices = typing.get_args(annotation) or (annotation,)
    group = next((group for choice in choices if (group := group_of(choice))), None)
    return table if group is None else {**named(group.identity(value)), **table}


def to_toml(table: Mapping[str, Any]) -> str:
    """Return a table as TOML text."""
    return tomli_w.dumps(table)


def override(table: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """Return `table` with `key=value` assignments applied; keys are dotted, values are TOML or plain text.

    The assignments are the user's own: names in them are `registry.Named`.

    `train.epochs=3`, `threat.epsilon=8/255`, `search.batch_size=32`, `data=mnist` (a new component drops the old
    one's options).

    Raises:
        InputError: if an assignment has no `=`, or goes through something that is not a table.
    """
    result = _copy(table)
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        if not separator or not key.strip():
            raise InputError(
                f"An override is written as key=value, such as train.epochs=3, but got '{_cut(assignment)}'."
            )
        set_key(result, key.strip(), _value(text.strip()))
    return result


def set_key(table: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key in place, making tables on the way; a bare component name on the way becomes its table."""
    *parents, last = key.split(".")
    if len(parents) > DEEPEST or not all((*parents, last)):
        raise InputError(f"A key is names with dots between them, such as train.epochs, but got '{_cut(key)}'.")
    node: Any = table
    for parent in parents:
        child = node.get(parent)
        if isinstance(child, str):
            child = {"name": child}
        if child is None:
            child = {}
        if not isinstance(child, dict):
            raise InputError(
                f"The override '{_cut(key)}' goes through '{parent}', which is not a table but {_shown(child)}."
            )
        node[parent] = child
        node = child
    node[last] = value


def _value(text: str) -> Any:
    try:
        found = parse_toml(f"value = {text}", "a value")
    except InputError:
        return Named(text)
    # A text with lines of its own may be more than a value.
    return named(found["value"]) if len(found) == 1 else Named(text)


def _cut(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."


# A text in quotes, where a value or an item begins; or a character that is of none.
_PIECE = re.compile(r"""(?<=[=,\[{\s])(?:"(?:[^"\\]|\\.)*"|'[^']*')|.""", re.DOTALL)


def component(text: str) -> dict[str, Any]:
    """Read a component in a word, as a table: "pgd[steps=100,loss=margin]".

    Values are those of an override. A comma within quotes, brackets or braces separates nothing:
    "transfer[surrogates=['a,b', 'c'],steps=3]".

    Raises:
        InputError: if it is not written like that.
    """
    name, bracket, rest = text.partition("[")
    if "(" in name and text.endswith(")"):
        name, _, rest = text.partition("(")
        raise InputError(
            f"The settings of a component are in square brackets: write '{_cut(f'{name}[{rest[:-1]}]')}', not "
            f"'{_cut(text)}'."
        )
    if not name or (bracket and not rest.endswith("]")):
        raise InputError(f"A component is written as a name, or as name[key=value,key=value], but got '{text}'.")
    assignments = _items(rest.removesuffix("]"))
    keys = [assignment.partition("=")[0].strip() for assignment in assignments]
    if repeated := [key for key in keys if keys.count(key) > 1]:
        raise InputError(f"{name} has the setting {repeated[0]} twice; give it once.")
    return override({"name": Named(name)}, assignments)


def made(get: Callable[[str], Any], value: Any, kind: str) -> Any:
    """Return the component that a word stands for, such as "pgd[steps=100]"; what is no text is one already.

    Args:
        get: the class of a name, as a group's `get` gives it.
        kind: the kind of component, for messages.

    Raises:
        InputError: for an unknown name or setting.
    """
    if not isinstance(value, str):
        return value
    table = component(value)
    name = table.pop("name")
    return build(get(name), table, f"{kind} {name}", name)


def word(name: str, settings: Mapping[str, Any]) -> str:
    """The text that `component` reads, such as "pgd[steps=100,loss=margin]"; without settings, the name alone."""
    listed = ",".join(f"{key}={value}" for key, value in settings.items())
    return f"{name}[{listed}]" if listed else name


def _items(text: str) -> list[str]:
    """Return the parts of a text between its commas, except commas within quotes, brackets and braces."""
    items, depth = [""], 0
    for piece in _PIECE.findall(text):
        depth += (piece in "[{") - (piece in "]}")
        if piece == "," and depth == 0:
            items.append("")
        else:
            items[-1] += piece
    return items if text.strip() else []


def _copy(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {key: _copy(item) for key, item in node.items()}
    return [_copy(item) for item in node] if isinstance(node, list) else node


def differences(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return "train.epochs (10 -> 3)" for every key in which two tables differ."""
    found: list[str] = []
    for key in sorted({*before, *after}):
        one, other, name = before.get(key), after.get(key), f"{prefix}{key}"
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            found += differences(one, other, f"{name}.")
        elif one != other:
            found.append(f"{name} ({one!r} -> {other!r})")
    return found


def digest(settings: Any) -> str:
    """Return the eight digits that name the folder of a job with these settings: equal ones have equal digits."""
    text = json.dumps(settings, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
