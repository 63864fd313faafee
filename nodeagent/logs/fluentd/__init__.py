"""A Fluentd configuration (``fluent.conf``, its v1 format) made into the ``logs:`` section of agent.yaml, and a
pod with a Fluentd sidecar into the same pod without it.

``syntax.py`` reads the text into sections and values with their lines. ``values.py`` is what Fluentd's
values mean: environment, sizes, times, regular expressions. ``tags.py`` is its routing: which outputs the
events of a source come to. ``inputs.py`` makes files and parsers of a ``<source>``, ``outputs.py`` a sink of
a ``<match>``, ``filters.py`` rules of a ``<filter>``, ``parameters.py`` says what becomes of all their other
parameters, ``convert.py`` makes the whole; ``pods.py`` finds Fluentd in a pod's manifest, and its
environment and volumes with it, and ``merge.py`` makes one section of several pods'.

``positions.py`` reads how far Fluentd has read, for the daemon that takes over from it on a node.

All but that is pure. What cannot be taken is named with its line
(:class:`~nodeagent.logs.fluentd.syntax.ImportNote`) and never guessed; a secret is never repeated, it is to be
put into a file that is named.
"""
