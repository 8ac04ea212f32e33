"""The one public exception, and the check behind every choice between names."""

from collections.abc import Iterable
from difflib import get_close_matches


class ErasureError(ValueError):
    """A request that cannot be met; nothing has been changed."""


def first_line(error: BaseException) -> str:
    """What somebody else's error says, to stand within a sentence; its type if it says nothing."""
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
