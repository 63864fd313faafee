"""Every parameter and section that Fluentd's documentation has of a plugin is taken, or named, or needless by a table:
none is passed over in silence.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nodeagent.logs.fluentd import parameters
from nodeagent.logs.fluentd.convert import Imported
from nodeagent.logs.fluentd.parameters import Parameters
from tests.unit.logs.fluentd.test_convert import imported

SOURCE = """<source>
@type tail
path /var/log/app/*.log
tag app
read_from_head true
{source}
<parse>
@type {form}
{parse}
</parse>
</source>
<filter app>
@type {filter}
{filtered}
</filter>
<match app>
@type {output}
{sink}
<buffer>
{buffer}
</buffer>
</match>
"""
LEAST = {
    "form": "json",
    "parse": "",
    "source": "",
    "filter": "stdout",
    "filtered": "",
    "output": "stdout",
    "sink": "",
    "buffer": "",
}
ELASTIC = {"output": "elasticsearch", "sink": "host es.example"}
DATED = {"output": "elasticsearch", "sink": "host es.example\nlogstash_format true"}
FORWARD = {"output": "forward", "sink": "<server>\nhost a.example\n</server>"}
SERVER = {"output": "forward", "sink": "<server>\nhost a.example\n{}\n</server>"}
LOKI = {"output": "loki", "sink": "url http://loki.example"}
FILE = {"output": "file", "sink": "path /var/log/x"}
MULTILINE = {"form": "multiline", "parse": "format_firstline /^a/"}
Case = tuple[dict[str, str], str, Parameters, str]

IN_TAIL = """path:/var/log/app/x path_key:p exclude_path:/a path_timezone:+09:00 refresh_interval:9
skip_refresh_on_startup:true limit_recently_modified:1h read_lines_limit:9 read_bytes_limit_per_second:9000
max_line_size:9 multiline_flush_interval:9s pos_file:/p pos_file_compaction_interval:9s encoding:ascii
from_encoding:ascii rotate_wait:9 enable_watch_timer:false enable_stat_watcher:false open_on_every_update:true
emit_unmatched_lines:false ignore_repeated_permission_error:true follow_inodes:true glob_policy:extended"""
OF_PARSE = """types:a:integer time_key:t null_value_pattern:- null_empty_string:true estimate_current_event:false
keep_time_key:false timeout:9 time_type:mixed time_format:%d/%b/%Y localtime:true utc:false timezone:+09:00
time_format_fallbacks:%s json_parser:yajl stream_buffer_size:9"""
OF_ELASTICSEARCH = """hosts:a.example port:1 path:/x scheme:https ssl_verify:false ssl_version:TLSv1_2 ssl_max_version:x
ssl_min_version:x user:u cloud_id:x cloud_auth:x api_key:x index_name:x index_date_pattern:x logstash_format:true
include_timestamp:true time_key_format:%s time_precision:9 time_key:t time_key_exclude_timestamp:true
time_parse_error_tag:x suppress_type_name:true target_index_key:x target_type_key:x target_index_affinity:true
template_name:x template_file:/x template_overwrite:true customize_template:{} templates:{} template_pattern:x
rollover_index:true index_separator:x deflector_alias:x enable_ilm:true ilm_policy_id:x ilm_policy:{} ilm_policies:{}
ilm_policy_overwrite:true pipeline:x id_key:x parent_key:x routing_key:x remove_keys:x remove_keys_on_update:x
remove_keys_on_update_key:x retry_tag:x write_operation:upsert emit_error_label_event:false
emit_error_for_missing_id:true reload_connections:false reload_on_failure:true reload_after:9 resurrect_after:9
include_tag_key:true tag_key:x content_type:x include_index_in_url:true http_backend:typhoeus
http_backend_excon_nonblock:false prefer_oj_serializer:true compression_level:best_speed selector_class_name:x
sniffer_class_name:x with_transporter_log:true default_elasticsearch_version:7 custom_headers:{} request_timeout:9s
max_retry_putting_template:9 fail_on_putting_template_retry_exceed:false max_retry_get_es_version:9
fail_on_detecting_es_version_retry_exceed:false verify_es_version_at_startup:false exception_backup:false
bulk_message_request_threshold:9 unrecoverable_error_types:x unrecoverable_record_types:x ignore_exceptions:x
ca_file:/x client_key_pass:x flatten_hashes:true flatten_hashes_separator:x type_name:x
log_es_400_reason:true reconnect_on_error:true validate_client_version:true use_legacy_template:true
time_nanos:true data_stream_enable:true"""
OF_DATES = "logstash_prefix:x logstash_prefix_separator:_ logstash_dateformat:%Y.%W utc_index:false"
OF_FORWARD = """require_ack_response:true send_timeout:9 connect_timeout:9 recover_wait:9 heartbeat_type:none
heartbeat_interval:9 phi_failure_detector:false phi_threshold:9 hard_timeout:9 expire_dns_cache:9 dns_round_robin:true
ignore_network_errors_at_startup:true tls_version:x tls_ciphers:x tls_insecure_mode:true
tls_allow_self_signed_cert:true tls_verify_hostname:false tls_cert_path:/x
tls_client_private_key_passphrase:x tls_cert_thumbprint:x
tls_cert_logical_store_name:x tls_cert_use_enterprise_store:true keepalive:true keepalive_timeout:9
verify_connection_at_startup:true compress:gzip time_as_integer:true ack_response_timeout:9 transport:tls"""
OF_SERVER = "port:1 name:x shared_key:x username:x password:x standby:true weight:9"
OF_LOKI = """url:http://b.example username:u tenant:t ca_cert:/x ciphers:x min_version:x
insecure_tls:true custom_headers:{} extra_labels:{} line_format:json extract_kubernetes_labels:true remove_keys:x
include_thread_label:false drop_single_key:true bearer_token_file:/x compress:gzip"""
OF_FILE = (
    """path:/var/log/y append:true add_path_suffix:false path_suffix:x compress:gzip recompress:true symlink_path:/x"""
)
OF_BUFFER = """@type:file path:/x timekey:1h timekey_wait:1m timekey_use_utc:false timekey_zone:+09:00
chunk_limit_size:9m chunk_limit_records:9 total_limit_size:9m queue_limit_length:9 chunk_full_threshold:0.9
queued_chunks_limit_size:9 compress:gzip flush_at_shutdown:true flush_mode:immediate flush_interval:9s
flush_thread_count:9 flush_thread_interval:9 flush_thread_burst_interval:9 delayed_commit_timeout:9
overflow_action:drop_oldest_chunk retry_timeout:9h retry_forever:true retry_max_times:9
retry_secondary_threshold:0.9 retry_type:periodic retry_wait:9 retry_exponential_backoff_base:9
retry_max_interval:9 retry_randomize:false disable_chunk_backup:true"""
OF_TRANSFORMER = "enable_ruby:true auto_typecast:true renew_record:true renew_time_key:t keep_keys:a remove_keys:a"
OF_PARSER = """key_name:other reserve_time:true reserve_data:true remove_key_name_field:true
replace_invalid_sequence:true inject_key_prefix:x hash_value_field:x emit_invalid_record_to_error:false"""
OF_METADATA = """kubernetes_url:x apiVersion:v1 ca_file:/x verify_ssl:false client_cert:/x client_key:/x
bearer_token_file:/x secret_dir:/x annotation_match:x stats_interval:9 allow_orphans:false
orphaned_namespace_name:x orphaned_namespace_id:x lookup_from_k8s_field:true cache_size:9 cache_ttl:9 watch:false
skip_labels:true skip_container_metadata:true skip_master_url:true skip_namespace_metadata:true
skip_namespace_labels:true skip_pod_labels:true de_dot:false de_dot_separator:x tag_to_kubernetes_name_regexp:x"""
SECTIONS = {
    "inject": "hostname_key h",
    "format": "@type single_value",
    "secondary": "@type file",
    "endpoint": "x y",
    "service_discovery": "@type srv",
    "unheard_of": "x y",
}


def cases() -> Iterator[Case]:
    """Yield a configuration, where the parameter stands in it, the tables of its plugin, and its name and value."""
    for least, where, table, listed in (
        ({}, "source", parameters.TAIL, IN_TAIL),
        ({}, "parse", parameters.PARSE, OF_PARSE),
        ({"form": "none"}, "parse", parameters.PARSE, "message_key:m"),
        (
            {"form": "regexp", "parse": "expression /(?<a>.)/"},
            "parse",
            parameters.PARSE,
            "ignorecase:true multiline:true",
        ),
        (MULTILINE, "parse", parameters.PARSE, "format1:/(?<a>.)/ unmatched_lines:true"),
        ({"form": "cri"}, "parse", parameters.PARSE, "merge_cri_fields:false"),
        (ELASTIC, "sink", parameters.ELASTICSEARCH, OF_ELASTICSEARCH),
        ({**ELASTIC, "output": "opensearch"}, "sink", parameters.ELASTICSEARCH, OF_ELASTICSEARCH),
        (DATED, "sink", parameters.ELASTICSEARCH, OF_DATES),
        (FORWARD, "sink", parameters.FORWARD, OF_FORWARD),
        (SERVER, "server", parameters.SERVER, OF_SERVER),
        (LOKI, "sink", parameters.LOKI, OF_LOKI),
        (FILE, "sink", parameters.FILE, OF_FILE),
        ({}, "buffer", parameters.BUFFER, OF_BUFFER),
        ({"filter": "record_transformer"}, "filtered", parameters.RECORD_TRANSFORMER, OF_TRANSFORMER),
        (
            {"filter": "parser", "filtered": "<parse>\n@type json\n</parse>"},
            "filtered",
            parameters.PARSER_FILTER,
            OF_PARSER,
        ),
        ({"filter": "kubernetes_metadata"}, "filtered", parameters.KUBERNETES_METADATA, OF_METADATA),
    ):
        for each in listed.split():
            yield least, where, table, each
    for least, where, table, together in (
        ({}, "source", parameters.TAIL, "path_delimiter:;\npath /var/log/app/a.log;/var/log/app/b.log"),
        (ELASTIC, "sink", parameters.ELASTICSEARCH, "client_cert:/x\nclient_key /x"),
        (FORWARD, "sink", parameters.FORWARD, "tls_client_cert_path:/x\ntls_client_private_key_path /x"),
        (LOKI, "sink", parameters.LOKI, "cert:/x\nkey /x"),
        (LOKI, "sink", parameters.LOKI, "username:u\npassword p"),
    ):
        yield least, where, table, together


def written(least: dict[str, str], where: str, line: str) -> Imported:
    parts = {**LEAST, **least}
    if where == "server":
        parts["sink"] = parts["sink"].format(line)
    else:
        parts[where] = f"{parts[where]}\n{line}"
    return imported(SOURCE.format(**parts))


@pytest.mark.parametrize(("least", "where", "table", "parameter"), list(cases()))
def test_it_is_taken_or_named_or_in_the_table_of_what_is_needless(
    least: dict[str, str], where: str, table: Parameters, parameter: str
) -> None:
    """Input: a parameter with a value that is not its default; with others below it, where it needs them."""
    name, _, value = parameter.partition(":")
    before = written(least, where, "")
    after = written(least, where, f"{name} {value}")
    named = {each.text for each in after.notes} - {each.text for each in before.notes}
    taken = (before.logs, before.annotations, before.pos_files) != (after.logs, after.annotations, after.pos_files)
    of_all = ("@type", *(parameters.OUTPUT.needless if where == "sink" else ()))
    assert taken or named or name in (*table.needless, *of_all), f"{name} is passed over in silence"
    assert not (name in table.needless and named), f"{name} is called needless, and named"


@pytest.mark.parametrize("section", SECTIONS)
@pytest.mark.parametrize("least", [ELASTIC, FORWARD, LOKI, FILE, {}], ids=lambda each: each.get("output", "stdout"))
def test_a_section_of_an_output_is_named(least: dict[str, str], section: str) -> None:
    found = written(least, "sink", f"<{section}>\n{SECTIONS[section]}\n</{section}>")
    assert any(f"<{section}>: is not taken" in each.text for each in found.notes)


@pytest.mark.parametrize(
    ("least", "where", "line"),
    [
        (DATED, "sink", "utc_index true"),
        (DATED, "sink", "logstash_prefix_separator -"),
        (ELASTIC, "sink", "write_operation index"),
        (ELASTIC, "sink", "ssl_verify true"),
        (FORWARD, "sink", "tls_insecure_mode false"),
        (SERVER, "server", "standby false"),
        ({"form": "none"}, "parse", "message_key log"),
        ({}, "parse", "timezone UTC"),
        ({}, "parse", "keep_time_key true"),
        ({}, "sink", "<format>\n@type json\n</format>"),
    ],
)
def test_what_asks_for_what_is_done_anyway_is_not_named(least: dict[str, str], where: str, line: str) -> None:
    named = {each.text for each in written(least, where, line).notes}
    assert named <= {each.text for each in written(least, where, "").notes}


def test_the_prefix_of_an_index_is_set_off_as_it_says() -> None:
    (made,) = written(DATED, "sink", "logstash_prefix pay\nlogstash_prefix_separator _").logs["sinks"]
    assert made["elasticsearch"]["index"] == "pay_{date}"


@pytest.mark.parametrize("form", ["%Y.%W", "%Y.%m.%d.%H", "%Y%j"])
def test_an_index_of_a_period_that_is_not_known_is_of_the_day_and_named(form: str) -> None:
    found = written(DATED, "sink", f"logstash_dateformat {form}")
    assert found.logs["sinks"][0]["elasticsearch"]["index"] == "logstash-{date}"
    assert any(f"'{form}'" in each.text and "an index for each day" in each.text for each in found.notes)
