"""What the pages of logs say."""

from __future__ import annotations

from nodeagent.control.logs import with_troubles


def test_a_file_says_what_its_sinks_complain_of() -> None:
    files = [{"pod": "a", "sinks": ["good", "bad"]}, {"pod": "b", "sinks": ["good"]}]
    sinks = [{"name": "good", "trouble": ""}, {"name": "bad", "trouble": "http://s: refused"}]
    assert list(with_troubles(files, sinks)) == [{**files[0], "why": "sink bad: http://s: refused"}, files[1]]
