"""What control tells at its ports, by pages that know no more than they are given."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest

from nodeagent.config import AgentConfig, Telemetry
from nodeagent.control.admin import AdminPorts
from nodeagent.control.concern import merged
from nodeagent.control.flows import FLOWS_KEPT, FlowRow, Flows
from nodeagent.control.mesh_pages import MeshPages
from nodeagent.control.metrics_pages import MetricsPages
from nodeagent.control.pods_page import PodsPage, unreached
from nodeagent.control.readiness import SETTLED_SECONDS, Readiness
from nodeagent.errors import ControlError
from nodeagent.mesh.membership import Membership, Verdict
from nodeagent.mesh.node_pods import NodePod
from nodeagent.messages import AskFlows, AskMetrics
from nodeagent.telemetry.http_request import Response, Routes
from nodeagent.telemetry.metrics import REPAIRS
from nodeagent.telemetry.store import Store
from nodeagent.vocabulary import PodUid
from tests.unit.control.scene import play, workload

CONFIG = AgentConfig.model_validate(
    {"node": "n1", "source": "/", "redirect": {"cgroup": "/"}, "identity": {"caDirectory": "/"}}
)


async def told(routes: Routes, path: str, **query: str) -> Any:
    """Return what is told at *path*: JSON, or text."""
    response = await routes["GET", path](query)
    if response.variants:
        return 200, b"".join(await response.variants[0].body()).decode()
    body = response.body if isinstance(response.body, bytes) else b"".join(response.body)
    return orjson.loads(body) if response.content_type == "application/json" else (response.status, body.decode())


def flow(name: str, closed: float | None = None, pod: str = "a") -> FlowRow:
    return {"id": name, "closed": closed, "pod": pod}


def decided(uid: str, verdict: Verdict, *faults: str) -> NodePod:
    return NodePod(
        PodUid(uid), uid, "default", (), Membership(verdict, "because"), None, None, False, None, None, faults
    )


DECIDED = (decided("a", "captured"), decided("soon", "captured"), decided("alone", "left alone", "wrong"))


class Workers:
    def __init__(self, *rows: FlowRow) -> None:
        self.rows = list(rows)

    async def ask(self, question: type[AskFlows] | type[AskMetrics]) -> list[FlowRow]:
        assert question is AskFlows
        return list(self.rows)


class Kernel:
    def __init__(self) -> None:
        self.rows: list[dict[str, object]] = []
        self.fault: OSError | None = None

    def flows(self, store: Store) -> list[dict[str, object]]:
        if self.fault is not None:
            raise self.fault
        return self.rows


def test_routes_of_all_are_told_and_no_path_has_two_answers() -> None:
    async def one(query: Mapping[str, str]) -> Response:
        return Response(b"one")

    assert merged([{("GET", "/a"): one}, {("GET", "/b"): one, ("POST", "/a"): one}]).keys() == {
        ("GET", "/a"),
        ("GET", "/b"),
        ("POST", "/a"),
    }
    with pytest.raises(ControlError, match="two concerns answer GET /a"):
        merged([{("GET", "/a"): one}, {("GET", "/a"): one}])


def test_ready_is_who_lacks_nothing() -> None:
    async def scene() -> None:
        lacks = ["a worker is not up"]
        readiness = Readiness([lambda: lacks], [lambda: ["no heartbeat"] if lacks else []])
        assert await told(readiness.routes(), "/ready") == (503, "a worker is not up\nno heartbeat\n")
        lacks.clear()
        assert await told(readiness.routes(), "/ready") == (200, "ready\n")
        warned = Readiness([lambda: lacks], [], [lambda: ["pod a: port 15006 is taken"]])
        assert await told(warned.routes(), "/ready") == (200, "ready\nwarning: pod a: port 15006 is taken\n")

    play(scene)


def test_who_has_settled_is_ready_while_it_carries_traffic() -> None:
    """Input: a policy is wrong before the daemon is ready for the first time, and after it has settled; then no
    worker is up. Verdict: not ready; ready with a warning; not ready. A rollout removes at once whoever is not.
    """

    async def scene() -> None:
        down: list[str] = []
        wrong = ["a policy for the whole mesh is not seen"]
        now = 0.0
        broken = ["pod a: port 15006 is taken"]
        readiness = Readiness([lambda: down], [lambda: wrong], [lambda: broken], clock=lambda: now)
        page = readiness.routes()
        assert await told(page, "/ready") == (503, "a policy for the whole mesh is not seen\n")
        mended = wrong.copy()
        wrong.clear()
        assert readiness.missing() == []
        now += SETTLED_SECONDS
        assert readiness.missing() == []
        wrong += mended
        assert (readiness.missing(), readiness.lacking()) == ([], wrong)
        said = "ready\nwarning: a policy for the whole mesh is not seen\nwarning: pod a: port 15006 is taken\n"
        assert await told(page, "/ready") == (200, said)
        down.append("a worker is not up")
        assert await told(page, "/ready") == (503, "a worker is not up\n")
        down.clear()
        assert await told(page, "/ready") == (200, said)

    play(scene)


def test_a_newcomer_that_fails_after_its_first_ready_is_not_ready() -> None:
    """Input: nothing is lacking, as on a node without a pod; shortly before it has settled a pod cannot be captured;
    that passes. Verdict: ready; not ready; it settles from then on.
    """
    now = 0.0
    failed: list[str] = []
    readiness = Readiness([], [lambda: failed], clock=lambda: now)
    assert readiness.missing() == []
    now += SETTLED_SECONDS - 1
    failed.append("pod a: failed")
    assert readiness.missing() == failed
    failed.clear()
    assert readiness.missing() == []
    now += SETTLED_SECONDS - 1
    assert readiness.missing() == []
    failed.append("pod a: failed")
    assert readiness.missing() == failed


def test_what_is_lacking_is_said_once() -> None:
    none = "pod a: failed: no map"
    assert Readiness([lambda: [none]], [lambda: [none, "no heartbeat"]]).missing() == [none, "no heartbeat"]


def test_a_flow_is_told_when_it_is_new_or_has_changed() -> None:
    async def scene() -> None:
        workers, kernel = Workers(flow("1"), flow("2")), Kernel()
        kernel.rows = [flow("kernel-1")]
        routes = Flows(workers, kernel, Store()).routes()
        first = await told(routes, "/flows")
        assert [row["id"] for row in first["flows"]] == ["1", "2", "kernel-1"]
        assert (await told(routes, "/flows", since=str(first["next"])))["flows"] == []
        workers.rows = [flow("2", closed=5.0), flow("3")]
        second = await told(routes, "/flows", since=str(first["next"]))
        by_name = {row["id"]: row["closed"] for row in second["flows"]}
        assert by_name.keys() == {"1", "2", "3"}
        assert by_name["1"], "it is gone with its worker"
        kernel.fault = OSError("no map")
        assert [row["id"] for row in (await told(routes, "/flows"))["flows"]] != []
        assert await told(routes, "/flows", since="x") == (400, "since: a whole number is expected\n")

    play(scene)


def test_past_flows_are_bounded_and_a_busy_pod_pushes_out_its_own() -> None:
    async def scene() -> None:
        workers = Workers(flow("quiet", closed=1.0, pod="quiet"))
        routes = Flows(workers, Kernel(), Store()).routes()
        await told(routes, "/flows")
        workers.rows = [flow(f"busy-{number}", closed=1.0, pod="busy") for number in range(2 * FLOWS_KEPT)]
        await told(routes, "/flows")
        workers.rows = []
        kept = [row["id"] for row in (await told(routes, "/flows"))["flows"]]
        assert "quiet" in kept
        kept_busy = len(kept) - 1
        assert kept_busy == FLOWS_KEPT // 2
        assert f"busy-{2 * FLOWS_KEPT - 1}" in kept, "the latest stay"

    play(scene)


def test_pods_are_told_with_what_others_know_of_them() -> None:
    class Pods:
        def rows(self) -> list[dict[str, object]]:
            return [{"uid": "a", "pod": "a", "faults": []}, {"uid": "unknown", "pod": "b", "faults": ["early"]}]

    async def scene() -> None:
        one = workload("a")
        flows = Flows(Workers(flow("1"), flow("2", closed=1.0), flow("3", pod="b")), Kernel(), Store())
        paths = {80: "kernel"}
        page = PodsPage(Pods(), flows, lambda: {one.key: one}, lambda _: paths, "network", DECIDED, lambda uid: [uid])
        known, unknown = await told(page.routes(), "/pods")
        assert (known["connections"], known["paths"]) == (1, {"80": "kernel"})
        assert "redirect.delivery is network" in known["delivery"]
        assert unknown["delivery"] == ""
        assert (known["faults"], unknown["faults"]) == (["a"], ["early", "unknown"])
        assert (known["why"], unknown["why"]) == ("because", "")
        *captured, awaited, alone = await told(page.routes(), "/pods", all="true")
        assert [row["uid"] for row in captured] == ["a", "unknown"]
        assert (awaited["uid"], awaited["state"]) == ("soon", "awaited")
        assert (alone["uid"], alone["state"], alone["why"], alone["faults"]) == (
            "alone",
            "left alone",
            "because",
            ["wrong", "alone"],
        )

    play(scene)


def test_what_is_wrong_with_pods_that_are_not_captured_is_told_of_them() -> None:
    """Input: by its uid, one that is known to enrolment (a), one with a wrong label, one whose sandbox cannot be used,
    and one that is left alone, of which the runtime says the same.
    """
    pods = [decided("a", "captured", "x"), decided("typo", "left alone", "'enable'"), decided("blind", "captured")]
    pods += [decided("alone", "left alone")]
    found = unreached(pods, {"a"}, lambda uid: [] if uid == "typo" else [f"{uid}'s sandbox: no"])
    assert [(each["uid"], each["state"], each["faults"]) for each in found] == [
        ("typo", "left alone", ["'enable'"]),
        ("blind", "failed", ["blind's sandbox: no"]),
    ]


def test_what_cannot_be_explained_says_why() -> None:
    async def scene() -> None:
        pages = MeshPages(CONFIG, lambda: [workload("a")], lambda client, server, port: "proxy", tuple)
        status, text = await told(pages.routes(), "/explain", source="nobody", destination="nobody:1")
        assert status == 400
        assert text
        store = Store()
        pages.collect(store)
        assert 'kind="workload"} 1.0\n' in b"".join(store.exposition()).decode()
        assert await told(pages.routes(), "/endpoints") == []
        assert await told(pages.routes(), "/routes") == []

    play(scene)


def test_metrics_are_collected_when_they_are_asked_for_and_at_the_open_port_once_a_second() -> None:
    async def scene() -> None:
        store, counted = Store(), 0

        async def report() -> None:
            nonlocal counted
            counted += 1
            store.add(REPAIRS, ("link",))

        def unreadable(store: Store) -> None:
            raise OSError("no map")

        collected: list[int] = []
        pages = MetricsPages(store, report, [unreadable, lambda _: collected.append(counted)])
        for number in (1, 2):
            _, text = await told(pages.routes(), "/metrics")
            assert f'fault="link"}} {number}.0\n' in text
        assert collected == [1, 2], "what one cannot tell keeps nobody from telling"
        await told(pages.scraped(), "/metrics")
        await told(pages.scraped(), "/stats/prometheus")
        assert counted == 3

    play(scene)


def test_ports_are_open_until_they_are_left(tmp_path: Path) -> None:
    async def one(query: Mapping[str, str]) -> Response:
        return Response(b"told")

    async def ask(path: Path) -> bytes:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"GET /a HTTP/1.0\r\nHost: x\r\n\r\n")
        answer = await reader.read()
        writer.close()
        return answer

    async def scene() -> None:
        telemetry = Telemetry.model_validate({"adminPort": 0, "metricsPort": 0, "readyPort": 0})
        ports = AdminPorts(telemetry, tmp_path, {})
        async with ports.run():
            await ports.open({("GET", "/a"): one}, {}, one)
            assert (await ask(tmp_path / "admin.sock")).endswith(b"told")
        with pytest.raises(OSError):
            await ask(tmp_path / "admin.sock")

    play(scene)
