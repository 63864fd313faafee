"""The caBundle: what is patched, and how the loop and its client take trouble. A real API server is in tests/kube."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web

from nodeagent.errors import ConfigError
from nodeagent.identity.ca import CertificateAuthority
from nodeagent.identity.tls import load_chain
from nodeagent.webhook.kube_api import STRATEGIC_MERGE, Access, ApiError, KubeApi, from_kubeconfig, in_cluster
from nodeagent.webhook.registration import RegistrationKeeper, repair

ROOTS = b"roots"
RIGHT = base64.b64encode(ROOTS).decode()


def configuration(*bundles: str | None) -> dict[str, Any]:
    entries = [
        {"name": f"w{number}", "clientConfig": {} if bundle is None else {"caBundle": bundle}}
        for number, bundle in enumerate(bundles)
    ]
    return {"metadata": {"resourceVersion": "7"}, "webhooks": entries}


def test_only_wrong_bundles_are_patched_and_only_if_nothing_changed_meanwhile() -> None:
    assert repair(configuration(RIGHT, RIGHT), ROOTS) is None
    assert repair(configuration(), ROOTS) is None
    patch = {"caBundle": RIGHT}
    assert repair(configuration(RIGHT, "other", None), ROOTS) == {
        "metadata": {"resourceVersion": "7"},
        "webhooks": [{"name": "w1", "clientConfig": patch}, {"name": "w2", "clientConfig": patch}],
    }


@pytest.mark.parametrize(
    "answer",
    [{}, {"webhooks": "x"}, {"webhooks": [{}]}, {"webhooks": [7]}, {"webhooks": [{"name": "w", "clientConfig": {}}]}],
)
def test_something_else_is_an_error(answer: Any) -> None:
    with pytest.raises(ApiError, match="no MutatingWebhookConfiguration"):
        repair(answer, ROOTS)


class Server:
    """An API server's side over HTTPS on loopback: answers what it is told, in turn, and keeps what came."""

    def __init__(self, folder: Path) -> None:
        authority = CertificateAuthority.open_or_create(folder / "api", "cluster.local")
        certificate = authority.issue_server(("127.0.0.1",), 3600)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        load_chain(self._context, certificate.chain_pem, certificate.key_pem)
        self.answers: list[tuple[int, Any]] = []
        self.requests: list[tuple[str, str, dict[str, str], Any]] = []
        self.roots, self.token = folder / "ca.crt", folder / "token"
        self.roots.write_bytes(authority.roots_pem)
        self.token.write_text("secret-1\n")

    async def start(self) -> Access:
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(application)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self._context)
        await site.start()
        port = self._runner.addresses[0][1]
        return Access(f"https://127.0.0.1:{port}", ssl.create_default_context(cafile=str(self.roots)), self.token)

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(
            (request.method, request.path, dict(request.headers), json.loads(await request.read() or b"null"))
        )
        status, document = self.answers.pop(0)
        if isinstance(document, bytes):
            return web.Response(status=status, body=document, headers={"Location": "https://127.0.0.1:1/"})
        return web.json_response(document, status=status)


def run(test: Callable[[Server, Access], Awaitable[None]], folder: Path) -> None:
    async def main() -> None:
        server = Server(folder)
        access = await server.start()
        try:
            await asyncio.wait_for(test(server, access), 20)
        finally:
            await server.stop()

    asyncio.run(main())


def test_the_loop_repairs_backs_off_and_takes_a_conflict_lightly(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The delays after each look: as usual, conflict, forbidden, gone, not JSON; then right again."""
    delays: list[float] = []
    counts: list[str] = []

    async def sleep(delay: float) -> None:
        delays.append(delay)
        if len(delays) == 6:
            raise asyncio.CancelledError

    async def test(server: Server, access: Access) -> None:
        server.answers = [
            (200, configuration(None)), (200, configuration(RIGHT)),
            (200, configuration("other")), (409, {"message": "the object has been modified"}),
            (403, {"message": "forbidden"}), (404, {"message": "not found"}), (502, b"<html>"),
            (200, configuration(RIGHT)),
        ]  # fmt: skip
        keeper = RegistrationKeeper(KubeApi(access), "injector", lambda: ROOTS, counts.append, sleep)
        with pytest.raises(asyncio.CancelledError):
            await keeper.run()
        method, path, headers, patch = server.requests[1]
        assert (method, path.rpartition("/")[2], headers["Content-Type"]) == ("PATCH", "injector", STRATEGIC_MERGE)
        assert patch == repair(configuration(None), ROOTS)

    run(test, tmp_path)
    assert delays == [5, 5, 10, 20, 40, 5]
    assert counts == ["repaired", "failed", "failed", "failed", "failed", "right"]
    for words in ("modified", "forbidden", "not found", "status 502, and no JSON object"):
        assert words in caplog.text


def test_the_token_is_read_anew_and_never_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def test(server: Server, access: Access) -> None:
        server.answers = [(200, {}), (200, {}), (401, {"message": "Unauthorized"})]
        api = KubeApi(access)
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
        (200, b"x" * ((8 << 20) + 1), "more than 8388608 bytes"),
    ],
)
def test_a_strange_answer_is_an_error(tmp_path: Path, status: int, content: bytes, message: str) -> None:
    async def test(server: Server, access: Access) -> None:
        server.answers = [(status, content)]
        with pytest.raises(ApiError, match=message):
            await KubeApi(access).get("/a")
        assert len(server.requests) == 1, "no redirect is followed with the token"

    run(test, tmp_path)


def test_another_server_is_not_trusted(tmp_path: Path) -> None:
    async def test(server: Server, access: Access) -> None:
        other = CertificateAuthority.open_or_create(tmp_path / "other", "cluster.local").roots_pem.decode()
        with pytest.raises(ApiError, match="certificate verify failed"):
            await KubeApi(Access(access.server, ssl.create_default_context(cadata=other), access.token_file)).get("/a")
        await server.stop()
        with pytest.raises(ApiError, match=r"GET https://127\.0\.0\.1"):
            await KubeApi(access).get("/a")

    run(test, tmp_path)


def test_in_the_cluster_the_pods_account_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ca.crt").write_bytes(CertificateAuthority.open_or_create(tmp_path / "ca", "cluster.local").roots_pem)
    (tmp_path / "token").write_text("secret\n")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    access = in_cluster(tmp_path)
    assert (access.server, access.headers()) == ("https://[fd00::1]:443", {"Authorization": "Bearer secret"})
    with pytest.raises(ConfigError, match=r"ca\.crt"):
        in_cluster(tmp_path / "nowhere")
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST")
    with pytest.raises(ConfigError, match="no pod of a cluster"):
        in_cluster(tmp_path)


def kubeconfig(folder: Path, **user: Any) -> Path:
    authority = CertificateAuthority.open_or_create(folder / "ca", "cluster.local")
    cluster = {
        "server": "https://127.0.0.1:6443/",
        "certificate-authority-data": base64.b64encode(authority.roots_pem).decode(),
    }
    document = {
        "current-context": "c", "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": cluster}], "users": [{"name": "u", "user": user}],
    }  # fmt: skip
    path = folder / "kubeconfig"
    path.write_text(yaml.safe_dump(document))
    return path


def test_a_kubeconfig_gives_a_token_a_token_file_or_a_certificate(tmp_path: Path) -> None:
    (tmp_path / "t").write_text("from-file\n")
    assert from_kubeconfig(kubeconfig(tmp_path, token="abc")).headers() == {"Authorization": "Bearer abc"}
    assert from_kubeconfig(kubeconfig(tmp_path, tokenFile="t")).headers() == {"Authorization": "Bearer from-file"}
    certificate = CertificateAuthority.open_or_create(tmp_path / "ca", "cluster.local").issue_server(("admin",), 3600)
    chain, key = (base64.b64encode(pem).decode() for pem in (certificate.chain_pem, certificate.key_pem))
    access = from_kubeconfig(kubeconfig(tmp_path, **{"client-certificate-data": chain, "client-key-data": key}))
    assert (access.server, access.headers()) == ("https://127.0.0.1:6443", {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a usable kubeconfig"),
        ("[]", "not a usable kubeconfig"),
        ("{}", "current-context is missing"),
        ("current-context: c\ncontexts: []", "context 'c' is missing"),
        ("current-context: c\ncontexts: [{name: c, context: {cluster: k}}]", "clusters is missing"),
    ],
)
def test_a_wrong_kubeconfig_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        from_kubeconfig(path)
    assert str(path) in str(caught.value)


def test_no_program_is_run_for_a_token(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="exec: not supported"):
        from_kubeconfig(kubeconfig(tmp_path, exec={"command": "touch"}))
    with pytest.raises(ConfigError, match="not a usable kubeconfig"):
        from_kubeconfig(kubeconfig(tmp_path, **{"client-certificate-data": "!", "client-key-data": "!"}))
