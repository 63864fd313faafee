"""What is measured of the kernel's TLS on a machine of the VM lab, as far as it goes without such a kernel."""

from __future__ import annotations

import array
import fcntl
import socket
import ssl
import termios
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nodeagent.proxy.tls.stream import EMPTY_RECORDS
from tests.unit.proxy import tls_client
from tests.vm.kernel_tls import HERE, OP_ENABLE_KTLS, WAYS, Contexts, Cost, Way, measured, words
from tests.waiting import eventually

WITHOUT_KERNEL = [way for way in WAYS if {way.sends, way.receives} <= {"none", "user"}]


@pytest.mark.parametrize("way", WITHOUT_KERNEL, ids=lambda way: way.name)
def test_every_byte_goes_through_both_proxies_and_is_paid_for(way: Way, tmp_path: Path) -> None:
    cost = measured(way, Contexts(tmp_path), b"x" * 100_000, 10)
    assert min(cost.sends, cost.receives, cost.rate) > 0


def test_a_way_in_which_nothing_arrives_is_no_figure(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="broken: nothing arrived whole"):
        measured(Way("broken", "user", "none"), Contexts(tmp_path), b"x" * 100_000, 10)


def test_each_way_is_told_beside_user_space_by_the_best_of_its_rounds() -> None:
    told = words(
        {
            "user space": [Cost(2, 4, 10), Cost(20, 3, 10), Cost(2, 4, 20)],
            "kernel": [Cost(1, 4, 20), Cost(10, 6, 20), Cost(2, 4.5, 30)],
        }
    )
    assert told == (
        "user space: sending 2 ms (1.00 ×), receiving 3 ms (1.00 ×), stream 1.00 ×; "
        "kernel: sending 1 ms (0.50 ×), receiving 4 ms (1.33 ×), stream 1.50 ×"
    )


def test_openssl_on_a_socket_takes_whatever_a_peer_sends_in_one_read(tmp_path: Path) -> None:
    """Why the agent's OpenSSL works on memory, though it could hand keys to the kernel on a socket alone."""
    contexts = Contexts(tmp_path)
    contexts.server.options |= OP_ENABLE_KTLS
    with (
        socket.create_server((HERE, 0)) as listener,
        socket.create_connection(listener.getsockname()) as client,
        listener.accept()[0] as accepted,
        ThreadPoolExecutor() as threads,
    ):
        shaking = threads.submit(tls_client.handshake, contexts.client, client, tmp_path / "client's")
        with contexts.server.wrap_socket(accepted, server_side=True) as server:
            writer = shaking.result()
            flood = b"".join(writer.key_update(back=False) for _ in range(20 * EMPTY_RECORDS))
            client.sendall(flood)
            eventually(lambda: unread(server) == len(flood), "all of it has come")
            server.setblocking(False)
            with pytest.raises(ssl.SSLWantReadError):
                server.recv(1)
            assert unread(server) == 0


def unread(sock: socket.socket) -> int:
    count = array.array("i", [0])
    fcntl.ioctl(sock, termios.FIONREAD, count)
    return count[0]
