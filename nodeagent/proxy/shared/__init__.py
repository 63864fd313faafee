"""Connections between two agents that carry many others: each as a stream of HTTP/2 (CONNECT, RFC
9113 section 8.5), so that a new one costs no handshake, and what one turn of the loop says on all
of them shares TLS records and system calls.

``link.py`` is such a connection as both sides have it, and says how it works; ``stream.py`` one
stream, which is a transport to whoever uses it; ``client.py`` the connections of one pool, and when
sharing helps; ``server.py`` the side that takes streams in; ``own.py`` what a stream runs on that no
shared connection took. Nothing here knows HTTP/1.1, policies or telemetry: what is inside a stream
is accepted, judged and counted as a connection of its own. It must never carry connections of two
identities over one, nor lead anywhere but to the address and port that the shared connection itself
asked for.
"""
