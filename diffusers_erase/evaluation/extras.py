"""Optional packages, imported where they are needed."""

from importlib import import_module
from types import ModuleType

from diffusers_erase.errors import ErasureError, first_line


def optional(module: str, extra: str) -> ModuleType:
    """Import a package that an extra of this one installs.

    Raises:
        ErasureError: it is missing or broken; the message says how to install it.
    """
    try:
        return import_module(module)
    except (ImportError, OSError, RuntimeError) as error:  # a broken binary raises the latter two
        raise ErasureError(
            f"This needs the package '{module}', which cannot be imported ({first_line(error)}); "
            f"install it with `pip install diffusers-erase[{extra}]`."
        ) from error
