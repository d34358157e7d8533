"""Commands from functions, by the standard library's argparse: libraries for this cost more time than a table's answer.

    app = Commands("robust-nas", "What the program is for.")

    @app.command(argument("path", type=Path, help="a folder"), argument("--count", type=int, help="how many"))
    def show(path: Path, count: int | None) -> None:
        \"\"\"Print what is in a folder.\"\"\"

A command's name is its function's, its help the docstring's first line. Options may stand before, between and after the
other words. A word that does not fit raises InputError, so that it ends in one sentence like any other mistake.
"""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from robust_nas.core.errors import InputError, suggest
from robust_nas.core.registry import allowing_code

Argument = tuple[tuple[str, ...], dict[str, Any]]


def argument(*names: str, **options: Any) -> Argument:
    """Return an argument of a command: what `argparse.ArgumentParser.add_argument` takes."""
    return names, {**options, "type": _whole_number} if options.get("type") is int else options


def _whole_number(text: str) -> int:
    """Return a whole number of at most 18 digits, those of ASCII: Python reads others too."""
    if not re.fullmatch(r"[+-]?[0-9]{1,18}", text):
        raise argparse.ArgumentTypeError(f"invalid int value: {text[:40]!r}")
    return int(text)


_ALLOW_CODE = argument(
    "--allow-code", action="store_true", help="run code of others that files name (run folders, recipes, cards, ...)"
)
"""Every command has it: what a new one reads is refused as long as it is not given."""


class Commands:
    """A program, or a part of one, that consists of commands.

    Args:
        program: the word before a command.
        about: its purpose, in a sentence.
        epilog: the last line of its help.
    """

    def __init__(self, program: str, about: str, epilog: str = "") -> None:
        self.program, self.about, self.epilog = program, about, epilog
        self._commands: dict[str, tuple[Callable[..., None] | Commands, tuple[Argument, ...]]] = {}

    def command(
        self, *arguments: Argument, name: str | None = None
    ) -> Callable[[Callable[..., None]], Callable[..., None]]:
        """Make a command of a function; the arguments are given to it by name."""

        def add(function: Callable[..., None]) -> Callable[..., None]:
            self._commands[name or function.__name__] = function, arguments
            return function

        return add

    def add(self, name: str, part: Commands) -> None:
        """Add a part whose commands follow its name."""
        self._commands[name] = part, ()

    def run(self, words: Sequence[str]) -> None:
        """Do what the words say, or print help.

        Raises:
            InputError: for an unknown command, or words that do not fit it.
        """
        if not words or words[0] in ("-h", "--help", "help"):
            print(self._help())
            return
        name, rest = words[0], list(words[1:])
        if name not in self._commands:
            kind = "option" if name.startswith("-") else "command"
            raise InputError(f"'{self.program}' has no {kind} '{name}'. {suggest(name, self._commands)}")
        found, arguments = self._commands[name]
        if isinstance(found, Commands):
            found.run(rest)
            return
        parser = _Parser(prog=f"{self.program} {name}", description=inspect.getdoc(found), allow_abbrev=False)
        for names, options in (*arguments, _ALLOW_CODE):
            parser.add_argument(*names, **options)
        given = vars(parser.parse_intermixed_args(rest))
        with allowing_code(given.pop("allow_code")):
            found(**given)

    def _help(self) -> str:
        width = max(map(len, self._commands))
        about = {
            name: found.about if isinstance(found, Commands) else str(inspect.getdoc(found)).splitlines()[0]
            for name, (found, _) in self._commands.items()
        }
        lines = [f"  {name:{width}}  {text}" for name, text in about.items()]
        usage = f"usage: {self.program} COMMAND ...; '{self.program} COMMAND --help' says what a command takes"
        return "\n".join([usage, "", self.about, "", *lines, *(["", self.epilog] if self.epilog else [])])


class End(SystemExit):
    """The end of the program where it is the program itself that ends it, and no code that it runs."""


class _Parser(argparse.ArgumentParser):
    """A parser that raises what the user did wrong."""

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        raise End(status)

    def error(self, message: str) -> NoReturn:
        message = message[:1].upper() + message[1:]
        raise InputError(f"{message}; '{self.prog} --help' says what it takes.")
