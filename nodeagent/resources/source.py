"""Where the cluster's state comes from, and where a node's agent tells what it has enrolled: two
interfaces, so that nobody else knows whether a folder or an API server is behind them.

An implementation may watch and list as it likes; what it must keep is what the contract's test
(``tests/unit/resources/test_source_contract.py``) asks of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from nodeagent.resources.changes import AnyChange, Refused
from nodeagent.vocabulary import PodUid


class Source(Protocol):
    """The cluster's objects, policies and marks of enrolment, and how they change."""

    async def changes(self) -> list[AnyChange]:
        """Wait for the next batch of changes and return it; for one caller at a time.

        The first batch, perhaps empty, is everything that is there. An object that is wrong takes
        no good one away: it is told by :meth:`refused`, and the last good one stays. A pod that now
        runs elsewhere on its node is told anew. After an error, or when it was cancelled, the next
        call begins to watch anew and returns what differs from what was returned before.

        Raises ConfigError when what was configured is not there, KernelError when it cannot be watched.
        """

    def refused(self) -> Sequence[Refused]:
        """Return the documents with policies that are wrong, and those that another place goes
        before, as they are after the last :meth:`changes`.
        """

    def unread_pods(self) -> Sequence[str]:
        """Return, in words, what may hold pods that are not known: while there is any, a pod that
        was captured before may still be there. Empty: all pods are known.
        """

    def close(self) -> None:
        """Stop watching; idempotent."""


class Marks(Protocol):
    """Where this node tells the others which of its pods take mTLS; they read it as EnrolledChange."""

    def publish(self, uid: PodUid, enrolled: bool) -> None:
        """Tell that the pod *uid* takes mTLS, or no more; never waits, idempotent, called again
        while the pod is there.

        Raises ResourceError when it cannot be told, and why: the pod's own, or what came back for
        an earlier call.
        """
