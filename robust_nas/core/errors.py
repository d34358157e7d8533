"""One exception for mistakes of users, and one for work that ends from outside; the command line prints a sentence."""

from collections.abc import Iterable
from difflib import get_close_matches


class InputError(ValueError):
    """A wrong input. The message says what was wrong, what was got, and what to do."""


class Interrupted(InputError):
    """Work that ended for no fault of its input, such as a process of it that was killed for want of memory.

    The files are whole, and the work can be resumed.
    """


class NotFinite(InputError):
    """Logits, a gradient or a loss that are no numbers any more."""


class TooLarge(InputError):
    """A thing that does not fit into the memory that there is."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, which clusters and launchers send some time before they kill; it is answered like Ctrl-C."""


def of_exit(error: BaseException) -> InputError:
    """Return the error of a module that ended the program, which would otherwise look like success or say nothing.

    Args:
        error: SystemExit, GeneratorExit, or another exception that is no `Exception`, and not Ctrl-C.
    """
    import traceback

    frames = traceback.extract_tb(error.__traceback__)
    *_, last = [frame for frame in frames if "_sitebuiltins" not in frame.filename] or frames  # `exit()` is there
    return InputError(
        f"{last.filename}, line {last.lineno}, ended the program ({error!r}), which a module that robust-nas runs must "
        "not do; take that out of it."
    )


def reason_of(error: BaseException) -> str:
    """The first line of an error's message, to be put in brackets; its type, if it has none."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def suggest(name: str, available: Iterable[str]) -> str:
    """Return "Did you mean 'pgd'? Available: apgd, fgsm, pgd." for a name that is not among `available`."""
    known = sorted(set(available))
    by_small_letters = {word.lower(): word for word in reversed(known)}
    close = get_close_matches(name.lower(), by_small_letters, n=1)
    hint = f"Did you mean '{by_small_letters[close[0]]}'? " if close else ""
    return f"{hint}Available: {', '.join(known) or 'nothing'}."
