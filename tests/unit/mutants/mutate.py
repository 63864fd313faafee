"""Mutants of what is right: from a seeded generator, so that each can be made again."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from random import Random
from typing import Any

VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1 << 31,
    1 << 70,
    -(1 << 70),
    1.5,
    1e300,
    "",
    " ",
    "x",
    "*",
    "{*}",
    "/{**}/x",
    "\0",
    "a\nb",
    "\ud800",
    "é" * 300,
    "9" * 400,
    [],
    {},
    [[]],
    [None],
    [1],
    {"": ""},
    {"a": {"b": {}}},
    "1.2.3.4/99",
    "::/0",
    "[::1",
    "http://[",
    "http://a:b/",
    "http://\u2100/",
    "٣",
    "²",
    "1h1h",
    "%",
    "2026-99-99T99:99:99Z",
    "request.auth.claims[a][b]",
    "request.headers[]",
    "../../etc",
    "/../x",
    "//",
    "/run/a\0b",
    "/run/\ud800",
    "/" + "a/" * 3000,
    "0",
    "65536",
    "1,2,,x",
    "²,³",
    "enabled",
    "false",
    "-",
    ".",
    "..",
    "a/b",
    "spiffe://x",
    "true\n",
    "\x7f",
    "\u202e",
    "A" * 5000,
)
"""What takes the place of any value: the ends of every type, and what looks like what is expected."""
TEXTS = (
    "!!bool x",
    '!!int ""',
    "!!float .",
    "!!timestamp x",
    "!!binary x",
    "!!set {a}",
    "!!python/object/apply:os.system [x]",
    "!foo x",
    "&a [*a]",
    "*b",
    "&a x",
    "*a",
    "<<: *a",
    "? [a]\n: b",
    "[" * 70,
    "{a: " * 70,
    "- " * 70,
    "%YAML 9.9\n---",
    "---",
    "...",
    "\t",
    "1:00:00",
    "1" + ":00" * 180 + ".5",
    ".inf",
    ".nan",
    "0o9",
    "0x_",
    "9" * 5000,
    '"\\ud800"',
    '"\\0"',
    "\x00",
    "\x85",
    "\ufeff",
    "|",
    ">",
    "'",
    '"',
    "#",
    ": ",
    "}",
    "]",
    "~",
    "yes",
    "on",
    "=",
)
"""What is put into the text of YAML."""


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value below *value*."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield (*path, key)
        yield from places(child, (*path, key))


def of_value(chance: Random, value: Any) -> Any:
    """Return *value* with up to three of its parts replaced, removed, doubled, wrapped or given another name."""
    made = copy.deepcopy(value)
    for _ in range(chance.choice((1, 1, 2, 3))):
        found = list(places(made))
        if not found:
            return made
        *way, last = chance.choice(found)
        holder = made
        for key in way:
            holder = holder[key]
        match chance.randrange(6):
            case 0 if isinstance(holder, dict):
                holder[str(chance.choice(VALUES))] = holder.pop(last)
            case 1:
                del holder[last]
            case 2 if isinstance(holder, list):
                holder.append(copy.deepcopy(holder[last]))
            case 3:
                holder[last] = nested(chance, holder[last])
            case _:
                holder[last] = copy.deepcopy(chance.choice(VALUES))
    return made


def nested(chance: Random, value: Any) -> Any:
    for _ in range(chance.choice((1, 2, 60, 300))):
        value = [value] if chance.random() < 0.5 else {"a": value}
    return value


def of_bytes(chance: Random, content: bytes) -> bytes:
    """Return *content* with up to three bits flipped, or parts cut off, out, doubled or overwritten."""
    made = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 3))):
        at, length = chance.randrange(len(made) or 1), chance.choice((1, 2, 8, 64))
        match chance.randrange(6):
            case 0:
                del made[at:]
            case 1:
                del made[at : at + length]
            case 2:
                made[at:at] = made[at : at + length]
            case 3:
                made[at : at + length] = chance.randbytes(length)
            case _ if made:
                made[at] ^= 1 << chance.randrange(8)
    return bytes(made)


def of_yaml(chance: Random, text: str) -> bytes:
    """Return *text* with bytes changed, or with something of YAML put in or in a scalar's place."""
    if chance.random() < 0.3:
        return of_bytes(chance, text.encode())
    for _ in range(chance.choice((1, 1, 2))):
        if chance.random() < 0.5:
            at = chance.randrange(len(text))
            text = text[:at] + chance.choice(TEXTS) + text[at:]
        else:
            lines = text.split("\n")
            at = chance.randrange(len(lines))
            lines[at] = lines[at].partition(": ")[0] + ": " + chance.choice(TEXTS)
            text = "\n".join(lines)
    return text.encode("utf-8", "surrogatepass")


def of_json(chance: Random, value: Any) -> bytes:
    """Return *value* as JSON, its parts changed or its text."""
    if chance.random() < 0.3:
        return of_bytes(chance, json.dumps(value).encode())
    return json.dumps(of_value(chance, value)).encode()
