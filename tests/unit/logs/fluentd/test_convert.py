"""What becomes of Fluentd's configurations, line by line."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from nodeagent.errors import ConfigError
from nodeagent.logs.fluentd.convert import FluentdSidecar, Imported, convert
from nodeagent.logs.fluentd.inputs import Mounted
from nodeagent.logs.fluentd.merge import names
from nodeagent.logs.fluentd.pods import import_pods, is_fluentd
from nodeagent.logs.fluentd.syntax import parse
from nodeagent.logs.fluentd.tags import fits
from nodeagent.logs.fluentd.values import expression, text_of
from nodeagent.logs.process.patterns import LinePattern
from nodeagent.logs.settings import LogSettings

SIDECAR_YAML = (Path(__file__).parent / "sidecar.yaml").read_text()
MOUNTS = (
    Mounted("/var/log/app", "logs", "emptyDir"),
    Mounted("/var/log/app/inner", "inner", "emptyDir"),
    Mounted("/host", "host", "hostPath", "/var/log"),
)
POD = FluentdSidecar({"HOST": "search.example"}, MOUNTS, "shop", {"app": "web"})
SOURCE = """<source>
@type tail
path /var/log/app/*.log
tag app.logs
read_from_head true
<parse>
@type json
</parse>
</source>
"""
DAEMON = """<source>
@type tail
path /var/log/containers/*.log
pos_file /host/fluentd.pos
tag kubernetes.*
<parse>
@type cri
</parse>
</source>
<source>
@type tail
path /host/kubelet.log
tag kubelet
<parse>
@type none
</parse>
</source>
<filter kubernetes.**>
@type kubernetes_metadata
</filter>
"""
CIRCLE = """<match **>
@type relabel
@label @A
</match>
<label @A>
<match **>
@type relabel
@label @A
</match>
</label>
"""
ELASTIC = "<match **>\n@type elasticsearch\nhost es.example\n</match>\n"


def imported(text: str, sidecar: FluentdSidecar = POD) -> Imported:
    def include(asked: str) -> dict[str, str]:
        raise ConfigError(asked)

    found = convert(parse(text, "f", include), sidecar)
    LogSettings.model_validate(found.logs)  # whatever comes out is taken by the agent
    return found


def sinks(text: str, sidecar: FluentdSidecar = POD) -> list[dict[str, Any]]:
    return list(imported(SOURCE + text, sidecar).logs["sinks"])


def notes(found: Imported) -> list[str]:
    return [str(each) for each in found.notes]


def test_the_articles_sidecar_becomes_one_annotation() -> None:
    (found,) = import_pods(SIDECAR_YAML, "pod.yaml", {})
    assert found.pod == "Pod default/app-with-logging"
    assert found.imported.logs == {
        "containers": "none",
        "sinks": [
            {
                "name": "elasticsearch",
                "elasticsearch": {"urls": ["http://elasticsearch.default.svc:9200"], "index": "app-logs"},
            }
        ],
    }
    LogSettings.model_validate(found.imported.logs)
    assert found.imported.annotations == {"nodeagent.io/log-files": "log-volume/*.log"}
    assert found.imported.pos_files == ("/var/log/app/app.log.pos",)
    pod, config = yaml.safe_load_all(found.text)
    before, config_before = yaml.safe_load_all(SIDECAR_YAML)
    assert config == config_before
    assert pod["metadata"] == {**before["metadata"], "annotations": dict(found.imported.annotations)}
    assert pod["spec"] == {
        "containers": [before["spec"]["containers"][0]],
        "volumes": [{"name": "log-volume", "emptyDir": {}}],
    }
    assert [each.place.line for each in found.imported.notes] == [1, 11]
    assert "Fluentd" not in found.text, "the comment above the container goes with it"


def test_the_environment_of_the_pod_can_be_replaced() -> None:
    (found,) = import_pods(SIDECAR_YAML, "pod.yaml", {"FLUENT_ELASTICSEARCH_HOST": "10.0.0.1"})
    assert found.imported.logs["sinks"][0]["elasticsearch"]["urls"] == ["http://10.0.0.1:9200"]


@pytest.mark.parametrize(
    ("container", "is_one"),
    [
        ({"image": "fluent/fluentd:v1.14"}, True),
        ({"image": "registry.example/team/fluentd-kubernetes-daemonset:v1"}, True),
        ({"image": "fluent/fluent-bit:3"}, False),
        ({"name": "fluentd"}, True),
        ({"name": "fluentd", "image": "app:1"}, False),
        ({"image": "my/not-fluentd-at-all-x/app"}, False),
    ],
)
def test_which_container_is_fluentd(container: dict[str, str], is_one: bool) -> None:
    assert is_fluentd(container) is is_one


def test_a_deployment_with_a_configuration_of_its_own() -> None:
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web", "namespace": "shop"},
        "spec": {
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {
                    "containers": [
                        {"name": "app", "volumeMounts": [{"name": "logs", "mountPath": "/out"}]},
                        {
                            "name": "shipper",
                            "image": "fluent/fluentd",
                            "args": ["-c", "/conf/x.conf"],
                            "volumeMounts": [{"name": "logs", "mountPath": "/var/log/app"}],
                        },
                    ],
                    "volumes": [{"name": "logs", "emptyDir": {}}],
                },
            }
        },
    }
    text = yaml.safe_dump(deployment)
    (found,) = import_pods(text, "web.yaml", {}, SOURCE + ELASTIC)
    assert found.imported.annotations == {"nodeagent.io/log-files": "logs/*.log"}
    template = yaml.safe_load(found.text)["spec"]["template"]
    assert [each["name"] for each in template["spec"]["containers"]] == ["app"]
    with pytest.raises(ConfigError, match=r"/conf/x\.conf: Fluentd's configuration is in no ConfigMap"):
        import_pods(text, "web.yaml", {})
    with pytest.raises(ConfigError, match="no pod in it has a container of Fluentd's"):
        import_pods("kind: Service\napiVersion: v1\nmetadata: {name: x}\n", "x", {})


@pytest.mark.parametrize(
    ("pattern", "tag", "is_one"),
    [
        ("a.*", "a.b", True),
        ("a.*", "a.b.c", False),
        ("a.**", "a", True),
        ("a.**", "a.b.c", True),
        ("a.**", "ab", False),
        ("**.c", "a.b.c", True),
        ("**", "", True),
        ("{a,b}.*", "b.x", True),
        ("x y.*", "y.z", True),
        ("", "any", True),
        ("a.{b,c.**}", "a.c.d.e", True),
    ],
)
def test_tags(pattern: str, tag: str, is_one: bool) -> None:
    assert fits(pattern, tag) is is_one


def test_the_first_match_decides_and_copies_go_to_each() -> None:
    text = (
        "<filter app.**>\n@type grep\n<exclude>\nkey $.level\npattern /^debug$/i\n</exclude>\n</filter>\n"
        "<match app.logs>\n@type copy\n<store>\n@type elasticsearch\nhost a\n</store>\n<store>\n@type relabel\n"
        "@label @OUT\n</store>\n</match>\n<match **>\n@type forward\n<server>\nhost never\n</server>\n</match>\n"
        "<label @OUT>\n<match **>\n@type stdout\n</match>\n</label>\n"
    )
    found = imported(SOURCE + text)
    assert [each["name"] for each in found.logs["sinks"]] == ["elasticsearch", "stdout"]
    assert found.annotations["nodeagent.io/log-sinks"] == "elasticsearch,stdout"
    assert found.logs["podSinks"] == ["elasticsearch", "stdout"]
    assert found.logs["rules"] == [
        {"namespaces": ["shop"], "labels": {"app": "web"}, "drop": {"field": "level", "matches": "(?i)^debug$"}}
    ]
    assert notes(found)[-1].endswith("<match **>: no event of a tail comes here")


@pytest.mark.parametrize(
    ("settings", "urls", "index"),
    [
        ("host es.example", ["http://es.example:9200"], "fluentd"),
        ("host es.example\nport 9201\nscheme https\npath /x/", ["https://es.example:9201/x"], "fluentd"),
        (
            "hosts a.example:1,b.example\nindex_name Logs-${tag}",
            ["http://a.example:1", "http://b.example:9200"],
            "logs-app.logs",
        ),
        ("host a.example\nlogstash_format true", ["http://a.example:9200"], "logstash-{date}"),
        (
            "host a.example\nlogstash_format true\nlogstash_prefix web\nlogstash_dateformat %Y.%m",
            ["http://a.example:9200"],
            "web-{year}.{month}",
        ),
        ("host \"#{ENV['HOST']}\"", ["http://search.example:9200"], "fluentd"),
        ("host \"#{ENV['NONE'] || 'other.example'}\"", ["http://other.example:9200"], "fluentd"),
        ("host \"#{ENV.fetch('NONE', 'other.example')}\"", ["http://other.example:9200"], "fluentd"),
        ("host search", ["http://search.shop.svc:9200"], "fluentd"),
        ("host 10.0.0.1", ["http://10.0.0.1:9200"], "fluentd"),
    ],
)
def test_elasticsearch(settings: str, urls: list[str], index: str) -> None:
    (found,) = sinks(f"<match **>\n@type elasticsearch\n{settings}\n</match>\n")
    assert found["elasticsearch"] == {"urls": urls, "index": index}


def test_no_secret_is_repeated() -> None:
    found = imported(
        SOURCE + "<match **>\n@type elasticsearch\nhosts https://u:hunter2@es.example:9200\nuser u\npassword hunter2\n"
        "</match>\n"
    )
    assert found.logs["sinks"][0]["elasticsearch"]["auth"] == {
        "basic": {"user": "u", "passwordFile": "/etc/nodeagent/logs/elasticsearch-password"}
    }
    assert "hunter2" not in repr(found)
    assert any("password: put it into /etc/nodeagent/logs/elasticsearch-password" in each for each in notes(found))


def test_forward_file_loki_and_buffers() -> None:
    (forward,) = sinks(
        "<match **>\n@type forward\nrequire_ack_response true\n<server>\nhost a.example\n</server>\n<server>\n"
        "host b.example\nport 1\n</server>\n<security>\nself_hostname x\nshared_key hunter2\n</security>\n</match>\n"
    )
    assert forward["forward"] == {
        "addresses": ["a.example:24224", "b.example:1"],
        "sharedKeyFile": "/etc/nodeagent/logs/forward-shared-key",
    }
    (file,) = sinks("<match **>\n@type file\npath /var/log/out.%Y%m%d\n</match>\n")
    assert file["file"] == {"path": "/var/log/out.log"}
    (loki,) = sinks("<match **>\n@type loki\nurl http://loki.example:3100\ntenant t\n</match>\n")
    assert loki["loki"] == {"urls": ["http://loki.example:3100"], "tenant": "t"}
    found = imported(
        SOURCE + "<match **>\n@type stdout\n<buffer>\n@type file\npath /b\ntotal_limit_size 2g\n"
        "overflow_action drop_oldest_chunk\nretry_timeout 1h\n</buffer>\n</match>\n"
    )
    assert found.logs["buffer"] == {"bytes": 2 << 30, "full": "dropOldest"}
    assert any("retry_timeout: is not taken" in each for each in notes(found))


@pytest.mark.parametrize(
    ("parse", "annotations", "parsers"),
    [
        ("<parse>\n@type none\n</parse>", {"nodeagent.io/log-parser": "none"}, []),
        (
            "<parse>\n@type regexp\nexpression /^(?<level>[^ ]*) (?<time>\\d+)$/\ntime_format %s\n</parse>",
            {"nodeagent.io/log-parser": "fluentd-1"},
            [
                {
                    "name": "fluentd-1",
                    "type": "regex",
                    "pattern": r"^(?P<level>[^ ]*) (?P<time>\d+)$",
                    "timeKey": "time",
                    "timeFormat": "%s",
                }
            ],
        ),
        (
            "<parse>\n@type json\ntime_key at\ntime_format %Y-%m-%dT%H:%M:%S.%N%z\n</parse>",
            {"nodeagent.io/log-parser": "fluentd-1"},
            [{"name": "fluentd-1", "type": "json", "timeKey": "at", "timeFormat": "%Y-%m-%dT%H:%M:%S.%L%z"}],
        ),
        ("format json", {}, []),
    ],
)
def test_parsers(parse: str, annotations: dict[str, str], parsers: list[dict[str, str]]) -> None:
    source = f"<source>\n@type tail\npath /var/log/app/*.log\ntag x\n{parse}\n</source>\n"
    found = imported(source + ELASTIC)
    assert found.annotations == {"nodeagent.io/log-files": "logs/*.log", **annotations}
    assert found.logs.get("parsers", []) == parsers


@pytest.mark.parametrize("form", ["nginx", "apache2"])
def test_formats_with_a_name(form: str) -> None:
    import re2

    found = imported(
        f"<source>\n@type tail\npath /var/log/app/a.log\ntag x\n<parse>\n@type {form}\n</parse>\n</source>\n" + ELASTIC
    )
    line = '10.0.0.1 - bob [28/Feb/2013:12:00:00 +0900] "GET /x HTTP/1.1" 200 777 "-" "Opera/12.0"'
    match = re2.search(found.logs["parsers"][0]["pattern"], line)
    assert match
    assert (match["method"], match["path"], match["code"], match["agent"]) == ("GET", "/x", "200", "Opera/12.0")


def test_lines_that_belong_together() -> None:
    parse_ = "<parse>\n@type multiline\nformat_firstline /^\\d{4}/\nformat1 /^(?<time>\\S+) (?<message>.*)/\n</parse>"
    found = imported(f"<source>\n@type tail\npath /var/log/app/a.log\ntag x\n{parse_}\n</source>\n" + ELASTIC)
    assert found.logs["multiline"] == [{"name": "fluentd-1", "start": r"^\d{4}"}]
    assert found.logs["parsers"][0]["pattern"] == r"(?s)^(?P<time>\S+) (?P<message>.*)"
    assert found.annotations["nodeagent.io/log-multiline"] == "fluentd-1"


def test_files_that_are_read_in_several_ways_have_entries_each() -> None:
    other = SOURCE.replace("*.log", "inner/b.log").replace("@type json", "@type none")
    found = imported(SOURCE + other + ELASTIC)
    assert found.annotations == {}
    selection = {"namespaces": ["shop"], "labels": {"app": "web"}}
    assert found.logs["files"] == [
        {
            **selection,
            "name": "fluentd-1",
            "volume": "logs",
            "path": "*.log",
            "parser": "json",
            "sinks": ["elasticsearch"],
        },
        {
            **selection,
            "name": "fluentd-2",
            "volume": "inner",
            "path": "b.log",
            "parser": "none",
            "sinks": ["elasticsearch"],
        },
    ]


def test_a_daemon_sets_sources() -> None:
    found = imported(DAEMON + ELASTIC)
    assert found.logs["containers"] == "all"
    assert found.logs["routes"] == [{"sinks": ["elasticsearch"]}]
    assert found.logs["fluentdPositions"] == ["/var/log/fluentd.pos"]
    assert found.logs["node"]["files"] == [
        {"path": "/var/log/kubelet.log", "parser": "none", "sinks": ["elasticsearch"]}
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("<source>\n@type syslog\n</source>\n", "f:10: <source> @type syslog: is not taken"),
        ("<worker x>\n</worker>\n", "f:10: <worker>: is not taken"),
        ("<filter **>\n@type geoip\n</filter>\n", "f:10: <filter> @type geoip: is not taken"),
        (
            "<filter **>\n@type record_transformer\n<record>\nhost x\n</record>\n</filter>\n",
            "f:13: host: is not added",
        ),
        ("<filter **>\n@type grep\n<regexp>\nkey a\npattern b\n</regexp>\n</filter>\n", "f:12: <regexp>: is not taken"),
        ("<match app.logs>\n@type kafka2\n</match>\n", "no sink is like it"),
        ("<match /a/>\n@type stdout\n</match>\n", "a regular expression as a pattern of tags"),
    ],
)
def test_what_is_not_taken_is_named(text: str, says: str) -> None:
    try:
        told = notes(imported(SOURCE + text + ELASTIC))
    except ConfigError as error:
        told = [str(error)]
    assert any(says in each for each in told), told


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('exclude_path ["x"]', "exclude_path: is not taken"),
        ("bogus 1", "bogus: is not taken: nothing here is like it"),
        ('path "#{`id`}"', "of Ruby only ENV['NAME']"),
        ("path \"#{ENV['NOPE']}\"", "the environment variable NOPE is not known"),
    ],
)
def test_what_of_a_source_is_not_taken_is_named(line: str, says: str) -> None:
    source = SOURCE.replace("read_from_head true", line)
    two = SOURCE.replace("app.logs", "app.other")
    assert any(says in each for each in notes(imported(two + source + ELASTIC)))


def test_a_path_in_no_volume_is_named() -> None:
    outside = SOURCE.replace("/var/log/app/", "/srv/")
    assert any("is in no volume of the pod" in each for each in notes(imported(outside + ELASTIC)))
    assert any("--pod FILE gives it" in each for each in notes(imported(SOURCE + ELASTIC, FluentdSidecar())))


def test_what_begins_at_the_end_is_said() -> None:
    told = notes(imported(SOURCE.replace("read_from_head true\n", "") + ELASTIC))
    (only,) = told
    assert only.startswith("f:1: read_from_head is not set: Fluentd begins at a file's end; here every file is read")


def test_nothing_that_is_left_is_an_error() -> None:
    with pytest.raises(ConfigError, match="no <source> of @type tail comes to an output"):
        imported(ELASTIC)
    with pytest.raises(ConfigError, match="events go in a circle"):
        imported(SOURCE + CIRCLE)


def converted(text: str) -> tuple[Imported, str]:
    made = imported(text)
    return made, " ".join(map(str, made.notes))


STDOUT = "<match **>\n@type stdout\n</match>\n"


def test_a_filter_for_some_files_only_is_no_rule_for_the_whole_pod() -> None:
    grep = "<filter app.{0}>\n@type grep\n<exclude>\nkey level\npattern debug\n</exclude>\n</filter>\n"
    both = SOURCE.replace("*.log", "a.log").replace("app.logs", "app.a")
    both += SOURCE.replace("*.log", "b.log").replace("app.logs", "app.b")
    made, notes = converted(both + grep.format("a") + STDOUT)
    assert "rules" not in made.logs and "it is for some files only" in notes
    made, notes = converted(both + grep.format("*") + STDOUT)
    assert made.logs["rules"] and "some files only" not in notes


@pytest.mark.parametrize(
    ("line", "note"),
    [
        ("timezone +09:00", "timezone: is not taken"),
        ("keep_time_key false", "keep_time_key: is not taken"),
        ("time_format %Q", "time_format: "),
        ("time_format %F %F", "is there twice"),
    ],
)
def test_what_changes_times_is_told(line: str, note: str) -> None:
    _, notes = converted(SOURCE.replace("@type json", f"@type json\ntime_key at\n{line}") + STDOUT)
    assert note in notes


def test_ruby_s_short_forms_of_times_are_written_out() -> None:
    made, _ = converted(SOURCE.replace("@type json", "@type json\ntime_key at\ntime_format %F %T.%L") + STDOUT)
    assert made.logs["parsers"][0]["timeFormat"] == "%Y-%m-%d %H:%M:%S.%L"


def test_what_an_output_has_for_each_server_is_told_without_the_secret() -> None:
    server = "<server>\nhost h\nusername u\npassword hunter2\nshared_key hunter2\n</server>"
    _, notes = converted(SOURCE + f"<match **>\n@type forward\n{server}\n</match>\n")
    assert all(f"{each}: is not taken" in notes for each in ("username", "password", "shared_key"))
    assert "hunter2" not in notes


def test_every_unknown_place_of_an_index_is_told() -> None:
    match = "<match **>\n@type elasticsearch\nhosts me:hunter2@search:9200\nindex_name a-${x}-${y}-%q\n</match>\n"
    made, notes = converted(SOURCE + match)
    assert made.logs["sinks"][0]["elasticsearch"]["index"] == "a-unknown-unknown-{date}"
    assert made.logs["sinks"][0]["elasticsearch"]["urls"] == ["http://search.shop.svc:9200"]
    assert "${x}" in notes and "${y}" in notes and "hunter2" not in notes


NO_POD = FluentdSidecar()


def said(text: str, sidecar: FluentdSidecar = NO_POD) -> str:
    return "\n".join(map(str, imported(text, sidecar).notes))


def excluding(key: str, pattern: str) -> str:
    grep = f"<filter **>\n@type grep\n<exclude>\nkey {key}\npattern {pattern}\n</exclude>\n</filter>\n"
    return DAEMON + grep + ELASTIC


@pytest.mark.parametrize(
    ("key", "pattern", "rule"),
    [
        ("$.kubernetes.namespace_name", "/^(kube-system|monitoring)$/", {"namespaces": ["kube-system", "monitoring"]}),
        ("$['kubernetes']['namespace_name']", "/^kube-/", {"namespaces": ["kube-*"]}),
        ("$.kubernetes.namespace_name", "system", {"namespaces": ["*system*"]}),
        ("log", "/healthz/", {"matches": "healthz"}),
        ("level", "/^debug$/", {"field": "level", "matches": "^debug$"}),
    ],
)
def test_what_is_excluded_becomes_a_rule_that_finds_it(key: str, pattern: str, rule: dict[str, Any]) -> None:
    (made,) = imported(excluding(key, pattern), FluentdSidecar()).logs["rules"]
    assert made["drop"]["matches"] == rule.get("matches", ".")
    assert made["drop"].get("field") == rule.get("field")
    assert made.get("namespaces") == rule.get("namespaces")


OBJECTS = "<parse>\n@type json\n</parse>"
RUNTIME = "path /var/log/containers/*.log"
PARSED = "<filter **>\n@type parser\nkey_name {}\n{}<parse>\n@type json\n</parse>\n</filter>\n"


@pytest.mark.parametrize(
    ("source", "before", "whole", "members"),
    [
        ("@type json", "", (), ("log", "message", "path")),
        ("@type none", "", ("message",), ()),
        ("@type none\nmessage_key log", "", ("log",), ()),
        ("@type none", PARSED.format("message", ""), (), ("log", "message", "path")),
        ("@type none", PARSED.format("message", "reserve_data true\n"), ("message",), ("log", "path")),
        ("@type regexp\nexpression /(?<log>.*) (?<message>.*)/", "", (), ("log", "message")),
        ("@type nginx", "", (), ("path",)),
        ("@type unknown", "", (), ("log",)),
    ],
)
@pytest.mark.parametrize("key", ["log", "message", "path"])
def test_what_a_filter_excludes_by_is_what_fluentd_s_parser_makes_of_a_line(
    source: str, before: str, whole: tuple[str, ...], members: tuple[str, ...], key: str
) -> None:
    grep = f"<filter **>\n@type grep\n<exclude>\nkey {key}\npattern /debug/\n</exclude>\n</filter>\n"
    found = imported(SOURCE.replace("@type json", source) + before + grep + ELASTIC)
    if key in whole:
        assert found.logs["rules"] == [{"namespaces": ["shop"], "labels": {"app": "web"}, "drop": {"matches": "debug"}}]
    elif key in members:
        assert found.logs["rules"][0]["drop"] == {"field": key, "matches": "debug"}
    elif not members:
        assert "rules" not in found.logs
        assert any(f"{key}: is not taken: lines are text" in each for each in notes(found))


@pytest.mark.parametrize(
    ("parse", "key", "rule"),
    [
        ("@type cri", "message", {"matches": "x"}),
        ("@type cri\n<parse>\n@type json\n</parse>", "message", {"field": "message", "matches": "x"}),
        ("@type json", "log", {"matches": "x"}),
        ("@type json", "message", {"field": "message", "matches": "x"}),
        ("@type regexp\nexpression /^(?<time>.+) (?<stream>\\S+) . (?<log>.*)$/", "log", {"matches": "x"}),
    ],
)
def test_of_a_runtime_s_lines_the_text_is_a_member(parse: str, key: str, rule: dict[str, str]) -> None:
    grep = f"<filter **>\n@type grep\n<exclude>\nkey {key}\npattern /x/\n</exclude>\n</filter>\n"
    source = SOURCE.replace("path /var/log/app/*.log", RUNTIME).replace("@type json", parse)
    (made,) = imported(source + grep + ELASTIC, FluentdSidecar()).logs["rules"]
    assert made == {"drop": rule}


def test_a_filter_that_means_the_line_of_some_files_and_a_member_of_others_is_named() -> None:
    two = SOURCE + SOURCE.replace("*.log", "b.txt").replace("@type json", "@type none")
    grep = "<filter **>\n@type grep\n<exclude>\nkey message\npattern /x/\n</exclude>\n</filter>\n"
    found = imported(two + grep + ELASTIC)
    assert "rules" not in found.logs
    assert any("for the whole line of some files, and for a member" in each for each in notes(found))


WORKERS = f"""<system>
workers 3
</system>
<worker 0>
{SOURCE}<match app.**>
@type elasticsearch
host zero
</match>
</worker>
<worker 1>
{SOURCE.replace("*.log", "one.txt")}<filter app.**>
@type geoip
</filter>
</worker>
<worker 1-2>
<match app.**>
@type relabel
@label @OUT
</match>
</worker>
<label @OUT>
<match **>
@type loki
url http://loki.example:3100
</match>
</label>
<worker 2>
<match **>
@type kafka2
</match>
</worker>
"""


def test_what_workers_of_fluentd_have_is_read_as_each_one_s() -> None:
    found = imported(WORKERS)
    assert [(each["path"], each["sinks"]) for each in found.logs["files"]] == [
        ("*.log", ["elasticsearch"]),
        ("one.txt", ["loki"]),
    ]
    told = notes(found)
    assert any("geoip: is not taken" in each for each in told)
    assert not any("<worker>" in each for each in told)
    assert any("<match **>: no event of a tail comes here" in each for each in told)


@pytest.mark.parametrize(
    ("key", "pattern"),
    [
        ("$.kubernetes.namespace_name", "/^kube.*/"),
        ("$.kubernetes.container_name", "/^istio-proxy$/"),
        ("$.kubernetes.pod_name", "/x/"),
        ("$.kubernetes.labels.app", "/x/"),
        ("stream", "/^stderr$/"),
    ],
)
def test_what_no_rule_would_find_is_named(key: str, pattern: str) -> None:
    found = imported(excluding(key, pattern), FluentdSidecar())
    assert "rules" not in found.logs
    assert any("is not taken" in each.text and "nodeagent.io" in each.text + "nodeagent.io" for each in found.notes)


def test_what_drops_events_and_is_not_reached_is_named() -> None:
    dropped = "<match kubernetes.var.log.containers.**kube-system**.log>\n@type null\n</match>\n"
    own = "<label @FLUENT_LOG>\n<match **>\n@type null\n</match>\n</label>\n<match fluent.**>\n@type null\n</match>\n"
    found = said(DAEMON + own + dropped + ELASTIC)
    assert found.count("no event of a tail comes here") == 1
    assert "**kube-system**.log>: no event of a tail comes here. What it drops is delivered" in found


TEAM = """<source>
@type tail
path /var/log/containers/{path}
tag {name}.*
read_from_head true
<parse>
@type cri
</parse>
</source>
<match {name}.**>
@type elasticsearch
host {name}
</match>
"""


def test_tails_of_some_containers_have_routes_of_their_own() -> None:
    paths = {"a": "app1*.log", "b": "*_shop_*.log", "c": "web-*_kube-system_nginx-*.log", "d": "*.log"}
    text = "".join(TEAM.format(path=path, name=name) for name, path in paths.items())
    assert imported(text, FluentdSidecar()).logs["routes"] == [
        {"tags": ["kube.*.app1*.**"], "sinks": ["elasticsearch"]},
        {"tags": ["kube.shop.*.**"], "sinks": ["elasticsearch-2"]},
        {"tags": ["kube.kube-system.web-*.nginx"], "sinks": ["elasticsearch-3"]},
        {"sinks": ["elasticsearch-4"]},
    ]
    assert "goes to that one's outputs" not in said(text)


def test_a_route_that_nothing_would_come_to_is_named() -> None:
    text = TEAM.format(path="*nginx*x*.log", name="a") + TEAM.format(path="app1*.log", name="b")
    found = said(text)
    assert "cannot be told by a tag" in found
    assert "goes to that one's outputs" in found


def test_an_include_by_the_environment_is_included() -> None:
    def include(asked: str) -> dict[str, str]:
        return {"given": {"systemd.conf": SOURCE}, "else": {}}["given" if asked == "systemd.conf" else "else"]

    text = "@include \"#{ENV['X'] || 'systemd'}.conf\"\n" + ELASTIC
    resolve = partial(text_of, environment={})
    found = convert(parse(text, "f", include, resolve), POD)
    assert found.annotations == {"nodeagent.io/log-files": "logs/*.log"}
    with pytest.raises(ConfigError, match=r"f:1: @include: the environment variable X is not known.*--env X=VALUE"):
        parse("@include \"#{ENV['X']}.conf\"\n", "f", include, resolve)


@pytest.mark.parametrize(
    ("ruby", "line", "fits_it"),
    [
        (r"/^(?<id>[\h-]{36}) (?<m>.*)$/", b"123e4567-e89b-12d3-a456-426614174000 hi", True),
        (r"/^(?<id>[\h]+) /", b"abc hi", True),
        (r"/^\h+$/", b"0aF", True),
        (r"/^\H+$/", b"xyz", True),
        (r"/(?<a>\\host) x/", b"\\host x", True),
        (r"/\(?<b/", b"<b", True),
        (r"/[\]\[]+/", b"][", True),
        (r"/[[:alpha:]_]+\Z/", b"a_b", True),
        (r"/^[^\/]+\/$/", b"a/", True),
    ],
)
def test_ruby_s_escapes_mean_the_same(ruby: str, line: bytes, fits_it: bool) -> None:
    assert LinePattern(expression(ruby)).found_in(line) is fits_it


@pytest.mark.parametrize("ruby", [r"/[a&&b]/", r"/[a[bc]]/", r"/[\H]/"])
def test_a_set_within_a_set_is_refused(ruby: str) -> None:
    with pytest.raises(ConfigError, match="within a set"):
        expression(ruby)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (SOURCE + "<match **>\n@type forward\n<server>\nhost fd\n</server>\n</match>\n", "take kube.**"),
        (DAEMON + "<match **>\n@type elasticsearch\nhost es\nindex_name x-${tag}\n</match>\n", "an index for each"),
        (SOURCE.replace("*.log", "%Y/%m%d.log") + ELASTIC, "a part of the date is any text"),
        (SOURCE.replace("@type json", "@type regexp\nexpression /(?<time>.*) /") + ELASTIC, "time_format is not set"),
        (
            DAEMON.replace("@type cri", "@type multiline\nformat_firstline /^a/\nformat1 /(?<a>.*)/") + ELASTIC,
            "pods that ask for it: nodeagent.io/log-multiline: fluentd-1, nodeagent.io/log-parser: fluentd-1",
        ),
    ],
)
def test_what_is_another_thing_here_is_told(text: str, says: str) -> None:
    assert says in said(text, POD)


def test_a_tag_that_is_known_is_written_into_the_index() -> None:
    sink = "<match **>\n@type elasticsearch\nhost es\nindex_name ${tag}-%Y\n</match>\n"
    (made,) = imported(SOURCE + sink).logs["sinks"]
    assert made["elasticsearch"]["index"] == "app.logs-{year}"
    other = SOURCE.replace("app.logs", "other")
    assert "events of several tags" in said(SOURCE + other + sink, POD)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("::1", "http://[::1]:9200"),
        ("[::1]", "http://[::1]:9200"),
        ("[::1]:9", "http://[::1]:9"),
        ("es:1", "http://es:1"),
    ],
)
def test_addresses_of_both_families(host: str, url: str) -> None:
    text = SOURCE + f"<match **>\n@type elasticsearch\nhost {host}\n</match>\n"
    assert imported(text, FluentdSidecar({}, MOUNTS)).logs["sinks"][0]["elasticsearch"]["urls"] == [url]


def test_a_forward_server_by_an_ipv6_address() -> None:
    text = SOURCE + "<match **>\n@type forward\n<server>\nhost ::1\n</server>\n</match>\n"
    assert imported(text).logs["sinks"][0]["forward"]["addresses"] == ["[::1]:24224"]


def test_a_user_that_is_not_known_leaves_its_place() -> None:
    login = "user \"#{ENV['U']}\"\npassword \"#{ENV['P']}\"\n"
    text = SOURCE + f"<match **>\n@type elasticsearch\nhost es\n{login}</match>\n"
    found = imported(text)
    assert found.logs["sinks"][0]["elasticsearch"]["auth"]["basic"]["user"] == "unknown"
    assert "nothing here is like it" not in said(text, POD)
    unset = text.replace("ENV['U']", "ENV['U'] || use_default").replace("ENV['P']", "ENV['P'] || use_default")
    assert "auth" not in imported(unset).logs["sinks"][0]["elasticsearch"]
    assert "password" not in said(unset, POD)


def test_a_file_s_path_keeps_a_name() -> None:
    sink = "<match **>\n@type file\npath /var/log/fluent/%Y%m%d/${tag}\n</match>\n"
    assert imported(SOURCE + sink).logs["sinks"][0]["file"]["path"] == "/var/log/fluent/file.log"


def test_a_path_with_a_space_is_no_annotation() -> None:
    found = imported(SOURCE.replace("*.log", "my app.log") + ELASTIC)
    assert [each["path"] for each in found.logs["files"]] == ["my app.log"] and not found.annotations


NATIVE = """apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop}
spec:
  initContainers:
  - name: fluentd
    image: fluent/fluentd
    restartPolicy: Always
    volumeMounts: [{name: v, mountPath: /var/log/app, subPath: inner}]
  containers: [{name: app, image: app, volumeMounts: [{name: v, mountPath: /logs}]}]
  volumes: [{name: v, emptyDir: {}}]
"""


def test_a_native_sidecar_and_a_part_of_a_volume() -> None:
    (found,) = import_pods(NATIVE, "p.yaml", {}, SOURCE + ELASTIC)
    assert found.imported.annotations == {"nodeagent.io/log-files": "v/inner/*.log"}
    spec = yaml.safe_load(found.text)["spec"]
    assert "initContainers" not in spec and [each["name"] for each in spec["containers"]] == ["app"]


def test_a_pod_of_fluentd_alone_is_left_as_it_is_and_said() -> None:
    alone = NATIVE.replace("initContainers", "containers").replace("    restartPolicy: Always\n", "")
    alone = "\n".join(line for line in alone.split("\n") if "name: app" not in line)
    (found,) = import_pods(alone, "p.yaml", {}, SOURCE + ELASTIC)
    assert yaml.safe_load(found.text) == yaml.safe_load(alone)
    assert any("no other container" in each.text for each in found.imported.notes)


TWO = """apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {namespace}, labels: {{app: {name}}}}}
spec:
  containers:
  - {{name: app, image: "my-app:1", volumeMounts: [{{name: logs, mountPath: /var/log/app}}]}}
  - name: fluentd
    image: fluent/fluentd:v1
    volumeMounts: [{{name: logs, mountPath: /var/log/app}}, {{name: conf, mountPath: /fluentd/etc}}]
  volumes: [{{name: logs, emptyDir: {{}}}}, {{name: conf, configMap: {{name: {config}}}}}]
---
apiVersion: v1
kind: ConfigMap
metadata: {{name: {config}, namespace: {namespace}}}
data:
  fluent.conf: |
    <source>
      @type tail
      path /var/log/app/*.log
      tag a
      read_from_head true
      <parse>
        @type regexp
        expression /^(?<{member}>.*)$/
      </parse>
    </source>
    <match a>
      @type elasticsearch
      host {host}
      <buffer>
        total_limit_size {size}
        overflow_action {full}
      </buffer>
    </match>
---
"""
DROPPING = {"host": "es.one.example", "size": "1g", "full": "drop_oldest_chunk", "member": "level"}
BLOCKING = {"host": "es.two.example", "size": "2g", "full": "block", "member": "card"}


def of_pods(*pods: dict[str, str]) -> list[Imported]:
    """Return what becomes of *pods* together; the agent takes it."""
    text = "".join(TWO.format(config=f"{each['namespace']}-{each['name']}-conf", **each) for each in pods)
    found = [each.imported for each in import_pods(text, "p.yaml", {})]
    LogSettings.model_validate(found[0].logs)
    return found


def test_several_pods_become_one_section_in_which_each_has_its_own() -> None:
    one, two = of_pods({"name": "a", "namespace": "shop", **DROPPING}, {"name": "b", "namespace": "pay", **BLOCKING})
    assert one.logs == two.logs
    assert [each["name"] for each in one.logs["sinks"]] == ["shop-a-elasticsearch", "pay-b-elasticsearch"]
    assert [each["name"] for each in one.logs["parsers"]] == ["fluentd-shop-a-1", "fluentd-pay-b-1"]
    for found, name in ((one, "shop-a"), (two, "pay-b")):
        assert found.annotations == {
            "nodeagent.io/log-files": "logs/*.log",
            "nodeagent.io/log-parser": f"fluentd-{name}-1",
            "nodeagent.io/log-sinks": f"{name}-elasticsearch",
        }
        assert f"{name}-elasticsearch" in one.logs["podSinks"]
    assert one.logs["buffer"] == {"bytes": 2 << 30}, "nobody's records are dropped as another one's may be"
    assert any("others want none dropped" in each.text for each in one.notes)


def test_of_a_node_s_fluentd_and_a_sidecar_the_sidecar_s_sink_is_for_its_files_alone() -> None:
    text = TWO.format(config="c", name="a", namespace="shop", **BLOCKING)
    node = TWO.format(config="n", name="node", namespace="kube-system", **DROPPING)
    node = node.replace("/var/log/app/*.log", "/var/log/containers/*.log")
    found = [each.imported for each in import_pods(text + node, "p.yaml", {})]
    LogSettings.model_validate(found[0].logs)
    assert (found[0].logs["containers"], found[0].annotations) == ("all", {})
    (entry,) = found[0].logs["files"]
    assert (entry["namespaces"], entry["sinks"]) == (["shop"], ["shop-a-elasticsearch"])
    assert found[0].logs["routes"] == [{"sinks": ["kube-system-node-elasticsearch"]}]


def test_what_several_pods_have_alike_is_there_once() -> None:
    pods = [{"name": f"p{number}", "namespace": "shop", **DROPPING} for number in range(20)]
    found = of_pods(*pods)
    logs = found[0].logs
    assert [each["name"] for each in logs["sinks"]] == ["shop-p0-elasticsearch"]
    assert [each["name"] for each in logs["parsers"]] == ["fluentd-shop-p0-1"]
    assert {each.annotations["nodeagent.io/log-sinks"] for each in found} == {"shop-p0-elasticsearch"}
    assert {each.annotations["nodeagent.io/log-parser"] for each in found} == {"fluentd-shop-p0-1"}
    assert logs["buffer"] == {"bytes": 1 << 30, "full": "dropOldest"}
    assert any("logs.buffer.full is one for all sinks" in each.text for each in found[0].notes)


def test_names_of_pods_that_are_alike_but_for_where_a_dash_stands_are_told_apart() -> None:
    pods = [("Pod", "a-b", "c"), ("Pod", "a", "b-c"), ("Deployment", "a", "b-c"), ("Pod", "shop", "x" * 80)]
    found = names(pods)
    assert len(set(found)) == len(pods)
    assert found[::-1] == names(pods[::-1]), "whatever the order"
    assert max(map(len, found)) <= 40


def test_of_two_outputs_one_that_drops_does_not_make_the_other_drop() -> None:
    buffered = "<store>\n@type stdout\n<buffer>\noverflow_action {}\n</buffer>\n</store>\n"
    stores = buffered.format("drop_oldest_chunk") + buffered.format("block").replace("stdout", "elasticsearch")
    found = imported(SOURCE + f"<match **>\n@type copy\n{stores}</match>\n")
    assert "buffer" not in found.logs
    assert any("overflow_action: is not taken" in each.text for each in found.notes)


@pytest.mark.parametrize(
    ("excluded", "namespaces", "note"),
    [
        ("/var/log/containers/*_kube-system_*.log", ["kube-system"], ""),
        ('["/var/log/containers/fluentd*", "/var/log/containers/*_kube-*_*"]', ["kube-*"], ""),
        ("/var/log/containers/web-*", [], "'/var/log/containers/web-*': is not taken: nodeagent.io/log-exclude"),
    ],
)
def test_what_is_excluded_of_all_containers_is_dropped_or_named(
    excluded: str, namespaces: list[str], note: str
) -> None:
    source = DAEMON.replace("tag kubernetes.*", f"tag kubernetes.*\nexclude_path {excluded}")
    found = imported(source + ELASTIC, FluentdSidecar())
    rules = [{"namespaces": [each], "drop": {"matches": "."}} for each in namespaces]
    assert found.logs.get("rules", []) == rules
    assert note in "\n".join(notes(found)) and ("exclude_path" in "\n".join(notes(found))) == bool(note)


def test_a_node_s_fluentd_in_a_manifest_has_rules_for_all_pods() -> None:
    grep = "<filter **>\n@type grep\n<exclude>\nkey log\npattern /x/\n</exclude>\n</filter>\n"
    found = imported(DAEMON + grep + ELASTIC)
    assert found.logs.get("rules") == [{"drop": {"matches": "x"}}]


@pytest.mark.parametrize(
    ("path", "patterns", "parser"),
    [
        ("/var/log/containers/*.log", ("json", "/^(?<time>.+) (?<log>.*)$/"), None),
        ("/var/log/app/*.log", ("json", "none"), ""),
        ("/var/log/app/*.log", ("json", "/^(?<a>.*)$/"), "'json', '/^(?<a>.*)$/': a file has one parser here"),
    ],
)
def test_lines_of_several_forms(path: str, patterns: tuple[str, ...], parser: str | None) -> None:
    several = "".join(f"<pattern>\nformat {each}\n</pattern>\n" for each in patterns)
    text = SOURCE.replace("/var/log/app/*.log", path).replace("@type json", f"@type multi_format\n{several}")
    found = imported(text + ELASTIC)
    told = "\n".join(notes(found))
    assert "<pattern>: is not taken" not in told
    assert (parser or "multi_format") in told if parser else "multi_format" not in told
    assert found.annotations.get("nodeagent.io/log-parser") == ("none" if parser else None)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("<source>\n@type forward\n</source>\n", "<source> @type forward"),
        (
            "<match app.logs>\n@type copy\n<store>\n@type s3\n</store>\n<store>\n@type stdout\n</store>\n</match>\n",
            "s3",
        ),
        (SOURCE.replace("/var/log/app/", "/elsewhere/"), "is in no volume of the pod"),
        (SOURCE.replace("app.logs", "b") + "<match b>\n@type rewrite_tag_filter\n</match>\n", "rewrite_tag_filter"),
        ("<match /a/>\n@type stdout\n</match>\n", "a regular expression"),
    ],
)
def test_a_source_or_output_that_nothing_replaces_is_lost(text: str, says: str) -> None:
    found = imported(SOURCE + text + ELASTIC)
    assert any(says in each.text for each in found.lost)
    assert not any("read_from_head" in each.text or "Service" in each.text for each in found.lost)
    assert not imported(SOURCE + ELASTIC).lost


def test_an_output_that_gives_events_another_tag_is_not_called_a_sink() -> None:
    (note,) = imported(
        SOURCE + "<match app.logs>\n@type copy\n<store>\n@type rewrite_tag_filter\n</store>\n<store>\n@type stdout\n"
        "</store>\n</match>\n"
    ).lost
    assert (
        "records go where their pod's route says (logs.routes)" in note.text and "no sink is like it" not in note.text
    )
