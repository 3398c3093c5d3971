"""The two ways in which something can be wrong: the user's mistake (one sentence, exit status 2),
or ours (a traceback).
"""

from __future__ import annotations

import difflib
import operator
import re
import reprlib
from collections.abc import Iterable

SHOWN = 100  # of the names that exist, in an error
SHORT = 60  # letters of a value, in an error

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 4 * SHORT


class UserError(Exception):
    """A mistake that the user can mend. Its message is one line: the thing, its value, what exists,
    the nearest match.
    """


def first_line(error: BaseException) -> str:
    """What an error says, in one line without colours; its type where it says nothing."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
    return (text.splitlines() or [type(error).__name__])[0]


def kind_and_line(error: BaseException) -> str:
    """The type of an error and what it says: ``ValueError: no number``."""
    return f"{type(error).__name__}: {short(first_line(error))}"


def out_of_memory(error: BaseException) -> bool:
    """Whether memory has run out: Python's, numpy's, or torch's, whose error on the CPU has no type
    of its own.
    """
    kinds = {kind.__name__ for kind in type(error).__mro__}
    known = bool(kinds & {"MemoryError", "OutOfMemoryError"})
    return known or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))


def whole_number(value: object, name: str, least: int, most: int) -> int:
    """An argument that is to be a whole number.

    Raises:
        UserError: it is none, or out of bounds.
    """
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or not least <= number <= most:
        raise UserError(
            f"{name} is {shown(value)}: it must be a whole number from {least} to {most}"
        )
    return number


def root_cause(error: BaseException) -> str:
    """The first line of the error that began a chain of them."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)


def short(text: str) -> str:
    """A text in an error, on one line; of a long one the beginning and the end."""
    text = " ".join(text.split())
    return text if len(text) <= 3 * SHORT else f"{text[: 2 * SHORT]} ... {text[-SHORT // 2 :]}"


def shown(value: object) -> str:
    """A user's value as Python writes it, in one line of at most `SHORT` letters."""
    try:
        text = " ".join(_REPR.repr(value).split())
    except Exception:  # Python writes no number of thousands of digits; an object's own may fail
        text = f"a number of {value.bit_length()} bits" if isinstance(value, int) else ""
    text = text or f"a {type(value).__name__}"
    return text if len(text) <= SHORT else f"{text[: SHORT - 18]}...{text[-15:]}"


def unknown(kind: str, value: str, known: Iterable[str]) -> UserError:
    """The error for a name that does not exist: ``unknown model 'restnet': did you mean 'resnet'?
    (known: ...)``.
    """
    names = sorted(map(short, known))
    near = difflib.get_close_matches(value[:SHOWN], names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    more = f", ... and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return UserError(
        f"unknown {kind} {shown(value)}: {hint}(known: {', '.join(names[:SHOWN])}{more})"
    )
