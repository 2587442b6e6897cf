import pytest

from cryoformer_dist.config.yaml_text import load_yaml
from cryoformer_dist.errors import ConfigError


def refused(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=rf"^a\.yaml.*{words}") as caught:
        load_yaml(text, "a.yaml")
    assert len(str(caught.value)) < 600


def test_plain_values_are_read_as_they_are_meant():
    text = "a: 1\nb: [0.5, yes, null, 'x']\nc: {d: 1e-3}\ne:\n"
    expected = {"a": 1, "b": [0.5, True, None, "x"], "c": {"d": "1e-3"}, "e": None}
    assert load_yaml(text, "a.yaml") == expected


@pytest.mark.parametrize("date", ["2026-01-03", "2020-13-45", "2001-12-14 21:59:43"])
def test_a_date_is_a_text(date):
    assert load_yaml(f"name: {date}", "a.yaml") == {"name": date}


def test_an_alias_stands_for_its_value():
    assert load_yaml("a: &x [1, 2]\nb: *x", "a.yaml") == {"a": [1, 2], "b": [1, 2]}


@pytest.mark.parametrize("text", ["a: !!int ''", "a: !!timestamp x", "a: !!python/object:os.system x", "a: !own 1"])
def test_a_tag_is_refused(text):
    refused(text, "line 1: the tag .* is not read")


def test_a_key_that_is_there_twice_is_refused():
    refused("a:\n  b: 1\n  c: 2\n  b: 3", "(?s:.*)'b' is there twice")


@pytest.mark.parametrize("levels", [50, 3000, 100_000])
def test_deep_nesting_is_refused(levels):
    refused("a: " + "[" * levels, "nested deeper than 40 levels")


def test_aliases_of_aliases_are_counted_and_never_built():
    lines = ["z: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"z{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    refused("\n".join(lines), "more than 20000 values")
    deep = ["z: &a0 [x]", *(f"z{n}: &a{n} [[[[[*a{n - 1}]]]]]" for n in range(1, 20))]
    refused("\n".join(deep), "nested deeper")


@pytest.mark.parametrize("text", ["a: &a [*a]", "a: *b"])
def test_an_alias_of_nothing_finished_is_refused(text):
    refused(text, "")


@pytest.mark.parametrize("text", ["a: 0x_", "a: 0b_", "a: " + "9" * 5000, "a: 0x" + "f" * 5000, "a: \0", "? [1]\n: 2"])
def test_what_is_no_value_is_refused(text):
    refused(text, "not valid YAML")


def test_a_text_of_another_size_is_refused_unread():
    refused("#" * 200_001, "200001 characters are no configuration")
