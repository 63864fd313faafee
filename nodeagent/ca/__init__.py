"""``nodeagent ca``: a certificate authority for nodes that do not share a directory, with Istio's
protocol (istio.v1.auth).

It gives a node's agent the identities of pods on that node only: of those with an account of their
own, never of a static pod's mirror, and only while the pod that the agent's token is bound to runs
there (``grants.py``). Who says so is either a folder with the cluster's state, its keys and its
tokens (``pods.py``, ``service_account.py``, ``tokens.py``) or a cluster's API server
(``cluster.py``), which then also keeps the authority, in a Secret (``secret.py``).
"""
