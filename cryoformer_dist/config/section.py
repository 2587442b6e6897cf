"""What the sections of every file have in common."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, JsonValue

PositiveInt = Annotated[int, Field(gt=0)]
PlainValues = dict[str, JsonValue]
"""What a file says, before a schema has checked it."""


class Section(BaseModel):
    """A part of a file: immutable, its numbers finite, and a misspelt key is an error, not a silence."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
