"""Where a pod runs on its node: its network namespace and its cgroup, by which it is captured and
known. The API server does not say so; who made the pod does.

``place.py`` is the interface. ``annotation.py``: the lab says it on the pod. ``cri.py``: the
container runtime says it (``runtime.py`` asks over CRI v1, ``sandbox.py`` looks at what is answered,
``cgroups.py`` knows where pods' cgroups are); imported where a cluster is, for it brings gRPC.
``bundles.py``: containerd's own folders say it, before anything of the pod is started. ``nri.py``:
the runtime says it, and waits with the pod's containers (``ttrpc.py`` reads and writes what it speaks).
``preflight.py`` is what ``nodeagent check`` tries of a runtime.
``log_folders.py`` knows where a pod's logs and volumes are.

Nothing here enters a namespace, and nothing that a runtime says is used unseen.
"""
