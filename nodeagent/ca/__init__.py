"""``nodeagent ca``: a certificate authority for nodes that do not share a directory, with Istio's
protocol (istio.v1.auth).

It gives a node's agent the identities of pods on that node only: of those with an account of their
own, never of a static pod's mirror, and only while the pod that the agent's token is bound to runs
there (``grants.py``, ``pods.py``).
"""
