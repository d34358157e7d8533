"""Packages import one way, without a circle, and keep what is private to themselves."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "robust_nas"

FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__main__.py" and path != PACKAGE / "__init__.py")

MAP = [
    line for line in (PACKAGE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8").split("\n") if line[:2] == "| "
]

# The rooms of the map, from the top floor to the ground: `cli/`, `spaces/KIND/`, `api.py`.
ROOMS = [
    room
    for line in MAP[: next(i for i, line in enumerate(MAP) if line.startswith("| ground")) + 1]
    for room in re.findall(r"`(\w+)(?:\.py|/|/KIND/)`", line)
]

LOOSE = {"api.py", "derivation.py", "pipeline.py", "threat.py"}


def imported(source: str, *, for_types: bool = True) -> Iterator[str]:
    """Yield the dotted names that a file imports, wherever in it.

    `from package import name` gives `package.name`, which may be a module.

    Args:
        for_types: whether those for type checkers alone, under `TYPE_CHECKING`, are among them.
    """
    pending: list[ast.AST] = [ast.parse(source)]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "write imports in full: from robust_nas.threat import ThreatModel"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not for_types:
            pending += node.orelse
        else:
            pending += ast.iter_child_nodes(node)


def room_of(name: str) -> str | None:
    """The package or loose module that a dotted name is in; None for names of `robust_nas` itself and of others."""
    package, _, rest = name.partition(".")
    room = rest.partition(".")[0]
    return (
        room if package == "robust_nas" and ((PACKAGE / room).is_dir() or (PACKAGE / f"{room}.py").is_file()) else None
    )


def own_room(path: Path) -> str:
    """The package or loose module of robust_nas that a file is in."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def test_the_reader_of_imports_sees_nested_ones_and_those_for_type_checkers() -> None:
    source = """
if TYPE_CHECKING:
    import a
else:
    import b
def f():
    from c.d import e, g
"""
    assert set(imported(source)) == {"a", "b", "c.d.e", "c.d.g"}
    assert set(imported(source, for_types=False)) == {"b", "c.d.e", "c.d.g"}


def test_rooms_import_only_what_is_further_down_on_the_map_so_that_there_is_no_circle() -> None:
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path in FILES
        for name in imported(path.read_text(encoding="utf-8"))
        if room_of(name) not in (None, own_room(path)) and ROOMS.index(own_room(path)) > ROOMS.index(str(room_of(name)))
    ]
    assert not wrong


def test_every_room_is_on_the_map() -> None:
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert sorted(ROOMS) == sorted(packages | {name.removesuffix(".py") for name in LOOSE})


def test_nobody_imports_another_packages_private_module_or_name() -> None:
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path in FILES
        for name in imported(path.read_text(encoding="utf-8"))
        if room_of(name) not in (None, own_room(path))
        and any(part.startswith("_") and not part.startswith("__") for part in name.split("."))
    ]
    assert not wrong


def test_no_module_stands_outside_the_rooms() -> None:
    assert {path.name for path in PACKAGE.glob("*.py")} == {"__init__.py", "__main__.py", *LOOSE}


def test_only_distributed_py_imports_torch_distributed() -> None:
    found = set()
    for path in FILES:
        source = path.read_text(encoding="utf-8")
        by_import = any(f"{name}.".startswith("torch.distributed.") for name in imported(source, for_types=False))
        by_attribute = any(
            isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.distributed"
            for node in ast.walk(ast.parse(source))
        )
        if by_import or by_attribute:
            found.add(path.relative_to(PACKAGE).as_posix())
    assert found == {"runtime/distributed.py"}


def test_scipy_stats_is_imported_where_it_is_used_as_it_takes_a_second() -> None:
    for path in FILES:
        whole_file = ast.parse(path.read_text(encoding="utf-8")).body
        at_the_top = [node for node in whole_file if isinstance(node, ast.Import | ast.ImportFrom)]
        names = imported(ast.unparse(ast.Module(at_the_top, [])))
        assert not any(name.startswith("scipy.stats") for name in names), path
