"""The report page: what it says, that it says what is missing, and that nothing from outside becomes markup."""

from __future__ import annotations

import copy
import json
import re
from functools import cached_property
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from nodeagent.compare.page import PageError, look, page, view, write
from nodeagent.compare.page.shape import Summary
from tests.unit.compare.sample import COST, WORKLOADS, run, summary

VOID = {"meta", "link", "br", "input", "path", "line", "use", "rect"}


class Reader(HTMLParser):
    """Collects the text, tags, attributes and ids of a page, and whether it is well-formed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.handlers: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        self._attributes(attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._attributes(attrs)

    def _attributes(self, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href", "action", "data", "poster"):
                self.references.append(value or "")
            if name.startswith("on"):
                self.handlers.append(name)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @cached_property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


def small() -> dict[str, Any]:
    """Return a summary that is drawn quickly."""
    whole = summary()
    return {**whole, "runs": whole["runs"][:2], "scale": whole["scale"][:2]}


@pytest.fixture(scope="module")
def read() -> Reader:
    return Reader(page(summary()))


def test_it_is_well_formed_and_needs_nothing_else(read: Reader) -> None:
    assert read.open == []
    assert not {"script", "iframe", "img", "object", "embed", "form"} & set(read.tags)
    assert all(reference.startswith("#") or reference == "data:," for reference in read.references)
    assert len(read.ids) == len(set(read.ids)), "ids of different charts do not collide"
    assert {reference[1:] for reference in read.references if reference.startswith("#")} <= set(read.ids)


def test_the_words_at_the_top(read: Reader) -> None:
    assert "one agent per node served 2.89 times the requests per second, needed 35 % of the time" in read.text
    assert (
        "For 100 pods on a node it took 51.0 MB of memory where sidecars took 2.33 GB: 1/46 of the memory." in read.text
    )
    assert "its kernel path ran at 98 % of the rate of a direct connection" in read.text


def headline(ours: dict[str, Any], theirs: dict[str, Any]) -> view.Headline:
    """Return what the page says of the agent's run *ours* against sidecars' *theirs*."""
    runs = [
        {**run(mode, "http", connections), **more}
        for mode, more in (("nodeagent", ours), ("envoy", theirs))
        for connections in (1, 32)
    ]
    (row,) = view.headlines(Summary.read({"runs": runs}))
    return row


def test_the_words_at_the_top_compare_round_by_round() -> None:
    """A machine that became slow in one round changes no ratio."""
    latency = {"p50": [100, 700, 100], "p99": [200, 1400, 200]}
    twice = {name: [2 * value for value in values] for name, values in latency.items()}
    ours = {"requests_per_second": 900, "rounds": [900, 100, 1000], "latency_rounds_us": latency}
    theirs = {"requests_per_second": 450, "rounds": [300, 50, 500], "latency_rounds_us": twice}
    row = headline(ours, theirs)
    assert (row.requests, row.p50, row.p99) == (2, 0.5, 0.5)


def test_runs_of_other_rounds_are_compared_by_their_figures() -> None:
    ours = {"requests_per_second": 900, "rounds": [900], "latency_rounds_us": {}, "latency_us": {"p50": 10, "p99": 30}}
    theirs = {"requests_per_second": 300, "rounds": [100, 300, 900], "latency_us": {"p50": 20, "p99": 0}}
    row = headline(ours, theirs)
    assert (row.requests, row.p50, row.p99) == (3, 0.5, None)


def test_variants_look_like_their_modes() -> None:
    assert look.known("nodeagent (2 workers)") is look.MODES["nodeagent"]
    assert look.known("nodeagentx") is look.OTHER
    assert view.modes(Summary.read(summary())) == list(COST)


def test_everything_is_on_it(read: Reader) -> None:
    for text in (
        *COST,
        *WORKLOADS,
        "99.999 %",
        "10 cores, 12.5 GB",
        "5 ms → 15 ms",
        "buffer size",
        "native sidecar",
        "0.45 ×",
        "0.0.0-test-data",
        "the kernel tells them apart",
        "41,233 log lines",
        "joins with traces",
        "Test data: measured nowhere.",
        "2 workers",
        "jwt_microseconds",
        "41.5",
        "between nodes, mTLS, 32 connections, p99",
    ):
        assert text in read.text
    assert read.tags.count("figure") == 2 + 2 + 6 + 14 + 2 + 22
    for each in summary()["runs"]:
        for value in each["latency_us"].values():
            assert f"{value:,}" in read.text


def test_what_to_doubt_comes_first(read: Reader) -> None:
    before = read.text[: read.text.index("What was compared")]
    assert "A check of equal work failed: nodeagent: cross-node: 10 of 20 requests by mutual TLS" in before
    assert (
        "Unsteady, or unlike an earlier run: between nodes, mTLS, 32 connections, p99; chain of five, agent "
        "/ direct, p50." in before
    )
    assert "2 of 5 goals were missed" in before
    assert "Not measured: switch: tracing" in before
    assert "no request failed" not in before.lower()


def test_without_a_doubt_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    clean = summary()
    clean["work"]["nodeagent"]["failed"] = []
    clean["missing"] = []
    clean["ratios"] = {"one": {"value": 2, "must": 1, "reached": "aim"}}
    noted = clean.pop("notes")
    assert view.doubts(Summary.read(clean)) == []
    assert view.doubts(Summary.read({**clean, "notes": noted})) == [f"Noted: {noted[0]}"]
    with monkeypatch.context() as patched:
        patched.setattr(view, "absences", lambda _: [])  # a page without absences takes long to draw
        assert "No request failed" in page({**clean, "runs": clean["runs"][:1], "scale": []})
    clean["runs"][6]["errors"] = 7
    assert view.doubts(Summary.read(clean)) == ["Requests failed: envoy, http, 1 connection: 7."]


@pytest.mark.parametrize("part", list(summary()))
def test_an_absent_part_is_said_to_be_missing(part: str) -> None:
    less = small()
    empty = type(less.pop(part))()
    assert Summary.read(less) == Summary.read({**less, part: None}) == Summary.read({**less, part: empty})
    text = Reader(page(less)).text
    if part not in ("notes", "missing", "micro"):
        assert "Not in this comparison" in text


def test_nothing_at_all_is_still_a_page() -> None:
    text = Reader(page({})).text
    assert "Too little was measured" in text
    for mode in COST:
        assert f"mode {mode}: not in this comparison" in text
    for workload in WORKLOADS:
        assert f"workload {workload}: not in this comparison" in text


def test_what_is_known_to_be_missing_is_not_said_twice() -> None:
    assert "mode nodeagent" in dict(view.absences(Summary.read({"missing": [{"what": "nodeagent-kernel", "why": ""}]})))
    less = {"missing": [{"what": "mode haproxy", "why": "haproxy is not installed"}]}
    assert [why for what, why in view.absences(Summary.read(less)) if "haproxy" in what] == ["haproxy is not installed"]


@pytest.mark.parametrize(
    "field",
    [
        "latency_us",
        "percentiles",
        "requests_per_second",
        "cpu_us_per_request",
        "lowest",
        "rate",
        "rounds",
        "latency_rounds_us",
    ],
)
def test_a_run_without_a_figure(field: str) -> None:
    less = summary()
    less["runs"] = [run for run in less["runs"] if run["workload"] == "http"][-3:]
    for each in less["runs"]:
        del each[field]
    Reader(page({"runs": less["runs"]}))


HOSTILE = "</style><script>alert(1)</script>\"'><img src=x onerror=alert(1)> $x^2$ #fe00ff &amp; {{ 7*7 }} _"


def poisoned(value: Any) -> Any:
    """Return *value* with hostile text in every free text, key of a free mapping included."""
    if isinstance(value, dict):
        return {key: poisoned(each) for key, each in value.items()}
    if isinstance(value, list):
        return [poisoned(each) for each in value]
    return (
        HOSTILE
        if isinstance(value, str) and value not in ("open", "closed", "more", "less", "aim", "must", "missed")
        else value
    )


def test_nothing_from_outside_becomes_markup() -> None:
    source = summary()
    source["runs"] = [
        {**run, "workload": f"w{index % 2}{HOSTILE}", "mode": f"m{index}{HOSTILE}"}
        for index, run in enumerate(source["runs"][-4:])
    ]
    bad = poisoned({**source, "runs": []}) | {"runs": source["runs"]}
    bad["environment"] = {f"k{HOSTILE}": HOSTILE}
    bad["ratios"] = {HOSTILE: next(iter(bad["ratios"].values()))}
    bad["work"] = {HOSTILE: bad["work"]["envoy"]}
    for claim in bad["claims"]:
        claim["measured"] = {HOSTILE: HOSTILE}
    read = Reader(page(bad))
    assert read.open == []
    assert not {"script", "img"} & set(read.tags)
    assert read.handlers == []
    assert read.text.count("<script>alert(1)</script>") > 20
    assert "{{ 7*7 }}" in read.text
    assert "49" not in re.findall(r"&amp; (\d+) _", read.text)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("runs", 0, "load"), "half", "runs.0.load: 'half'"),
        (("runs", 0, "errors"), "many", "runs.0.errors: 'many'"),
        (("runs", 0, "requests_per_second"), float("nan"), "runs.0.requests_per_second: nan"),
        (("scale", 0, "pods"), 0, "scale.0.pods: 0"),
        (("ratios",), [1], r"ratios: \[1\]"),
    ],
)
def test_what_is_no_comparison_is_refused_by_field(path: tuple[Any, ...], value: Any, said: str) -> None:
    bad = copy.deepcopy(summary())
    place: Any = bad
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(PageError, match=said):
        page(bad)


def test_it_is_written_with_its_numbers_beside_it(tmp_path: Path) -> None:
    source = small()
    written = write(source, tmp_path / "report" / "today")
    assert written.read_text(encoding="utf-8") == page(source), "the same page each time"
    assert json.loads((written.parent / "results.json").read_text()) == source
    assert sorted(file.name for file in written.parent.iterdir()) == ["index.html", "results.json"]
    with pytest.raises(PageError, match="cannot be written: Not a directory"):
        write({}, written / "below")


def test_modes_are_told_apart_without_colour() -> None:
    drawn = look.drawn()
    assert len({(each.dash, each.marker) for each in drawn}) == len(drawn)
    assert len({each.marker for each in drawn}) == len(drawn)
    assert len({each.light for each in drawn}) == len({each.dark for each in drawn}) == len(drawn)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_stand_out_from_the_page(theme: str) -> None:
    """WCAG 2.2, 1.4.11: graphics at least 3 : 1."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    ground = luminance("#ffffff" if theme == "light" else "#14171b")
    for each in look.drawn():
        low, high = sorted((ground, luminance(getattr(each, theme))))
        assert (high + 0.05) / (low + 0.05) >= 3, each.name


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (look.microseconds(0.5), "0.500 µs"),
        (look.microseconds(99), "99 µs"),
        (look.microseconds(1500), "1.50 ms"),
        (look.microseconds(2.5e6), "2.50 s"),
        (look.size(51e6), "51.0 MB"),
        (look.size(999), "999 B"),
        (look.times(0.0219), "0.022 ×"),
        (look.times(2.887), "2.89 ×"),
        (look.times(1234), "1,234 ×"),
        (look.share(0.35), "35 % of"),
        (look.share(2.887), "2.89 times"),
        (look.figure(0), "0"),
        (look.figure(12345.6), "12,346"),
        (view.when("2000-01-01T00:00:00+00:00"), "2000-01-01 00:00 UTC"),
    ],
)
def test_numbers_as_people_read_them(shown: str, text: str) -> None:
    assert shown == text
