"""What the log says of kinds that cannot be followed: an API server that answers nobody is one fault,
however many kinds are followed, and so is its return.
"""

from __future__ import annotations

import logging

log = logging.getLogger("nodeagent.kube")


class Outages:
    """Of one API server."""

    def __init__(self) -> None:
        self._away: dict[str, str] = {}
        """Kinds for which it does not answer, and why."""

    def failed(self, kind: str, why: str, status: int) -> None:
        """Following *kind* (its plural) does not work: *why*, with the *status* of HTTP, 0 where nobody answered."""
        known = bool(self._away)
        if status and status < 500:
            self._away.pop(kind, None)
            known = False
        else:
            self._away[kind] = why
        log.log(logging.DEBUG if known else logging.ERROR, "%s; what is known stays in force", why)

    def ended(self, kind: str) -> None:
        """*kind* is followed again."""
        if kind not in self._away:
            log.info("%s are followed again", kind)
            return
        del self._away[kind]
        if not self._away:
            log.info("the API server answers again: everything is followed")

    def warnings(self) -> list[str]:
        """Return, in words, that the API server is away; nothing: it is not."""
        why = next(iter(self._away.values()), "")
        return [f"the API server does not answer, and what is known stays in force: {why}"] if why else []
