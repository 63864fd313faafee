"""What is refused: the last good version stays, over a restart too, and what never was right closes what it selects."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from nodeagent.mesh.compile import Mesh
from nodeagent.mesh.entries import Workload
from nodeagent.policy.model import AuthorizationPolicy, PeerAuthentication, Rule
from nodeagent.resources import objects, security
from nodeagent.resources.changes import Change
from nodeagent.resources.directory import DirectorySource
from nodeagent.resources.last_good import LastGood
from nodeagent.resources.manifests import Manifests
from nodeagent.resources.security import Policy, stand_in
from nodeagent.resources.seen import SeenMapping

VERSIONS = {"RateLimit": "nodeagent.io/v1alpha1"}


def document(
    kind: str = "AuthorizationPolicy", name: str = "x", version: str = "", annotations: Any = None, **spec: Any
) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "shop"} | ({"annotations": annotations} if annotations is not None else {})
    return {
        "apiVersion": version or VERSIONS.get(kind, "security.istio.io/v1"),
        "kind": kind,
        "metadata": metadata,
        "spec": spec,
    }


SELECTOR = {"matchLabels": {"app": "web"}}


@pytest.mark.parametrize(
    ("wrong", "selector"),
    [
        (document(action="DNEY", selector=SELECTOR), (("app", "web"),)),
        (document(rules=7, selector=SELECTOR), (("app", "web"),)),
        (document(action="DENY", selector={"matchLabel": {"app": "web"}}), ()),
        (document(selectr=SELECTOR), ()),
        (document() | {"spec": "deny"}, ()),
        (document() | {"apiVersion": ["x"]}, ()),
        (document(annotations={"istio.io/dry-run": "ture"}), ()),
        (document("RequestAuthentication", jwtRules=[{"issuer": 5}], selector=SELECTOR), (("app", "web"),)),
        (document("RateLimit", local=[{}], selector=SELECTOR), (("app", "web"),)),
        (document("PeerAuthentication", mtls={"mode": "STRIKT"}, selector=SELECTOR), (("app", "web"),)),
        (document("PeerAuthentication", portLevelMtls={"80": {"mode": "STRICT"}}), ()),
    ],
)
def test_what_stands_in_for_a_wrong_document_closes_what_it_selects(
    wrong: dict[str, Any], selector: tuple[tuple[str, str], ...]
) -> None:
    kind = wrong["kind"]
    found = stand_in((kind, "shop", "x"), wrong, "why")
    closing = (
        PeerAuthentication("shop", "x", "STRICT")
        if kind == "PeerAuthentication"
        else AuthorizationPolicy("shop", "x", "DENY", (Rule(),), refused=kind)
    )
    assert found == Policy(kind, "shop", "x", "", selector, (), closing, "why")


@pytest.mark.parametrize(
    "wrong",
    [
        document(action="AUDIT", rules=7),
        document(annotations={"istio.io/dry-run": "true"}, action="DNEY"),
        document(version="policy.linkerd.io/v1alpha1", targetRef={"kind": "Server"}),
        document("RateLimit", version="other.io/v1"),
        document("VirtualService"),
    ],
)
def test_what_would_refuse_nobody_closes_nothing(wrong: dict[str, Any]) -> None:
    assert stand_in((wrong["kind"], "shop", "x"), wrong, "why") is None


class Node:
    """A source folder, a folder of YAML, and what is kept of them over restarts."""

    def __init__(self, root: Path) -> None:
        self.state, self.yaml, self.kept = root / "state", root / "policies", root / "run" / "last-good"
        (self.state / "objects").mkdir(parents=True)
        self.yaml.mkdir()

    def put(self, text: dict[str, Any] | str) -> None:
        (self.yaml / "a.yaml").write_text(text if isinstance(text, str) else json.dumps(text))

    def started(self) -> tuple[dict[str, Policy], list[str]]:
        """Begin as a daemon does; return the policies that it finds, by name, and what it refuses."""

        async def run() -> tuple[dict[str, Policy], list[str]]:
            source = DirectorySource(self.state, (self.yaml,), self.kept)
            try:
                changes = await source.changes()
                found = {
                    change.name: change.object
                    for change in changes
                    if isinstance(change, Change) and isinstance(change.object, Policy)
                }
                return found, [f"{each.name} {'stays' if each.stays else 'closes'}" for each in source.refused()]
            finally:
                source.close()

        return asyncio.run(run())


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


GOOD = document(action="ALLOW", rules=[{}], selector=SELECTOR)
NOT_YAML = "kind: ["


@pytest.mark.parametrize("wrong", [document(action="ALOW", selector=SELECTOR), NOT_YAML])
def test_the_last_good_one_outlives_a_restart(node: Node, wrong: dict[str, Any] | str) -> None:
    node.put(GOOD)
    assert node.started()[1] == []
    node.put(wrong)
    for _ in range(3):
        policies, refused = node.started()
        assert policies["x"].spec == security.parse(GOOD).spec
        assert [each.split()[-1] for each in refused] == ["stays"]
    node.put(document(action="DENY", rules=[{}]))
    node.started()
    node.put(wrong)
    assert node.started()[0]["x"].spec.action == "DENY"  # type: ignore[union-attr]
    for kept in (node.kept, *node.kept.iterdir()):
        assert kept.stat().st_mode & 0o077 == 0


def test_the_last_good_one_of_an_object_outlives_a_restart(node: Node) -> None:
    file = node.state / "objects" / "AuthorizationPolicy.shop.x.json"
    file.write_text(json.dumps(GOOD))
    node.started()
    for wrong in (json.dumps(document(action="ALOW")), "{", json.dumps(document(name="y"))):
        file.write_text(wrong)
        policies, refused = node.started()
        assert (policies["x"].spec, refused) == (security.parse(GOOD).spec, ["x stays"])


def test_what_is_gone_is_not_kept(node: Node) -> None:
    node.put(GOOD)
    node.started()
    (node.yaml / "a.yaml").unlink()
    assert node.started() == ({}, [])
    node.put(document(action="ALOW", selector=SELECTOR))
    policies, refused = node.started()
    assert (policies["x"].spec.refused, refused) == ("AuthorizationPolicy", ["x closes"])  # type: ignore[union-attr]
    assert list(node.kept.iterdir()) == []


@pytest.mark.parametrize("kept", [b"", b"x\n", b"x\n[{}]", b"x\n" + b"[" * 5000, b"\xff\n{"])
def test_what_was_kept_and_cannot_be_read_closes(node: Node, kept: bytes) -> None:
    node.put(GOOD)
    node.started()
    next(node.kept.iterdir()).write_bytes(kept)
    node.put(document(action="ALOW"))
    policies, refused = node.started()
    assert (policies["x"].spec.refused, refused) == ("AuthorizationPolicy", ["x closes"])  # type: ignore[union-attr]


def test_an_object_whose_text_cannot_be_read_closes_its_namespace(node: Node) -> None:
    """Its file's name says whose it is."""
    (node.state / "objects" / "RateLimit.shop.x.json").write_text("{")
    policies, refused = node.started()
    assert (policies["x"].selector, policies["x"].spec.refused, refused) == ((), "RateLimit", ["x closes"])  # type: ignore[union-attr]


def test_documents_without_a_name_close_what_they_select(node: Node) -> None:
    """Each for itself, and until it is named."""
    nameless = [document(action="DENY", rules=[{}], selector={"matchLabels": {"app": app}}) for app in ("one", "two")]
    for each in nameless:
        del each["metadata"]["name"]
    node.put("---\n".join(json.dumps(each) + "\n" for each in nameless))
    policies, refused = node.started()
    assert {policy.selector for policy in policies.values()} == {(("app", "one"),), (("app", "two"),)}
    assert [each.split()[-1] for each in refused] == ["closes", "closes"]


def test_what_is_right_goes_before_what_stands_in(node: Node) -> None:
    """The same policy stands in two places, and the one that would be in force is wrong."""
    (node.state / "objects" / "AuthorizationPolicy.shop.x.json").write_text(json.dumps(document(action="ALOW")))
    node.put(GOOD)
    policies, _ = node.started()
    assert policies["x"].spec == security.parse(GOOD).spec


def test_a_folder_that_cannot_be_written_is_no_fault(node: Node) -> None:
    node.kept.parent.write_text("")
    node.put(GOOD)
    assert node.started()[1] == []


def pod(name: str, **labels: str) -> Change:
    metadata = {"name": name, "namespace": "shop", "uid": f"u-{name}", "labels": labels}
    status = {"podIP": f"10.0.0.{len(name)}", "phase": "Running"}
    parsed = objects.parse(
        {"kind": "Pod", "metadata": metadata, "spec": {"nodeName": "n1", "containers": []}, "status": status}
    )
    return Change("Pod", "shop", name, parsed)


def test_the_mesh_says_what_is_closed_until_it_is_right() -> None:
    mesh = Mesh("n1", "cluster.local")
    wrong = document("RateLimit", local=[{}], selector=SELECTOR)
    policy = stand_in(("RateLimit", "shop", "x"), wrong, "spec.local[0]: why")
    mesh.apply([pod("web", app="web"), pod("other")])
    delta = mesh.apply([Change("RateLimit", "shop", "x", policy, "a.yaml")])
    closing = AuthorizationPolicy("shop", "x", "DENY", (Rule(),), refused="RateLimit")
    assert closing in delta.upserts
    (web,) = (entry for entry in delta.upserts if isinstance(entry, Workload))
    assert (web.pod, web.policies) == ("web", (closing.key,))
    (row,) = mesh.policies()
    assert (row["policy"], row["pods"], row["state"]) == (
        "shop/x",
        1,
        "refused: spec.local[0]: why; closes 1 pods of this node",
    )
    limit = {"tokenBucket": {"maxTokens": 1, "tokensPerFill": 1, "fillInterval": "1s"}}
    right = security.parse(document("RateLimit", local=[limit], selector=SELECTOR))
    delta = mesh.apply([Change("RateLimit", "shop", "x", right, "a.yaml")])
    assert delta.removals == (closing.key,)
    assert right.spec in delta.upserts
    assert mesh.policies()[0]["state"] == "in force"
    assert mesh.apply([Change("RateLimit", "shop", "x", None)]).removals == ("ratelimit/shop/x",)


def test_names_of_files_are_no_paths_of_what_is_kept(node: Node) -> None:
    (node.yaml / "..a.yaml").write_text("")
    (node.yaml / "b%2f..%2f.yaml").write_text(json.dumps(GOOD))
    node.started()
    assert all(len(name) == 37 for name in os.listdir(node.kept))


BROKEN = """\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: x
  namespace: shop
spec:
  selector:
    matchLabels: {app: web}
"""


@pytest.mark.parametrize(
    ("wrong", "selector"),
    [
        ("  action: DENY\n  action: ALLOW\n", (("app", "web"),)),
        ("  <<: {action: DENY}\n", (("app", "web"),)),
        ("  more: .inf\n", (("app", "web"),)),
        ("  rules: [\n", (("app", "web"),)),
        ("    matchLabels: {app: shop}\n", ()),
        ("  selector: {}\n", ()),
    ],
)
def test_a_first_version_that_is_no_yaml_closes_what_can_be_seen_of_it(
    node: Node, wrong: str, selector: tuple[tuple[str, str], ...]
) -> None:
    """Input: a document that YAML as Kubernetes reads it is not, and whose last lines are why.
    Verdict: what it selects is closed; its whole namespace, where that is not clear.
    """
    node.put(BROKEN + wrong)
    policies, refused = node.started()
    assert (policies["x"].selector, refused) == (selector, ["x closes"])
    assert policies["x"].spec.refused == "AuthorizationPolicy"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "unclear",
    [
        BROKEN.replace("kind:", "kind: AuthorizationPolicy\nkind:"),
        "kind: AuthorizationPolicy\nmetadata: {name: x",
        BROKEN + "  action: AUDIT\n  <<: {}\n",
        BROKEN.replace("AuthorizationPolicy", "Deployment") + "  <<: {}\n",
        BROKEN.replace("namespace: shop", "<<: {namespace: shop}"),
        BROKEN.replace("namespace: shop", "namespace: shop\n  namespace: else"),
        BROKEN.replace("namespace: shop", "namespace: !mine shop"),
        BROKEN.replace("namespace: shop", "!mine namespace: shop"),
        BROKEN.replace("  namespace: shop", " namespace: shop"),
        BROKEN.replace("  name: x", "  name: x\n  name: y"),
        BROKEN.replace("namespace: shop", "namespace: sh : op"),
        BROKEN.replace("namespace: shop", 'namespace: "shop') + '  more: "x"\n',
        BROKEN.replace("  namespace: shop", "  a<<: {}\nnamespace: shop\n  more: x"),
        BROKEN.replace("metadata:", "metadata: !mine"),
        BROKEN.replace("metadata:", "metadata:\n  name: y\nmetadata:"),
        "a: &a .inf\n" + BROKEN.replace("namespace: shop", "namespace: *a"),
        "a: &a {namespace: shop}\n" + BROKEN.replace("  namespace: shop\n", "  <<: *a\n"),
        "a: &a {<<: {namespace: shop}, name: x}\nmetadata: *a\n" + BROKEN.replace("metadata:", "more:"),
    ],
)
def test_a_first_version_that_is_no_yaml_closes_nothing_where_nobody_knows_that_it_refuses(
    node: Node, unclear: str
) -> None:
    node.put(unclear)
    policies, refused = node.started()
    assert (policies, [each.split()[-1] for each in refused]) == ({}, ["closes"])


UNSEEN = BROKEN.partition("  selector")[0]


@pytest.mark.parametrize(
    ("text", "unseen"),
    [
        (BROKEN + "  rules: [\n", False),
        (UNSEEN + "  selector:\nstatus: {a: 1, a: 2}\n", False),
        (UNSEEN + "  action: DENY\nstatus: [\n", True),
        (UNSEEN + "  targetRefs: [{kind: Service, name: web}]\n  rules: [\n", False),
        (UNSEEN.partition("spec")[0] + "status: {a: 1, a: 2}\n", False),
        (UNSEEN.partition("spec")[0] + "status: [\n", True),
        (UNSEEN + "  rules: [\n", True),
        (UNSEEN + "  action: DENY\n rules: []\n", True),
        (UNSEEN + "  <<: {selector: {matchLabels: {app: web}}}\n  action: DENY\n", True),
        (UNSEEN + "  selector: {matchLabels: {app: web, <<: {tier: x}}}\n", True),
        (UNSEEN + "  selector: {<<: {matchLabels: {app: web}}}\n", True),
        (UNSEEN + "  selector: !mine {matchLabels: {app: web}}\n", True),
        (UNSEEN + "  selector: .inf\n", True),
        (UNSEEN + "  selector:\n    matchLabels:\n  more: [\n", True),
        (UNSEEN + "  selector:\n    matchLabels:\n      app<<: {}\nmore: web\n      tier: front\n", True),
        (UNSEEN + '  "action: DENY\n  more: ["x"]\n', True),
        (UNSEEN + "  act\n ion: DENY\n  selector: {matchLabels: {app: web}}\n", True),
        ("a: &a .inf\n" + UNSEEN + "  selector: *a\n", True),
        (BROKEN + "  selector: {}\n", True),
        (UNSEEN + "  selector: {matchLabels: {app: web, tier: [", True),
        (UNSEEN + "  targetRefs: [{kind: Service, name: web}, [\n", True),
        (UNSEEN.replace("spec:", "spec: {}\nspec:") + "  action: DENY\n", True),
        ("<<: {spec: {}}\n" + UNSEEN.partition("spec")[0], True),
    ],
)
def test_what_was_not_seen_to_select_may_be_for_the_whole_mesh_and_closes_none_of_it(
    node: Node, text: str, unseen: bool
) -> None:
    """Input: a first version that is no YAML, in the root namespace and in another. Verdict: where
    its selector was not seen, the mesh stays open, and ``get policies`` and readiness name the
    policy; another namespace is closed.
    """
    mesh = Mesh("n1", "cluster.local", root_namespace="root")
    mesh.apply([pod("web", app="web"), pod("other")])
    for namespace in ("shop", "root"):
        node.put(text.replace("namespace: shop", f"namespace: {namespace}"))
        policy = node.started()[0]["x"]
        assert policy.unseen == unseen
        mesh.apply([Change("AuthorizationPolicy", namespace, "x", policy, "a.yaml")])
        whole = not policy.selector and not policy.targets
        closed = {each.pod for each in mesh.entries().upserts if isinstance(each, Workload) and each.policies}
        row = mesh.policies()[0]["state"]
        if unseen and namespace == "root":
            assert closed == set()
            assert "; closes nothing: which pods it selects is not seen" in str(row)
            (left,) = mesh.left_open()
            assert left.startswith("AuthorizationPolicy/root/x closes nothing: which pods it selects is not seen")
        else:
            assert not whole or closed == {"web", "other"}
            assert mesh.left_open() == []
        mesh.apply([Change("AuthorizationPolicy", namespace, "x", None)])


def test_an_unread_selector_of_mtls_leaves_the_mesh_as_it_was() -> None:
    mesh = Mesh("n1", "cluster.local", root_namespace="root")
    key = ("PeerAuthentication", "root", "x")
    mesh.apply([pod("web"), Change(*key, stand_in(key, SeenMapping(whole=False), "why"))])
    (web,) = (each for each in mesh.entries().upserts if isinstance(each, Workload))
    assert (web.mtls, len(mesh.policies()), len(mesh.left_open())) == ("PERMISSIVE", 1, 1)


WRONG = document(name="c", action="ALOW", selector=SELECTOR)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            {"kind": "List", "items": [GOOD, WRONG]},
            f"kind: List\nitems:\n- {json.dumps(GOOD)}\n- {{broken: [\n- {json.dumps(WRONG)}\n",
        ),
        (
            f"{json.dumps(GOOD)}\n---\n{json.dumps(WRONG)}\n",
            f"{json.dumps(GOOD)}\n...\n[\n...\n{json.dumps(WRONG)}\n",
        ),
        (WRONG, UNSEEN.replace("name: x", "name: c") + "  rules: [\n"),
    ],
)
def test_a_break_opens_nothing_that_the_file_closed(node: Node, before: dict[str, Any] | str, after: str) -> None:
    """Input: a wrong policy that is closed, then a break before it, or before its selector. Verdict:
    the file gives what it gave.
    """
    manifests = Manifests((node.yaml,), LastGood(None))
    node.put(before)
    manifests.everything()
    held = manifests.held(node.yaml / "a.yaml")
    assert held["AuthorizationPolicy", "shop", "c"].selector == (("app", "web"),)
    node.put(after)
    assert manifests.everything() == []
    assert manifests.held(node.yaml / "a.yaml") == held
    assert manifests.refused()
