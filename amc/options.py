"""What every section of the configuration, and the options of every plug-in, are made of."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Options(BaseModel):
    """A section of the configuration, or the options of a space or an agent: typed, with defaults;
    an unknown key is refused.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
