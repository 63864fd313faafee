"""The manifests say what the code says: the version, the agent's configuration, the kinds of policy,
and nothing that does not exist.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import nodeagent
from nodeagent.kube import kinds
from nodeagent.logs.fluentd.outputs import CLUSTER_SECRETS
from nodeagent.logs.settings import LogSettings, NodeJournal
from nodeagent.redirect import rights
from nodeagent.resources.security import KINDS
from nodeagent.rollout import remove

ROOT = Path(__file__).parents[3]
DAEMONSET = ROOT / "daemonset"
KUSTOMIZATIONS = sorted(DAEMONSET.rglob("kustomization.yaml"))
COMPARED = DAEMONSET / "overlays" / "sidecar-comparison" / "pods"
"""Applications, which are no part of the agent."""
UNINSTALL = DAEMONSET / "uninstall.yaml"
"""A patch of what is installed."""
NAMES = [str(path.parent.relative_to(DAEMONSET)) for path in KUSTOMIZATIONS]


def documents(*folders: str) -> Iterator[dict[str, Any]]:
    for folder in folders or ("",):
        for path in sorted((DAEMONSET / folder).rglob("*.yaml")):
            if path.parent == COMPARED or path == UNINSTALL:
                continue
            yield from (each for each in yaml.safe_load_all(path.read_text()) if isinstance(each, dict))


def pod_specs() -> Iterator[tuple[str, dict[str, Any]]]:
    for each in documents():
        template = each.get("spec", {}).get("template") if isinstance(each.get("spec"), dict) else None
        if template and "spec" in template:
            yield f"{each['kind']}/{each['metadata']['name']}", template["spec"]


@pytest.mark.parametrize("path", KUSTOMIZATIONS, ids=NAMES)
def test_a_kustomization_names_files_that_exist_and_all_of_them(path: Path) -> None:
    document = yaml.safe_load(path.read_text())
    resources = document.get("resources", [])
    assert [each for each in resources if not (path.parent / each).exists()] == []
    generated = [file for each in document.get("configMapGenerator", ()) for file in each.get("files", ())]
    named = {*resources, *(file.rpartition("=")[2] for file in generated), "kustomization.yaml"}
    there = {each.name for each in path.parent.glob("*.yaml")}
    assert there - named == set()


def test_images_are_the_project_s_own_at_its_version() -> None:
    images = {container["image"] for _, spec in pod_specs() for container in spec["containers"]}
    assert images == {"nodeagent"}
    tags = set()
    for path in KUSTOMIZATIONS:
        tags |= {image["newTag"] for image in yaml.safe_load(path.read_text()).get("images", ())}
    assert tags == {nodeagent.__version__}
    webhook = yaml.safe_load((DAEMONSET / "webhook" / "webhook.yaml").read_text())
    assert "initImage" not in webhook["injection"]["values"], "images: of a kustomization would not reach it"


def test_what_is_installed_runs_on_linux_alone() -> None:
    assert [name for name, spec in pod_specs() if spec.get("nodeSelector") != {"kubernetes.io/os": "linux"}] == []


def test_the_agent_has_the_rights_that_it_uses_and_in_the_overlay_those_that_it_needs() -> None:
    (agent,) = (spec["containers"][0] for name, spec in pod_specs() if name == "DaemonSet/nodeagent")
    assert agent["securityContext"]["capabilities"]["add"] == sorted(right.name for right in rights.RIGHTS)
    overlay = yaml.safe_load((DAEMONSET / "overlays/unprivileged/kustomization.yaml").read_text())
    text = str(overlay)
    assert all(right.name in text for right in rights.RIGHTS if right.needed)


def test_the_component_logs_adds_the_rights_that_logs_use() -> None:
    component = yaml.safe_load((DAEMONSET / "components/logs/kustomization.yaml").read_text())
    added = [
        step["value"]
        for each in component["patches"]
        for step in yaml.safe_load(each["patch"])
        if isinstance(step, dict) and step["path"].endswith("/capabilities/add/-")
    ]
    assert sorted(added) == sorted(right.name for right in rights.LOG_RIGHTS)
    mounts = yaml.safe_load(component["patches"][1]["patch"])["spec"]["template"]["spec"]["containers"][0][
        "volumeMounts"
    ]
    defaults = LogSettings.model_validate({"sinks": [{"name": "a", "stdout": {}}]})
    assert {each["mountPath"]: each.get("readOnly", False) for each in mounts} == {
        str(defaults.pod_logs): True,
        str(defaults.pod_volumes): True,
        str(defaults.state_directory): False,
        CLUSTER_SECRETS: True,
    }


def test_the_component_journal_mounts_what_is_above_the_journals_folders() -> None:
    """Its own folders would be made, and journald would write there from then on."""
    component = yaml.safe_load((DAEMONSET / "components/journal/kustomization.yaml").read_text())
    spec = yaml.safe_load(component["patches"][0]["patch"])["spec"]["template"]["spec"]
    folders = NodeJournal().folders  # type: ignore[call-arg]
    assert {each["mountPath"] for each in spec["containers"][0]["volumeMounts"]} == {
        str(each.parent) for each in folders
    }
    assert {each["hostPath"]["path"] for each in spec["volumes"]} == {str(each.parent) for each in folders}
    assert all(each["readOnly"] for each in spec["containers"][0]["volumeMounts"])


def test_what_cleans_a_node_is_what_is_installed_with_another_command() -> None:
    """Whatever of image, configuration, mounts and rights an overlay of somebody's own has changed, stays."""
    patch = yaml.safe_load(UNINSTALL.read_text())
    (agent,) = patch["spec"]["template"]["spec"].pop("containers")
    (volume,) = patch["spec"]["template"]["spec"].pop("volumes")
    assert volume == {"name": "roots", "configMap": {"optional": True}}
    installed = next(spec for name, spec in pod_specs() if name == "DaemonSet/nodeagent")
    (mounted,) = [each for each in installed["volumes"] if each["name"] == "roots"]
    assert "configMap" in mounted, "else the patch would be refused"
    assert patch == {
        "spec": {
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": "100%"}},
            "template": {"spec": {"terminationGracePeriodSeconds": 1}},
        }
    }
    readiness = agent.pop("readinessProbe")
    assert readiness["httpGet"] is None
    assert readiness["exec"]["command"][:2] == ["sh", "-c"], "of a shell's words, the image has no `test`"
    *_, command = agent.pop("command")
    assert command.startswith(f"{' '.join(remove.UNINSTALL)} && ")
    gone = dict.fromkeys(("args", "startupProbe", "livenessProbe", "lifecycle"))
    assert agent == {"name": "agent", **gone}


def test_no_container_is_privileged_or_may_become_so() -> None:
    loose = []
    for name, spec in pod_specs():
        for container in [*spec.get("initContainers", ()), *spec["containers"]]:
            context = container["securityContext"]
            if (
                context.get("privileged")
                or context.get("allowPrivilegeEscalation") is not False
                or context.get("readOnlyRootFilesystem") is not True
                or context.get("capabilities", {}).get("drop") != ["ALL"]
            ):
                loose.append(name)
    assert loose == []


def test_every_capability_has_its_reason_in_the_documents() -> None:
    text = (ROOT / "docs" / "kubernetes.md").read_text()
    rights = text[text.index("## Rights") :]
    for name, spec in pod_specs():
        for container in spec["containers"]:
            for capability in container["securityContext"]["capabilities"].get("add", ()):
                assert re.search(rf"^\| [A-Z_, ]*\b{capability}\b", rights, re.MULTILINE), f"{name}: {capability}"


def test_every_kind_of_policy_has_its_definition() -> None:
    defined = {each["spec"]["names"]["kind"] for each in documents() if each.get("kind") == "CustomResourceDefinition"}
    assert set(KINDS) <= defined


def test_a_rule_says_who_needs_it() -> None:
    """A comment above each rule of base/rbac.yaml names the module that calls."""
    text = (DAEMONSET / "base" / "rbac.yaml").read_text()
    for before in text.split("\n  - apiGroups:")[:-1]:
        comment = before.rsplit("\n", 1)[-1]
        said = re.match(r"  # (\w[\w/]*\.py)", comment)
        assert said, before[-200:]
        assert (ROOT / "nodeagent" / said[1]).exists(), said[1]


def test_the_agent_may_follow_what_it_follows_and_nothing_else() -> None:
    role = next(each for each in documents("base") if each.get("kind") == "ClusterRole")
    followed = {(each.group, each.plural) for each in kinds.FOLLOWED}
    allowed = set()
    for rule in role["rules"]:
        if "watch" in rule["verbs"]:
            allowed |= {(group, plural) for group in rule["apiGroups"] for plural in rule["resources"]}
    assert allowed == followed
