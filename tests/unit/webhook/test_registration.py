"""The caBundle: what is patched, and how the loop takes trouble. A real API server is in tests/kube."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any

import pytest

from nodeagent.kube.access import Access, ApiError
from nodeagent.kube.client import STRATEGIC_MERGE, KubeClient
from nodeagent.webhook.registration import RegistrationKeeper, repair
from tests.fakes.scripted_api import ScriptedApi, run

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

    async def test(server: ScriptedApi, access: Access) -> None:
        server.answers = [
            (200, configuration(None)), (200, configuration(RIGHT)),
            (200, configuration("other")), (409, {"message": "the object has been modified"}),
            (403, {"message": "forbidden"}), (404, {"message": "not found"}), (502, b"<html>"),
            (200, configuration(RIGHT)),
        ]  # fmt: skip
        keeper = RegistrationKeeper(KubeClient(access), "injector", lambda: ROOTS, counts.append, sleep)
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
