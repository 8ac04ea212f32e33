"""A page that opens offline: our own Markdown and pictures in one file."""

import base64
import html
import io
from pathlib import Path


_TEMPLATE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem;
  color: #222; background: #fff }}
table {{ border-collapse: collapse; margin: 1rem 0 }}
td, th {{ border-bottom: 1px solid #ddd; padding: .2rem .7rem; text-align: left }}
img {{ max-width: 100%; image-rendering: pixelated }} figcaption {{ color: #666 }}
.pass {{ color: #176 }} .fail {{ color: #a22 }}
</style>
<h1>{title}</h1>
{body}
</html>
"""


def page(title: str, body: str) -> str:
    """HTML with everything in it; nothing is fetched. `body` is HTML already."""
    return _TEMPLATE.format(title=html.escape(title), body=body)


def figure(path: Path, caption: str) -> str:
    """A picture, as a part of the page."""
    data = base64.b64encode(path.read_bytes()).decode()
    return (
        f'<figure><img alt="{html.escape(caption)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def as_html(text: str) -> str:
    """Our own Markdown, which has headings, tables, lists and lines."""
    found, rows = io.StringIO(), list[list[str]]()

    def close() -> None:
        if rows:
            cells = ("".join(f"<td>{html.escape(c)}</td>" for c in row) for row in rows)
            found.write("<table>" + "".join(f"<tr>{row}</tr>" for row in cells) + "</table>\n")
            rows.clear()

    for line in text.splitlines():
        if line.startswith("| ---"):
            continue
        if line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip("|").split(" | ")])
            continue
        close()
        if line and not line.startswith("# "):
            found.write(f"<p>{html.escape(line)}</p>\n")
    close()
    return found.getvalue()
