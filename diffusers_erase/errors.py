"""The one public exception: what was asked, what is there, what to do."""


class ErasureError(ValueError):
    """A request that cannot be met; nothing has been changed."""


def first_line(error: BaseException) -> str:
    """What somebody else's error says, to stand within a sentence; its type if it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
