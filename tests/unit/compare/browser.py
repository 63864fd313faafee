"""A headless Chromium that opens one page and tells everything about it: the DevTools protocol over
aiohttp, one browser a test.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

ENDED = "chromium closed the connection: it crashed, or was killed"


class Browser:
    """A tab. ``requests`` are the URLs it asked for, ``complaints`` what its console said and what scripts threw."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._session: str | None = None
        self._loaded: asyncio.Future[None] | None = None
        self._ended = False
        self.requests: list[str] = []
        self.complaints: list[str] = []

    async def call(self, method: str, **parameters: Any) -> Any:
        """Call *method* of the protocol and return its result."""
        if self._ended:
            raise ConnectionError(ENDED)
        number = next(self._numbers)
        self._answers[number] = asyncio.get_running_loop().create_future()
        message = {"id": number, "method": method, "params": parameters} | (
            {"sessionId": self._session} if self._session else {}
        )
        await self._socket.send_json(message)
        return await self._answers[number]

    async def listen(self) -> None:
        """Take what the browser sends until it closes; who then still waits for it is told so."""
        try:
            async for message in self._socket:
                self._take(message.json())
        finally:
            self._ended = True
            for future in (*self._answers.values(), self._loaded):
                if future is not None and not future.done():
                    future.set_exception(ConnectionError(ENDED))

    def _take(self, told: dict[str, Any]) -> None:
        if "id" in told:
            future = self._answers.pop(told["id"])
            if "error" in told:
                future.set_exception(RuntimeError(str(told["error"])))
            else:
                future.set_result(told["result"])
        elif told["method"] == "Network.requestWillBeSent":
            self.requests.append(told["params"]["request"]["url"])
        elif told["method"] in ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled"):
            self.complaints.append(str(told["params"]))
        elif told["method"] in ("Inspector.targetCrashed", "Target.targetCrashed"):
            raise ConnectionError(f"the tab crashed: {told['params']}")
        elif told["method"] == "Page.loadEventFired" and self._loaded is not None and not self._loaded.done():
            self._loaded.set_result(None)

    async def start(self) -> None:
        """Open the tab."""
        target = await self.call("Target.createTarget", url="about:blank")
        attached = await self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Inspector", "Page", "Network", "Runtime", "Log"):
            await self.call(f"{domain}.enable")

    async def visit(self, page: Path, *, width: int, theme: str = "light") -> None:
        """Open the file *page* in a window *width* pixels wide."""
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=1000, deviceScaleFactor=1, mobile=False
        )
        await self.call(
            "Emulation.setEmulatedMedia", media="", features=[{"name": "prefers-color-scheme", "value": theme}]
        )
        self._loaded = asyncio.get_running_loop().create_future()
        await self.call("Page.navigate", url=page.as_uri())
        await self._loaded

    async def evaluate(self, expression: str) -> Any:
        """Return the value of the JavaScript *expression*."""
        return (await self.call("Runtime.evaluate", expression=expression, returnByValue=True))["result"].get("value")

    async def screenshot(self) -> bytes:
        """Return the whole page as PNG."""
        return base64.b64decode(
            (await self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True))["data"]
        )

    async def pdf(self) -> bytes:
        """Return the page as it is printed, on the paper that it asks for."""
        return base64.b64decode(
            (await self.call("Page.printToPDF", preferCSSPageSize=True, printBackground=False))["data"]
        )


@asynccontextmanager
async def browser(profile: Path) -> AsyncIterator[Browser]:
    """Start Chromium with a new *profile* and yield a tab; the browser ends with the context."""
    program = shutil.which("chromium")
    assert program is not None, "chromium is not installed: make setup"
    # --no-sandbox: Chromium refuses to run as root with its sandbox; what it opens is our own page.
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
        "--no-first-run",
        "--disable-background-networking",
    ]
    process = await asyncio.create_subprocess_exec(
        program,
        *options,
        f"--user-data-dir={profile}",
        "--remote-debugging-port=0",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stderr is not None
        address = ""
        while not address:
            line = (await process.stderr.readline()).decode()
            assert line, "chromium ended before it was ready"
            address = line.partition("DevTools listening on ")[2].strip()
        drain = asyncio.create_task(process.stderr.read())
        async with aiohttp.ClientSession() as client, client.ws_connect(address, max_msg_size=0) as socket:
            tab = Browser(socket)
            listening = asyncio.create_task(tab.listen())
            await tab.start()
            yield tab
            await tab.call("Browser.close")
            await listening
        await drain
    finally:
        if process.returncode is None:
            try:
                await asyncio.wait_for(process.wait(), 5)
            except TimeoutError:
                process.kill()
                await process.wait()
