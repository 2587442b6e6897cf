"""YAML texts into plain values: bounded in size and depth, without the surprises of the full language."""

from typing import Any

import yaml

from cryoformer_dist.errors import ConfigError

# Far beyond any configuration; what is larger would take seconds and hundreds of megabytes.
_MOST_CHARACTERS, _MOST_VALUES, _DEEPEST, _LONGEST_NUMBER = 200_000, 20_000, 40, 400


def load_yaml(text: str, where: str) -> Any:
    """Plain values of a YAML text: mappings, lists, texts, numbers, truth values and nothing.

    Dates stay texts. Aliases count as what they stand for.

    Raises
    ------
    ConfigError
        If it is not YAML, a key is there twice, a tag names a type, or it is larger or nested deeper than any
        configuration.
    """
    if len(text) > _MOST_CHARACTERS:
        raise ConfigError(f"{where}: {len(text)} characters are no configuration; at most {_MOST_CHARACTERS} are read")
    try:
        _refuse_outgrown(text, where)
        return yaml.load(text, Loader=_PlainLoader)
    except ConfigError:
        raise
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not valid YAML: {str(error)[:400]}; correct the text") from error
    # What makes a number of a text that only looks like one.
    except (ValueError, OverflowError) as error:
        raise ConfigError(f"{where}: not valid YAML: {str(error)[:400]}; put a text in quotes") from error


class _PlainLoader(yaml.SafeLoader):
    """Reads dates as texts, and refuses a key that is there twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a text", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is there twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_number(self, node: yaml.ScalarNode) -> int:
        if len(node.value) > _LONGEST_NUMBER:
            problem = f"a number of {len(node.value)} characters"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return self.construct_yaml_int(node)


_PlainLoader.add_constructor("tag:yaml.org,2002:int", _PlainLoader.construct_number)
_PlainLoader.yaml_implicit_resolvers = {
    start: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for start, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class _Growth:
    """How many values a text becomes, and how many levels of them, as its parts go by.

    Attributes
    ----------
    opened
        Of the text and each collection that is open: its anchor, its values and levels so far.
    anchors
        Values and levels of what aliases may stand for.
    """

    def __init__(self) -> None:
        self.opened: list[tuple[str | None, int, int]] = [(None, 0, 0)]
        self.anchors: dict[str, tuple[int, int]] = {}

    @property
    def values(self) -> int:
        return sum(values for _, values, _ in self.opened)

    @property
    def levels(self) -> int:
        return len(self.opened) + self.opened[-1][2]

    def follow(self, event: yaml.Event) -> None:
        anchor = getattr(event, "anchor", None)
        if isinstance(event, yaml.CollectionStartEvent):
            self.opened.append((anchor, 1, 0))
        elif isinstance(event, yaml.CollectionEndEvent):
            self._add(*self.opened.pop())
        elif isinstance(event, yaml.AliasEvent):
            self._add(None, *self.anchors.get(str(anchor), (1, _DEEPEST)))
        elif isinstance(event, yaml.ScalarEvent):
            self._add(anchor, 1, 0)

    def _add(self, anchor: str | None, values: int, levels: int) -> None:
        if anchor is not None:
            self.anchors[anchor] = (values, levels)
        outer, outer_values, outer_levels = self.opened[-1]
        self.opened[-1] = (outer, outer_values + values, max(outer_levels, levels + 1))


def _refuse_outgrown(text: str, where: str) -> None:
    """Go through a text without building anything, and see how much it would become.

    Raises
    ------
    ConfigError
        If that is too much, or it has a tag. An alias of something unfinished is endless.
    """
    growth = _Growth()
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = event.start_mark.line + 1 if event.start_mark else 0
        tag = getattr(event, "tag", None)
        if tag is not None:
            raise ConfigError(f"{where}, line {line}: the tag {tag[:80]!r} is not read; leave it out")
        growth.follow(event)
        if growth.levels > _DEEPEST:
            raise ConfigError(f"{where}, line {line}: nested deeper than {_DEEPEST} levels; no configuration is")
        if growth.values > _MOST_VALUES:
            raise ConfigError(f"{where}, line {line}: more than {_MOST_VALUES} values, aliases included; write less")
