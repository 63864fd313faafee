"""May this peer open a connection to this workload? Facts in, a permit or the reason against it out.

Here the mTLS mode decides; what AuthorizationPolicies and their like say of a permitted connection
is ``proxy/guard.py``.
"""

from __future__ import annotations

from time import time

from nodeagent.errors import CERTIFICATE_ENDED, NO_ENDPOINTS, NOT_HBONE, PLAINTEXT_REFUSED
from nodeagent.istio import TUNNEL_PORT
from nodeagent.mesh.declared import open_at
from nodeagent.mesh.entries import Workload
from nodeagent.proxy.connection import Connection, Peer
from nodeagent.proxy.context import Context
from nodeagent.proxy.permit import OPEN, NotAdmitted, Permit


def admit(context: Context, connection: Connection) -> Permit | NotAdmitted:
    """Decide on *connection* at the server's side; a client's side asks nothing of its own pod."""
    if connection.unproved(time()):
        return NotAdmitted(CERTIFICATE_ENDED)
    if connection.direction == "outbound":
        return OPEN
    if connection.peer.security == "none" and is_hbone(context, connection):
        return NotAdmitted(NOT_HBONE)
    workload = context.view.workload(connection.pod.uid)
    if workload is None:
        return NotAdmitted(NO_ENDPOINTS)
    from_node = connection.peer.address in context.node_addresses
    return permitted(connection.peer, workload, connection.target.port, from_node=from_node)


def is_hbone(context: Context, connection: Connection) -> bool:
    """Say whether *connection* came to the port that is HBONE's, where a pod takes nothing else."""
    return connection.direction == "inbound" and connection.target.port == TUNNEL_PORT and context.settings.hbone


def permitted(peer: Peer, workload: Workload, port: int, *, from_node: bool) -> Permit | NotAdmitted:
    """Decide whether *peer* may open a connection to *port* of *workload*.

    STRICT takes only peers whose identity was proved, from the node itself the probes that the pod's
    spec declares, and from anybody GET of the metrics that the pod declares. Both pass policies too,
    as in Istio, where the agent in the pod asks the application in the asker's stead. Who proves an
    identity is judged by it, whatever is asked.
    """
    if peer.security != "none":
        return OPEN
    declared = open_at(workload, port, from_node=from_node)
    if workload.mtls_at(port) != "STRICT":
        return Permit(declared) if declared else OPEN
    return Permit(declared, only_probes=True) if declared else NotAdmitted(PLAINTEXT_REFUSED)
