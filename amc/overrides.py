"""``key=value`` on the command line, put into a configuration before it is validated."""

from __future__ import annotations

import re
from typing import Any

from amc.errors import UserError, shown
from amc.plugins import allow
from amc.reading import parse_yaml
from amc.registry import lookup


def apply_override(values: dict[str, Any], override: str) -> None:
    """Put ``a.b=value``, which the user says, into a mapping, in place.

    Raises:
        UserError: it is not of that form, or the value is not YAML.
    """
    key, equals, text = override.partition("=")
    if not equals:
        raise UserError(f"{shown(override)} is not of the form key=value")
    if key in ("space", "agent") and isinstance(parse_yaml(text, override), str):
        key += ".name"
    *parents, last = key.split(".")
    for parent in parents:
        if not isinstance(values.setdefault(parent, {}), dict):
            values[parent] = {}
        values = values[parent]
    before, values[last] = values.get(last), parse_yaml(_quoted(text), override)
    allow(values[last])
    if key in ("space.name", "agent.name") and before not in (None, values[last]):
        _forget_options(values, parents[0])
    if key in ("ratio", "limit") or (parents == ["budget"] and last in ("ratio", "limit")):
        values.pop("limit" if last == "ratio" else "ratio", None)


def _forget_options(values: dict[str, Any], kind: Any) -> None:
    """Another plug-in is named now: only what does not depend on it stays, the number of episodes
    and the layers to keep, where it knows them.
    """
    known = lookup(kind, str(values["name"])).Options.model_fields
    for option in set(values) - {"name"}:
        if option not in ("episodes", "keep") or option not in known:
            del values[option]


def _quoted(text: str) -> str:
    """An override's value, in which a leading ``*`` or ``?`` begins a shell pattern: no part of
    YAML that a single value could use.
    """
    return re.sub(r"(^|[\[,])(\s*)([*?][^,\]\s]*)", r"\1\2'\3'", text)
