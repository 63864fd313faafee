"""TCP between pods: every byte, both directions, half-close, back-pressure and resets, on every path."""

from __future__ import annotations

import pytest

from nodeagent.lab import Lab
from tests.netns.world import access_log, admin, ask, client_in, cluster_ip, growth, memory, workers
from tests.waiting import eventually

PATHS = ("local", "remote", "unmeshed", "both")
SIZE = 2_000_000


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("port", [9001, 91], ids=["tcp", "sniffed"])
def test_transfers_in_both_directions_at_once_are_byte_exact(mesh: Lab, name: str, version: int, port: int) -> None:
    sizes = ("--send-bytes", SIZE, "--receive-bytes", SIZE // 2)
    got = ask(
        mesh,
        "client",
        "duplex",
        cluster_ip(mesh, name, version),
        port,
        "--seed",
        version * port,
        "--connections",
        4,
        *sizes,
    )
    assert got == {"ok": 4, "bad": []}


@pytest.mark.parametrize("name", ["local", "remote"])
def test_a_connection_is_counted_and_logged(mesh: Lab, name: str) -> None:
    node = mesh.pod(name)["spec"]["nodeName"]
    source, destination = growth(mesh, "node1"), growth(mesh, node)
    log = access_log(mesh)
    assert (
        ask(
            mesh,
            "client",
            "duplex",
            cluster_ip(mesh, name),
            9001,
            "--seed",
            1,
            "--send-bytes",
            70000,
            "--receive-bytes",
            5000,
        )["ok"]
        == 1
    )
    received, sent = 70000 + len("1 70000 5000\n"), 5000 + 64
    labels = {"source_workload": "client", "destination_workload": name, "request_protocol": "tcp"}
    for counted, reporter in ((source, "source"), (destination, "destination")):
        counted.comes_to(1, "istio_tcp_connections_opened_total", reporter=reporter, **labels)
        counted.comes_to(1, "istio_tcp_connections_closed_total", reporter=reporter, **labels)
        counted.comes_to(received, "istio_tcp_received_bytes_total", reporter=reporter, **labels)
        counted.comes_to(sent, "istio_tcp_sent_bytes_total", reporter=reporter, **labels)
    line = log.find(cluster=f"outbound|9001||{name}.default.svc.cluster.local")
    assert (
        line
        | {
            "code": "0",
            "flags": "-",
            "received": str(received),
            "sent": str(sent),
            "upstream": f"{mesh.address(name)}:9001",
        }
        == line
    )


@pytest.mark.parametrize("name", PATHS)
def test_half_close(mesh: Lab, name: str) -> None:
    """The server answers only after the client's end has reached it, and the answer reaches a client that has ended."""
    for text in ("", "some bytes"):
        got = ask(mesh, "client", "dial", cluster_ip(mesh, name), 9004, "--send", text, "--half-close")
        assert (got["received"], got["ended"]) == (f"got {len(text)}", "end")


@pytest.mark.parametrize("name", PATHS)
def test_a_server_may_speak_first(mesh: Lab, name: str) -> None:
    got = ask(mesh, "client", "dial", cluster_ip(mesh, name), 9002, "--until", "\n")
    assert got["received"].startswith("220 ")


@pytest.mark.parametrize("name", PATHS)
def test_a_reset_of_the_server_reaches_the_client(mesh: Lab, name: str) -> None:
    assert ask(mesh, "client", "dial", cluster_ip(mesh, name), 9003, "--send", "x")["ended"] == "ECONNRESET"


@pytest.mark.parametrize("name", ["local", "remote", "unmeshed"])
def test_a_reset_of_the_client_reaches_the_server(mesh: Lab, name: str) -> None:
    before = mesh.log(name).count("watch: reset")
    ask(mesh, "client", "dial", cluster_ip(mesh, name), 9006, "--reset")
    eventually(lambda: mesh.log(name).count("watch: reset") == before + 1, "the server sees the reset")


@pytest.mark.parametrize("name", ["local", "remote"])
def test_a_slow_reader_holds_the_sender_back(mesh: Lab, name: str) -> None:
    """Nothing is read for a while: the proxies take in a bounded amount, and then every byte arrives."""
    processes = {pid for node in mesh.nodes for pid in workers(mesh, node)}
    before, size = memory(sorted(processes)), 60_000_000
    with client_in(
        mesh, "client", "duplex", cluster_ip(mesh, name), 9001, "--send-bytes", 10, "--receive-bytes", size, "--stall"
    ) as client:
        assert client.first == {"stalled": True}
        carried = [-1, -2, -3]

        def standing_still() -> bool:
            flows = [
                flow
                for flow in admin(mesh, "node1", "/flows")["flows"]
                if not flow["closed"] and flow["service"].startswith(f"{name}.")
            ]
            carried.append(sum(flow["sent"] for flow in flows))
            return carried[-1] > 0 and len(set(carried[-12:])) == 1

        eventually(standing_still, "the transfer stands still")
        assert carried[-1] < size / 2
        assert memory(sorted(processes)) - before < 16_000_000
        assert client.process.stdin is not None
        client.process.stdin.write("\n")
        client.process.stdin.flush()
        assert client.hear() == {"ok": 1, "bad": []}


@pytest.mark.parametrize("name", ["local", "remote"])
def test_a_thousand_connections_at_once(mesh: Lab, name: str) -> None:
    counted = growth(mesh)
    with client_in(mesh, "client", "hold", cluster_ip(mesh, name), 9000, "--connections", 1000) as client:
        assert client.first == {"ok": 1000, "bad": []}
        assert counted.of("istio_tcp_connections_opened_total", reporter="source", destination_workload=name) == 1000
        assert counted.of("nodeagent_open_connections") >= 1000
        assert client.say() == {"ok": 1000, "bad": []}
    counted.comes_to(1000, "istio_tcp_connections_closed_total", reporter="source", destination_workload=name)


def test_bytes_of_a_long_connection_are_counted_while_it_lives(mesh: Lab) -> None:
    counted = growth(mesh)
    with client_in(mesh, "client", "hold", cluster_ip(mesh, "local"), 9000) as client:
        eventually(
            lambda: (
                counted.of("istio_tcp_received_bytes_total", reporter="source", destination_workload="local")
                == len("connection 0\n")
            )
        )
        client.say()
        eventually(
            lambda: (
                counted.of("istio_tcp_received_bytes_total", reporter="source", destination_workload="local")
                == 2 * len("connection 0\n")
            )
        )
        assert counted.of("istio_tcp_connections_closed_total", reporter="source", destination_workload="local") == 0
