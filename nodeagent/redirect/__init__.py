"""Capture: BPF programs, their maps and links, and the sockets inside pods. ``DataPlane``
(``plane.py``) is control's way in, ``OriginalDestinations`` (``original.py``) a worker's.

Nothing here holds a program in memory: ``loader.py`` takes what BCC compiled ahead
(``precompiled.py``), or compiles, in a process of its own, pins everything in bpffs and ends; the
daemon works on the pins. What the programs do is told in ``bpf/README.md``; ``layout.py`` mirrors
their structs. ``repair.py`` brings an enrolled pod to what it must have, ``glance.py`` finds for
which of all a look at each is due, ``remnants.py`` removes
what is left of pods that are gone, ``left_alone.py`` knows those outside of the mesh;
``ownership.py`` tells a daemon that another one has taken its place. ``preflight.py`` is what
``nodeagent check`` tries, with the rights that ``rights.py`` lists, and beside the programs that
``others.py`` finds.

**The kernel path.** Where nothing is decided or noted per request and both ends are captured pods
of the node, no proxy stands in the way: ``kernel_maps.py`` writes the verdicts that
``mesh/kernel_plan.py`` worked out, and the connect and sk_lookup programs decide. Verdicts are per
client pod, server pod and port, because policies select workloads, not identities; a port that
every captured pod may reach needs one entry. What it carried is told by ``kernel_record.py``
(flows: open ones, each pod's last ones that ended, and refusals) and counted from sockops and
sock_diag (TCP, ``kernel_counts.py``) and a cgroup_skb program (``http_metrics.py``).

**The bypass** (``bypass.py``) joins sockets past TCP, on the kernel path and on the proxy's, where
no application could tell: ``transparency.py`` tries that at the start. Workers need not know.
"""
