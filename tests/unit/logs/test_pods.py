"""What of a pod is read, by agent.yaml and its own annotations: what it may ask for, and what is refused by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nodeagent.logs import pods
from nodeagent.logs.pods import PodPlan, plan, routed
from nodeagent.logs.settings import LogSettings
from nodeagent.logs.sources import SourceFacts
from nodeagent.resources.objects import PodObject
from nodeagent.vocabulary import PodUid

SINKS = [{"name": "first", "stdout": {}}, {"name": "second", "stdout": {}}]


def settings(**given: Any) -> LogSettings:
    return LogSettings.model_validate({"sinks": SINKS, **given})


def pod(annotations: dict[str, str] | None = None, labels: dict[str, str] | None = None) -> PodObject:
    return PodObject(
        namespace="shop",
        name="cart",
        uid=PodUid("u1"),
        created="",
        terminating=False,
        labels=labels or {},
        annotations=annotations or {},
        owners=(),
        node="node1",
        service_account="",
        host_network=False,
        containers=(),
        phase="Running",
        addresses=(),
        ready=True,
    )


def planned(annotations: dict[str, str], **given: Any) -> PodPlan:
    return plan(pod(annotations), settings(**given))


def test_without_a_word_the_output_is_read_and_nothing_else() -> None:
    made = planned({})
    assert (made.output, made.files, made.refusals) == (True, (), ())
    reading = made.reading_of("app")
    assert reading is not None
    assert (reading.parser, reading.multiline, reading.sinks) == ("auto", "", ())


@pytest.mark.parametrize(
    ("containers", "annotations", "labels", "read"),
    [
        ("all", {}, {}, True),
        ("all", {"nodeagent.io/logs": "disabled"}, {}, False),
        ("all", {"fluentbit.io/exclude": "true"}, {}, False),
        ("all", {"fluentbit.io/exclude": "false"}, {}, True),
        ("all", {"nodeagent.io/log-exclude": "true"}, {}, False),
        ("all", {"nodeagent.io/log-exclude": "app"}, {}, False),
        ("all", {"nodeagent.io/log-exclude": "proxy"}, {}, True),
        ("all", {"fluentbit.io/exclude-app": "true"}, {}, False),
        ("all", {"fluentbit.io/exclude_stdout": "true", "fluentbit.io/exclude_stderr-app": "true"}, {}, False),
        ("all", {"fluentbit.io/exclude_stdout": "true"}, {}, True),
        ("labelled", {}, {}, False),
        ("labelled", {"nodeagent.io/logs": "enabled"}, {}, True),
        ("labelled", {}, {"nodeagent.io/logs": "enabled"}, True),
        ("labelled", {"nodeagent.io/logs": "disabled"}, {"nodeagent.io/logs": "enabled"}, False),
        ("none", {"nodeagent.io/logs": "enabled"}, {}, False),
    ],
)
def test_whose_output_is_read(containers: str, annotations: dict[str, str], labels: dict[str, str], read: bool) -> None:
    made = plan(pod(annotations, labels), settings(containers=containers))
    assert (made.reading_of("app") is not None) is read
    assert made.refusals == ()


def test_files_of_the_configuration_without_a_parser_have_the_pod_s() -> None:
    files = [{"name": "a", "volume": "v"}, {"name": "b", "volume": "v", "parser": "none"}]
    assert [each.reading.parser for each in planned({}, files=files).files] == ["auto", "none"]
    made = planned({"nodeagent.io/log-parser": "json"}, files=files)
    assert [each.reading.parser for each in made.files] == ["json", "none"]


def test_parsers_of_streams_and_containers_by_fluent_bits_annotations() -> None:
    made = planned(
        {
            "fluentbit.io/parser": "json",
            "fluentbit.io/parser_stderr": "logfmt",
            "fluentbit.io/parser_stdout-nginx": "nginx",
            "nodeagent.io/log-multiline": "java",
        },
        parsers=[{"name": "nginx", "type": "regex", "pattern": "(?P<a>.)"}],
    )
    app = made.reading_of("app")
    nginx = made.reading_of("nginx")
    assert app is not None
    assert nginx is not None
    assert (app.parser, app.parser_stderr, app.multiline) == ("json", "logfmt", "java")
    assert (nginx.parser, nginx.parser_stderr) == ("nginx", "logfmt")


def test_a_parser_of_stdout_leaves_stderr_as_it_is() -> None:
    found = planned({"fluentbit.io/parser_stdout": "none", "fluentbit.io/parser_stdout-side": "json"})
    read = {name: found.reading_of(name) for name in ("app", "side")}
    assert {name: each and (each.parser, each.parser_stderr) for name, each in read.items()} == {
        "app": ("none", "auto"),
        "side": ("json", "auto"),
    }


def test_a_stream_that_is_left_out_is_told() -> None:
    reading = planned({"fluentbit.io/exclude_stderr": "true"}).reading_of("app")
    assert reading is not None
    assert reading.without == ("stderr",)


def test_files_of_volumes_that_a_pod_asks_for() -> None:
    made = planned({"nodeagent.io/log-files": "varlog/app/*.log, other/**/x.txt", "nodeagent.io/log-parser": "json"})
    assert [(each.volume, each.pattern.parts, each.reading.parser) for each in made.files] == [
        ("varlog", ("app", "*.log"), "json"),
        ("other", ("**", "x.txt"), "json"),
    ]
    assert made.reading_of_file("varlog/app/a.log") is not None
    assert made.reading_of_file("other/a/b/x.txt") is not None
    assert made.reading_of_file("varlog/a.log") is None


@pytest.mark.parametrize(
    "item",
    ["../etc/passwd", "/etc/passwd", "varlog", "varlog/", "varlog/../x", "varlog//x", "VARLOG/x", "varlog/a\x00b",
     "varlog/**", "v" * 64 + "/x", "varlog/" + "a/" * 16 + "x", "varlog/**/**/x", "varlog/" + "x" * 2000],
)  # fmt: skip
def test_hostile_names_of_files_are_refused_by_name_and_nothing_else_is_lost(item: str) -> None:
    made = planned({"nodeagent.io/log-files": f"{item},varlog/good.log"})
    assert [each.pattern.text for each in made.files] == ["good.log"]
    assert len(made.refusals) == 1
    assert made.refusals[0].startswith("nodeagent.io/log-files: ")
    assert len(made.refusals[0]) < 400
    assert made.refusals[0].isprintable()


@pytest.mark.parametrize(
    ("annotation", "value", "allowed"),
    [
        ("nodeagent.io/log-parser", "jsn", "json, logfmt, none"),
        ("nodeagent.io/log-multiline", "cobol", "java, python"),
        ("nodeagent.io/log-sinks", "second", "logs.podSinks"),
        ("nodeagent.io/logs", "perhaps", "enabled or disabled"),
        ("nodeagent.io/log-fils", "varlog/x", "nodeagent.io/log-files"),
        ("fluentbit.io/parser_stderr-app", "apache2", "logs.parsers"),
        ("fluentbit.io/exclude", "maybe", "true or false"),
    ],
)
def test_what_is_not_known_is_refused_with_what_is_allowed(annotation: str, value: str, allowed: str) -> None:
    made = planned({annotation: value})
    assert len(made.refusals) == 1, made.refusals
    assert annotation in made.refusals[0]
    assert repr(value) in made.refusals[0]
    assert allowed in made.refusals[0]
    assert made.output


def test_more_patterns_than_may_be_are_said() -> None:
    made = planned({"nodeagent.io/log-files": " ".join(f"v/{number}.log" for number in range(40))})
    assert len(made.files) == 32
    assert "at most 32" in made.refusals[0]


def test_a_name_with_many_stars_is_refused_for_what_it_costs() -> None:
    made = planned({"nodeagent.io/log-files": "v/" + "*a" * 9})
    assert made.files == ()
    assert "at most 8 *" in made.refusals[0]


def test_a_quarter_of_a_megabyte_of_wrong_names_is_told_in_few_words() -> None:
    made = planned({"nodeagent.io/log-sinks": ",".join(map(str, range(40_000)))})
    assert sum(map(len, made.refusals)) < 10_000
    assert "and more" in made.refusals[-1]


def test_configured_files_are_for_the_pods_that_they_select() -> None:
    files = [{"name": "a", "volume": "varlog", "namespaces": ["sh*"], "labels": {"app": "cart"}, "sinks": ["second"]}]
    made = plan(pod(labels={"app": "cart"}), settings(files=files))
    assert [(each.volume, each.pattern.text, each.reading.sinks) for each in made.files] == [
        ("varlog", "*.log", ("second",))
    ]
    assert plan(pod(labels={"app": "till"}), settings(files=files)).files == ()


def facts(**given: Any) -> SourceFacts:
    made: dict[str, Any] = {"key": "k", "kind": "output", "uid": PodUid("u"), "namespace": "shop", "pod": "cart"}
    return SourceFacts(**{**made, "container": "app", "path": "", **given})


@pytest.mark.parametrize(
    ("route", "fits"),
    [
        ({"namespaces": ["shop"]}, True),
        ({"namespaces": ["sh*", "x"]}, True),
        ({"namespaces": ["till"]}, False),
        ({"labels": {"app": "cart"}}, True),
        ({"labels": {"app": "till"}}, False),
        ({"tags": ["kube.shop.cart.app"]}, True),
        ({"tags": ["kube.*.*.app"]}, True),
        ({"tags": ["kube.*"]}, False),
        ({"tags": ["kube.**"]}, True),
        ({"tags": ["**.app"]}, True),
        ({"tags": ["**.cart.**"]}, True),
        ({"tags": ["kube.**.shop.cart.app"]}, True),
        ({"tags": ["node.**"]}, False),
        ({"tags": ["kube.**"], "namespaces": ["till"]}, False),
    ],
)
def test_a_route_is_for_what_fits_all_of_it(route: dict[str, Any], fits: bool) -> None:
    made = routed(facts(labels={"app": "cart"}), settings(routes=[{**route, "sinks": ["second"]}]))
    assert made.reading.sinks == (("second",) if fits else ("first",))


def test_sinks_that_are_opened_to_pods_are_theirs_to_choose_and_go_before_routes() -> None:
    made = planned({"nodeagent.io/log-sinks": "second"}, podSinks=["second"])
    reading = made.reading_of("app")
    assert reading is not None
    assert reading.sinks == ("second",)
    routes = [{"sinks": ["first"]}]
    assert routed(facts(reading=reading), settings(routes=routes)).reading.sinks == ("second",)


def test_what_is_written_to_the_own_output_is_not_read_again() -> None:
    own = pod(labels={"app.kubernetes.io/name": "nodeagent"})
    made = plan(own, settings())
    assert (made.output, made.refusals) == (False, ()), "nobody asked for it"
    assert "this pod's own output" in made.kept_out
    for given in ({"labels": {**own.labels, pods.LOGS: "enabled"}}, {"annotations": {pods.LOGS: "enabled"}}):
        asks = plan(replace(own, **given), settings())
        assert not asks.output
        assert asks.refusals == (f"{pods.LOGS}: 'enabled': {pods.WRITTEN_TO}: it is not read",)
    assert plan(own, settings(sinks=[{"name": "all", "file": {"path": "/x"}}])).output


def test_a_route_costs_no_more_than_its_parts_times_those_of_a_tag(monkeypatch: pytest.MonkeyPatch) -> None:
    pattern = "**.a.**.a.**.b"
    asked = 0

    def counted(wanted: str, part: str) -> bool:
        nonlocal asked
        asked += 1
        assert asked < 100_000, "it would take hours"
        return wanted == part

    monkeypatch.setattr(pods, "_part_fits", counted)
    source = facts(kind="file", container="", path="v/" + "a." * 2000 + "log")
    made = routed(source, settings(routes=[{"tags": [pattern], "sinks": ["second"]}]))
    assert made.reading.sinks == ("first",)


def test_a_misspelt_annotation_of_fluent_bit_is_refused_by_name() -> None:
    made = planned({"fluentbit.io/parser_stdot-app": "json", "fluentbit.io/exclude-app": "true"})
    (words,) = made.refusals
    assert words.startswith("fluentbit.io/parser_stdot-app: 'json': fluentbit.io/parser or fluentbit.io/exclude")


def test_containers_that_annotations_name_are_known() -> None:
    made = planned({"nodeagent.io/log-exclude": "proxy,app", "fluentbit.io/parser_stdout-side": "json"})
    assert made.named == {
        "app": "nodeagent.io/log-exclude",
        "proxy": "nodeagent.io/log-exclude",
        "side": "fluentbit.io/parser_stdout-side",
    }
