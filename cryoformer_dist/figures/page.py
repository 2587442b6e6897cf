"""Self-contained HTML pages, all in one style."""

from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined


def fill_template(template: str, **values: Any) -> str:
    """A page from a template of this folder; a value it names and does not get is an error."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    here = files(__package__)
    style = here.joinpath("report_style.css").read_text("utf-8")
    return environment.from_string(here.joinpath(template).read_text("utf-8")).render(style=style, **values)
