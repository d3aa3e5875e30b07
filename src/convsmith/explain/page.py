"""One HTML page with pictures in it, that opens from disk and asks for nothing else."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 0 auto; padding: 1rem; }
figure { margin: 2rem 0; }
img { max-width: 100%; height: auto; background: #fff; border: 1px solid #8888; border-radius: 4px; }
figcaption { margin-top: .4rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; }
th, td { padding: .25rem .8rem .25rem 0; text-align: left; border-bottom: 1px solid #8886; white-space: nowrap; }
code { font-size: .95em; }
@media print { figure { break-inside: avoid; } }
"""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@dataclass(frozen=True)
class Shown:
    """A picture (PNG), what it says to those who cannot see it, and its caption."""

    png: bytes
    alternative: str
    caption: str


def page(
    title: str, intro: Sequence[str], table: Sequence[Sequence[str]], pictures: Sequence[Shown], command: str
) -> str:
    """The page: `intro` by paragraphs, `table` with its headings first (or none), pictures, the command to repeat."""
    parts = [f"<h1>{escape(title)}</h1>", *(f"<p>{escape(text)}</p>" for text in intro)]
    if table:
        head = "".join(f'<th scope="col">{escape(name)}</th>' for name in table[0])
        rows = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table[1:])
        parts.append(
            f'<div class="wide" tabindex="0" role="region" aria-label="Table of the images">'
            f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
        )
    for picture in pictures:
        data = base64.b64encode(picture.png).decode()
        parts.append(
            f'<figure><img alt="{escape(picture.alternative)}" src="data:image/png;base64,{data}">'
            f"<figcaption>{escape(picture.caption)}</figcaption></figure>"
        )
    parts.append(f"<p>Made by <code>{escape(command)}</code></p>")
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body><main>\n{body}\n</main></body></html>\n"
    )
