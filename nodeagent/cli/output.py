"""What lists look like: a table for people, JSON or YAML for programs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import click

Output = Literal["table", "json", "yaml"]
Row = Mapping[str, Any]

output_option = click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "json", "yaml"]),
    default="table",
    show_default=True,
    help="How to print.",
)


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: its title, the row's key, and how the value reads."""

    title: str
    key: str
    show: Callable[[Any], str] = str
    right: bool = False
    wrap: bool = False
    """In a terminal that is too narrow this one gives way, over several lines."""
    extra: bool = False
    """In such a terminal it is left out, the last ones first: other formats and a pipe show everything."""


NODE: Final = Column("NODE", "node")
WRAPPED: Final = 16
"""Characters that a column which wraps keeps."""


def emit(rows: Sequence[Row], columns: Sequence[Column], output: Output) -> None:
    """Print *rows*: whole in JSON and YAML, by *columns* in a table."""
    if output == "json":
        print(json.dumps(list(rows), indent=2, ensure_ascii=False))
    elif output == "yaml":
        print(_yaml(list(rows)), end="")
    else:
        _table(rows, columns)


def emit_one(row: Row, output: Output) -> None:
    """Print *row* at once, as one JSON line or one YAML document, for what goes on without end."""
    print(
        json.dumps(row, ensure_ascii=False) if output == "json" else f"---\n{_yaml(dict(row))}".rstrip("\n"), flush=True
    )


def emit_parts(value: Row, parts: Mapping[str, Sequence[Column]], output: Output) -> None:
    """Print *value* as :func:`emit_one` does, or as a table with a title for each of its *parts*, lists of rows."""
    if output != "table":
        emit_one(value, output)
        return
    for title, columns in parts.items():
        click.secho(title, bold=True)
        emit(value[title], columns, output)
        click.echo()


def _yaml(value: object) -> str:
    import yaml

    text: str = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=160)
    return text


def _table(rows: Sequence[Row], columns: Sequence[Column]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    # Into a pipe a row stays a line, whatever its length.
    console = Console(width=None if sys.stdout.isatty() else 1 << 16, highlight=False)
    columns = fitting(rows, columns, console.width)
    for column in columns:
        table.add_column(
            column.title,
            justify="right" if column.right else "left",
            overflow="fold",
            no_wrap=not column.wrap,
            min_width=_least(column, rows),
        )
    for row in rows:
        table.add_row(*[Text(cell(column, row)) for column in columns])
    console.print(table) if rows else console.print("nothing yet", style="dim")


def fitting(rows: Sequence[Row], columns: Sequence[Column], width: int) -> list[Column]:
    """Return *columns* without extra ones, the last first, for which *width* characters have no room."""
    kept = list(columns)
    needed = {column.title: _least(column, rows) for column in columns}
    for column in reversed(columns):
        if sum(needed[each.title] + 2 for each in kept) - 2 <= width:
            break
        if column.extra:
            kept.remove(column)
    return kept


def _least(column: Column, rows: Sequence[Row]) -> int:
    """Return the width that *column* needs to be readable."""
    whole = max([len(column.title), *(len(cell(column, row)) for row in rows)])
    return min(whole, max(len(column.title), WRAPPED)) if column.wrap else whole


def cell(column: Column, row: Row) -> str:
    """Return the text of one cell; what a terminal would act on is written out."""
    value = row.get(column.key)
    text = "" if value is None else column.show(value)
    if text.isprintable():
        return text
    return "".join([letter if letter.isprintable() else repr(letter)[1:-1] for letter in text])


def listed(values: Sequence[object]) -> str:
    """Return *values* separated by blanks, so that a narrow table can break between them."""
    return " ".join(map(str, values))


def clock(seconds: float) -> str:
    """Return Unix time as local time of day."""
    return time.strftime("%H:%M:%S", time.localtime(seconds))


def until(seconds: float) -> str:
    """Return Unix time as the time left until then, in its two largest units."""
    left = int(seconds - time.time())
    sign, left = ("-", -left) if left < 0 else ("", left)
    days = left // 86400
    hours = left // 3600 % 24
    minutes = left // 60 % 60
    if days:
        return f"{sign}{days}d{hours}h"
    return f"{sign}{hours}h{minutes}m" if hours else f"{sign}{minutes}m{left % 60}s"
