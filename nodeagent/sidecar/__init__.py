"""The classic sidecar: the same proxy as one process in each pod, and the iptables rules that lead the pod's traffic to it.

It may use ``proxy``, ``mesh``, ``resources``, ``policy``, ``identity`` and ``telemetry``; nothing of it needs BPF, control or a privilege.
"""
