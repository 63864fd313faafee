"""``nodeagent webhook``: has Kubernetes' API server inject classic sidecars into pods as they are
made (admission.k8s.io/v1).

``review`` decides, without I/O; ``server`` is the HTTPS side, bounded against whoever connects;
``registration`` keeps the API server's trust in its certificate. It must never let a pod pass that
should have a sidecar, nor hold up one that should not.
"""
