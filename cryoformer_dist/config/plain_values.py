"""What a file says, before a schema has checked it."""

from pydantic import JsonValue

PlainValues = dict[str, JsonValue]
