"""Section ``logs`` of agent.yaml: what is wrong in it is named before anything starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from nodeagent import config
from nodeagent.errors import ConfigError
from nodeagent.logs.process.members import RecordMember
from nodeagent.logs.process.times import TimeKey
from nodeagent.logs.recipes import Recipes
from nodeagent.logs.settings import LogSettings

SINK = {"name": "all", "stdout": {}}

FILE = {"name": "file", "file": {"path": "/var/log/x.log"}}
SAME = {"name": "same", "file": {"path": "/var/log/./x.log"}}


def load(folder: Path, logs: dict[str, Any]) -> config.AgentConfig:
    path = folder / "agent.yaml"
    base = {"source": "/nowhere", "identity": {"caDirectory": "/nowhere"}, "redirect": {"cgroup": "/nowhere"}}
    path.write_text(yaml.safe_dump({**base, "logs": logs}))
    return config.load(path)


def test_the_least_that_works(tmp_path: Path) -> None:
    logs = load(tmp_path, {"sinks": [SINK]}).logs
    assert logs is not None
    assert (logs.containers, logs.sink_names()) == ("all", ("all",))


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"sinks": []}, "logs.sinks", "at least 1"),
        ({"sinks": [{"name": "x"}]}, "logs.sinks.0", "one of elasticsearch, loki"),
        ({"sinks": [SINK, SINK]}, "logs", "'all' is given twice"),
        ({"colour": 1}, "logs.colour", "no such key"),
        ({"files": [{"name": "a", "volume": "v", "path": "/etc/passwd"}]}, "logs.files.0.path", "below the volume"),
        ({"files": [{"name": "a", "volume": "v", "path": "../x"}]}, "logs.files.0.path", "without .."),
        ({"files": [{"name": "a", "volume": "..", "path": "x"}]}, "logs.files.0.volume", "a DNS label"),
        ({"files": [{"name": "a", "volume": "v", "parser": "jsn"}]}, "logs", "files.a.parser: one of auto, json"),
        ({"files": [{"name": "a", "volume": "v", "parser": "cri"}]}, "logs", "files.a.parser: one of auto, json"),
        ({"files": [{"name": "a", "volume": "v", "multiline": "x"}]}, "logs", "files.a.multiline: one of java"),
        ({"files": [{"name": "a", "volume": "v", "sinks": ["x"]}]}, "logs", "files.a.sinks: one of all"),
        ({"routes": [{"sinks": ["nobody"]}]}, "logs", "routes.0.sinks: one of all"),
        ({"podSinks": ["nobody"]}, "logs", "podSinks: one of all"),
        ({"podSinks": ["all", "all"]}, "logs", "podSinks: a name that is given once is expected, 'all' is given twice"),
        ({"routes": [{"sinks": ["all", "all"]}]}, "logs", "routes.0.sinks: a name that is given once"),
        ({"files": [{"name": "a", "volume": "v", "sinks": ["all", "all"]}]}, "logs", "files.a.sinks: a name that is"),
        ({"node": {"files": [{"path": "/a", "sinks": ["all", "all"]}]}}, "logs", "node.files /a.sinks: a name that is"),
        ({"node": {"files": [{"path": "var/log/x"}]}}, "logs.node.files.0.path", "absolute"),
        ({"parsers": [{"name": "p", "type": "regex"}]}, "logs.parsers.0", "type regex, which needs one"),
        ({"parsers": [{"name": "p", "type": "regex", "pattern": "(?P<a>x"}]}, "logs.parsers.0", "RE2"),
        ({"parsers": [{"name": "p", "type": "regex", "pattern": "a"}]}, "logs.parsers.0", "named group"),
        ({"parsers": [{"name": "json", "type": "json"}]}, "logs", "'json' is given twice, or built in"),
        ({"multiline": [{"name": "m", "start": "(?<=a)b"}]}, "logs.multiline.0.start", "no look-around"),
        ({"rules": [{}]}, "logs.rules.0", "exactly one of drop and redact"),
        ({"rules": [{"drop": {"matches": "["}}]}, "logs.rules.0.drop.matches", "RE2"),
        ({"rules": [{"drop": {"matches": "x", "field": "a..b"}}]}, "logs.rules.0.drop.field", "1 to 8 parts"),
        ({"rules": [{"drop": {"matches": "x", "field": 'a"b'}}]}, "logs.rules.0.drop.field", "without quotes"),
        ({"rules": [{"redact": {"matches": "x", "field": "a.b\\c"}}]}, "logs.rules.0.redact.field", "without quotes"),
        ({"parsers": [{"name": "p", "type": "json", "timeKey": "a\tb"}]}, "logs.parsers.0.timeKey", "without quotes"),
        ({"parsers": [{"name": "p", "type": "json", "timeFormat": "%Y %Y"}]}, "logs.parsers.0.timeFormat", "twice"),
        ({"parsers": [{"name": "p", "type": "json", "timeFormat": "%L%f"}]}, "logs.parsers.0.timeFormat", "twice"),
        ({"parsers": [{"name": "p", "type": "json", "timeFormat": "%c %H"}]}, "logs.parsers.0.timeFormat", "another"),
        ({"limits": {"lineBytes": "1Ki", "files": 0}}, "logs.limits.files", "1 or more is expected"),
        ({"multiline": [{"name": "m", "start": "("}]}, "logs.multiline.0.start", "'('"),
        ({"sinks": [FILE, SAME]}, "logs", "sinks.same: /var/log/x.log is written by sink file"),
        ({"sinks": [FILE, {**SAME, "file": {"path": "/var/log/x.log.2"}}]}, "logs", "sinks.same: /var/log/x.log.2 is"),
        ({"sinks": [FILE], "node": {"files": [{"path": "/var/log/x.log"}]}}, "logs", "sinks.file: /var/log/x.log"),
        ({"sinks": [FILE], "node": {"files": [{"path": "/var/log/./x.log.1"}]}}, "logs", "where nothing is read"),
        ({"sinks": [FILE], "podLogs": "/var/log"}, "logs", "is below /var/log"),
        ({"metadata": {"text": "a.b"}}, "logs.metadata.text", "letters, digits and _"),
        ({"metadata": {"text": "stream"}}, "logs.metadata.text", "something else there"),
        ({"containers": "some"}, "logs.containers", "'none', 'labelled' or 'all'"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, change: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, {"sinks": [SINK], **change})
    assert f"agent.yaml: {field}: " in str(caught.value)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@given(field=st.text(max_size=12), form=st.text("%YmdHcxXyLNfsTj: -", max_size=8))
def test_what_is_accepted_is_what_the_collector_can_compile(field: str, form: str) -> None:
    """It would end at each start otherwise, and nothing of the node would be read."""
    parser = {"name": "p", "type": "json", "timeKey": field, "timeFormat": form}
    rule = {"drop": {"matches": "x", "field": field}}
    try:
        settings = LogSettings.model_validate({"sinks": [SINK], "parsers": [parser], "rules": [rule]})
    except ValidationError:
        return
    Recipes(settings)
    if field:
        objects = [json.dumps({field: value}, ensure_ascii=False).encode() for value in ("x", "2026-11-29 10")]
        TimeKey(RecordMember(field), form).times(objects, 2026)


def test_sizes_may_be_texts(tmp_path: Path) -> None:
    logs = load(tmp_path, {"sinks": [SINK], "limits": {"lineBytes": "64Ki", "bytesPerSecondPerPod": "2MiB"}}).logs
    assert logs is not None
    assert (logs.limits.line_bytes, logs.limits.bytes_per_second_per_pod) == (64 << 10, 2 << 20)


def test_a_password_in_a_url_is_refused_and_not_shown(tmp_path: Path) -> None:
    sink = {"name": "all", "elasticsearch": {"urls": ["https://shipper:hunter2@search:9200"]}}
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, {"sinks": [sink]})
    assert "user or password" in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("auth", "field", "words"),
    [
        ({"basic": {"user": "u", "password": "hunter2"}}, "auth.basic.password", "is passwordFile meant"),
        ({"basic": {"user": "u", "passwordFile": "hunter2"}}, "auth.basic.passwordFile", "not the secret itself"),
        ({"basic": {"passwordFile": "/a"}, "bearerFile": "hunter2"}, "auth.basic.user", "is required"),
        ({"bearer": "hunter2"}, "auth.bearer", "is bearerFile meant"),
        ({"apiKeyFile": "hunter2"}, "auth.apiKeyFile", "not the secret itself"),
    ],
)
def test_a_secret_in_place_of_its_file_is_refused_and_not_shown(
    tmp_path: Path, auth: dict[str, Any], field: str, words: str
) -> None:
    sink = {"name": "all", "elasticsearch": {"urls": ["https://search:9200"], "auth": auth}}
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, {"sinks": [sink]})
    assert f"logs.sinks.0.elasticsearch.{field}: " in str(caught.value)
    assert words in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"limits": {"lineByte": 1}},
            "limits.lineByte: no such key is known; is lineBytes meant? There are lineBytes, bytesPerSecondPerPod",
        ),
        ({"limits": {"lineBytes": 10}}, "lineBytes: 1024 or more is expected, not 10"),
        ({"sinks": [{"name": "A", "stdout": {}}]}, "?$ is expected, not 'A'"),
        (
            {"sinks": [{"name": "a", "forward": {"addresses": "f:1"}}]},
            "addresses: a list is expected, not 'f:1'",
        ),
        ({"rules": [{"drop": {"matches": "("}}]}, "'(' is not a pattern of RE2: missing ): (;"),
        ({"parsers": [{"name": "p", "type": "json", "timeFormat": "%Q"}]}, "timeFormat: 'Q' is a bad directive in"),
        ({"containers": "some"}, "logs.containers: 'none', 'labelled' or 'all' is expected, not 'some'"),
        ({"sinks": []}, "logs.sinks: at least 1 are expected"),
        ({"stateDirectory": "state"}, "logs.stateDirectory: an absolute path is expected, not 'state'"),
    ],
)
def test_what_is_wrong_is_said_in_words_and_once(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, {"sinks": [SINK], **change})
    assert said in str(caught.value)
    assert "more)" not in str(caught.value)


def test_a_section_with_nothing_below_is_no_section_that_is_off(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"logs: nothing stands behind it; a value is expected, or no such key"):
        load(tmp_path, None)
