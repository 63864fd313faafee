"""``nodeagent compare``: the same workload without a mesh, with the agent and with classic
sidecars, in one run.

The way of a figure: ``manifests.py`` (the YAML that all modes run), ``labs.py`` (each mode in a
lab of its own), ``modes.py`` (what a way from client to server is), ``hops.py`` and ``meshes.py``
(the ways, and was their work done), ``run.py`` (rounds of cells, with ``load.py``), ``goals.py``
(ratios, round by round), ``summary.py`` (the JSON object), ``tables.py`` and ``page/``.
``scale.py`` and ``switches.py`` measure what needs labs of its own, ``logs/`` what needs none.
``openloop/`` puts load on a constant schedule, ``page/`` makes HTML from the JSON object,
``estimate/`` is pure but for reading its files.

In the lab's modes ``sidecar`` and ``envoy`` the agent captures nothing (``redirect.enroll:
false``) and gives out certificates only.
"""
