"""The client of Kubernetes' API against a server that misbehaves. A real one is in tests/kube."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any

import orjson
import pytest

from nodeagent.identity.ca import CertificateAuthority
from nodeagent.kube.access import Access, ApiError
from nodeagent.kube.client import MAX_ANSWER, KubeClient, as_document
from tests.fakes.scripted_api import ScriptedApi, run


@pytest.mark.parametrize(
    ("message", "hinted"),
    [
        ('pods is forbidden: User "system:anonymous" cannot list resource "pods" in API group ""', True),
        ("unable to create new content in namespace a because it is being terminated", False),
        ('pods "a" is forbidden: exceeded quota: q', False),
    ],
)
def test_rbac_is_named_where_a_right_is_missing_alone(message: str, hinted: bool) -> None:
    with pytest.raises(ApiError) as caught:
        as_document("GET /a", orjson.dumps({"message": message}), 403)
    assert ("RBAC" in str(caught.value)) == hinted


def test_the_token_is_read_anew_and_never_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def test(server: ScriptedApi, access: Access) -> None:
        server.answers = [(200, {}), (200, {}), (401, {"message": "Unauthorized"})]
        api = KubeClient(access)
        await api.get("/a")
        server.token.write_text("secret-2\n")
        await api.get("/a")
        assert [headers["Authorization"] for _, _, headers, _ in server.requests] == [
            "Bearer secret-1",
            "Bearer secret-2",
        ]
        with pytest.raises(ApiError, match="status 401: Unauthorized") as caught:
            await api.get("/a")
        assert "secret" not in str(caught.value) + caplog.text
        server.token.write_text("secret\nX-Other: 1")
        with pytest.raises(ApiError, match="no HTTP header may have") as caught:
            await api.get("/a")
        assert "secret" not in str(caught.value)
        server.token.unlink()
        with pytest.raises(ApiError, match="token"):
            await api.get("/a")

    run(test, tmp_path)


@pytest.mark.parametrize(
    ("status", "content", "message"),
    [
        (307, b"{}", "status 307"),
        (200, b"[]", "no JSON object"),
        (200, b"x" * (MAX_ANSWER + 1), f"more than {MAX_ANSWER} bytes"),
    ],
)
def test_a_strange_answer_is_an_error(tmp_path: Path, status: int, content: bytes, message: str) -> None:
    async def test(server: ScriptedApi, access: Access) -> None:
        server.answers = [(status, content)]
        with pytest.raises(ApiError, match=message):
            await KubeClient(access).get("/a")
        assert len(server.requests) == 1, "no redirect is followed with the token"

    run(test, tmp_path)


def test_another_server_is_not_trusted(tmp_path: Path) -> None:
    async def test(server: ScriptedApi, access: Access) -> None:
        other = CertificateAuthority.open_or_create(tmp_path / "other", "cluster.local").roots_pem.decode()
        with pytest.raises(ApiError, match="certificate verify failed"):
            await KubeClient(Access(access.server, ssl.create_default_context(cadata=other), access.token_file)).get(
                "/a"
            )
        await server.stop()
        with pytest.raises(ApiError, match=r"GET https://127\.0\.0\.1"):
            await KubeClient(access).get("/a")

    run(test, tmp_path)


class Counted(KubeClient):
    """Counts its connections."""

    def __init__(self, access: Access, **settings: Any) -> None:
        super().__init__(access, **settings)
        self.connections = 0

    async def _connect(self, whose: str) -> Any:
        self.connections += 1
        return await super()._connect(whose)


def test_a_connection_is_left_open_for_the_next_request_that_may_be_asked_twice(tmp_path: Path) -> None:
    """Input: requests one after the other, some that are refused; two at once; what makes an object. Verdict: one
    connection, another for the second of two at once, and one of its own for what may not be made twice.
    """

    async def test(server: ScriptedApi, access: Access) -> None:
        server.answers = [(200, {}), (404, {"message": "no"}), *[(200, {})] * 6]
        api = Counted(access, keeps=True)
        await api.get("/a")
        with pytest.raises(ApiError, match="status 404"):
            await api.get("/a")
        await api.patch("/a", {})
        assert api.connections == 1
        await asyncio.gather(api.get("/a"), api.get("/a"))
        assert api.connections == 2
        await api.post("/a", {})
        assert api.connections == 3
        await api.get("/a")
        assert api.connections == 3, "what it left open is as good"
        api.close()
        await api.get("/a")
        assert api.connections == 4
        api.close()

    run(test, tmp_path)


def test_none_is_left_open_where_nobody_asks_for_it(tmp_path: Path) -> None:
    async def test(server: ScriptedApi, access: Access) -> None:
        server.answers = [(200, {})] * 2
        api = Counted(access)
        await api.get("/a")
        await api.get("/a")
        assert api.connections == 2

    run(test, tmp_path)


@pytest.mark.parametrize("end", ["closed unseen", "timed out", "old"])
def test_a_connection_that_ended_meanwhile_costs_no_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """Input: the server closed the one that was left open, and that is not seen before the request is sent; it says
    that it waited too long for one; the connection is old. Verdict: another one is used.
    """
    if end == "old":
        monkeypatch.setattr("nodeagent.kube.client.OLDEST_SECONDS", 0.0)

    async def test(server: ScriptedApi, access: Access) -> None:
        server.answers = [(200, {}), *([(408, {"message": "too late"})] if end == "timed out" else []), (200, {"b": 1})]
        api = Counted(access, keeps=True)
        await api.get("/a")
        if end == "closed unseen":
            assert api._kept is not None
            monkeypatch.setattr(type(api._kept), "is_open", lambda kept, now: True)
            api._kept.close()
        assert await api.get("/a") == {"b": 1}
        assert api.connections == 2
        api.close()

    run(test, tmp_path)


def test_a_new_connection_that_breaks_is_an_error(tmp_path: Path) -> None:
    """Nor is a request that was answered 408 on it asked again and again."""

    async def test(server: ScriptedApi, access: Access) -> None:
        server.answers = [(408, {"message": "too late"})]
        with pytest.raises(ApiError, match="status 408"):
            await Counted(access, keeps=True).get("/a")
        assert len(server.requests) == 1

    run(test, tmp_path)
