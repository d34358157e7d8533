"""The one exception that is the user's to mend; the command line prints it as a sentence and exits with 2."""

from collections.abc import Iterable
from difflib import get_close_matches


class InputError(ValueError):
    """A wrong input. The message says what was wrong, what was got, and what to do."""


def suggest(name: str, available: Iterable[str]) -> str:
    """Return "Did you mean 'pgd'? Available: apgd, fgsm, pgd." for a name that is not among `available`."""
    known = sorted(set(available))
    by_small_letters = {word.lower(): word for word in reversed(known)}
    close = get_close_matches(name.lower(), by_small_letters, n=1)
    hint = f"Did you mean '{by_small_letters[close[0]]}'? " if close else ""
    return f"{hint}Available: {', '.join(known) or 'nothing'}."
