"""Policy as pure decisions: compiled when configuration changes, evaluated without I/O.

``model.py`` is what Istio's resources say; ``authorization.py`` and its three companions,
``jwt.py`` and ``rate_limit.py`` are what is compiled from that. The same code decides in a
worker's guard, for the kernel path's verdicts (``mesh/kernel_plan.py``) and in ``nodeagent
explain``, so that they cannot disagree. A peer that proved no identity is, to every rule that does
not allow, also the pod whose address it has. ``header_names.py`` and ``substitutions.py`` are what
is configured of an HTTP authorizer's questions.
"""
