"""An index template that is there before the first record: an index that a record makes has its mappings from
then on, whatever a template says later. One that is there already is left as it is, whoever made it.
"""

from __future__ import annotations

import re
from typing import Final

import orjson

from nodeagent.logs.sinks.http_client import HttpClient
from nodeagent.logs.sinks.refusals import reason_of
from nodeagent.logs.sinks.settings import IndexTemplate

_PLACE: Final = re.compile(r"\{[^}]*\}")
_HEADERS: Final = {"Content-Type": "application/json"}


class TemplateUpkeep:
    """Puts one template, once."""

    def __init__(self, settings: IndexTemplate, index: str) -> None:
        """*index*: the name with places in it that records go to."""
        self._name = settings.name
        self._body = {"index_patterns": [_PLACE.sub("*", index)], **settings.body}
        self._there = False

    async def lacking(self, client: HttpClient) -> str:
        """Have it put where there is none; return why there is none yet, empty: there is one. Raises SinkError."""
        if self._there:
            return ""
        path = f"/_index_template/{self._name}"
        found = await client.post(path, {}, b"", method="GET")
        if found.status == 404:
            # create: whoever was faster has made it.
            found = await client.post(f"{path}?create=true", _HEADERS, orjson.dumps(self._body), method="PUT")
            if found.status == 400 and b"already exists" in found.body:
                found = await client.post(path, {}, b"", method="GET")
        self._there = found.status == 200
        return "" if self._there else f"its index template {self._name}: {found.status}: {reason_of(found.body)}"
