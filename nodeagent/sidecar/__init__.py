"""The classic sidecar: the same proxy as one process in each pod, and the iptables rules that lead
the pod's traffic to it. It puts the worker's proxy, the mesh and the telemetry store into one
process.

It may use ``proxy``, ``mesh``, ``resources``, ``policy``, ``identity``, ``telemetry`` and of
``control`` only what fetches key sets; nothing of it needs BPF or a privilege, but for the rules.

``rules.py`` (pure) and ``iptables.py`` lead the traffic; ``pod.py`` asks SO_ORIGINAL_DST and makes
sockets in place of control's stock. Two pod states share the pod's uid: the inbound one dials from
127.0.0.6 or ::6, which the rules let through; the outbound one is the pod. ``secrets.py`` follows
SDS: every certificate must pass ``identity/verify.py``, and the last good one stays until it ends.
Only the own pod is local, so every other pod gets mTLS in place. At SIGTERM it is not ready,
answers with ``Connection: close``, serves on for ``--drain-seconds``, then exits 0.
"""
