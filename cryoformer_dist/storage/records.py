"""Records: dataclasses as JSON files, written whole, and read back only if they are just what this version writes."""

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from cryoformer_dist.errors import CryoFormerError
from cryoformer_dist.storage.places import write_whole

Record = TypeVar("Record")
_VERSION, _PREFIX = "schema_version", "prefix"


def inline(prefix: str = "") -> dict[str, str]:
    """Metadata of a field that is a record whose fields stand among those of its owner, their names after a prefix."""
    return {_PREFIX: prefix}


def write_record(path: Path, record: Any, schema_version: int) -> Path:
    """Write a dataclass as JSON; what is ``None`` is left out.

    Parameters
    ----------
    path
        File; afterwards it is there whole or not at all.
    record
        Dataclass whose fields are numbers, text, other records, or tuples and mappings of these.
    schema_version
        Asked for on reading.

    Raises
    ------
    ValueError
        If a number is not finite.
    """
    content = {_VERSION: schema_version, **as_json(record)}
    write_whole(path, json.dumps(content, indent=2, allow_nan=False) + "\n")
    return path


def read_record(path: Path, kind: type[Record] | UnionType, schema_version: int, remedy: str) -> Record:
    """Read what `write_record` wrote.

    Parameters
    ----------
    path
        File.
    kind
        Dataclass that was written; of several, the one whose first field, a literal, says so.
    schema_version
        The only one that is read.
    remedy
        What to do about a file that cannot be read.

    Raises
    ------
    CryoFormerError
        If the file is damaged or of another version.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content.pop(_VERSION)
        if version == schema_version:
            record: Record = from_json(kind, content)
            return record
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CryoFormerError(f"{path}: damaged, or of another program ({error}); {remedy}") from error
    raise CryoFormerError(
        f"{path}: schema {version}, and this version of cryoformer-dist reads schema {schema_version}; {remedy}"
    )


def as_json(value: Any) -> Any:
    """What `write_record` writes of a dataclass, or of a part of one: objects, lists, numbers and text."""
    if isinstance(value, tuple):
        return [as_json(member) for member in value]
    if isinstance(value, Mapping):
        return {name: as_json(member) for name, member in value.items()}
    if not is_dataclass(value):
        return value
    content: dict[str, Any] = {}
    for part in fields(value):
        member = getattr(value, part.name)
        if member is None:
            continue
        if _PREFIX in part.metadata:
            content |= {part.metadata[_PREFIX] + name: inner for name, inner in as_json(member).items()}
        else:
            content[part.name] = as_json(member)
    return content


def from_json(kind: Any, content: Any) -> Any:
    """What `as_json` made JSON of.

    Raises
    ------
    ValueError, KeyError, TypeError, AttributeError
        If it is not just that.
    """
    if get_origin(kind) is UnionType:
        absent = content is None and NoneType in get_args(kind)
        return None if absent else from_json(_choose(get_args(kind), content), content)
    if is_dataclass(kind):
        return _decode_fields(kind, dict(content))
    if get_origin(kind) is tuple:
        member, *others = get_args(kind)
        kinds = [member] * len(content) if others == [...] else [member, *others]
        return tuple(from_json(each, part) for each, part in zip(kinds, content, strict=True))
    if get_origin(kind) is Mapping:
        return {name: from_json(get_args(kind)[1], part) for name, part in content.items()}
    if get_origin(kind) is Literal:
        fits = content in get_args(kind)
    else:
        fits = type(content) is kind or (kind is float and type(content) is int)
    if not fits:
        raise ValueError(f"{content!r} where {kind} is expected")
    return float(content) if kind is float else content


def _decode_fields(kind: Any, content: dict[str, Any]) -> Any:
    hints = get_type_hints(kind)
    values = {}
    for part in fields(kind):
        hint = hints[part.name]
        if _PREFIX in part.metadata:
            names = {name: part.metadata[_PREFIX] + name for name in get_type_hints(_choose(get_args(hint) or (hint,)))}
            inner = {name: content.pop(written) for name, written in names.items() if written in content}
            # All of its parts may be absent without its being so.
            values[part.name] = None if not inner and NoneType in get_args(hint) else from_json(hint, inner)
        elif part.name in content or NoneType not in get_args(hint):
            values[part.name] = from_json(hint, content.pop(part.name))
        else:
            values[part.name] = None
    if content:
        raise ValueError(f"unknown keys: {', '.join(content)}")
    return kind(**values)


def _choose(kinds: tuple[Any, ...], content: Any = None) -> Any:
    """The one type of several that is not ``None``, or that content is of."""
    some = [kind for kind in kinds if kind is not NoneType]
    for kind in some:
        first = fields(kind)[0].name if is_dataclass(kind) else ""
        if len(some) == 1 or content[first] in get_args(get_type_hints(kind)[first]):
            return kind
    raise ValueError("of no kind that is known")
