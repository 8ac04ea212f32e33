"""The one public exception: what was asked, what is there, what to do."""


class ErasureError(ValueError):
    """A request that cannot be met; nothing has been changed."""
