"""Kubernetes Events for what people have to put right: a pod that is not captured, an annotation that
has no effect, a policy that is refused. They are seen where people look: ``kubectl describe``,
``kubectl get events``.

What is wrong is looked at every few seconds, and told when it is still wrong at the second look. The
same is not told again while it lasts, but once an hour, since the API server keeps an Event for no
longer; other words about it wait for a minute. How many are told is bounded; what cannot be told now
is told later, if it is still wrong: namespaces take turns, and of one what has waited longest is
told first, so that nobody's many faults keep another's from being told, nor does a namespace that takes
none (a quota, a webhook).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal

from nodeagent.kube.access import ApiError
from nodeagent.kube.client import NOT_ALLOWED, KubeClient
from nodeagent.kube.watch import Sleep

CONTROLLER: Final = "nodeagent.io/agent"
LOOK_SECONDS: Final = 5.0
AGAIN_SECONDS: Final = 3600.0
REWORDED_SECONDS: Final = 60.0
BURST: Final = 20
A_SECOND: Final = 0.5
"""How many are told, or refused, after a burst."""
TERMINATING: Final = "being terminated"
"""What the API server says of a namespace that takes nothing new (plugin NamespaceLifecycle)."""
EVERYWHERE: Final = frozenset({0, 401, 408, 429})
"""Statuses that say nothing of the namespace; 0: there was no answer."""
GROUP: Final = "events.k8s.io"
RULE: Final = f'{{apiGroups: ["{GROUP}"], resources: [events], verbs: [create]}}'
NOTE_MAX: Final = 1024
"""Characters (events.k8s.io/v1)."""
Reason = Literal["NotCaptured", "NoCertificate", "AnnotationRefused", "PolicyRefused"]
Row = Mapping[str, object]
"""Of a pod, as ``nodeagent get pods`` has it."""
Subject = tuple[str, str, str, str, str]
log = logging.getLogger("nodeagent.kube")


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something that is wrong with an object of the cluster."""

    api_version: str
    kind: str
    namespace: str
    name: str
    uid: str
    reason: Reason
    note: str
    """What is wrong, and what to do about it."""

    @property
    def subject(self) -> Subject:
        """What it is about, whatever is said of it."""
        return self.namespace, self.name, self.kind, self.uid, self.reason


@dataclass(frozen=True, slots=True)
class _Told:
    note: str
    when: float


class EventTeller:
    """Tells what *troubles* returns, as *node*'s agent. *now* is a steady clock in seconds, *today*
    says the date.
    """

    def __init__(
        self,
        client: KubeClient,
        node: str,
        troubles: Callable[[], Iterable[Trouble]],
        *,
        sleep: Sleep = asyncio.sleep,
        now: Callable[[], float] = time.monotonic,
        today: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._client = client
        self._node = node
        self._troubles = troubles
        self._sleep = sleep
        self._now = now
        self._today = today
        self._seen: dict[Subject, float] = {}
        """What was wrong at the last look, and since when."""
        self._turns: dict[str, int] = {}
        """By namespace, when it was last tried to tell of it: a count."""
        self._count = itertools.count(1)
        self._told: dict[Subject, _Told] = {}
        self._tokens = float(BURST)
        self._filled = now()
        self._wrong: dict[str, int] = {}
        """Where Events cannot be told, with the status that was told of it; empty: anywhere."""

    async def keep(self) -> None:
        """Look and tell, for ever."""
        while True:
            await self._sleep(LOOK_SECONDS)
            await self.look()

    async def look(self) -> None:
        """Tell what is wrong now and was at the last look."""
        now = self._now()
        self._tokens = min(BURST, self._tokens + (now - self._filled) * A_SECOND)
        self._filled = now
        wrong = {each.subject: each for each in self._troubles()}
        self._told = {subject: told for subject, told in self._told.items() if subject in wrong}
        self._turns = {where: self._turns[where] for where, *_ in wrong if where in self._turns}
        self._wrong = {where: self._wrong[where] for where in ("", *(at for at, *_ in wrong)) if where in self._wrong}
        news = [each for each in wrong.keys() & self._seen.keys() if self._is_news(wrong[each], now)]
        refusing: set[str] = set()
        for subject in self._in_turn(news):
            if self._tokens < 1 or "" in refusing:
                break
            if subject[0] in refusing:
                continue
            self._tokens -= 1  # one that is refused costs the API server as much
            self._turns[subject[0]] = next(self._count)
            refused = await self._tell(wrong[subject])
            if refused is not None:
                refusing.add(refused)
                continue
            self._told[subject] = _Told(wrong[subject].note, now)
        self._seen = {subject: self._seen.get(subject, now) for subject in wrong}

    def _in_turn(self, news: Iterable[Subject]) -> Iterator[Subject]:
        """Yield *news*: one of each namespace in turn, the one that was told of longest ago first."""
        waiting: dict[str, deque[Subject]] = {}
        for subject in sorted(news, key=lambda each: (self._since(each), each)):
            waiting.setdefault(subject[0], deque()).append(subject)
        order = deque(sorted(waiting, key=lambda where: (self._turns.get(where, 0), where)))
        while order:
            where = order.popleft()
            yield waiting[where].popleft()
            if waiting[where]:
                order.append(where)

    def _since(self, subject: Subject) -> float:
        told = self._told.get(subject)
        return told.when if told is not None else self._seen[subject]

    def _is_news(self, trouble: Trouble, now: float) -> bool:
        told = self._told.get(trouble.subject)
        if told is None:
            return True
        return now - told.when >= (AGAIN_SECONDS if told.note == trouble.note else REWORDED_SECONDS)

    async def _tell(self, trouble: Trouble) -> str | None:
        """Tell *trouble*. Return None: it is told, or never can be; else the namespace that takes no Event now, empty:
        none does.
        """
        namespace = trouble.namespace or "default"
        regarding = {"apiVersion": trouble.api_version, "kind": trouble.kind, "name": trouble.name}
        if trouble.namespace:
            regarding["namespace"] = trouble.namespace
        if trouble.uid:
            regarding["uid"] = trouble.uid
        document = {
            "apiVersion": f"{GROUP}/v1",
            "kind": "Event",
            "metadata": {"generateName": f"{trouble.name[:200].rstrip('-.')}-", "namespace": namespace},
            "regarding": regarding,
            "type": "Warning",
            "reason": trouble.reason,
            "action": "Read" if trouble.reason == "PolicyRefused" else "Capture",
            "note": trouble.note[:NOTE_MAX],
            "eventTime": self._today().isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "reportingController": CONTROLLER,
            "reportingInstance": self._node[:128],
        }
        try:
            await self._client.post(f"/apis/{GROUP}/v1/namespaces/{namespace}/events", document)
        except ApiError as error:
            return self._failed(trouble, error)
        self._wrong.pop("", None)
        self._wrong.pop(trouble.namespace, None)
        return None

    def _failed(self, trouble: Trouble, error: ApiError) -> str | None:
        text = str(error)
        if error.status == 403 and TERMINATING in text:
            return None
        if error.status in (404, 422):  # its namespace is going, or this one is not taken: the others are
            return None
        lacking = error.status == 403 and NOT_ALLOWED in text
        where = "" if lacking or error.status in EVERYWHERE or error.status >= 500 else trouble.namespace
        if self._wrong.get(where) != error.status:
            hint = f"; the agent's ClusterRole wants {RULE}" if lacking else ""
            log.warning("Events cannot be told%s: %s%s", f" in namespace {where}" if where else "", text, hint)
        self._wrong[where] = error.status
        return where


def of_pods(rows: Iterable[Row]) -> Iterable[Trouble]:
    """Yield what is wrong with pods, by their *rows* as ``nodeagent get pods`` has them."""
    for row in rows:
        faults = row.get("faults")
        if not isinstance(faults, list) or not faults:
            continue
        reason: Reason = "AnnotationRefused"
        if row.get("state") == "pending":
            reason = "NoCertificate"
        elif row.get("state") in ("failed", "faulty", "undecided"):
            reason = "NotCaptured"
        namespace, name, uid = (str(row.get(field, "")) for field in ("namespace", "pod", "uid"))
        yield Trouble("v1", "Pod", namespace, name, uid, reason, "; ".join(map(str, faults)))
