"""The package as it is installed: what a wheel holds, what an import costs, what the set-up scripts do."""

from __future__ import annotations

import configparser
import os
import shutil
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from robust_nas.core import catalogue

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = [*sorted((ROOT / "scripts").glob("*.sh")), ROOT / ".ci" / "run"]


def toml_names(folder: str) -> set[str]:
    """Return the names of a checkout's declarations."""
    return {path.stem for path in (ROOT / folder).glob("*.toml")}


# --- the catalogues ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "folder"),
    [("search_spaces", "search_spaces"), ("tables", "benchmarks/tables"), ("recipes", "robust_nas/recipes")],
)
def test_a_catalogue_has_every_declaration_of_the_checkout(kind: str, folder: str) -> None:
    files = catalogue.files(kind)
    assert set(files) == toml_names(folder)
    assert all(path.is_file() and path.stem == name for name, path in files.items())


def test_setup_cfg_lists_every_package() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    listed = set(config["options"]["packages"].split())
    mapped = {line.split("=")[0].strip() for line in config["options"]["package_dir"].strip().splitlines()}
    folders = {
        path.parent.relative_to(ROOT).as_posix().replace("/", ".")
        for suffix in ("py", "toml")
        for path in (ROOT / "robust_nas").rglob(f"*.{suffix}")
    }
    assert listed == folders | mapped


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a wheel of a copy of the checkout (a `build` folder left over in it would otherwise be taken along)."""
    copy, out = tmp_path_factory.mktemp("a checkout"), tmp_path_factory.mktemp("out")
    for name in ("robust_nas", "search_spaces", "benchmarks"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    (copy / "benchmarks" / "tables" / "made-up.toml").write_text("")
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(out)], cwd=copy, check=True, capture_output=True)
    (found,) = out.glob("*.whl")
    return found


def test_a_wheel_holds_the_catalogues_and_nothing_beside_the_package(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0].split("-")[0] for name in names} == {"robust_nas"}
    assert {f"robust_nas/catalogue_data/search_spaces/{name}.toml" for name in toml_names("search_spaces")} <= names
    assert {f"robust_nas/recipes/{name}.toml" for name in toml_names("robust_nas/recipes")} <= names
    assert {"robust_nas/catalogue_data/tables/made-up.toml", "robust_nas/py.typed"} <= names
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "robust_nas").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules


def test_a_wheel_finds_its_own_catalogues(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
from robust_nas.core import catalogue
for kind in ("search_spaces", "tables", "recipes"):
    print(*catalogue.files(kind).values(), sep="\\n")
"""
    done = subprocess.run([sys.executable, "-I", "-c", code], check=True, capture_output=True, text=True)
    found = [Path(line).relative_to(tmp_path / "robust_nas") for line in done.stdout.splitlines()]
    folders = {path.parent.as_posix() for path in found}
    assert folders == {"catalogue_data/search_spaces", "catalogue_data/tables", "recipes"}
    assert "made-up" in {path.stem for path in found}


# --- what an import costs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code",
    [
        "import robust_nas; robust_nas.ThreatModel; robust_nas.Architecture",
        "from robust_nas import attacks, bounds, datasets, ensembles, searches, spaces, training\n"
        "for group in (attacks, bounds, datasets, ensembles, searches, spaces, training): assert group.names()",
        "import sys; sys.argv = ['robust-nas', '--help']\n"
        "from robust_nas.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass",
        "import sys; sys.argv = ['robust-nas', 'info', '323133']\n"
        "from robust_nas.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass",
    ],
    ids=["the package", "the names of all components", "--help", "info"],
)
def test_neither_torch_nor_pandas_is_imported_by(code: str) -> None:
    slow = ("torch", "torchvision", "pandas", "sklearn", "scipy")
    check = f"\nimport sys; print('slow:', [name for name in {slow} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code + check], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "slow: []"


# --- the set-up scripts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_the_script_is_valid_bash(script: Path) -> None:
    done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# A Python that can do just what the set-up asks of one, and writes down what pip is asked to do.
FAKE_PYTHON = """
#!/usr/bin/env bash
case "$1 ${2:-} ${3:-}" in
  "-V  ") echo "Python $FAKE_VERSION" ;;
  "-c import sys; sys.exit"*) [ "$FAKE_VERSION" != 3.9 ] ;;
  "-c import ensurepip"*) [ -z "${FAKE_NO_VENV:-}" ] ;;
  "-m venv --clear") rm -rf "$4" && mkdir -p "$4/bin" && cp "$0" "$4/bin/python" ;;
  "-m pip install") echo "${@: -1}" >>"$FAKE_LOG"; sleep "${FAKE_SECONDS:-0}"; exit "${FAKE_PIP_STATUS:-0}" ;;
esac
"""


class Checkout:
    """A folder with the set-up script, on a machine whose Pythons are all fakes."""

    def __init__(self, folder: Path) -> None:
        self.root, self.log = folder / "a check out", folder / "pip.log"
        (self.root / "scripts").mkdir(parents=True)
        for name in ("scripts/setup.sh", "setup.cfg", "pyproject.toml"):
            shutil.copy(ROOT / name, self.root / name)
        self.path = folder / "bin"
        self.path.mkdir()
        for name in ("python3.13", "python3.12", "python3.11", "python3"):
            (self.path / name).write_text(textwrap.dedent(FAKE_PYTHON).lstrip())
            (self.path / name).chmod(0o755)

    def start(self, extra: str = "", **environment: str) -> subprocess.Popen[str]:
        """Call `set_up` from another folder, as run.sh and test.sh do."""
        code = f'set -euo pipefail; . "$1"; set_up {extra}; echo "$python"'
        inherited = {key: value for key, value in os.environ.items() if key != "ROBUST_NAS_PYTHON"}
        fakes = {"PATH": f"{self.path}:{os.environ['PATH']}", "FAKE_LOG": str(self.log), "FAKE_VERSION": "3.11"}
        return subprocess.Popen(
            ["bash", "-c", code, "bash", str(self.root / "scripts" / "setup.sh")],
            cwd=self.path,
            env={**inherited, **fakes, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def set_up(self, extra: str = "", **environment: str) -> tuple[int, str]:
        """Return the exit status, and the standard output or the last line of the error output."""
        process = self.start(extra, **environment)
        out, error = process.communicate(timeout=60)
        return process.returncode, out.strip() if process.returncode == 0 else error.splitlines()[-1]

    def installed(self) -> Sequence[str]:
        """Return the packages that pip was asked to install, in order."""
        return self.log.read_text().split() if self.log.exists() else []


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_the_set_up_installs_once(checkout: Checkout) -> None:
    python = str(checkout.root / ".venv" / "bin" / "python")
    assert checkout.set_up() == (0, python)
    assert checkout.set_up() == (0, python)
    assert checkout.installed() == ["."]


def test_the_set_up_adds_the_extra_and_does_not_take_it_away(checkout: Checkout) -> None:
    for extra in ("", "dev", "", "dev"):
        assert checkout.set_up(extra)[0] == 0
    assert checkout.installed() == [".", ".[dev]"]


@pytest.mark.parametrize("name", ["setup.cfg", "pyproject.toml"])
def test_the_set_up_installs_again_when_the_dependencies_change(checkout: Checkout, name: str) -> None:
    checkout.set_up("dev")
    (checkout.root / name).write_text("# changed\n")
    checkout.set_up("dev")
    assert checkout.installed() == [".[dev]", ".[dev]"]


def test_a_failed_installation_is_told_and_done_again(checkout: Checkout) -> None:
    status, sentence = checkout.set_up(FAKE_PIP_STATUS="1")
    assert status == 2 and sentence.startswith("The installation failed")
    assert checkout.set_up()[0] == 0
    assert checkout.installed() == [".", "."]


def test_an_environment_that_was_cut_off_is_made_again(checkout: Checkout) -> None:
    (checkout.root / ".venv" / "bin").mkdir(parents=True)
    assert checkout.set_up()[0] == 0
    assert checkout.installed() == ["."]


def test_an_environment_that_was_moved_is_not_taken_for_installed(checkout: Checkout, tmp_path: Path) -> None:
    checkout.set_up()
    checkout.root = checkout.root.rename(tmp_path / "moved")
    checkout.set_up()
    assert checkout.installed() == [".", "."]


@pytest.mark.skipif(shutil.which("flock") is None, reason="set-ups wait for each other only where there is flock")
def test_two_set_ups_at_once_install_once(checkout: Checkout) -> None:
    processes = [checkout.start(FAKE_SECONDS="0.3") for _ in range(2)]
    for process in processes:
        process.communicate(timeout=60)
    assert [process.returncode for process in processes] == [0, 0]
    assert checkout.installed() == ["."]


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"FAKE_VERSION": "3.9"}, "robust-nas needs Python 3.11 or newer, but there is none on PATH"),
        ({"FAKE_NO_VENV": "1"}, "python3 has no venv module with pip; install it"),
    ],
    ids=["an old Python", "no venv module"],
)
def test_a_machine_that_lacks_something_is_told_what(
    checkout: Checkout, environment: dict[str, str], sentence: str
) -> None:
    status, said = checkout.set_up(**environment)
    assert status == 2 and said.startswith(sentence)
    assert checkout.installed() == [] and not (checkout.root / ".venv").exists()


def test_an_interpreter_of_ones_own_is_used_as_it_is(checkout: Checkout) -> None:
    own = str(checkout.path / "python3.11")
    assert checkout.set_up(ROBUST_NAS_PYTHON=own) == (0, own)
    assert checkout.installed() == []
