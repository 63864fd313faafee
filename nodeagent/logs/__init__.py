"""Logs of the node's pods: found, read, made into records and delivered, in place of a log shipper in
every pod.

::

    control ──descriptors──▶ tail ──Chunk──▶ process ──LogRecords──▶ delivery ──payloads──▶ sinks
    (finds files, knows pods)   ▲                                  │   ▲
                                │                                  ▼   │
                                └────── Receipt: settled ──────  buffer on disk

One process of the daemon, the *collector*, does all that is slow: disk, compression, sinks. It has
no privilege: control finds files (``nodeagent/control``), opens them beneath their pod's folder
without following a symlink, and hands over descriptors with what it knows of the pod.

**tail** (``tail/``) reads whole lines from every file in turn, so many bytes a file, pods before files.
Which file is which survives renaming, truncation and restarts. It reads no more from a file than
those behind it take.

**process** (``process/``) makes a chunk of a file into :class:`~nodeagent.logs.records.LogRecords`: lines of the
container runtime joined, several lines of one stack trace joined, parsed, redacted, counted. It is
pure: what it holds back between chunks is what it says is not covered yet.

**delivery** (``delivery/``) brings records to every sink they are routed to, several files' in one request,
again where a sink asks for it, and onto disk while a sink cannot keep pace. A sink (``sinks/``)
only knows how to encode records and what an answer says of each of them.

**Who composes it.** ``settings.py`` is section ``logs:`` of agent.yaml, ``pods.py`` what of a pod is read by
it and by the pod's annotations (``patterns.py``: paths below its volumes), ``sources.py`` what control
tells of that. ``collector.py`` is the process, ``priority.py`` its place behind the proxy. ``streams.py``
brings a file's chunks to the lanes of its sinks, as ``recipes.py`` makes of the settings, and
``journal_streams.py`` those of the journal, which are of many units;
``counting.py`` is what control's metrics have of it.

**Nothing is lost, and what comes twice is told.** A file's position advances over what every sink
has settled: delivered, in the buffer on disk, dropped by a rule or a bound that counts it, or in the
dead-letter file. A record's id comes from node, pod, container, file and offset: the same line has
the same id whenever it is sent.

It never touches traffic, and nothing of it may hold up a worker or the heartbeat.
"""
