"""What every section of the configuration, and the options of every plug-in, are made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

LARGEST_SEED = 2**32 - 1  # that NumPy's global state, and with it Stable-Baselines3, takes


class Options(BaseModel):
    """A section of the configuration, or the options of a space or an agent: typed, with defaults;
    an unknown key is refused. A number is finite, and neither true nor false is one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        types = numeric(cls.model_fields[str(info.field_name)].annotation)
        if types and bool not in types and isinstance(value, bool):
            raise PydanticCustomError("bool", "input should be a number")
        return value


def numeric(annotation: Any) -> set[type]:
    """Which of int, float and bool a field may hold, in tuples too; empty where it is no number."""
    types = {int, float, bool} & set(types_in(annotation))
    return types if types & {int, float} else set()


def types_in(annotation: Any) -> Iterator[type]:
    """What an annotation is, may be, or may hold."""
    if isinstance(annotation, type):
        yield annotation
    for part in get_args(annotation):
        yield from types_in(part)


def key_of(model: type[BaseModel], place: Sequence[int | str]) -> list[str]:
    """The key that an error of pydantic's is about, without the types that its value could have
    had.
    """
    path: list[str] = []
    inside: type[BaseModel] | None = model
    for part in place:
        if inside is None:
            path += [str(part)] if isinstance(part, int) else []  # a place in a list
            continue
        path.append(str(part))
        field = inside.model_fields.get(str(part))
        types = types_in(field.annotation) if field is not None else ()
        inside = next((found for found in types if issubclass(found, BaseModel)), None)
    return path
