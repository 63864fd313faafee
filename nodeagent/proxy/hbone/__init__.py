"""HBONE, as the proxies of Istio's ambient mesh (ztunnel, waypoints) carry connections: each as a
stream of HTTP/2 (CONNECT, with the pod's address and port for its authority) over mTLS with ALPN
``h2`` to port 15008 of the pod.

``heads.py`` reads and makes the heads; ``stream.py`` is a stream that is answered when it is known
whether its connection may go on; ``server.py`` takes streams in; ``client.py`` opens them, on the
connections of a pair of pods, which ``tunnel.py`` keeps while they are used. What a stream is
otherwise, ``proxy/shared/`` says. It must never lead anywhere but to the pod whose certificate the
peer saw, nor believe what a peer says of itself in fields (``forwarded``, ``baggage``): who asks,
its certificate says, and whence, its address.
"""
