"""The two ways in which something can be wrong: the user's mistake (one sentence, exit status 2),
or ours (a traceback).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

SHOWN = 100  # of the names that exist, in an error


class UserError(Exception):
    """A mistake that the user can mend. Its message is one line: the thing, its value, what exists,
    the nearest match.
    """


def first_line(error: BaseException) -> str:
    """What an error says, in one line without colours; its type where it says nothing."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
    return (text.splitlines() or [type(error).__name__])[0]


def root_cause(error: BaseException) -> str:
    """The first line of the error that began a chain of them."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)


def unknown(kind: str, value: str, known: Iterable[str]) -> UserError:
    """The error for a name that does not exist: ``unknown model 'restnet': did you mean 'resnet'?
    (known: ...)``.
    """
    names = sorted(known)
    near = difflib.get_close_matches(value, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    more = f", ... and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return UserError(f"unknown {kind} {value!r}: {hint}(known: {', '.join(names[:SHOWN])}{more})")
