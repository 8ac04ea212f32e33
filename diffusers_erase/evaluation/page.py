"""Reports as Markdown, and as one HTML page that opens offline."""

import base64
from collections.abc import Iterable, Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader
from markdown_it import MarkdownIt
from markupsafe import Markup

from diffusers_erase.eraser.card import as_text


_MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table")
_PAGE = Environment(
    loader=PackageLoader("diffusers_erase", "evaluation"), autoescape=True
).get_template("page.html.jinja")


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table in which all cells are plain text; columns named `...:` align right."""
    names = [name.removesuffix(":") for name in columns]
    lines = [" | ".join(map(as_text, row)) for row in (names, *rows)]
    lines.insert(1, " | ".join("---:" if name.endswith(":") else "---" for name in columns))
    return "".join(f"| {line} |\n" for line in lines)


def page(title: str, text: str, pictures: Sequence[tuple[str, Path]] = ()) -> str:
    """An HTML page that contains its pictures and fetches nothing.

    `text` is Markdown; HTML in it is shown as text. `pictures` are (caption, PNG file).
    """
    encoded = [(name, base64.b64encode(path.read_bytes()).decode()) for name, path in pictures]
    return _PAGE.render(title=title, body=Markup(_MARKDOWN.render(text)), pictures=encoded)
