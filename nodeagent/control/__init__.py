"""The control process: owns what needs privilege and what is slow, and never touches the bytes of a
pod's traffic.

It is the only one that enters network namespaces and writes BPF maps; of pods' bytes it reads only
bounded gRPC of those that ask for the Workload API. A change first reaches what is there already
(workers, kernel path, open connections), then new pods are captured; nothing waits for a
certificate. A part that fails is started again alone and named in readiness (``parts.py``).

It is made of concerns, which have one interface (``concern.py``) and know their neighbours by
Protocols only: ``workers.py`` speaks with workers, ``enrolment.py`` captures pods,
``start_gate.py`` lets the runtime make their containers then, in a thread of its own,
``certificates.py`` has their certificates issued, ``kernel_upkeep.py`` keeps the kernel's verdicts
up to date (``kernel_path.py`` makes them, tells its flows, counts them and closes what a new policy
refuses), ``pod_sockets.py`` places the Workload API in pods, ``key_sets.py`` has key sets fetched
(``jwks.py``; they are entries of the snapshot too), ``leftovers.py`` uses up what an earlier
control left, ``heartbeat.py`` begins and ends the data plane's, ``logs.py`` has the pods' logs
read: ``log_finder.py`` finds files (a look at a pod: ``log_scan.py``; ``log_watches.py`` says
when), ``log_opening.py`` opens them, ``log_collector.py`` hands them to the collector's process,
``log_metrics.py`` counts. ``source_reader.py`` brings all of them to a change,
``supervisor_link.py`` hears from the supervisor, ``late_counts.py`` tells who has the node what was
counted after a hand-over, ``in_force.py`` says which policies everybody has.
Pages over several concerns are modules of their own (``flows.py``, ``pods_page.py``,
``mesh_pages.py``, ``metrics_pages.py``, ``readiness.py``); ``admin.py`` serves what it is given.
``main.py`` composes: it starts concerns in order, and stops them in the reverse.
"""
