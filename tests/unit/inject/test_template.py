"""Templates that users bring: what stands for what, and every way to get one wrong."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from nodeagent.inject import InjectionError, InjectionSettings, inject
from nodeagent.inject.template import builtins
from tests.unit.inject.pods import ENABLED, injected, named, pod

OWN = """
values:
  image: registry.example/proxy:1
  level: info
  extra: {a: [1, true]}
  nothing: null
metadata:
  labels: {proxy: "${level}"}
  annotations: {note: "cost $5, $${level}, ${canonicalName}-${concurrency}"}
container:
  name: istio-proxy
  image: ${image}
  imagePullPolicy: ${nothing}
  command: [proxy, --threads, "${concurrency}", "--level=${level}", "${nothing}"]
  extra: ${extra}
volumes: []
"""


def given(directory: Path, text: str) -> str:
    (directory / "sidecar.yaml").write_text(text)
    return str(directory)


def refusal(directory: Path, text: str, **values: Any) -> str:
    with pytest.raises(InjectionError) as error:
        inject(pod(), ENABLED, InjectionSettings(given(directory, text), values=values))
    return str(error.value)


def test_what_stands_for_what(tmp_path: Path) -> None:
    found = injected(pod(), InjectionSettings(given(tmp_path, OWN), values={"level": "debug", "concurrency": 3}))
    assert found["metadata"]["labels"] == {"proxy": "debug"}
    assert found["metadata"]["annotations"]["note"] == "cost $5, ${level}, web-3"
    assert named(found["spec"]["containers"], "istio-proxy") == {
        "name": "istio-proxy",
        "image": "registry.example/proxy:1",
        "command": ["proxy", "--threads", "3", "--level=debug"],
        "extra": {"a": [1, True]},
    }
    assert "initContainers" not in found["spec"]
    assert "volumes" not in found["spec"]


def test_a_file_is_a_template_too_and_is_read_again_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    for image in ("one", "two"):
        path.write_text(f"container: {{name: istio-proxy, image: {image}}}")
        os.utime(path, ns=(0, len(image) + ord(image[0])))
        assert (
            named(injected(pod(), InjectionSettings(str(path)))["spec"]["containers"], "istio-proxy")["image"] == image
        )


def test_values_cannot_change_the_structure(tmp_path: Path) -> None:
    evil = 'x"}\nsecurityContext: {privileged: true} # ${image}'
    found = injected(pod(), InjectionSettings(given(tmp_path, OWN), values={"level": evil}))
    assert named(found["spec"]["containers"], "istio-proxy")["command"][3] == f"--level={evil}"


def test_the_pods_own_labels_win(tmp_path: Path) -> None:
    found = injected(pod(labels={"proxy": "mine"}), InjectionSettings(given(tmp_path, OWN)))
    assert found["metadata"]["labels"] == {"proxy": "mine"}


def test_builtin_templates() -> None:
    assert builtins() == ["envoy", "nodeagent"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("container: [", "not YAML"),
        ("", "one document"),
        ("- a", "one document"),
        ("a: 1\n---\nb: 2", "one document"),
        ("contaner: {}", "contaner: unknown field: allowed: values, metadata"),
        ("container: text", 'container: "text": allowed: a mapping'),
        ("container: {name: proxy}", 'container.name: "proxy": allowed: istio-proxy'),
        ("values: {}", "container.name: null: allowed: istio-proxy"),
        ("container: {name: istio-proxy}\nvolumes: {}", "volumes: {}: allowed: a list"),
        ("container: {name: istio-proxy}\nvolumes: [a]", 'volumes[0].name: "a": allowed'),
        ("container: {name: istio-proxy}\nvolumes: [{name: a}, {name: a}]", 'volumes[1].name: "a": allowed'),
        (
            "container: {name: istio-proxy}\ninitContainers: [{name: '${image}'}]",
            'initContainers[0].name: "${image}": allowed',
        ),
        (
            "container: {name: istio-proxy}\ninitContainers: [{name: istio-proxy}]",
            'initContainers[0].name: "istio-proxy": allowed',
        ),
        ("container: {name: istio-proxy}\nmetadata: {labels: [a]}", "metadata.labels: allowed: a mapping"),
        (
            "container: {name: istio-proxy, image: '${colour}'}",
            'container.image: "${colour}": unknown: allowed: accessLog',
        ),
        (
            "container: {name: istio-proxy, args: ['a ${resources}']}",
            'container.args[0]: "${resources}": a dict cannot be part of a text',
        ),
    ],
)
def test_a_broken_template_is_named(tmp_path: Path, text: str, message: str) -> None:
    said = refusal(tmp_path, text)
    assert said.startswith(f"template {tmp_path}: ")
    assert message in said


def test_a_template_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InjectionError, match=r"No such file or directory: allowed: envoy, nodeagent, or a path"):
        inject(pod(), ENABLED, InjectionSettings(str(tmp_path / "none")))


def test_a_value_that_the_template_does_not_have(tmp_path: Path) -> None:
    assert refusal(tmp_path, OWN, levle="debug").startswith("values.levle: unknown: allowed: accessLog")
