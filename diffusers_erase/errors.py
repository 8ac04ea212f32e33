"""The one public exception, how text of others is shown, and the check of names."""

from collections.abc import Iterable
from difflib import get_close_matches


class ErasureError(ValueError):
    """The request is refused, and nothing has been changed.

    The message is one line of printable characters, whatever a file or an answer of the Hub holds.
    """

    def __init__(self, message: str) -> None:
        super().__init__(shown(message, 2_000))


def shown(value: object, length: int = 500) -> str:
    """One line for a terminal or a message: control characters are escaped, long text is cut."""
    text = str(value)
    start = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[:length])
    return f"{start} … ({len(text):,} characters)" if len(text) > length else start


def first_line(error: BaseException) -> str:
    """The first line of another library's error, to stand within a sentence; else its type."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")


def require_choice(what: str, value: object, known: Iterable[str]) -> None:
    """Raise unless the value is one of the known ones.

    Args:
        what: the kind of the value, as the message begins with: "No {what} 'valeu'."
        value: what was given.
        known: what may be given; the message lists it, and names the nearest first.

    Raises:
        ErasureError: the value is not known.
    """
    names = list(known)
    if value not in names:
        near = get_close_matches(str(value), names, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ErasureError(f"No {what} {value!r}.{hint} Known: {', '.join(names)}.")
