"""Who is sent away, by who holds how much and does what."""

from __future__ import annotations

import pytest

from nodeagent.webhook.clients import Clients, Doing, WebhookClient

WAITING, GREETING, SENDING, JUDGED = Doing.WAITING, Doing.GREETING, Doing.SENDING, Doing.JUDGED


def full(*there: tuple[str, Doing]) -> tuple[Clients, list[WebhookClient], list[int]]:
    """Return clients at their bound, as connections that did in this order what they do, and which are closed."""
    clients = Clients(len(there))
    closed: list[int] = []
    found = []
    for number, (source, doing) in enumerate(there):
        client = clients.admit(source)
        assert client is not None
        client.close = lambda number=number: closed.append(number)  # type: ignore[misc]
        clients.now(client, doing)
        found.append(client)
    return clients, found, closed


@pytest.mark.parametrize(
    ("there", "newcomer", "victim"),
    [
        ([("a", WAITING), ("b", WAITING)], "c", 0),
        ([("a", GREETING), ("b", WAITING)], "c", 1),
        ([("a", SENDING), ("b", GREETING)], "c", 1),
        ([("a", SENDING), ("b", SENDING)], "c", 0),
        ([("api", WAITING), ("pod", SENDING), ("pod", SENDING)], "api", 1),
        ([("api", WAITING), ("pod", SENDING), ("pod", SENDING)], "pod", None),
        ([("api", WAITING), ("pod", SENDING), ("pod", GREETING)], "pod", 2),
        ([("api", WAITING), ("api", WAITING), ("pod", WAITING)], "pod", 0),
        ([("a", JUDGED), ("b", WAITING)], "c", 1),
        ([("a", JUDGED), ("a", JUDGED), ("b", WAITING)], "b", 2),
        ([("a", JUDGED), ("b", JUDGED)], "c", None),
    ],
)
def test_who_makes_room(there: list[tuple[str, Doing]], newcomer: str, victim: int | None) -> None:
    clients, _, closed = full(*there)
    assert (clients.admit(newcomer) is None) == (victim is None)
    assert closed == ([] if victim is None else [victim])
    assert len(clients) == len(there)


def test_who_was_answered_last_has_waited_the_least() -> None:
    clients, found, closed = full(("a", WAITING), ("a", WAITING), ("a", WAITING))
    clients.now(found[0], SENDING)
    clients.now(found[0], WAITING)
    clients.admit("a")
    clients.admit("a")
    assert closed == [1, 2]
