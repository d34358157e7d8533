"""Imports run one way, from the command line down to the definitions."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "robust_nas"

# A module may import from its own layer and from the layers below.
LAYERS = [
    {"__main__", "cli", "table_cli", "integrations"},
    {"answers", "api", "assessment", "joining", "listing", "pipeline", "recipe", "scaling"},
    {"searches", "training", "derivation", "evaluation", "certification", "ensembles", "report"}
    | {"ranking", "samplers", "simulation", "smoothing"},
    {"attacks", "bounds", "supernet", "models", "proxies", "spaces", "datasets", "tables", "complexity", "intake"},
    {"architecture", "threat", "registry", "distributed", "errors", "seeds", "run_dir", "progress"}
    | {
        "catalogue",
        "commands",
        "config",
        "environment",
        "genotype",
        "outcomes",
        "pixels",
        "records",
        "residual",
        "sizes",
        "text",
    },
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}

FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def imported_modules(source: str) -> Iterator[str]:
    """Yield the dotted names that a file imports, wherever in it; those for type checkers alone are left out.

    `from package import name` gives `package.name`, which may be a module.
    """
    pending: list[ast.AST] = [ast.parse(source)]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "write imports in full: from robust_nas.threat import ThreatModel"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            pending += node.orelse
        else:
            pending += ast.iter_child_nodes(node)


def part_of(module: str) -> str | None:
    """Return the part of robust_nas, a module or a package at its top, that a dotted name belongs to, or None."""
    package, _, rest = module.partition(".")
    return rest.split(".")[0] if package == "robust_nas" else None


def test_the_reader_of_imports_sees_nested_ones_and_skips_those_for_type_checkers() -> None:
    source = """
if TYPE_CHECKING:
    import a
else:
    import b
def f():
    from c.d import e, g
"""
    assert set(imported_modules(source)) == {"b", "c.d.e", "c.d.g"}


def test_no_module_imports_from_a_layer_above_its_own() -> None:
    wrong = []
    for path in FILES:
        own = path.relative_to(PACKAGE).with_suffix("").parts[0]
        assert own in LEVEL, f"give {own} a place in LAYERS, and in CONTRIBUTING.md"
        for module in imported_modules(path.read_text(encoding="utf-8")):
            part = part_of(module)
            if part not in (None, "__version__") and LEVEL.get(part, -1) < LEVEL[own]:
                wrong.append(f"{path.relative_to(PACKAGE)} imports {module}")
    assert not wrong


def test_only_distributed_py_imports_torch_distributed() -> None:
    found = set()
    for path in FILES:
        source = path.read_text(encoding="utf-8")
        by_import = any(f"{name}.".startswith("torch.distributed.") for name in imported_modules(source))
        by_attribute = any(
            isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.distributed"
            for node in ast.walk(ast.parse(source))
        )
        if by_import or by_attribute:
            found.add(path.name)
    assert found == {"distributed.py"}


def test_scipy_stats_is_imported_where_it_is_used_as_it_takes_a_second() -> None:
    for path in FILES:
        whole_file = ast.parse(path.read_text(encoding="utf-8")).body
        at_the_top = [node for node in whole_file if isinstance(node, ast.Import | ast.ImportFrom)]
        names = imported_modules(ast.unparse(ast.Module(at_the_top, [])))
        assert not any(name.startswith("scipy.stats") for name in names), path
