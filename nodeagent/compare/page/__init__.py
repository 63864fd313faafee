"""The report of a comparison: one HTML page that needs nothing but itself, and the numbers beside
it.

``shape.py`` reads the JSON object of a comparison, ``view.py`` decides what is said of it,
``look.py`` how figures are written, ``charts.py`` draws.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import jinja2

from nodeagent.compare.page import look, view
from nodeagent.compare.page.shape import PageError, Summary

__all__ = ["PageError", "page", "write"]


def page(summary: Mapping[str, object]) -> str:
    """Return the HTML page for *summary*, the JSON object of a comparison; what is absent from it
    is said to be. Raises PageError.
    """
    read = Summary.read(summary)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"view": view, "look": look}
    environment.filters |= {
        each.__name__: each
        for each in (look.figure, look.microseconds, look.size, look.times, look.variable, view.told)
    }
    return environment.get_template("page.html").render(summary=read)


def write(summary: Mapping[str, object], directory: Path) -> Path:
    """Write ``index.html`` and ``results.json`` for *summary* into *directory*, which is made;
    return the page's path. Raises PageError.
    """
    text = page(summary)
    path = directory / "index.html"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "results.json").write_text(json.dumps(summary, indent=1, default=str) + "\n", encoding="utf-8")
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise PageError(f"{error.filename or directory}: cannot be written: {error.strerror}") from None
    return path
