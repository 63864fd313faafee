"""The classic sidecar: the same proxy as one process in each pod, and the iptables rules that lead
the pod's traffic to it.

It may use ``proxy``, ``mesh``, ``resources``, ``policy``, ``identity``, ``telemetry`` and of
``control`` only what fetches key sets; nothing of it needs BPF or a privilege, but for the rules.
"""
