"""The two ways in which something can be wrong: the user's mistake (one sentence, exit status 2),
or ours (a traceback).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake that the user can mend. Its message is one line: the thing, its value, what exists,
    the nearest match.
    """


def first_line(error: BaseException) -> str:
    """What an error says, in one line; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def unknown(kind: str, value: str, known: Iterable[str]) -> UserError:
    """The error for a name that does not exist: ``unknown model 'restnet': did you mean 'resnet'?
    (known: ...)``.
    """
    names = sorted(known)
    near = difflib.get_close_matches(value, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return UserError(f"unknown {kind} {value!r}: {hint}(known: {', '.join(names)})")
