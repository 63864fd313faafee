"""The control process: owns what needs privilege and what is slow, and never touches the bytes of
a pod's traffic.

It is the only one that enters network namespaces and writes BPF maps; of pods' bytes it reads only
bounded gRPC of those that ask for the Workload API. A change first reaches what is there already
(workers, kernel path, open connections), then new pods are captured; nothing waits for a
certificate. A part that fails is started again alone and named in readiness (``parts.py``).

``enrolment.py`` captures pods, ``workers.py`` speaks with workers, ``kernel_path.py`` keeps the
kernel's verdicts, tells its flows, counts them and closes what a new policy refuses,
``pod_sockets.py`` places the Workload API in pods, ``jwks.py`` fetches key sets behind a jwksUri
(they are entries of the snapshot too), ``in_force.py`` says which policies everybody has, and
``admin.py`` answers about all of it.
"""
