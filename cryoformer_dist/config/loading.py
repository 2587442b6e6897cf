"""YAML files and ``key=value`` overrides into checked configurations."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, JsonValue, ValidationError

from cryoformer_dist.config.cluster import ClusterConfig, ClusterFile
from cryoformer_dist.config.keys import suggest_keys
from cryoformer_dist.config.plain_values import PlainValues
from cryoformer_dist.config.yaml_text import load_yaml
from cryoformer_dist.errors import ConfigError

Config = TypeVar("Config", bound=BaseModel)

_MOST_MISTAKES, _LONGEST_LINE = 20, 400


def load_config(path: Path, schema: type[Config], overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, apply dotted overrides, and check it whole.

    Parameters
    ----------
    path
        YAML file.
    schema
        ``RunConfig``, ``ClusterFile``, ``SweepConfig`` or ``SimulationConfig``.
    overrides
        ``dotted.key=value``, the value in YAML.

    Raises
    ------
    ConfigError
        If the file is missing or not YAML, an override is not ``key=value``, or the schema refuses something: every
        mistake is listed at once with its dotted key.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; `cryoformer-dist init .` writes starter files")
    values = parse_yaml(_read_text(path), str(path))
    for override in overrides:
        _apply_override(values, override)
    return parse_config(values, schema, str(path))


def parse_yaml(text: str, where: str) -> PlainValues:
    """Plain values of a YAML text.

    Raises
    ------
    ConfigError
        If it is not YAML, or not ``key: value`` lines.
    """
    values = load_yaml(text, where)
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: must hold `key: value` lines, found a {type(values).__name__}")
    return values


def load_cluster(path: Path) -> ClusterConfig:
    """Read a cluster file; see `load_config`."""
    cluster: ClusterConfig = load_config(path, ClusterFile).root
    return cluster


def parse_overrides(overrides: Sequence[str], schema: type[Config], where: str) -> Config:
    """A configuration made of overrides alone, everything else at its default."""
    values: PlainValues = {}
    for override in overrides:
        _apply_override(values, override)
    return parse_config(values, schema, where)


def parse_config(values: PlainValues, schema: type[Config], where: str) -> Config:
    """Check plain values against a schema; see `load_config`."""
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        mistakes = _explain_all(error, schema)
        lines = [f"  {line}" for line in mistakes[:_MOST_MISTAKES]]
        lines += [f"  and {len(mistakes) - _MOST_MISTAKES} more"] if len(mistakes) > _MOST_MISTAKES else []
        raise ConfigError(
            "\n".join([f"{where}: {len(mistakes)} mistake{'s' * (len(mistakes) > 1)}", *lines])
        ) from error


def mistakes_in(values: PlainValues, schema: type[BaseModel]) -> list[str]:
    """What a schema refuses in plain values, one line each; none when they pass."""
    try:
        schema.model_validate(values)
    except ValidationError as error:
        return _explain_all(error, schema)
    return []


def set_value(values: PlainValues, key: str, value: JsonValue) -> None:
    """Put a value at a dotted key, in place.

    Raises
    ------
    ConfigError
        If a part of the key holds a value and no section.
    """
    *sections, last = key.split(".")
    target = values
    for section in sections:
        inner = target.setdefault(section, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{key}: {section!r} holds a value, not a section")
        target = inner
    target[last] = value


def dump_config(config: BaseModel) -> str:
    """The resolved configuration as YAML, every default written out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def dump_yaml(*documents: Mapping[str, Any]) -> str:
    """Plain values as YAML documents for other programs, texts of several lines as they are read."""
    return yaml.dump_all(documents, Dumper=_Readable, sort_keys=False, width=120)


class _Readable(yaml.SafeDumper):
    """Writes a text of several lines line by line."""


def _lines_or_one(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Readable.add_representer(str, _lines_or_one)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start + 1} is not UTF-8 text; save the file as UTF-8") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); check the file and its permissions") from error


def _dotted(place: Sequence[int | str]) -> str:
    return ".".join(map(str, place)) or "(file)"


def _explain_all(error: ValidationError, schema: type[BaseModel]) -> list[str]:
    # A cluster file's places start with its provider, which is no key.
    skip = int(schema is ClusterFile)
    return [_shortened(f"{_dotted(item['loc'][skip:])}: {_explain(item, schema)}") for item in error.errors()]


def _shortened(line: str) -> str:
    """The start of a line; a mistake is not told by repeating all of a long value."""
    return line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]} ... ({len(line)} characters)"


def _explain(item: Any, schema: type[BaseModel]) -> str:
    """One schema complaint in words a microscopist can act on."""
    if item["type"] == "extra_forbidden":
        near = suggest_keys(schema, item["loc"])
        return f"no such key; did you mean {' or '.join(near)}?" if near else "no such key; check the spelling"
    if item["type"] == "missing":
        return "is required"
    if item["type"] == "value_error":
        return str(item["ctx"]["error"])
    if item["type"] == "union_tag_invalid":
        return f"provider: no {item['ctx']['tag']!r} among {item['ctx']['expected_tags']}"
    return f"{item['msg']} (got {item['input']!r})"


def _apply_override(values: PlainValues, override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"override {override!r}: write dotted.key=value, as in training.epochs=5")
    value = load_yaml(text, f"override {override!r}")
    try:
        set_value(values, key, value)
    except ConfigError as error:
        raise ConfigError(f"override {override!r}: {error}") from error
