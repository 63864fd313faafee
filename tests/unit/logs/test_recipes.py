"""From agent.yaml to how lines are made into records: rules go by the names that an application writes."""

from __future__ import annotations

import json

import pytest

from nodeagent.logs.process.processor import ProcessCounts, Processor
from nodeagent.logs.recipes import Recipes
from nodeagent.logs.records import Chunk
from nodeagent.logs.settings import LogSettings
from nodeagent.logs.sources import Reading, SourceFacts
from nodeagent.vocabulary import PodUid
from tests.unit.logs.made_records import origin

FACTS = SourceFacts("file/u/v/a", "file", PodUid("u"), "shop", "web", "", "v/a", reading=Reading(sinks=("all",)))


@pytest.mark.parametrize("member", ["stream", "@timestamp", "kubernetes.token", "log_file"])
def test_a_rule_finds_a_member_by_the_name_that_the_application_gives_it(member: str) -> None:
    rules = [{"redact": {"matches": "SECRET", "field": member}}]
    settings = LogSettings.model_validate({"sinks": [{"name": "all", "stdout": {}}], "rules": rules})
    name, _, inner = member.partition(".")
    line = json.dumps({name: {inner: "SECRET"} if inner else "SECRET"}).encode()
    made = Processor(origin("web"), Recipes(settings).recipe(FACTS, "plain"), ProcessCounts())
    found = made.feed(Chunk(b"f00d", 0, line + b"\n", True), 1767225600.0)
    assert b"SECRET" not in found.objects[0]
    assert b"SECRET" not in found.texts[0]
