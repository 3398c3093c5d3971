"""The two ways in which something can be wrong: the user's mistake (one sentence, exit status 2),
or ours (a traceback).
"""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Iterable

SHOWN = 100  # of the names that exist, in an error
WIDEST = 60  # characters of a value, in an error

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 4 * WIDEST


class UserError(Exception):
    """A mistake that the user can mend. Its message is one line: the thing, its value, what exists,
    the nearest match.
    """


def first_line(error: BaseException) -> str:
    """What an error says, in one line without colours; its type where it says nothing."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
    return (text.splitlines() or [type(error).__name__])[0]


def out_of_memory(error: BaseException) -> bool:
    """Whether memory has run out, of this machine or of an accelerator."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return bool(kinds & {"MemoryError", "OutOfMemoryError"}) or "allocate memory" in str(error)


def root_cause(error: BaseException) -> str:
    """The first line of the error that began a chain of them."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)


def short(text: str) -> str:
    """A text in an error: of a long one the beginning and the end, on one line."""
    text = " ".join(text.split())
    ends = WIDEST // 2
    return text if len(text) <= 3 * WIDEST else f"{text[: 2 * WIDEST]} ... {text[-ends:]}"


def shown(value: object) -> str:
    """A value in an error: its repr, of a long or large one a part."""
    try:
        text = short(_REPR.repr(value))
    except Exception:  # a repr may raise anything
        return f"a {type(value).__name__}"
    ends = WIDEST // 2
    return text if len(text) <= WIDEST else f"{text[:ends]} ... {text[-ends // 2 :]}"


def unknown(kind: str, value: str, known: Iterable[str]) -> UserError:
    """The error for a name that does not exist: ``unknown model 'restnet': did you mean 'resnet'?
    (known: ...)``.
    """
    names = sorted(map(short, known))
    near = difflib.get_close_matches(value[: 4 * WIDEST], names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    more = f", ... and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return UserError(
        f"unknown {kind} {shown(value)}: {hint}(known: {', '.join(names[:SHOWN])}{more})"
    )
