"""Certificates: where they come from, when they are renewed, who may have which.

One X.509-SVID a service account, TLS 1.3 both ways, ALPN ``istio-http/1.1`` or ``istio``
(``tls.py``). Between pods of one node there is no TLS: the kernel tells them apart (listener,
network namespace, pod), and metrics say ``kernel_attested``.

Certificates come from one source (``sources.py``): the built-in authority's directory
(``authority_directory.py``), an Istio CA (``istio_ca.py``), or a mount; what comes from outside
must pass a handshake with itself (``verify.py``). The store (``store.py``) decides when one is
renewed. ``serving.py`` holds the certificate of ``nodeagent ca`` and of the webhook.

Pods that ask get a socket with the SPIFFE Workload API (``workload_api.py``) and Envoy's SDS
(``sds.py``): who calls is known by the network namespace that the calling socket was made in (its
cookie) and the caller's cgroup (``peer.py``); pods that share the node's network cannot be told
apart and get no socket. What callers may cost is bounded: HTTP/2 frames by one allowance for all
connections of a pod (``grpc_socket.py``, ``allowance.py``).
"""
