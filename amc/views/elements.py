"""What an HTML page is made of. All are `Markup`, which escapes all that is put into it and is no
markup itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from markupsafe import Markup

_CSS = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 70rem; padding: 1rem; }
h1 { font-size: 1.5rem; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
.pictures { display: grid; gap: 1rem; margin-top: 1.5rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }
figure { margin: 0; } figcaption { font-size: .85rem; opacity: .8; }
svg { width: 100%; height: auto; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .75rem .25rem 0; text-align: left;
  font-variant-numeric: tabular-nums; }
td.number, th.number { text-align: right; }
pre { background: var(--soft); overflow-x: auto; padding: .75rem; font-size: .8rem; }
details { margin: .75rem 0; } summary { cursor: pointer; }
"""


def document(title: str, parts: Iterable[Markup]) -> Markup:
    """A whole page."""
    return Markup(
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<title>{title}</title><style>{style}</style></head><body><h1>{title}</h1>"
        "{content}</body></html>\n"
    ).format(title=title, style=Markup(_CSS), content=joined(parts))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Markup:
    """A table whose first column is text, and whose others are numbers."""

    def row(cells: Sequence[str], cell: Markup, number: Markup) -> Markup:
        kinds = (cell, *(number for _ in cells[1:]))
        inner = joined(kind.format(value) for kind, value in zip(kinds, cells, strict=True))
        return Markup("<tr>{}</tr>").format(inner)

    heads = Markup("<th>{}</th>"), Markup('<th class="number">{}</th>')
    cells = Markup("<td>{}</td>"), Markup('<td class="number">{}</td>')
    return Markup(
        '<div class="scroll"><table><thead>{}</thead><tbody>{}</tbody></table></div>'
    ).format(row(head, *heads), joined(row(own, *cells) for own in rows))


def side_by_side(pictures: Iterable[Markup]) -> Markup:
    """Pictures, as many in a row as fit."""
    return Markup('<div class="pictures">{}</div>').format(joined(pictures))


def paragraph(text: str) -> Markup:
    """Running text."""
    return Markup("<p>{}</p>").format(text)


def details(title: str, content: Markup) -> Markup:
    """What is unfolded."""
    return Markup("<details><summary>{}</summary>{}</details>").format(title, content)


def pre(text: str) -> Markup:
    """Text with its line breaks."""
    return Markup("<pre>{}</pre>").format(text)


def joined(parts: Iterable[Markup]) -> Markup:
    """One after another."""
    return Markup("").join(parts)
