"""Folders of YAML with policies: several documents a file, wrong ones among them, mounted
ConfigMaps, and the same policy twice.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from nodeagent.errors import ConfigError
from nodeagent.policy.model import PeerAuthentication
from nodeagent.resources.changes import AnyChange, Change
from nodeagent.resources.directory import DirectorySource
from nodeagent.resources.security import Policy
from tests.unit.descriptors import open_descriptors
from tests.waiting import DEADLINE

Step = Callable[[], Awaitable[list[str]]]


def peer(name: str, mode: str = "STRICT") -> str:
    return (
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: "
        f"{{name: {name}, namespace: shop}}\nspec: {{mtls: {{mode: {mode}}}}}\n"
    )


def told(changes: list[AnyChange]) -> list[str]:
    """Return ``-name`` or ``+name=MODE`` for each change."""
    found = []
    for change in changes:
        assert isinstance(change, Change)
        policy = change.object
        if policy is None:
            found.append(f"-{change.name}")
        else:
            assert isinstance(policy, Policy)
            assert isinstance(policy.spec, PeerAuthentication)
            found.append(f"+{change.name}={policy.spec.mode}")
    return sorted(found)


class Folder:
    def __init__(self, root: Path) -> None:
        self.state, self.path = root / "state", root / "policies"
        (self.state / "objects").mkdir(parents=True)
        self.path.mkdir()

    def write(self, name: str, *documents: str) -> Path:
        (self.path / name).write_text("---\n".join(documents))
        return self.path / name

    def run(self, scenario: Callable[[DirectorySource, Step], Awaitable[None]]) -> None:
        async def run() -> None:
            source = DirectorySource(self.state, (self.path,))

            async def step() -> list[str]:
                return told(await asyncio.wait_for(source.changes(), DEADLINE))

            try:
                await scenario(source, step)
            finally:
                source.close()

        asyncio.run(run())


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_documents_come_change_and_go(folder: Folder) -> None:
    folder.write("a.yaml", peer("one"), peer("two"))
    folder.write("notes.txt", "kind: [")
    folder.write(".hidden.yaml", "kind: [")

    async def scenario(source: DirectorySource, step: Step) -> None:
        assert await step() == ["+one=STRICT", "+two=STRICT"]
        folder.write("b.yml", peer("three"))
        assert await step() == ["+three=STRICT"]
        folder.write("a.yaml", peer("one", "DISABLE"), peer("four"))
        assert await step() == ["+four=STRICT", "+one=DISABLE", "-two"]
        (folder.path / "a.yaml").unlink()
        assert await step() == ["-four", "-one"]
        (folder.path / "b.yml").rename(folder.path / "c.yml")
        folder.write("d.yaml", peer("five"))
        found = await step()
        while "+five=STRICT" not in found:
            found += await step()
        assert found in (
            ["+five=STRICT"],
            ["+three=STRICT", "-three", "+five=STRICT"],
            ["+five=STRICT", "+three=STRICT", "-three"],
        )
        folder.write("e.json", json.dumps({"kind": "List", "items": [json.loads(json.dumps({"kind": "x"}))]}))
        folder.write("f.yaml", peer("six"))
        assert await step() == ["+six=STRICT"]

    folder.run(scenario)


def test_a_wrong_document_keeps_its_last_good_one_and_the_others_go_on(
    folder: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    folder.write("a.yaml", peer("one"), peer("two"))

    async def scenario(source: DirectorySource, step: Step) -> None:
        await step()
        folder.write("a.yaml", peer("one", "WRONG"), peer("two", "DISABLE"), peer("new", "WRONG"))
        assert await step() == ["+new=STRICT", "+two=DISABLE"]
        one, new = source.refused()
        assert (one.kind, one.name, one.stays, one.file) == (
            "PeerAuthentication",
            "one",
            True,
            str(folder.path / "a.yaml"),
        )
        assert one.error.startswith("document 1: spec.mtls.mode: 'WRONG': allowed: UNSET, STRICT")
        assert (new.name, new.stays) == ("new", False)
        folder.write("a.yaml", peer("one", "PERMISSIVE"), peer("two", "DISABLE"))
        assert await step() == ["+one=PERMISSIVE", "-new"]
        assert source.refused() == ()

    folder.run(scenario)
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 2
    assert "a.yaml: document 1: spec.mtls.mode" in errors[0]
    assert "(PeerAuthentication shop/one) (the last good one stays)" in errors[0]
    assert "(it closes what it selects)" in errors[1]


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"kind: [", "document 1: not YAML"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"[" * 100_000, "nested deeper"),
        (b"just text", "document 1: document: of type str: a mapping"),
        (b"kind: PeerAuthentication", "document 1: apiVersion"),
    ],
)
def test_a_file_that_says_nothing_keeps_everything_it_held(folder: Folder, content: bytes, error: str) -> None:
    folder.write("a.yaml", peer("one"), peer("two"))

    async def scenario(source: DirectorySource, step: Step) -> None:
        await step()
        (folder.path / "a.yaml").write_bytes(content)
        folder.write("b.yaml", peer("other"))
        assert await step() == ["+other=STRICT"]
        (refused,) = source.refused()
        assert error in refused.error
        assert refused.stays
        folder.write("a.yaml", peer("two"))
        assert await step() == ["-one"]

    folder.run(scenario)


def test_a_folder_that_is_named_like_a_file_is_refused_and_the_others_go_on(folder: Folder) -> None:
    (folder.path / "a.yaml").mkdir()
    folder.write("b.yaml", peer("other"))
    open_files = open_descriptors()

    async def scenario(source: DirectorySource, step: Step) -> None:
        assert await step() == ["+other=STRICT"]
        (refused,) = source.refused()
        assert refused.file == str(folder.path / "a.yaml")
        assert "not a regular file" in refused.error

    folder.run(scenario)
    assert open_descriptors() == open_files


def test_a_document_that_is_not_yaml_keeps_what_the_rest_does_not_give(folder: Folder) -> None:
    folder.write("a.yaml", peer("one"), peer("two"))

    async def scenario(source: DirectorySource, step: Step) -> None:
        await step()
        folder.write("a.yaml", "kind: [\n", peer("two", "DISABLE"), peer("three"))
        assert await step() == ["+three=STRICT", "+two=DISABLE"]

    folder.run(scenario)


def test_the_same_policy_twice(folder: Folder) -> None:
    """In one file the first counts, among files the first by name, and before all what the
    cluster's own folder says.
    """
    folder.write("b.yaml", peer("one", "PERMISSIVE"), peer("one", "DISABLE"))

    async def scenario(source: DirectorySource, step: Step) -> None:
        assert await step() == ["+one=PERMISSIVE"]
        (twin,) = source.refused()
        where = f"document 1 of {folder.path / 'b.yaml'}"
        assert twin.error == f"document 2: metadata.name: 'one': stands in {where} too, and that one is in force"
        assert (twin.displaced, twin.stays) == (True, False)
        folder.write("a.yaml", peer("one", "STRICT"))
        assert await step() == ["+one=STRICT"]
        first, _ = source.refused()
        assert (first.file, first.displaced, first.stays) == (str(folder.path / "b.yaml"), True, False)
        assert f"stands in {folder.path / 'a.yaml'} too" in first.error
        document = {
            "apiVersion": "security.istio.io/v1",
            "kind": "PeerAuthentication",
            "metadata": {"name": "one", "namespace": "shop"},
        }
        cluster = folder.state / "objects" / "PeerAuthentication.shop.one.json"
        cluster.write_text(json.dumps(document | {"spec": {"mtls": {"mode": "DISABLE"}}}))
        assert await step() == ["+one=DISABLE"]
        cluster.write_text(json.dumps(document | {"spec": {"mtls": {"mode": "wrong"}}}))
        (folder.path / "a.yaml").unlink()
        folder.write("c.yaml", peer("mark"))
        found = await step()
        assert found == ["+mark=STRICT"]
        assert any(each.file == str(cluster) and each.stays for each in source.refused())
        cluster.unlink()
        assert await step() == ["+one=PERMISSIVE"]
        (folder.path / "b.yaml").unlink()
        assert await step() == ["-one"]

    folder.run(scenario)


def test_a_mounted_config_map(folder: Folder) -> None:
    """The kubelet puts a new folder beside the old one and moves one link, ``..data``."""

    def publish(version: str, **files: str) -> None:
        (folder.path / version).mkdir()
        for name, text in files.items():
            (folder.path / version / f"{name}.yaml").write_text(text)
        (folder.path / "..data_tmp").symlink_to(version)
        (folder.path / "..data_tmp").rename(folder.path / "..data")

    publish("..1", a=peer("one"), b=peer("two"))
    for name in ("a", "b"):
        (folder.path / f"{name}.yaml").symlink_to(Path("..data") / f"{name}.yaml")

    async def scenario(source: DirectorySource, step: Step) -> None:
        assert await step() == ["+one=STRICT", "+two=STRICT"]
        publish("..2", a=peer("one", "DISABLE"), c=peer("three"))
        found = await step()
        assert found == ["+one=DISABLE", "-two"]
        (folder.path / "c.yaml").symlink_to(Path("..data") / "c.yaml")
        assert await step() == ["+three=STRICT"]

    folder.run(scenario)


def test_ten_thousand_documents_of_which_one_changes(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = [peer(f"p{number}") for number in range(10_000)]
    folder.write("a.yaml", *documents)
    parsed: list[object] = []
    original = Policy.__init__

    def spied(self: Policy, *arguments: object) -> None:
        parsed.append(arguments)
        original(self, *arguments)  # type: ignore[arg-type]

    async def scenario(source: DirectorySource, step: Step) -> None:
        assert len(await step()) == 10_000
        monkeypatch.setattr(Policy, "__init__", spied)
        folder.write("a.yaml", *documents[:5], peer("p5", "DISABLE"), *documents[6:])
        assert await step() == ["+p5=DISABLE"]
        assert len(parsed) == 1

    folder.run(scenario)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "objects").mkdir()

    async def run() -> None:
        await DirectorySource(tmp_path, (tmp_path, tmp_path / "missing")).changes()

    with pytest.raises(ConfigError, match=r"resources\[1\]: .*/missing: no such folder"):
        asyncio.run(run())
