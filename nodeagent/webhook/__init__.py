"""``nodeagent webhook``: has Kubernetes' API server inject classic sidecars into pods as they are
made (admission.k8s.io/v1).

``review.py`` decides without I/O: an AdmissionReview in, a patch out. ``server.py`` is the HTTPS
side, and accepts connections itself, because aiohttp bounds neither their number nor the time of
handshakes. ``registration.py`` keeps the caBundle equal to the authority's roots; ``own_image.py``
says with which image pods begin; ``main.py`` composes.

It must never let a pod pass that should have a sidecar, nor hold up one that should not. It never
reads namespaces: the registration's selectors are evaluated by the API server, and the path of the
request says which of Istio's four webhooks matched.
"""
