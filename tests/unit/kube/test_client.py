"""The client of Kubernetes' API against a server that misbehaves. A real one is in tests/kube."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from nodeagent.identity.ca import CertificateAuthority
from nodeagent.kube.access import Access, ApiError
from nodeagent.kube.client import MAX_ANSWER, KubeClient
from tests.fakes.scripted_api import ScriptedApi, run


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
