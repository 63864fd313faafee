"""Kubernetes resources: typed and validated (``model``, ``load``), and followed as they change (``source``)."""
