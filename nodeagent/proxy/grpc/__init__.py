"""gRPC as facts of an exchange, whatever codec carries it: is it a call, how many messages went
each way, with which status it ended, and until when it may last.

A call (``call.py``) is made of a request's content-type. What passes in either direction is counted
by the prefixes of its messages (``messages.py``, gRPC-Web's in ``web.py``), of which nothing is
copied or kept. The proxy's own answers are statuses of gRPC in trailers-only form (``status.py``),
and ``grpc-timeout`` goes on shortened by what the call has taken (``timeout.py``). Nothing here
decides about a request, and nothing reads what a message says.

Sources: gRPC's PROTOCOL-HTTP2.md and PROTOCOL-WEB.md; Envoy's ``Grpc::Common``, ``Grpc::Utility``.
"""
