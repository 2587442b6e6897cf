"""Self-contained HTML pages, all in one style."""

from html import escape
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined

from cryoformer_dist.runs.glossary import GLOSSARY, find_words


def fill_template(template: str, **values: Any) -> str:
    """A page from a template of this folder; a value it names and does not get is an error."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["explained"] = explain_words
    here = files(__package__)
    style = here.joinpath("report_style.css").read_text("utf-8")
    return environment.from_string(here.joinpath(template).read_text("utf-8")).render(style=style, **values)


def explain_words(text: str) -> str:
    """The text as markup; words of the glossary show their meaning when pointed at, each once."""
    parts, done = [], 0
    for start, end, word in find_words(text):
        parts += [escape(text[done:start]), f'<abbr title="{escape(GLOSSARY[word])}">{escape(text[start:end])}</abbr>']
        done = end
    return "".join([*parts, escape(text[done:])])
