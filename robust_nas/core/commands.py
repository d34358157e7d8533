"""Commands from functions, by the standard library's argparse: libraries for this cost more time than a table's answer.

    app = Commands("robust-nas", "What the program is for.")

    @app.command(argument("path", type=Path, help="a folder"), argument("--count", type=int, help="how many"))
    def show(path: Path, count: int | None) -> None:
        \"\"\"Print what is in a folder.\"\"\"

A command's name is its function's, its help the docstring's first line. Options may stand before, between and after the
other words. A word that does not fit raises InputError, so that it ends in one sentence like any other mistake.

`command(...)` makes a command of a function in a file of its own, and `app.add("show", show)` gives it its name.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, NoReturn, TextIO

from robust_nas.core.errors import InputError, suggest

SETTINGS = "KEY=VALUE"
"""What stands for the settings of a job in the help of commands that take some."""

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


_JSON = argument("--json", action="store_true", help="print the answer as JSON, with fractions for accuracies")
"""Every command has it that has none of its own."""

_json_asked: ContextVar[bool] = ContextVar("the answer is wanted as JSON", default=False)

_answers: ContextVar[TextIO | None] = ContextVar("standard output, while a command is at work", default=None)


def json_asked() -> bool:
    """Whether the command under way is to print its answer as JSON."""
    return _json_asked.get()


def print_answer(text: str) -> None:
    """Print on standard output, which has nothing but the answer of the command under way."""
    print(text, file=_answers.get() or sys.stdout)


class Command:
    """A command of the command line.

    It is no dataclass: the import of these, and of `inspect`, takes a third of the time in which help is printed.

    Args:
        function: the function that runs it; it gets the arguments by name.
        arguments: the arguments.
        examples: what one types, in full; its help ends with them.
    """

    def __init__(
        self, function: Callable[..., None], arguments: tuple[Argument, ...], examples: Sequence[str] = ()
    ) -> None:
        self.function, self.arguments, self.examples = function, arguments, tuple(examples)
        self.variants: dict[str, Command] = {}
        """Commands that a first word of their own chooses, such as `build` in `ensemble build`."""

    @property
    def about(self) -> str:
        """Its purpose, in a sentence."""
        return str(self.function.__doc__).strip().splitlines()[0]

    def variant(
        self, name: str, *arguments: Argument, examples: Sequence[str] = ()
    ) -> Callable[[Callable[..., None]], Command]:
        """Make a command of a function, called where `name` is the first word."""

        def add(function: Callable[..., None]) -> Command:
            return self.variants.setdefault(name, Command(function, arguments, examples))

        return add

    def run(self, program: str, words: Sequence[str]) -> None:
        """Run the function with the arguments in the words, or print help.

        Args:
            program: the words before these.
            words: the arguments.

        Raises:
            InputError: for words that do not fit.
        """
        if words and words[0] in self.variants:
            self.variants[words[0]].run(f"{program} {words[0]}", words[1:])
            return
        given = self.parsed(program, words)
        from robust_nas.core.registry import allowing_code  # no help needs it

        asked = _json_asked.set(given["json"] if self._has_json else given.pop("json"))
        stream = _answers.set(sys.stdout)
        try:
            # What the user's own code prints, such as a model, is no answer.
            with contextlib.redirect_stdout(sys.stderr), allowing_code(given.pop("allow_code")):
                self.function(**given)
        finally:
            _answers.reset(stream)
            _json_asked.reset(asked)

    @property
    def _has_json(self) -> bool:
        """Whether the command has an option --json of its own."""
        return any("--json" in names for names, _ in self.arguments)

    def parsed(self, program: str, words: Sequence[str]) -> dict[str, Any]:
        """Return the arguments in the words, by name.

        Raises:
            InputError: for words that do not fit.
        """
        elsewhere = {
            option: f"{program} {name}"
            for name, variant in self.variants.items()
            for names, _ in variant.arguments
            for option in names
        }
        parser = _Parser(elsewhere, self.examples, prog=program, description=self.function.__doc__, allow_abbrev=False)
        for names, options in (*self.arguments, *([] if self._has_json else [_JSON]), _ALLOW_CODE):
            parser.add_argument(*names, **options)
        return vars(parser.parse_intermixed_args(list(words)))


def command(*arguments: Argument, examples: Sequence[str] = ()) -> Callable[[Callable[..., None]], Command]:
    """Make a command of a function; the arguments are given to it by name."""
    return lambda function: Command(function, arguments, examples)


class Commands:
    """A program, or a part of one, that consists of commands.

    Args:
        program: the word before a command.
        about: its purpose, in a sentence.
        epilog: the last line of its help.
    """

    def __init__(self, program: str, about: str, epilog: str = "") -> None:
        self.program, self.about, self.epilog = program, about, epilog
        self._commands: dict[str, Command | Commands] = {}

    def __iter__(self) -> Iterator[tuple[str, Command]]:
        """Iterate over all commands, each with the words before its arguments."""
        for name, part in self._commands.items():
            if isinstance(part, Commands):
                yield from part
            else:
                yield f"{self.program} {name}", part
                yield from ((f"{self.program} {name} {word}", variant) for word, variant in part.variants.items())

    def command(
        self, *arguments: Argument, examples: Sequence[str] = (), name: str | None = None
    ) -> Callable[[Callable[..., None]], Callable[..., None]]:
        """Make a command of a function; the arguments are given to it by name."""

        def add(function: Callable[..., None]) -> Callable[..., None]:
            self.add(name or function.__name__, Command(function, arguments, examples))
            return function

        return add

    def add(self, name: str, part: Command | Commands) -> None:
        """Add a command, or a part whose commands follow its name."""
        self._commands[name] = part

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
        found = self._commands[name]
        if isinstance(found, Commands):
            found.run(rest)
        else:
            found.run(f"{self.program} {name}", rest)

    def _help(self) -> str:
        width = max(map(len, self._commands))
        lines = [f"  {name:{width}}  {found.about}" for name, found in self._commands.items()]
        usage = f"usage: {self.program} COMMAND ...; '{self.program} COMMAND --help' says what a command takes"
        return "\n".join([usage, "", self.about, "", *lines, *(["", self.epilog] if self.epilog else [])])


class End(SystemExit):
    """The end of the program where it is the program itself that ends it, and no code that it runs."""


class _Parser(argparse.ArgumentParser):
    """A parser that raises what the user did wrong.

    Args:
        elsewhere: the command that an option belongs to, for options of others.
        examples: what one types; help ends with them.
        settings: those of `argparse.ArgumentParser`.
    """

    def __init__(self, elsewhere: Mapping[str, str], examples: Sequence[str], **settings: Any) -> None:
        super().__init__(**settings)
        self._elsewhere, self._examples = elsewhere, examples

    def format_help(self) -> str:
        # argparse would join the lines of an epilog.
        lines = [f"  {example}" for example in self._examples]
        return super().format_help() + "\n".join(["", "examples:" if len(lines) > 1 else "example:", *lines, ""])

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        raise End(status)

    def error(self, message: str) -> NoReturn:
        option = message.removeprefix("unrecognized arguments: ").partition(" ")[0]
        if other := self._elsewhere.get(option):
            raise InputError(f"{option} belongs to '{other.partition(' ')[2]}'; '{other} --help' says what it takes.")
        if message.startswith("unrecognized") and any(action.metavar == SETTINGS for action in self._actions):
            message += f"; settings are written {SETTINGS}, such as train.epochs=3"
        # argparse asks for settings too where they share their place with a word that must be there.
        message = message.removesuffix(f", {SETTINGS}") if "are required:" in message else message
        message = message[:1].upper() + message[1:]
        raise InputError(f"{message}; '{self.prog} --help' says what it takes.")
