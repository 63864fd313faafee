"""An API server's side over HTTPS on loopback that answers what it is told."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aiohttp import web

from nodeagent.identity.ca import CertificateAuthority
from nodeagent.identity.tls import load_chain
from nodeagent.kube.access import Access
from tests.waiting import DEADLINE


class ScriptedApi:
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


def run(test: Callable[[ScriptedApi, Access], Awaitable[None]], folder: Path) -> None:
    async def main() -> None:
        server = ScriptedApi(folder)
        access = await server.start()
        try:
            await asyncio.wait_for(test(server, access), DEADLINE)
        finally:
            await server.stop()

    asyncio.run(main())
