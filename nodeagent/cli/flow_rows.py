"""The rows of ``nodeagent flows``: which ones are asked for, and how they read. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from nodeagent.cli.output import Column, Row, clock

_CLUSTER: Final = ".svc.cluster.local"


@dataclass(frozen=True, slots=True)
class Filter:
    """What is asked for; an empty field asks for nothing in particular. Names may hold ``*`` and ``?``."""

    source: str = ""
    destination: str = ""
    namespace: str = ""
    verdicts: frozenset[str] = frozenset()
    codes: tuple[str, ...] = ()
    """``403`` or ``4xx``."""
    since: float = 0.0
    """Unix seconds: what ended before is left out."""
    probes: bool = False

    def _is_code(self, code: int) -> bool:
        """Say whether *code*, or its class (``5xx``), is asked for."""
        return str(code) in self.codes or f"{code // 100}xx" in self.codes

    def takes(self, row: Row) -> bool:
        """Say whether *row* is asked for."""
        return (
            (self.probes or not row.get("probe"))
            and (row["closed"] or math.inf) >= self.since
            and (not self.verdicts or row["verdict"] in self.verdicts)
            and (not self.codes or any(self._is_code(code) for code in row["codes"]))
            and _named(self.source, _sources(row))
            and _named(self.destination, _destinations(row))
            and (not self.namespace or self.namespace in _namespaces(row))
        )


def _named(wanted: str, names: Iterable[str]) -> bool:
    return not wanted or any(fnmatchcase(name, wanted) for name in names)


def _sources(row: Row) -> Iterator[str]:
    yield from _names(row["source"])
    yield row["source_identity"]


def _destinations(row: Row) -> Iterator[str]:
    yield from _names(row["destination"])
    yield row["destination_identity"]
    if host := row["service"]:
        name, _, rest = host.partition(".")
        namespace = rest.removesuffix(_CLUSTER.removeprefix(".")).rstrip(".")
        yield from (host, name, f"{name}.{namespace}", f"{namespace}/{name}")


def _names(end: str) -> Iterator[str]:
    """Yield the names of one end, ``NAMESPACE/POD``, ``NAMESPACE/POD:PORT`` or ``ADDRESS:PORT``:
    with and without namespace and port.
    """
    whole = end if end.endswith("]") or (":" not in end) else end.rpartition(":")[0].strip("[]")
    for name in (end, whole):
        yield name
        yield name.rpartition("/")[2]


def _namespaces(row: Row) -> set[str]:
    ends = {end.partition("/")[0] for end in (row["source"], row["destination"]) if "/" in end}
    host = row["service"]
    return ends | {host.split(".")[1]} if host.endswith(_CLUSTER) else ends


def last(rows: Iterable[Row], count: int) -> list[Row]:
    """Return the *count* rows that ended last (0: all), those that are open at the end."""
    ordered = sorted(rows, key=lambda row: (row["closed"] or math.inf, row["opened"]))
    return ordered[-count:]


def _lasted(row: Row) -> str:
    if not row["closed"]:
        return "open"
    seconds = max(row["closed"] - row["opened"], 0.0)
    if seconds < 10:
        return f"{seconds:.1f}s"
    if seconds < 100:
        return f"{seconds:.0f}s"
    if seconds < 6000:
        return f"{seconds / 60:.0f}m"
    return f"{seconds / 3600:.0f}h"


def _to(row: Row) -> str:
    return str(row["service"].removesuffix(_CLUSTER) if row["service"].endswith(_CLUSTER) else row["destination"])


def _answers(row: Row) -> str:
    """Return the last status codes and those of gRPC, those that repeat once; a dash where none was sent."""
    codes = _changes(row["codes"])
    calls = _changes(row.get("grpc_statuses", ()))
    return f"{codes} grpc {calls}" if calls else codes


def _changes(codes: Sequence[object]) -> str:
    return ",".join(str(code or "-") for at, code in enumerate(codes) if not at or code != codes[at - 1])


def _verdict(row: Row) -> str:
    times = row.get("times", 1)
    why = " ".join(
        str(part)
        for part in (row["reason"], row["policy"] if row["reason"] else "", f"({times} times)" if times > 1 else "")
        if part
    )
    return f"{row['verdict']}: {why}" if why else str(row["verdict"])


def short(count: float) -> str:
    """Return a number of bytes in at most five characters, by powers of 1024."""
    for unit in ("", "K", "M", "G"):
        if count < 1000:
            return f"{count:.0f}{unit}" if count >= 10 or not unit else f"{count:.1f}{unit}"
        count /= 1024
    return f"{count:.1f}T"


COLUMNS: Final = (
    *(
        Column("TIME", "opened", clock),
        Column("LASTED", "lasted", extra=True),
        Column("FROM", "source", wrap=True),
        Column("TO", "to", wrap=True),
    ),
    *(
        Column("PATH", "path", lambda path: str(path).removeprefix("proxy-")),
        Column("REQS", "requests", right=True),
        Column("CODES", "answers"),
    ),
    *(Column("IN", "received", short, right=True, extra=True), Column("OUT", "sent", short, right=True, extra=True)),
    Column("VERDICT", "told", wrap=True),
)


def readable(row: Row) -> Row:
    """Return *row* with what the table shows besides."""
    return {**row, "lasted": _lasted(row), "to": _to(row), "answers": _answers(row), "told": _verdict(row)}
