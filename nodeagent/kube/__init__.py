"""The cluster as Kubernetes' API says it is.

``access.py`` says where the API server is and who asks, ``client.py`` asks it, ``pages.py`` reads
lists, ``watch.py`` follows one kind of its objects (pods, of which a cluster has so many, are
listed in protobuf: ``pod_messages.py``); ``source.py`` makes a source of resources of all that
matter (``lean.py``: of pods of other nodes no more than what leads to them), and ``snapshot.py``
keeps that on disk for a start while the API server is away. ``node_status.py`` tells the other
nodes which pods take mTLS, ``events.py`` people what went wrong; ``taint.py`` lets the scheduler
use the node.

Nothing here decides about traffic, and nothing that the API server says may end a process.
"""
