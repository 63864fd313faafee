"""What the proxy says on its own account: the answer to a request that it refuses."""

from __future__ import annotations

from nodeagent.errors import Reason
from nodeagent.proxy.http.fields import Field


def refusal(method: bytes, reason: Reason) -> tuple[int, list[Field], bytes]:
    """Return status, fields and body of the answer to a request by *method* that says why it is
    refused: flag, likely cause and next step, or what an authorizer or a policy wants said.
    """
    body = reason.body
    if body is None:
        body = f"{reason.code} ({reason.flag}): {reason.hint}\n".encode()
    # RFC 9110 sections 15.3.5, 15.4.5: what follows would be taken for the next answer
    bodiless = reason.status in (204, 304)
    own = () if bodiless else (("content-type", "text/plain"), ("content-length", str(len(body))))
    given = frozenset([name for name, _ in reason.headers])
    texts = [*[field for field in (*own, ("server", "nodeagent")) if field[0] not in given], *reason.headers]
    fields = [(name.encode("latin-1", "replace"), value.encode("latin-1", "replace")) for name, value in texts]
    return reason.status, fields, b"" if bodiless or method == b"HEAD" else body
