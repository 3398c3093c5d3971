"""Values in Markdown: what comes from files and users stands there as it is, and is no markup."""

from __future__ import annotations

import re

_SPECIAL = r"[&<>|`*\[\]\\~$#]|(?<![^\W_])_|_(?![^\W_])"  # an underscore in a word is none
_NOT_IN_CODE = r"[&<>|`]"


def literal(value: object) -> str:
    """A value in running text or in a cell of a table, in one line."""
    return re.sub(_SPECIAL, lambda found: f"&#{ord(found[0])};", _one_line(value))


def code(value: object) -> str:
    """A value as code: in backticks where nothing in it could end them."""
    text = _one_line(value)
    if text.strip() and not re.search(_NOT_IN_CODE, text):
        return f"`{text}`"
    return f"<code>{literal(text)}</code>"


def _one_line(value: object) -> str:
    return " ".join(str(value).splitlines())
